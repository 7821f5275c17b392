//! The 8254 timer (Intel data sheet, 1993). The output of channel 0 goes nowhere: a guest that is told the TSC's rate and
//! has the APIC's timer takes no interrupt from here. Channel 2 has its gate and output at port 0x61.
//!
//! Differences that nobody measures: a count takes effect at once and not with the next clock or the next period.

/// The rate of all channels.
pub const HZ: u32 = 1_193_182;

/// How a count is read and written: RW1 and RW0 of the control word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Access {
    Low = 1,
    High = 2,
    Both = 3,
}

/// A count that runs down.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// What it began with: 1 to 65,536.
    count: u64,
    /// The tick at which it began, or how many it has run when its gate is closed.
    position: Position,
}

#[derive(Clone, Copy, Debug)]
enum Position {
    Since(u64),
    Stopped(u64),
}

#[derive(Clone, Debug)]
struct Channel {
    mode: u8,
    access: Access,
    is_bcd: bool,
    gate: bool,
    /// The count register as written.
    count: u16,
    /// No count was loaded since the control word.
    is_null: bool,
    run: Option<Run>,
    /// With [`Access::Both`], the low byte that waits for the high one.
    written_low: Option<u8>,
    /// With [`Access::Both`], the high byte comes next.
    reads_high: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            access: Access::Both,
            is_bcd: false,
            gate,
            count: 0,
            is_null: true,
            run: None,
            written_low: None,
            reads_high: false,
            latched: None,
            latched_status: None,
        }
    }

    const fn modulus(&self) -> u64 {
        if self.is_bcd { 10_000 } else { 0x1_0000 }
    }

    fn program(&mut self, access: Access, control: u8) {
        // Modes 6 and 7 are 2 and 3.
        let mode = match control >> 1 & 7 {
            mode @ 6..=7 => mode - 4,
            mode => mode,
        };
        *self = Self { mode, access, is_bcd: control & 1 != 0, ..Self::new(self.gate) };
    }

    /// Starts over with the count register.
    fn start(&mut self, now: u64) {
        let digits = u64::from(self.count);
        let value = if self.is_bcd {
            (digits >> 12) * 1000 + (digits >> 8 & 15) * 100 + (digits >> 4 & 15) * 10 + (digits & 15)
        } else {
            digits
        };
        let count = match value % self.modulus() {
            0 => self.modulus(),
            count => count,
        };
        let position = if self.is_stopped_by_gate() { Position::Stopped(0) } else { Position::Since(now) };
        self.run = Some(Run { count, position });
    }

    /// Modes 1 and 5 only begin with the gate.
    const fn is_triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    const fn is_stopped_by_gate(&self) -> bool {
        !self.gate && !self.is_triggered()
    }

    fn load(&mut self, count: u16, now: u64) {
        self.count = count;
        self.is_null = false;
        if !self.is_triggered() {
            self.start(now);
        }
    }

    fn write(&mut self, value: u8, now: u64) {
        match (self.access, self.written_low) {
            (Access::Low, _) => self.load(value.into(), now),
            (Access::High, _) => self.load(u16::from(value) << 8, now),
            (Access::Both, None) => self.written_low = Some(value),
            (Access::Both, Some(low)) => {
                self.written_low = None;
                self.load(u16::from_le_bytes([low, value]), now);
            }
        }
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        let rises = gate && !self.gate;
        self.gate = gate;
        match (self.mode, &mut self.run) {
            (1 | 2 | 3 | 5, _) if rises && !self.is_null => self.start(now),
            (0 | 2 | 3 | 4, Some(run)) => {
                run.position = match run.position {
                    Position::Since(start) if !gate => Position::Stopped(now.saturating_sub(start)),
                    Position::Stopped(elapsed) if gate => Position::Since(now.saturating_sub(elapsed)),
                    unchanged => unchanged,
                };
            }
            _ => {}
        }
    }

    /// The count it runs from and how many ticks it has run.
    fn progress(&self, now: u64) -> Option<(u64, u64)> {
        self.run.map(|run| match run.position {
            Position::Since(start) => (run.count, now.saturating_sub(start)),
            Position::Stopped(elapsed) => (run.count, elapsed),
        })
    }

    /// The counting element, as it is read.
    fn value(&self, now: u64) -> u16 {
        let Some((count, elapsed)) = self.progress(now) else { return self.count };
        let value = match self.mode {
            2 => count - elapsed % count,
            // Down by two, once with the output high and once with it low; an odd count has its extra tick while high.
            3 => {
                let (high, at) = (count.div_ceil(2), elapsed % count);
                (count & !1).saturating_sub(2 * if at < high { at } else { at - high })
            }
            // Down through zero and on from the top.
            _ => self.modulus() + count - elapsed % self.modulus(),
        } % self.modulus();
        let value = if self.is_bcd {
            (value / 1000) << 12 | (value / 100 % 10) << 8 | (value / 10 % 10) << 4 | (value % 10)
        } else {
            value
        };
        u16::try_from(value).unwrap_or(u16::MAX)
    }

    fn output(&self, now: u64) -> bool {
        let Some((count, elapsed)) = self.progress(now) else { return self.mode != 0 };
        match self.mode {
            0 | 1 => elapsed >= count,
            2 | 3 if !self.gate => true,
            2 => elapsed % count != count - 1,
            3 => elapsed % count < count.div_ceil(2),
            _ => elapsed != count,
        }
    }

    fn latch_count(&mut self, now: u64) {
        self.latched = self.latched.or_else(|| Some(self.value(now)));
    }

    fn latch_status(&mut self, now: u64) {
        let output = u8::from(self.output(now)) << 7;
        let status = output
            | u8::from(self.is_null) << 6
            | (self.access as u8) << 4
            | self.mode << 1
            | u8::from(self.is_bcd);
        self.latched_status = self.latched_status.or(Some(status));
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.value(now)).to_le_bytes();
        let gives_high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                self.reads_high = !self.reads_high;
                !self.reads_high
            }
        };
        if gives_high || self.access == Access::Low {
            self.latched = None;
        }
        if gives_high { high } else { low }
    }
}

