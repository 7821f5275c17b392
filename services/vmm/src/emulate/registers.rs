//! General registers and their parts.

use iced_x86::Register;
use ipc::abi::UserRegisters;

/// A borrow of the register with this number in encodings, of which 4 bits count.
macro_rules! whole {
    ($registers:expr, $number:expr, $($borrow:tt)+) => {
        match $number & 15 {
            0 => $($borrow)+ $registers.rax,
            1 => $($borrow)+ $registers.rcx,
            2 => $($borrow)+ $registers.rdx,
            3 => $($borrow)+ $registers.rbx,
            4 => $($borrow)+ $registers.rsp,
            5 => $($borrow)+ $registers.rbp,
            6 => $($borrow)+ $registers.rsi,
            7 => $($borrow)+ $registers.rdi,
            8 => $($borrow)+ $registers.r8,
            9 => $($borrow)+ $registers.r9,
            10 => $($borrow)+ $registers.r10,
            11 => $($borrow)+ $registers.r11,
            12 => $($borrow)+ $registers.r12,
            13 => $($borrow)+ $registers.r13,
            14 => $($borrow)+ $registers.r14,
            _ => $($borrow)+ $registers.r15,
        }
    };
}

/// The width of an integer operand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Width {
    Byte = 1,
    Word = 2,
    Dword = 4,
    Qword = 8,
}

impl Width {
    pub(super) const fn bytes(self) -> usize {
        self as usize
    }

    pub(super) const fn bits(self) -> u32 {
        self as u32 * 8
    }

    /// The bits that a value of this width has.
    pub(super) const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The highest of them.
    pub(super) const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// The value of this width, as a signed number of 64 bits.
    pub(super) const fn sign_extend(self, value: u64) -> u64 {
        let value = value & self.mask();
        (value ^ self.sign()).wrapping_sub(self.sign())
    }
}

/// A general register or its part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Gpr {
    number: u8,
    width: Width,
    /// AH, CH, DH or BH.
    high_byte: bool,
}

impl Gpr {
    pub(super) const fn new(number: u8, width: Width) -> Self {
        Self { number, width, high_byte: false }
    }

    /// The decoder's register, when it is a general one.
    pub(super) fn of(register: Register) -> Option<Self> {
        const BANKS: [(Register, Register, u8, Width, bool); 6] = [
            (Register::AL, Register::BL, 0, Width::Byte, false),
            (Register::AH, Register::BH, 0, Width::Byte, true),
            (Register::SPL, Register::R15L, 4, Width::Byte, false),
            (Register::AX, Register::R15W, 0, Width::Word, false),
            (Register::EAX, Register::R15D, 0, Width::Dword, false),
            (Register::RAX, Register::R15, 0, Width::Qword, false),
        ];
        let &(first, _, base, width, high_byte) =
            BANKS.iter().find(|(first, last, ..)| (*first..=*last).contains(&register))?;
        let number = u8::try_from(register as usize - first as usize).ok()?;
        Some(Self { number: base + number, width, high_byte })
    }

    pub(super) const fn width(self) -> Width {
        self.width
    }

    pub(super) fn read(self, registers: &UserRegisters) -> u64 {
        let value = *whole!(registers, self.number, &);
        if self.high_byte { value >> 8 & 0xff } else { value & self.width.mask() }
    }

    /// Writes the part: 32 bits clear the upper half, fewer leave the rest (AMD APM 1, 3.1.2).
    pub(super) fn write(self, registers: &mut UserRegisters, value: u64) {
        let whole = whole!(registers, self.number, &mut);
        let value = value & self.width.mask();
        *whole = match self.width {
            Width::Byte if self.high_byte => *whole & !0xff00 | value << 8,
            Width::Byte | Width::Word => *whole & !self.width.mask() | value,
            Width::Dword | Width::Qword => value,
        };
    }
}
