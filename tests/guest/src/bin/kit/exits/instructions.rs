//! Instructions that a user program must not have, and how they must end.
#![expect(unsafe_code, reason = "the instructions themselves")]

use anyhow::{Result, ensure};

use crate::sys::fault;

const UD: &[i32] = &[libc::SIGILL];
const GP: &[i32] = &[libc::SIGSEGV];
/// An instruction that not every processor has.
const UD_OR_GP: &[i32] = &[libc::SIGILL, libc::SIGSEGV];
const TRAP: &[i32] = &[libc::SIGTRAP];
/// Not every emulator has it.
const UD_OR_TRAP: &[i32] = &[libc::SIGILL, libc::SIGTRAP];

/// What happened: the signal, or 0, and RAX.
type Ended = (u64, u64);

struct Instruction {
    name: &'static str,
    run: fn() -> Ended,
    /// The signals in which it may end.
    signals: &'static [i32],
}

macro_rules! table {
    ($($name:literal $signals:ident: $($code:literal),+;)+) => {
        &[$(Instruction {
            name: $name,
            signals: $signals,
            run: || {
                let mut rax = 0u64;
                // SAFETY: a fault is caught. Should it not come, the registers are declared and the addresses zero.
                let signal = unsafe {
                    fault::attempt!($($code),+;
                        inout("rax") rax, inout("rcx") 0u64 => _, inout("rdx") 0u64 => _)
                };
                (signal, rax)
            },
        }),+]
    };
}

// Exceptions: AMD APM 3 (each instruction's table) and Intel SDM 2. SVM's instructions are undefined while EFER.SVME is 0;
// a guest whose kernel has it on sees a general protection instead, since it is not in ring 0.
const TABLE: &[Instruction] = table! {
    "vmrun" UD_OR_GP: "vmrun";
    "vmload" UD_OR_GP: "vmload";
    "vmsave" UD_OR_GP: "vmsave";
    "stgi" UD_OR_GP: "stgi";
    "clgi" UD_OR_GP: "clgi";
    "skinit" UD_OR_GP: "skinit eax";
    "invlpga" UD_OR_GP: "invlpga";
    "vmlaunch" UD_OR_GP: "vmlaunch";
    "vmresume" UD_OR_GP: "vmresume";
    "vmxoff" UD_OR_GP: "vmxoff";
    "vmread" UD_OR_GP: "vmread rax, rcx";
    "vmwrite" UD_OR_GP: "vmwrite rax, rcx";
    "vmfunc" UD: "vmfunc";
    "getsec" UD_OR_GP: "getsec";
    "encls" UD_OR_GP: ".byte 0x0f, 0x01, 0xcf";
    "rsm" UD: "rsm";
    "monitor" UD: "monitor";
    "mwait" UD: "mwait";
    "ud2" UD: "ud2";
    "ud1" UD: "ud1 eax, eax";
    "hlt" GP: "hlt";
    "rdmsr" GP: "rdmsr";
    "wrmsr" GP: "wrmsr";
    "rdpmc" GP: "rdpmc";
    "xsetbv" UD_OR_GP: "xsetbv";
    "xgetbv 5" UD_OR_GP: "mov ecx, 5", "xgetbv";
    "invd" GP: "invd";
    "wbinvd" GP: "wbinvd";
    "invlpg" GP: "invlpg [rcx]";
    "invpcid" UD_OR_GP: "invpcid rcx, xmmword ptr [rsp]";
    "mov from cr0" GP: "mov rax, cr0";
    "mov from cr3" GP: "mov rax, cr3";
    "mov from cr8" GP: "mov rax, cr8";
    "mov to cr0" GP: "mov cr0, rax";
    "mov to cr4" GP: "mov cr4, rax";
    "mov from cr1" UD_OR_GP: ".byte 0x0f, 0x20, 0xc8";
    "mov from dr7" GP: "mov rax, dr7";
    "mov to dr0" GP: "mov dr0, rax";
    "clts" GP: "clts";
    "lmsw" GP: "lmsw ax";
    "lgdt" GP: "lgdt [rsp]";
    "lidt" GP: "lidt [rsp]";
    "lldt" GP: "lldt ax";
    "ltr" GP: "ltr ax";
    "swapgs" GP: "swapgs";
    "sysret" GP: "sysretq";
    "sysexit" UD_OR_GP: "sysexitq";
    "cli" GP: "cli";
    "sti" GP: "sti";
    "in" GP: "in al, 0x80";
    "out" GP: "out 0x80, al";
    "insb" GP: "insb";
    "outsb" GP: "outsb";
    "int 0x81" GP: "int 0x81";
    "int3" TRAP: "int3";
    "icebp" UD_OR_TRAP: ".byte 0xf1";
    "too long" GP: ".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90";
};

pub fn run() -> Result<String> {
    let mut wrong = Vec::new();
    for instruction in TABLE {
        let (signal, rax) = (instruction.run)();
        if instruction.signals.iter().all(|&wanted| wanted as u64 != signal) {
            wrong.push(format!(
                "{} in signal {signal} with RAX {rax:#x}, not {:?}",
                instruction.name, instruction.signals
            ));
        }
    }
    ensure!(wrong.is_empty(), "ended wrongly: {}", wrong.join("; "));
    hypercalls()?;
    Ok(TABLE.len().to_string())
}

/// What KVM answers to a hypercall from outside ring 0 (-KVM_EPERM, `include/uapi/linux/kvm_para.h`).
const NOT_PERMITTED: u64 = 1u64.wrapping_neg();

/// A monitor that takes hypercalls refuses them to programs; to one that takes none, and with the instruction of the other
/// maker's processors, they are undefined. (KVM on AMD tries to replace VMCALL, and faults on a program's code.) KVM's
/// call 9, which has the monitor write memory, is not among them.
fn hypercalls() -> Result<()> {
    for number in [0u64, 1, 5, 10, 11, 12, 1000, !0] {
        let (mut by_amd, mut by_intel) = (number, number);
        // SAFETY: a fault is caught; a monitor that obeys changes no memory for these numbers.
        let amd = unsafe {
            fault::attempt!("vmmcall";
                inout("rax") by_amd, inout("rcx") 0u64 => _, inout("rdx") 0u64 => _, inout("rsi") 0u64 => _)
        };
        // SAFETY: as above.
        let intel = unsafe {
            fault::attempt!("vmcall";
                inout("rax") by_intel, inout("rcx") 0u64 => _, inout("rdx") 0u64 => _, inout("rsi") 0u64 => _)
        };
        for (name, signals, signal, answer) in
            [("VMMCALL", UD, amd, by_amd), ("VMCALL", UD_OR_GP, intel, by_intel)]
        {
            let undefined = signals.iter().any(|&wanted| wanted as u64 == signal);
            ensure!(
                undefined || (signal == 0 && answer == NOT_PERMITTED),
                "{name} {number:#x} from a program ended in signal {signal} and answered {answer:#x}"
            );
        }
    }
    Ok(())
}
