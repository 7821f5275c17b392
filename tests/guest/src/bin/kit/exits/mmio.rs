//! Accesses of all kinds to guest-physical addresses where nothing is, through `/dev/mem`.
#![expect(unsafe_code, reason = "the instructions themselves")]

use std::fs::OpenOptions;
use std::ops::RangeInclusive;

use anyhow::{Result, ensure};
use guest_kit::random::Random;

use super::resources;
use crate::sys::map::Map;
use crate::sys::{PAGE, fault};

/// Below 4 GiB devices' registers are from here on.
const LOW: RangeInclusive<u64> = 0xc000_0000..=0xfebf_ffff;
/// Above all memory that a test machine has, and still an address on every processor with long mode.
const HIGH: RangeInclusive<u64> = 0x30_0000_0000..=0x7f_ffff_ffff;
/// Mappings tried until one is found that Linux allows.
const ATTEMPTS: usize = 40;
/// Accesses to each page.
const ACCESSES: u64 = 100;

/// An access at an address with a value in RAX; the signal that it ended in, or 0.
type Access = fn(*mut u8, u64) -> u64;

macro_rules! accesses {
    ($($code:literal),+ $(,)?) => {
        [$(|at, value| {
            // SAFETY: the page is mapped and nobody's memory; a fault is caught; all registers are declared.
            unsafe {
                fault::attempt!("lea rsi, [rip + {zeros}]", $code;
                    zeros = sym ZEROS, inout("rdi") at => _, inout("rax") value => _, out("rsi") _,
                    inout("rcx") 3u64 => _, out("rdx") _, out("xmm0") _)
            }
        }),+]
    };
}

static ZEROS: [u64; 8] = [0; 8];

/// What compilers and kernels use for registers of devices, and a little more.
const ACCESSES_KINDS: [Access; 32] = accesses![
    "mov dl, [rdi]",
    "mov dx, [rdi]",
    "mov edx, [rdi]",
    "mov rdx, [rdi]",
    "mov [rdi], al",
    "mov [rdi], ax",
    "mov [rdi], eax",
    "mov [rdi], rax",
    "mov byte ptr [rdi], 7",
    "mov word ptr [rdi], 7",
    "mov dword ptr [rdi], 7",
    "mov qword ptr [rdi], 7",
    "movzx edx, byte ptr [rdi]",
    "movzx edx, word ptr [rdi]",
    "movsx rdx, byte ptr [rdi]",
    "movsxd rdx, dword ptr [rdi]",
    "or dword ptr [rdi], 7",
    "and dword ptr [rdi], eax",
    "xor byte ptr [rdi], al",
    "add edx, [rdi]",
    "cmp dword ptr [rdi], 0",
    "test byte ptr [rdi], 1",
    "bt dword ptr [rdi], 3",
    "xchg [rdi], eax",
    "lock or dword ptr [rdi], 1",
    "lock xadd [rdi], eax",
    "lock cmpxchg [rdi], edx",
    "stosd",
    "rep stosb",
    "rep movsd",
    "xchg rdi, rsi; lodsd",
    "push qword ptr [rdi]; pop rdx",
];

pub fn run(random: &mut Random, iterations: u64) -> Result<String> {
    let Ok(file) = OpenOptions::new().read(true).write(true).open("/dev/mem") else {
        return Ok("skipped(no-device)".into());
    };
    let memory = resources::read("/proc/iomem")?;
    ensure!(memory.iter().any(|resource| *resource.range.end() != 0), "/proc/iomem hides its addresses");
    let mut gaps = resources::gaps(&memory, LOW);
    gaps.extend(resources::gaps(&memory, HIGH));
    gaps.retain(|gap| gap.end() - gap.start() >= 2 * PAGE as u64);
    let (mut done, mut pages, mut signals, mut refused) = (0, 0, 0, 0);
    while done < iterations && !gaps.is_empty() {
        let gap = &gaps[random.index(gaps.len())];
        let first = gap.start().next_multiple_of(PAGE as u64);
        let page = first + random.below((gap.end() + 1 - first) / PAGE as u64) * PAGE as u64;
        let Ok(map) = Map::of_file(&file, page, PAGE) else {
            refused += 1;
            if pages == 0 && refused == ATTEMPTS {
                return Ok("skipped(refused)".into());
            }
            done += 1;
            continue;
        };
        pages += 1;
        for _ in 0..ACCESSES.min(iterations - done) {
            // Aligned mostly, and never over the end of the page.
            let offset = random.index(PAGE - 16);
            let offset = if random.below(4) == 0 { offset } else { offset & !7 };
            let access = ACCESSES_KINDS[random.index(ACCESSES_KINDS.len())];
            // A monitor may say that there is no such memory by a machine check or a bus error; the test is that it goes on.
            signals += u64::from(access(map.start().wrapping_add(offset), random.number()) != 0);
            done += 1;
        }
    }
    Ok(format!("{done}/{pages}-pages/{signals}-signals"))
}
