//! Figures in TSC ticks, as lines `bench NAME NUMBER`. With QEMU's `-icount shift=0` a tick is an instruction.

pub mod cpuid;
pub mod random;
pub mod remote;
pub mod steady;
pub mod touch;

fn report(name: &str, number: u64) {
    println!("bench {name} {number}");
}

fn median(samples: &mut [u64]) -> u64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or(0)
}

fn mean(samples: &[u64]) -> u64 {
    samples.iter().sum::<u64>() / (samples.len() as u64).max(1)
}
