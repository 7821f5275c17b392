//! Registers of the floating-point unit that are filled, held for a while, and compared.

use core::arch::asm;

use anyhow::{Result, ensure};
use guest_kit::random::Random;

use crate::sys::cpu;

/// MXCSR as a program starts with it: all exceptions masked.
pub const MXCSR_INITIAL: u32 = 0x1f80;
/// The x87 control word as a program starts with it: all exceptions masked, extended precision.
pub const CONTROL_INITIAL: u16 = 0x037f;

/// The memory image of FXSAVE64 (AMD APM 2, figure 11-10).
#[derive(Clone)]
#[repr(C, align(64))]
struct Image([u8; 512]);

/// The sixteen YMM registers.
#[derive(Clone)]
#[repr(C, align(64))]
struct Wide([u8; 512]);

const CONTROL: usize = 0;
const STATUS: usize = 2;
const TAGS: usize = 4;
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
/// What is saved where, as far as it must come back. The last instruction and operand are not: AMD saves them only with
/// an exception pending.
const PARTS: [(&str, usize, usize); 4] =
    [("x87 control", CONTROL, 2), ("x87 status", STATUS, 2), ("x87 tags", TAGS, 1), ("MXCSR", MXCSR, 4)];

impl Image {
    fn random(random: &mut Random) -> Self {
        let mut image = Self([0; 512]);
        for chunk in image.0[ST..XMM + 256].chunks_mut(8) {
            chunk.copy_from_slice(&random.number().to_le_bytes());
        }
        for register in 0..8 {
            image.0[ST + 16 * register + 10..ST + 16 * register + 16].fill(0);
        }
        let [a, b, c, d, ..] = random.number().to_le_bytes();
        // Any precision and rounding; all exceptions masked; bit 6 reads as one. Precision 01 is reserved.
        let precision = if a & 3 == 1 { 3 } else { a & 3 };
        image.0[CONTROL..CONTROL + 2].copy_from_slice(&[0x7f, precision | a & 0x0c]);
        // Condition codes and top of stack; no exception.
        image.0[STATUS + 1] = b & 0x7f;
        image.0[TAGS] = 0xff;
        // Rounding, flushing to zero and sticky flags at random; all exceptions masked.
        image.0[MXCSR..MXCSR + 2].copy_from_slice(&[0x80 | c & 0x3f, 0x1f | d & 0xe0]);
        image
    }

    fn compare(&self, after: &Self) -> Result<()> {
        let same = |name: &str, at: usize, bytes: usize| {
            let (before, after) = (&self.0[at..at + bytes], &after.0[at..at + bytes]);
            ensure!(before == after, "{name} held {before:02x?} and became {after:02x?}");
            Ok(())
        };
        PARTS.iter().try_for_each(|&(name, at, bytes)| same(name, at, bytes))?;
        (0..8).try_for_each(|register| same(&format!("ST{register}"), ST + 16 * register, 10))?;
        (0..16).try_for_each(|register| same(&format!("XMM{register}"), XMM + 16 * register, 16))
    }
}

/// Between filling and comparing there are `rounds` of counting down from `spins` with a system call after each: long
/// enough to be preempted.
struct Hold {
    rounds: u64,
    spins: u64,
}

/// Fills all registers with random contents, holds them, and compares.
///
/// # Errors
/// One has changed.
pub fn hold(random: &mut Random) -> Result<()> {
    let image = Image::random(random);
    let time = Hold { rounds: 1 + random.below(3), spins: 1 + random.below(200_000) };
    let mut after = Image([0; 512]);
    if !cpu::has_avx() {
        hold_sse(&image, &mut after, time);
        return image.compare(&after);
    }
    let mut wide = Wide([0; 512]);
    for (register, low) in wide.0.chunks_mut(32).zip(image.0[XMM..].chunks(16)) {
        register[..16].copy_from_slice(low);
        register[16..24].copy_from_slice(&random.number().to_le_bytes());
        register[24..].copy_from_slice(&random.number().to_le_bytes());
    }
    let mut wide_after = Wide([0; 512]);
    hold_avx(&image, &wide, &mut after, &mut wide_after, time);
    image.compare(&after)?;
    for (number, (before, after)) in wide.0.chunks(32).zip(wide_after.0.chunks(32)).enumerate() {
        ensure!(before == after, "YMM{number} held {before:02x?} and became {after:02x?}");
    }
    Ok(())
}

