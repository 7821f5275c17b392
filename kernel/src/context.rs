//! What the processor holds for a thread and the kernel keeps while the thread does not run.

use core::mem::offset_of;

use ipc::abi::UserRegisters;

/// How a thread goes back to ring 3 or guest mode.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u64)]
pub enum Return {
    /// By `SYSRET`: it is in a system call, so `rcx`, `r11` and the SSE registers are dead.
    #[default]
    Syscall = 0,
    /// By `IRET`, with every register and the FPU as they were: it was interrupted, or starts.
    Full = 1,
    /// By `VMRUN`: it is a vCPU.
    Guest = 3,
}

/// The FPU and SSE state in FXSAVE's format (AMD APM 2, 11.4.4). Services are built for the x86-64 baseline and
/// OSXSAVE is off in ring 3, so this is all there is.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct FpuState(pub [u8; 512]);

impl FpuState {
    /// The state that the System V ABI asks for at a thread's start: FCW 0x37f, MXCSR 0x1f80.
    pub const INITIAL: Self = {
        let mut bytes = [0; 512];
        bytes[0] = 0x7f;
        bytes[1] = 0x03;
        bytes[24] = 0x80;
        bytes[25] = 0x1f;
        Self(bytes)
    };
}

/// A thread's processor state. The entry code of `hw` knows these offsets.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct UserContext {
    /// General registers, RIP and RFLAGS; a vCPU's are in its state page instead.
    pub registers: UserRegisters,
    /// How it goes on.
    pub resume: Return,
    /// Physical address of the block that `VMRUN` takes, for a vCPU. That block has its RAX, RSP, RIP and RFLAGS.
    pub control_block: u64,
    /// Physical address of its state page, which begins with its other registers, for a vCPU.
    pub state_page: u64,
    /// FPU state; what it says does not count with [`Return::Syscall`].
    pub fpu: FpuState,
}

/// Offset of [`UserContext::resume`].
pub const RESUME_OFFSET: usize = offset_of!(UserContext, resume);
/// Offset of [`UserContext::control_block`].
pub const CONTROL_BLOCK_OFFSET: usize = offset_of!(UserContext, control_block);
/// Offset of [`UserContext::state_page`].
pub const STATE_PAGE_OFFSET: usize = offset_of!(UserContext, state_page);
/// Offset of [`UserContext::fpu`].
pub const FPU_OFFSET: usize = offset_of!(UserContext, fpu);

const _: () = assert!(offset_of!(UserContext, registers) == 0);

impl UserContext {
    /// A thread that starts at `entry` with two arguments on the stack that ends at `stack_top`.
    #[must_use]
    pub const fn at_entry(entry: u64, stack_top: u64, arguments: [u64; 2]) -> Self {
        let registers = UserRegisters {
            rip: entry,
            // As after a `call`: the ABI wants RSP + 8 to be a multiple of 16 at a function's entry.
            rsp: stack_top - 8,
            rdi: arguments[0],
            rsi: arguments[1],
            rflags: RFLAGS_USER,
            ..UserRegisters::ZERO
        };
        Self { registers, resume: Return::Full, control_block: 0, state_page: 0, fpu: FpuState::INITIAL }
    }
}

/// What else of a vCPU's a core holds and `VMRUN` does not switch.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Extended {
    /// XSAVE's standard format (AMD APM 2, 11.5.8); only the components beyond x87 and SSE count.
    pub area: [u8; EXTENDED_BYTES],
    /// The extended control register 0.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub breakpoints: [u64; 4],
}

/// Bytes of an XSAVE area with AVX-512 and protection keys.
pub const EXTENDED_BYTES: usize = 2752;

impl Extended {
    /// As after a reset.
    pub const INITIAL: Self = Self { area: [0; EXTENDED_BYTES], xcr0: 1, breakpoints: [0; 4] };
}

/// RFLAGS in ring 3: bit 1, which is always set, and IF.
pub const RFLAGS_USER: u64 = 0x202;
