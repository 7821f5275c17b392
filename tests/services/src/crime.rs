//! The ways in which a service can fail, and what the kernel must make of each.

use ipc::abi::FaultCause;

/// One way to fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum Crime {
    /// A Rust panic.
    Panic = 0,
    /// Reads address 0.
    NullRead = 1,
    /// Writes address 0.
    NullWrite = 2,
    /// Reads the kernel's image.
    KernelRead = 3,
    /// Writes the kernel's direct map.
    KernelWrite = 4,
    /// Writes its own constants.
    WriteConstant = 5,
    /// Writes its own code.
    WriteCode = 6,
    /// Runs its own data.
    RunData = 7,
    /// Never returns.
    Loop = 8,
    /// Recurses without end.
    Overflow = 9,
    /// Halts the processor.
    Halt = 10,
    /// Turns interrupts off.
    DisableInterrupts = 11,
    /// Reads a port that no capability gives it.
    Port = 12,
    /// Reads a model-specific register.
    ModelRegister = 13,
    /// Divides by zero.
    Divide = 14,
    /// Runs an instruction that does not exist.
    InvalidOpcode = 15,
    /// Runs a breakpoint.
    Breakpoint = 16,
    /// Jumps to an address that is not canonical.
    NonCanonical = 17,
    /// Accesses a misaligned operand that must be aligned.
    Misaligned = 18,
    /// Divides by zero on the x87 with its exceptions on.
    FloatingPoint = 19,
    /// Raises an interrupt of the kernel's by an instruction.
    SoftwareInterrupt = 20,
    /// Steps through its code with the trap flag on.
    SingleStep = 21,
    /// Writes its start page.
    WriteStartPage = 22,
    /// Ends its first thread.
    Exit = 23,
    /// Goes on, but neither beats nor answers any more.
    Silence = 24,
}

/// All of them.
pub const ALL: [Crime; 25] = [
    Crime::Panic,
    Crime::NullRead,
    Crime::NullWrite,
    Crime::KernelRead,
    Crime::KernelWrite,
    Crime::WriteConstant,
    Crime::WriteCode,
    Crime::RunData,
    Crime::Loop,
    Crime::Overflow,
    Crime::Halt,
    Crime::DisableInterrupts,
    Crime::Port,
    Crime::ModelRegister,
    Crime::Divide,
    Crime::InvalidOpcode,
    Crime::Breakpoint,
    Crime::NonCanonical,
    Crime::Misaligned,
    Crime::FloatingPoint,
    Crime::SoftwareInterrupt,
    Crime::SingleStep,
    Crime::WriteStartPage,
    Crime::Exit,
    Crime::Silence,
];

impl Crime {
    /// The crime with this number.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        ALL.into_iter().find(|&crime| crime as u64 == number)
    }

    /// What the supervisor must be told.
    #[must_use]
    pub const fn cause(self) -> FaultCause {
        match self {
            Self::Panic => FaultCause::Panic,
            Self::NullRead
            | Self::NullWrite
            | Self::KernelRead
            | Self::KernelWrite
            | Self::WriteConstant
            | Self::WriteCode
            | Self::RunData
            | Self::WriteStartPage => FaultCause::PageFault,
            Self::Loop => FaultCause::Budget,
            Self::Overflow => FaultCause::StackOverflow,
            Self::Halt
            | Self::DisableInterrupts
            | Self::Port
            | Self::ModelRegister
            | Self::Divide
            | Self::InvalidOpcode
            | Self::Breakpoint
            | Self::NonCanonical
            | Self::Misaligned
            | Self::FloatingPoint
            | Self::SoftwareInterrupt
            | Self::SingleStep => FaultCause::Exception,
            Self::Exit => FaultCause::Exit,
            Self::Silence => FaultCause::Stopped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_their_places() {
        for (number, crime) in ALL.into_iter().enumerate() {
            assert_eq!(crime as usize, number);
            assert_eq!(Crime::from_number(number as u64), Some(crime));
        }
        assert_eq!(Crime::from_number(ALL.len() as u64), None);
    }
}