/// Assembly between `before` and `after`: the wait, and then a unit as the compiler expects it.
macro_rules! holding {
    ([$($before:literal),* $(,)?], [$($after:literal),* $(,)?], $image:ident, $saved:ident, $time:ident
        $(, $name:ident = $operand:expr)*) => {
        asm!(
            "fxrstor64 [{image}]",
            $($before,)*
            "2: mov {left}, {spins}",
            "3: dec {left}",
            "jnz 3b",
            "mov eax, {sched_yield}",
            "syscall",
            "dec {rounds}",
            "jnz 2b",
            "fxsave64 [{saved}]",
            $($after,)*
            "fninit",
            "ldmxcsr [{initial}]",
            image = in(reg) &raw const *$image,
            saved = in(reg) &raw mut *$saved,
            $($name = in(reg) $operand,)*
            initial = in(reg) &raw const MXCSR_INITIAL_IN_MEMORY,
            spins = in(reg) $time.spins,
            rounds = inout(reg) $time.rounds => _,
            left = out(reg) _,
            sched_yield = const libc::SYS_sched_yield,
            out("rax") _, out("rcx") _, out("r11") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        )
    };
}

static MXCSR_INITIAL_IN_MEMORY: u32 = MXCSR_INITIAL;

fn hold_sse(image: &Image, saved: &mut Image, time: Hold) {
    // SAFETY: both images have the size and alignment that FXRSTOR64 and FXSAVE64 need and the one that is loaded is valid;
    // all registers are declared, and the control words are the compiler's again at the end.
    unsafe { holding!([], [], image, saved, time) };
}

fn hold_avx(image: &Image, wide: &Wide, saved: &mut Image, wide_saved: &mut Wide, time: Hold) {
    // SAFETY: as for `hold_sse`; the callers have seen that there is AVX, and the wide images hold sixteen registers.
    unsafe {
        holding!(
            [
                "vmovups ymm0, [{wide}]",
                "vmovups ymm1, [{wide} + 32]",
                "vmovups ymm2, [{wide} + 64]",
                "vmovups ymm3, [{wide} + 96]",
                "vmovups ymm4, [{wide} + 128]",
                "vmovups ymm5, [{wide} + 160]",
                "vmovups ymm6, [{wide} + 192]",
                "vmovups ymm7, [{wide} + 224]",
                "vmovups ymm8, [{wide} + 256]",
                "vmovups ymm9, [{wide} + 288]",
                "vmovups ymm10, [{wide} + 320]",
                "vmovups ymm11, [{wide} + 352]",
                "vmovups ymm12, [{wide} + 384]",
                "vmovups ymm13, [{wide} + 416]",
                "vmovups ymm14, [{wide} + 448]",
                "vmovups ymm15, [{wide} + 480]",
            ],
            [
                "vmovups [{wide_saved}], ymm0",
                "vmovups [{wide_saved} + 32], ymm1",
                "vmovups [{wide_saved} + 64], ymm2",
                "vmovups [{wide_saved} + 96], ymm3",
                "vmovups [{wide_saved} + 128], ymm4",
                "vmovups [{wide_saved} + 160], ymm5",
                "vmovups [{wide_saved} + 192], ymm6",
                "vmovups [{wide_saved} + 224], ymm7",
                "vmovups [{wide_saved} + 256], ymm8",
                "vmovups [{wide_saved} + 288], ymm9",
                "vmovups [{wide_saved} + 320], ymm10",
                "vmovups [{wide_saved} + 352], ymm11",
                "vmovups [{wide_saved} + 384], ymm12",
                "vmovups [{wide_saved} + 416], ymm13",
                "vmovups [{wide_saved} + 448], ymm14",
                "vmovups [{wide_saved} + 480], ymm15",
                "vzeroupper",
            ],
            image,
            saved,
            time,
            wide = &raw const *wide,
            wide_saved = &raw mut *wide_saved
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_filled_and_compared() {
        let mut random = Random::new(3);
        for _ in 0..20 {
            hold(&mut random).unwrap();
        }
        let image = Image::random(&mut random);
        for at in [CONTROL, STATUS + 1, MXCSR, ST + 9, ST + 7 * 16, XMM, XMM + 255] {
            let mut other = image.clone();
            other.0[at] ^= 1;
            assert!(image.compare(&other).is_err(), "{at}");
        }
    }
}
