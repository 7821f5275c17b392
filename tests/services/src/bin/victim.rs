//! A service that fails in the way that it is asked for.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "crimes are what safe code cannot commit")]

use core::arch::asm;
use core::hint::black_box;

use ipc::message::{Caller, Message, MessagePage, Refused};
use rt::capability::Endpoint;
use rt::membership::{self, Membership};
use rt::serve::{Service, serve};
use rt::start::Start;
use test_services::crime::Crime;
use test_services::victim::{INTERFACE, Server, dispatch};

rt::entry!(main);

fn main(start: &'static Start<'static>) -> ! {
    serve(&mut Victim {
        membership: membership::own(env!("CARGO_PKG_VERSION"), Some(INTERFACE)),
        calls: 0,
        starts: count_start(start),
    })
}

/// Counts this start in the region that a restart keeps.
fn count_start(start: &Start<'_>) -> u64 {
    let Ok(region) = start.region("kept") else { return 0 };
    let mut bytes = [0; 8];
    if region.read(0, &mut bytes).is_none() {
        panic!("the kept region is too small");
    }
    let starts = u64::from_le_bytes(bytes) + 1;
    if region.write(0, &starts.to_le_bytes()).is_none() {
        panic!("the kept region is too small");
    }
    starts
}

struct Victim {
    membership: Membership<Endpoint>,
    calls: u64,
    starts: u64,
}

impl Server for Victim {
    fn commit(&mut self, _: Caller, number: u64) -> Result<u64, Refused> {
        let crime = Crime::from_number(number).ok_or(Refused)?;
        defmt::info!("about to commit crime {=u64}", number);
        commit(crime);
        // Only what the kernel failed to stop gets here.
        Ok(number)
    }

    fn counts(&mut self, _: Caller) -> Result<[u64; 2], Refused> {
        self.calls += 1;
        Ok([self.calls, self.starts])
    }
}

impl Service for Victim {
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message {
        dispatch(self, caller, message, page)
    }

    fn deadline(&self) -> u64 {
        self.membership.due()
    }

    fn deadline_passed(&mut self, now: u64) {
        membership::keep(&mut self.membership, now);
    }
}

/// A constant for [`Crime::WriteConstant`].
static CONSTANT: [u64; 4] = [1, 2, 3, 4];
/// Bytes of a `ret` for [`Crime::RunData`].
static mut DATA: [u8; 16] = [0xc3; 16];

#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == u64::MAX {
        return 0;
    }
    overflow(depth + 1) + frame[usize::try_from(depth % 64).unwrap_or(0)]
}

fn read(address: u64) {
    // SAFETY: none: this is the crime; the kernel must stop it.
    unsafe { asm!("mov {0}, [{0}]", inout(reg) address => _) };
}

fn write(address: u64) {
    // SAFETY: none: this is the crime; the kernel must stop it.
    unsafe { asm!("mov qword ptr [{0}], 7", in(reg) address) };
}

/// Runs instructions that fault.
macro_rules! run {
    ($($code:tt)*) => {
        // SAFETY: none: this is the crime; the kernel must stop it.
        unsafe { asm!($($code)*) }
    };
}

fn commit(crime: Crime) {
    match crime {
        Crime::Panic => panic!("as it was told"),
        Crime::NullRead => read(0),
        Crime::NullWrite => write(0),
        Crime::KernelRead => read(0xffff_ffff_8010_0000),
        Crime::KernelWrite => write(0xffff_8000_0010_0000),
        Crime::WriteConstant => write((&raw const CONSTANT).expose_provenance() as u64),
        Crime::WriteCode => write(commit as *const () as usize as u64),
        Crime::RunData => run!("jmp {}", in(reg) (&raw const DATA).expose_provenance()),
        Crime::Loop => loop {
            core::hint::spin_loop();
        },
        Crime::Overflow => {
            black_box(overflow(black_box(0)));
        }
        Crime::Halt => run!("hlt"),
        Crime::DisableInterrupts => run!("cli"),
        Crime::Port => run!("in al, dx", in("dx") 0x60u16, out("al") _),
        Crime::ModelRegister => run!("rdmsr", in("ecx") 0xc000_0080u32, out("eax") _, out("edx") _),
        Crime::Divide => run!("div {0:r}", in(reg) 0u64, inout("rax") 1u64 => _, inout("rdx") 0u64 => _),
        Crime::InvalidOpcode => run!("ud2"),
        Crime::Breakpoint => run!("int3"),
        Crime::NonCanonical => run!("jmp {}", in(reg) 0x8000_0000_0000_0000u64),
        Crime::Misaligned => run!("movaps xmm0, [{0} + 8]", in(reg) (&raw const CONSTANT_16), out("xmm0") _),
        Crime::FloatingPoint => {
            let all_unmasked = 0x0340u16;
            run!(
                "fninit",
                "fldcw [{0}]",
                "fld1",
                "fldz",
                "fdivp",
                "fwait",
                in(reg) &raw const all_unmasked,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            );
        }
        Crime::SoftwareInterrupt => run!("int 0xf0"),
        Crime::SingleStep => run!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop"),
        Crime::WriteStartPage => write(ipc::abi::START_PAGE),
        Crime::Exit => rt::syscall::exit_thread(3),
        Crime::Silence => loop {
            rt::sleep(core::time::Duration::from_millis(1));
        },
    }
}

/// For [`Crime::Misaligned`].
#[repr(align(16))]
struct Aligned(#[expect(dead_code, reason = "only its address is used")] [u64; 4]);
static CONSTANT_16: Aligned = Aligned([5, 6, 7, 8]);
