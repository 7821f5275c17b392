//! Everything that leaves guest mode and that user space can cause, at random: the monitor must withstand it, and give what
//! hardware would.

mod cpuid;
mod excluded;
mod instructions;
mod mmio;
mod msrs;
mod ports;
mod resources;
mod stepping;
mod strings;

use anyhow::{Context, Result};
use guest_kit::random::Random;

use crate::options::Options;
use crate::sys::{cpu, fault};

pub fn run(options: &Options) -> Result<String> {
    let cpus = cpu::cpus()?;
    fault::catch()?;
    let iterations = options.iterations(5_000);
    let mut random = Random::new(options.seed);
    let mut figures = Vec::new();
    for cpu in cpus {
        cpu::pin(cpu)?;
        let mut part = |name: &str, figure: Result<String>| -> Result<()> {
            let figure =
                figure.with_context(|| format!("{name} on processor {cpu}, seed {}", options.seed))?;
            // The figures of the first processor stand for the others.
            if figures.iter().all(|(other, _)| other != name) {
                figures.push((name.to_owned(), figure));
            }
            Ok(())
        };
        part("cpuid", cpuid::run(&mut random, iterations))?;
        part("instructions", instructions::run())?;
        part("steps", stepping::run())?;
        part("ports", ports::run(&mut random, iterations, options.claimed_ports))?;
        part("strings", strings::run(&mut random, iterations / 10, options.claimed_ports))?;
        part("msrs", msrs::run(&mut random, cpu, iterations))?;
        part("mmio", mmio::run(&mut random, iterations))?;
    }
    let figures: Vec<_> = figures.iter().map(|(name, figure)| format!("{name}={figure}")).collect();
    Ok(figures.join(" "))
}
