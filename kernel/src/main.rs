//! The microkernel: the program. It boots ([`startup`]), and from then on turns each trap into one step of
//! [`kernel::state::State`], under the kernel lock.
#![no_std]
#![no_main]

mod discover;
mod hw;
mod klog;
mod startup;

use kernel::ids::CoreId;
use kernel::state::State;

use hw::apic::{RESCHEDULE_VECTOR, TIMER_VECTOR};
use hw::boot::Handover;
use hw::lock::{Guard, Lock};
use hw::machine::HwMachine;
use hw::percpu::PerCpu;

/// All that the kernel lock guards.
struct Kernel {
    state: State,
    /// There from before the first service starts.
    machine: HwMachine,
}

static KERNEL: Lock<Kernel> = Lock::new(Kernel { state: State::empty(), machine: HwMachine::absent() });

/// The first core, on the boot stack.
fn kernel_main(boot: Handover, core: &'static mut PerCpu) -> ! {
    startup::start(boot, core)
}

/// Another core: it idles until the first wakes it with something to run.
fn ap_main(core: &'static mut PerCpu) -> ! {
    hw::boot::leave(core)
}

/// One step of the state on this core; then the core goes on with whatever is current.
#[inline]
fn step(core: &mut PerCpu, act: impl FnOnce(&mut State, &mut HwMachine, CoreId)) {
    let mut kernel = KERNEL.lock();
    let id = CoreId::from_index(core.core());
    {
        let Kernel { state, machine } = &mut *kernel;
        act(state, machine, id);
        state.settle(machine, id);
    }
    go_on(core, &mut kernel, id);
}

#[inline]
fn go_on(core: &mut PerCpu, kernel: &mut Guard<Kernel>, id: CoreId) {
    core.set_current(kernel, |kernel| kernel.state.current(id));
}

fn on_syscall(core: &mut PerCpu) {
    let mut kernel = KERNEL.lock();
    let id = CoreId::from_index(core.core());
    // The shortest way: the context comes out of the step itself.
    core.set_current(&mut kernel, |Kernel { state, machine }| state.syscall(machine, id));
}

fn on_interrupt(core: &mut PerCpu, vector: u8) {
    step(core, |state, machine, id| {
        match vector {
            TIMER_VECTOR => state.timer(machine, id),
            RESCHEDULE_VECTOR => state.wake_up(machine, id),
            _ => state.interrupt(machine, id, vector),
        }
        klog::flush(state, machine, id);
    });
}

fn on_guest_exit(core: &mut PerCpu) {
    step(core, |state, machine, id| state.guest_exit(machine, id));
}

fn on_exception(core: &mut PerCpu, vector: u8, error_code: u64, address: u64) {
    step(core, |state, machine, id| state.exception(machine, id, vector, error_code, address));
}
