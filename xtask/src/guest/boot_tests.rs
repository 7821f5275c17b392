//! The guest's default parts in a plain QEMU, without Unum: Debian's kernel, the initrd with a shell and the kit, and the
//! way to its console.

use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::initrd::{GREETING, PROMPT};
use super::{debian, kit};
use crate::console::Keyboard;
use crate::manifest::KernelSource;
use crate::paths;
use crate::process::{self, Child, POLL};
use crate::script::{Script, Step, Wish};

const STEPS: &[Step] = &[
    Step::See(GREETING),
    Step::Run { command: "echo cpus=$(nproc)", prints: &["cpus=2"], status: 0 },
    Step::Run { command: "lscpu | grep -c 'Architecture: *x86_64'", prints: &["1"], status: 0 },
    Step::Run { command: "free -m | grep -c Mem:", prints: &["1"], status: 0 },
    Step::Run { command: "kit clocks --effort 1 > /tmp/kit; tail -1 /tmp/kit", prints: &[], status: 0 },
    Step::Run { command: "grep -c 'kit clocks: ' /tmp/kit", prints: &["1"], status: 0 },
    // A shell with job control has the console as its controlling terminal.
    Step::Run { command: "sleep 100 & kill %1; test -t 0 && echo on > /dev/tty", prints: &["on"], status: 0 },
    // Ctrl-C reaches a program that surely runs: it has answered.
    Step::See(PROMPT),
    Step::Type("echo ready; cat\n"),
    Step::See("\nready\r\n"),
    Step::Type("hello\n"),
    Step::See("hello\r\nhello\r\n"),
    Step::Type("\x03"),
    Step::See("^C"),
    Step::Run { command: "test $? = 130", prints: &[], status: 0 },
    Step::Run { command: "(exit 7)", prints: &[], status: 7 },
    Step::Type("poweroff\n"),
];

#[test]
#[ignore = "fetches Debian's packages, builds the kit, and takes half a minute"]
fn the_default_guest_boots_in_plain_qemu() {
    paths::enter_root().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let archive = kit::initrd(&KernelSource::Debian).unwrap();
    fs::write(path("initrd"), archive).unwrap();
    let mut qemu = process::tied("qemu-system-x86_64");
    let (socket, log) = (path("com1.sock"), path("com1.txt"));
    let console =
        format!("socket,id=com1,path={},server=on,wait=off,logfile={}", socket.display(), log.display());
    qemu.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "512M", "-nodefaults"]);
    qemu.args(["-display", "none", "-no-reboot", "-chardev", &console, "-serial", "chardev:com1"]);
    qemu.arg("-kernel").arg(debian::kernel().unwrap()).arg("-initrd").arg(path("initrd"));
    qemu.args(["-append", "console=ttyS0 panic=-1 quiet"]).stdin(Stdio::null());
    let mut qemu = Child::start(&mut qemu).unwrap();
    let mut keyboard = Keyboard::new(socket);
    let mut script = Script::new(STEPS, Duration::from_secs(120));
    let (mut shown, deadline) = (0, Instant::now() + Duration::from_secs(600));
    loop {
        let ended = qemu.try_wait().unwrap();
        let text = fs::read(&log).unwrap_or_default();
        script.show(text.get(shown..).unwrap_or_default());
        shown = text.len();
        while let Some(wish) = script.next(Instant::now()) {
            match wish {
                Wish::Type(text) => keyboard.send(text.as_bytes()),
                wrong => panic!("{wrong:?}\n{}", String::from_utf8_lossy(&text)),
            }
        }
        keyboard.poll().unwrap();
        if let Some(status) = ended {
            assert!(script.is_done() && status.success(), "{status}\n{}", String::from_utf8_lossy(&text));
            break;
        }
        assert!(Instant::now() < deadline, "it does not end\n{}", String::from_utf8_lossy(&text));
        sleep(POLL);
    }
}
