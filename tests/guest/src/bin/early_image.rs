//! Writes the image of a scenario to a file: `early-image SCENARIO FILE [SEED [ITERATIONS]]`.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use guest_kit::early::{self, SCENARIOS, Scenario};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("early-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let [name, file, numbers @ ..] = arguments else {
        let names: Vec<_> = SCENARIOS.into_iter().map(Scenario::name).collect();
        bail!("usage: early-image SCENARIO FILE [SEED [ITERATIONS]]; scenarios: {}", names.join(" "));
    };
    let mut scenario: Scenario = name.parse()?;
    if let Scenario::Fuzz { seed, iterations } = &mut scenario {
        match numbers {
            [] => {}
            [first] => *seed = first.parse().context("seed")?,
            [first, second] => {
                (*seed, *iterations) =
                    (first.parse().context("seed")?, second.parse().context("iterations")?);
            }
            _ => bail!("too many arguments"),
        }
    } else if !numbers.is_empty() {
        bail!("only the fuzz has a seed and iterations");
    }
    fs::write(file, early::bzimage(scenario)).with_context(|| file.clone())
}
