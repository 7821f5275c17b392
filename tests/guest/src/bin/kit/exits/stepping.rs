//! Single steps: the trap flag traps after every instruction, also after one that the monitor emulates.
#![expect(unsafe_code, reason = "a handler's context, and inline assembly")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Result, ensure};

use crate::sys::{fault, signal};

/// Where the steps led.
static PLACES: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static STEPS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn step(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: Linux passes the context of what was interrupted, which is the handler's alone.
    let registers = unsafe { &(*context).uc_mcontext.gregs };
    let place = registers[libc::REG_RIP as usize].cast_unsigned();
    if let Some(entry) = PLACES.get(STEPS.fetch_add(1, Ordering::Relaxed)) {
        entry.store(place, Ordering::Relaxed);
    }
}

/// Steps over plain instructions and CPUID, and sees where each step ended.
pub fn run() -> Result<String> {
    signal::handle(libc::SIGTRAP, step, 0)?;
    STEPS.store(0, Ordering::Relaxed);
    let (l1, l2, l3, l4, l5, l6): (u64, u64, u64, u64, u64, u64);
    // SAFETY: TF is set by POPFQ and cleared by the next one; pushes and pops are balanced and leave the red zone alone;
    // RBX is exchanged around CPUID.
    unsafe {
        asm!(
            "lea {l1}, [rip + 21f]", "lea {l2}, [rip + 22f]", "lea {l3}, [rip + 23f]",
            "lea {l4}, [rip + 24f]", "lea {l5}, [rip + 25f]", "lea {l6}, [rip + 26f]",
            "mov r9, rbx",
            "lea rsp, [rsp - 128]",
            "pushfq",
            "pushfq",
            "or dword ptr [rsp], 0x100",
            "xor eax, eax",
            "xor ecx, ecx",
            "popfq",
            "nop",
            "21: cpuid",
            "22: nop",
            "23: mov eax, 0x40000000",
            "24: cpuid",
            "25: popfq",
            "26: lea rsp, [rsp + 128]",
            "mov rbx, r9",
            l1 = out(reg) l1, l2 = out(reg) l2, l3 = out(reg) l3,
            l4 = out(reg) l4, l5 = out(reg) l5, l6 = out(reg) l6,
            out("rax") _, out("rcx") _, out("rdx") _, out("r9") _,
        );
    }
    let labels = [l1, l2, l3, l4, l5, l6];
    fault::catch()?;
    let steps = STEPS.load(Ordering::Relaxed);
    let places: Vec<_> = PLACES.iter().take(steps).map(|place| place.load(Ordering::Relaxed)).collect();
    ensure!(places == labels, "steps led to {places:x?}, not to {labels:x?}");
    Ok(steps.to_string())
}