/// The timer. `now` is in ticks of [`HZ`].
#[derive(Clone, Debug)]
pub struct Pit {
    channels: [Channel; 3],
}

impl Pit {
    pub const fn new() -> Self {
        Self { channels: [Channel::new(true), Channel::new(true), Channel::new(false)] }
    }

    /// Reads a channel, 0 to 2.
    pub fn read(&mut self, channel: usize, now: u64) -> u8 {
        self.channels.get_mut(channel).map_or(0xff, |channel| channel.read(now))
    }

    /// Writes a channel, 0 to 2.
    pub fn write(&mut self, channel: usize, value: u8, now: u64) {
        if let Some(channel) = self.channels.get_mut(channel) {
            channel.write(value, now);
        }
    }

    /// Writes the control word.
    pub fn control(&mut self, control: u8, now: u64) {
        let access = match control >> 4 & 3 {
            0 => None,
            1 => Some(Access::Low),
            2 => Some(Access::High),
            _ => Some(Access::Both),
        };
        if let Some(channel) = self.channels.get_mut(usize::from(control >> 6)) {
            match access {
                None => channel.latch_count(now),
                Some(access) => channel.program(access, control),
            }
            return;
        }
        // Read-back: bits 1 to 3 choose the channels; 5 and 4 are low to latch count and status.
        for (number, channel) in self.channels.iter_mut().enumerate() {
            if control >> (number + 1) & 1 == 0 {
                continue;
            }
            if control & 1 << 5 == 0 {
                channel.latch_count(now);
            }
            if control & 1 << 4 == 0 {
                channel.latch_status(now);
            }
        }
    }

    /// Opens or closes the gate of channel 2; those of the others are always open.
    pub fn set_gate(&mut self, gate: bool, now: u64) {
        let [.., channel] = &mut self.channels;
        channel.set_gate(gate, now);
    }

    /// The output of a channel.
    pub fn output(&self, channel: usize, now: u64) -> bool {
        self.channels.get(channel).is_some_and(|channel| channel.output(now))
    }
}
