//! Builds, runs, tests and measures Unum: `cargo xtask COMMAND`. One file per command.

mod bench;
mod bochs;
mod build;
mod bundle;
mod check;
mod cluster;
mod console;
mod disk;
mod flash;
mod given;
mod guest;
mod host_tests;
mod image;
mod lines;
mod logs;
mod manifest;
mod paths;
mod process;
mod qemu;
mod run;
mod scenario;
mod scenarios;
mod script;
mod setup;
mod show_logs;
mod sizes;
mod switch;
mod terminal;
mod test;
mod top;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// The exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = run::Outcome::Interrupted.exit_code();

/// Builds, runs, tests and measures Unum.
///
/// What a command needs and is missing (QEMU, GRUB, ...) is installed first where the system is Debian's kin.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
enum Command {
    Run(run::Arguments),
    Image(image::Arguments),
    Flash(flash::Arguments),
    Test(test::Arguments),
    Bench(bench::Arguments),
    Check(check::Arguments),
    Logs(show_logs::Arguments),
    Sizes(sizes::Arguments),
    Top(top::Arguments),
}

impl Command {
    fn start(&self) -> Result<ExitCode> {
        process::catch_interrupts()?;
        paths::enter_root()?;
        let success = |()| ExitCode::SUCCESS;
        match self {
            Self::Run(arguments) => run::run(arguments).map(|outcome| ExitCode::from(outcome.exit_code())),
            Self::Image(arguments) => image::run(arguments).map(success),
            Self::Flash(arguments) => flash::run(arguments).map(success),
            Self::Test(arguments) => {
                test::run(arguments).map(|passed| if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Self::Bench(arguments) => bench::run(arguments).map(success),
            Self::Check(arguments) => check::run(arguments).map(success),
            Self::Logs(arguments) => show_logs::run(arguments).map(success),
            Self::Sizes(arguments) => sizes::run(arguments).map(success),
            Self::Top(arguments) => top::run(arguments).map(success),
        }
    }
}

fn main() -> ExitCode {
    match Command::parse().start() {
        Ok(code) => code,
        Err(error) if error.is::<process::Interrupted>() => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood() {
        let parse = |line: &str| Command::try_parse_from(line.split(' '));
        assert!(matches!(
            parse("xtask run --nodes 3 --cpus 4 --memory 1G --gdb --verbose --timeout 5"),
            Ok(Command::Run(_))
        ));
        assert!(matches!(
            parse(
                "xtask run --guest-kernel a --guest-initrd b --guest-cpus 4 --guest-memory 1G --walk-cache"
            ),
            Ok(Command::Run(_))
        ));
        assert!(matches!(parse("xtask test --only boot --list"), Ok(Command::Test(_))));
        assert!(matches!(parse("xtask flash /dev/sdb"), Ok(Command::Flash(_))));
        assert!(matches!(parse("xtask logs --follow --level warn"), Ok(Command::Logs(_))));
        assert!(matches!(parse("xtask top --json --system-map System.map"), Ok(Command::Top(_))));
        for bad in
            ["xtask", "xtask fly", "xtask run --nodes 0", "xtask run --memory 1", "xtask logs --level loud"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        <Command as clap::CommandFactory>::command().debug_assert();
    }
}
