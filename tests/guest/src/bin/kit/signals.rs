//! Registers of the floating-point unit survive preemption, signals and system calls, and `sigreturn` restores everything.
#![expect(unsafe_code, reason = "registers in inline assembly")]

mod fpu;

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;
use std::thread;

use anyhow::{Result, anyhow, ensure};
use guest_kit::random::Random;

use crate::options::Options;
use crate::sys::map::{Map, Sharing};
use crate::sys::signal::{self, Handler};
use crate::sys::timer::{self, SignalTimer};
use crate::sys::{cpu, fault};

/// Threads on each processor, so that each is preempted by another with other registers.
const THREADS_PER_CPU: usize = 3;
/// Nanoseconds between the signals to each thread.
const SIGNAL_PERIOD: u64 = 1_000_000;
/// Microseconds between the signals to the process.
const ALARM_PERIOD: u32 = 3_000;

/// Signals handled, and those whose handler did not find the floating-point unit as Linux must start one.
static HANDLED: AtomicU64 = AtomicU64::new(0);
static STRANGE: AtomicU64 = AtomicU64::new(0);

pub fn run(options: &Options) -> Result<String> {
    let cpus = cpu::cpus()?;
    let holds = options.iterations(150);
    let handler: Handler = if cpu::has_avx() { spoil_avx } else { spoil_sse };
    signal::handle(libc::SIGRTMIN(), handler, 0)?;
    signal::handle(libc::SIGALRM, handler, 0)?;
    timer::set_alarm(ALARM_PERIOD)?;
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus.len() * THREADS_PER_CPU)
            .map(|number| {
                let cpu = cpus[number % cpus.len()];
                let mut random = Random::new(options.seed.wrapping_add(number as u64));
                scope.spawn(move || {
                    cpu::pin(cpu)?;
                    let _timer = SignalTimer::start(libc::SIGRTMIN(), SIGNAL_PERIOD)?;
                    (0..holds).try_for_each(|_| fpu::hold(&mut random))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
            .collect()
    });
    timer::set_alarm(0)?;
    results.into_iter().collect::<Result<()>>()?;
    let (handled, strange) = (HANDLED.load(Ordering::Relaxed), STRANGE.load(Ordering::Relaxed));
    ensure!(
        strange == 0,
        "{strange} of {handled} handlers began with a control word of the interrupted code"
    );
    ensure!(handled > 0, "no signal arrived");

    let returns = options.scaled(1_000);
    nested()?;
    general_registers(&mut Random::new(options.seed), returns)?;
    Ok(format!(
        "cpus={} threads={} holds={holds} avx={} signals={handled} returns={returns}",
        cpus.len(),
        cpus.len() * THREADS_PER_CPU,
        u8::from(cpu::has_avx())
    ))
}

/// A handler that finds the unit in its initial state (`fpu__clear_user_states` of Linux) and leaves it in none that the
/// interrupted code may see.
macro_rules! spoil {
    ($name:ident, $($fill:literal),+) => {
        #[unsafe(naked)]
        extern "C" fn $name(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
            naked_asm!(
                "lock inc qword ptr [rip + {handled}]",
                "stmxcsr [rsp - 8]",
                "cmp dword ptr [rsp - 8], {mxcsr}",
                "jne 2f",
                "fnstcw [rsp - 8]",
                "cmp word ptr [rsp - 8], {control}",
                "je 3f",
                "2: lock inc qword ptr [rip + {strange}]",
                "3: fninit",
                "fldpi", "fldpi", "fldpi", "fldpi", "fldpi", "fldpi", "fldpi", "fldpi",
                "mov word ptr [rsp - 8], 0x07ff",       // rounding down, all masked
                "fldcw [rsp - 8]",
                "mov dword ptr [rsp - 8], 0xffbf",      // flushing to zero, all flags, all masked
                "ldmxcsr [rsp - 8]",
                $($fill,)+
                "ret",
                handled = sym HANDLED,
                strange = sym STRANGE,
                mxcsr = const fpu::MXCSR_INITIAL,
                control = const fpu::CONTROL_INITIAL,
            )
        }
    };
}

spoil!(
    spoil_sse,
    "pcmpeqd xmm0, xmm0",
    "pcmpeqd xmm1, xmm1",
    "pcmpeqd xmm2, xmm2",
    "pcmpeqd xmm3, xmm3",
    "pcmpeqd xmm4, xmm4",
    "pcmpeqd xmm5, xmm5",
    "pcmpeqd xmm6, xmm6",
    "pcmpeqd xmm7, xmm7",
    "pcmpeqd xmm8, xmm8",
    "pcmpeqd xmm9, xmm9",
    "pcmpeqd xmm10, xmm10",
    "pcmpeqd xmm11, xmm11",
    "pcmpeqd xmm12, xmm12",
    "pcmpeqd xmm13, xmm13",
    "pcmpeqd xmm14, xmm14",
    "pcmpeqd xmm15, xmm15"
);

// Predicate 15 is 'true': all ones.
spoil!(
    spoil_avx,
    "vcmpps ymm0, ymm0, ymm0, 15",
    "vcmpps ymm1, ymm0, ymm0, 15",
    "vcmpps ymm2, ymm0, ymm0, 15",
    "vcmpps ymm3, ymm0, ymm0, 15",
    "vcmpps ymm4, ymm0, ymm0, 15",
    "vcmpps ymm5, ymm0, ymm0, 15",
    "vcmpps ymm6, ymm0, ymm0, 15",
    "vcmpps ymm7, ymm0, ymm0, 15",
    "vcmpps ymm8, ymm0, ymm0, 15",
    "vcmpps ymm9, ymm0, ymm0, 15",
    "vcmpps ymm10, ymm0, ymm0, 15",
    "vcmpps ymm11, ymm0, ymm0, 15",
    "vcmpps ymm12, ymm0, ymm0, 15",
    "vcmpps ymm13, ymm0, ymm0, 15",
    "vcmpps ymm14, ymm0, ymm0, 15",
    "vcmpps ymm15, ymm0, ymm0, 15"
);

/// How deep the nested handlers still have to go, and how many ran on the alternate stack.
static DEPTH: AtomicU64 = AtomicU64::new(0);
static ON_STACK: AtomicU64 = AtomicU64::new(0);
static STACK: OnceLock<Map> = OnceLock::new();
const DEEPEST: u64 = 16;

extern "C" fn nest(number: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let here = &raw const number as usize;
    if let Some(stack) = STACK.get()
        && (stack.start() as usize..stack.start() as usize + stack.bytes()).contains(&here)
    {
        ON_STACK.fetch_add(1, Ordering::Relaxed);
    }
    if DEPTH.fetch_sub(1, Ordering::Relaxed) > 1 && signal::raise(number).is_err() {
        ON_STACK.store(0, Ordering::Relaxed);
    }
}

/// Handlers that are interrupted by the same signal, on an alternate stack.
fn nested() -> Result<()> {
    if STACK.get().is_none() {
        // Each frame holds the whole floating-point state: up to 11 KiB with AVX-512 and AMX.
        let map = Map::anonymous(512 << 10, Sharing::Private)?;
        signal::set_alternate_stack(STACK.get_or_init(|| map))?;
    }
    signal::handle(libc::SIGUSR1, nest, libc::SA_NODEFER)?;
    DEPTH.store(DEEPEST, Ordering::Relaxed);
    signal::raise(libc::SIGUSR1)?;
    let (left, on_stack) = (DEPTH.load(Ordering::Relaxed), ON_STACK.load(Ordering::Relaxed));
    ensure!(
        (left, on_stack) == (0, DEEPEST),
        "nested handlers: {left} missing, {on_stack} on the alternate stack"
    );
    Ok(())
}

/// An illegal instruction whose handler changes where to go on, and no other register.
fn general_registers(random: &mut Random, returns: u64) -> Result<()> {
    fault::catch()?;
    for turn in 0..returns {
        let before: [u64; 8] = core::array::from_fn(|_| random.number());
        let mut after = before;
        let [a, c, d, s, t, e, n, w] = &mut after;
        // SAFETY: the instruction faults and does nothing; the registers are declared.
        let number = unsafe {
            fault::attempt!("ud2";
                inout("rax") *a, inout("rcx") *c, inout("rdx") *d, inout("rsi") *s,
                inout("rdi") *t, inout("r8") *e, inout("r9") *n, inout("r10") *w)
        };
        ensure!(number == libc::SIGILL as u64, "UD2 ended in signal {number}");
        ensure!(before == after, "registers after return {turn}: {after:x?}, not {before:x?}");
        let mut flags: u64 = random.number() & 0x8d5 | 2; // CF, PF, AF, ZF, SF, OF
        let wanted = flags;
        // SAFETY: only flags that a program may change; pushed and popped in balance, the red zone is left alone.
        unsafe {
            asm!(
                "lea rsp, [rsp - 128]", "push {flags}", "popfq",
                "lea r15, [rip + 77f]", "mov r13, {mark}", "mov r14, 0",
                "ud2",
                "77:", "pushfq", "pop {flags}", "lea rsp, [rsp + 128]",
                flags = inout(reg) flags, mark = const fault::MARK, out("r13") _, out("r14") _, out("r15") _,
            );
        }
        ensure!(flags & 0x8d5 == wanted & 0x8d5, "flags after return {turn}: {flags:#x}, not {wanted:#x}");
    }
    Ok(())
}
