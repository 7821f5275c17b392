//! The 8259A interrupt controller (Intel data sheet, 1988) with nothing wired to its inputs: all interrupts of this machine
//! go to the I/O APIC. It is there because Linux gives the ISA interrupts their numbers only where it finds one.

/// What the data port takes next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Expects {
    Mask,
    Vector,
    Cascade,
    Mode,
}

/// ICW1, recognised by its bit 4.
const INITIALISE: u8 = 1 << 4;
const INITIALISE_SINGLE: u8 = 1 << 1;
const INITIALISE_WITH_MODE: u8 = 1;

/// One controller.
#[derive(Clone, Debug)]
pub struct Pic {
    mask: u8,
    expects: Expects,
    is_single: bool,
    has_mode: bool,
}

impl Pic {
    pub const fn new() -> Self {
        Self { mask: 0xff, expects: Expects::Mask, is_single: false, has_mode: false }
    }

    /// Reads the command port (0) or the data port (1). No request is ever there, none in service, and none to poll.
    pub const fn read(&self, port: u16) -> u8 {
        if port == 0 { 0 } else { self.mask }
    }

    /// Writes the command port (0) or the data port (1).
    pub const fn write(&mut self, port: u16, value: u8) {
        if port == 0 {
            // The other commands end interrupts and choose what is read, and there is nothing.
            if value & INITIALISE != 0 {
                self.mask = 0;
                self.is_single = value & INITIALISE_SINGLE != 0;
                self.has_mode = value & INITIALISE_WITH_MODE != 0;
                self.expects = Expects::Vector;
            }
            return;
        }
        self.expects = match self.expects {
            Expects::Vector if !self.is_single => Expects::Cascade,
            Expects::Vector | Expects::Cascade if self.has_mode => Expects::Mode,
            Expects::Vector | Expects::Cascade | Expects::Mode => Expects::Mask,
            Expects::Mask => {
                self.mask = value;
                Expects::Mask
            }
        };
    }
}
