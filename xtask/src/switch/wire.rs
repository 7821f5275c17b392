//! QEMU's stream protocol: each frame is preceded by its length in bytes, 32 bits, most significant byte first
//! (QEMU 7.2, net/stream.c and net/net.c: `net_fill_rstate`).
//!
//! What a node sends is a claim. A length that the switch does not forward but that QEMU itself could have sent is
//! skipped, so that the stream stays in step; anything longer means that the stream makes no sense any more.

/// Bytes of the length before each frame.
pub const PREFIX_BYTES: usize = 4;
/// The shortest frame, in bytes: an Ethernet header.
pub const MIN_FRAME: usize = 14;
/// The longest frame that the switch forwards, in bytes, with its Ethernet header and without a check sequence.
pub const MAX_FRAME: usize = 9216;
/// The longest frame that QEMU can send, in bytes (`NET_BUFSIZE`).
pub const MAX_ANNOUNCED: usize = 4096 + 65536;

const BUFFER_BYTES: usize = 64 * 1024;
const _: () = assert!(BUFFER_BYTES >= 2 * (PREFIX_BYTES + MAX_FRAME));

/// A MAC address.
pub type Mac = [u8; 6];

/// A frame with its length before it, as it goes over a socket.
#[derive(Clone, Copy, Debug)]
pub struct Wire<'a> {
    bytes: &'a [u8],
    destination: Mac,
    source: Mac,
}

impl<'a> Wire<'a> {
    /// Takes `bytes` for a length and its frame; `None` unless they are one, with a whole Ethernet header.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let (prefix, frame) = bytes.split_first_chunk::<PREFIX_BYTES>()?;
        if usize::try_from(u32::from_be_bytes(*prefix)).ok()? != frame.len() || frame.len() < MIN_FRAME {
            return None;
        }
        let (destination, rest) = frame.split_first_chunk()?;
        let source = rest.first_chunk()?;
        Some(Self { bytes, destination: *destination, source: *source })
    }

    /// The length and the frame.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// The frame alone.
    #[must_use]
    pub fn frame(self) -> &'a [u8] {
        self.bytes.get(PREFIX_BYTES..).unwrap_or_default()
    }

    /// Where the frame wants to go.
    #[must_use]
    pub const fn destination(self) -> Mac {
        self.destination
    }

    /// Where the frame says that it comes from.
    #[must_use]
    pub const fn source(self) -> Mac {
        self.source
    }
}

/// What a stream of bytes held.
#[derive(Debug)]
pub enum Item<'a> {
    /// A frame to forward.
    Frame(Wire<'a>),
    /// What was announced is too short to be a frame. It is skipped.
    TooShort,
    /// The announced frame is longer than the port's limit. It is skipped.
    TooLong,
}

/// A length that QEMU never sends: what follows cannot be understood.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AbsurdLength(pub u32);

/// Cuts a stream of bytes into frames, in a buffer of fixed size.
pub struct Deframer {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes of a rejected frame that are still to come.
    skip: usize,
    frame_limit: usize,
}

impl Deframer {
    /// A deframer at the start of a stream that passes frames of at most `frame_limit` bytes ([`MAX_FRAME`] at most).
    #[must_use]
    pub fn new(frame_limit: usize) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { buffer, start: 0, end: 0, skip: 0, frame_limit: frame_limit.min(MAX_FRAME) }
    }

    /// Where the next bytes of the stream go; never empty once [`Self::next_item`] has returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < PREFIX_BYTES + MAX_FRAME {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// The first `count` bytes of [`Self::space`] have been filled.
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// The next frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`AbsurdLength`]: the stream cannot be used any further.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>, AbsurdLength> {
        let skipped = self.skip.min(self.end - self.start);
        self.start += skipped;
        self.skip -= skipped;

        let Some(prefix) = self.buffer[self.start..self.end].first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let announced = u32::from_be_bytes(*prefix);
        let length = match usize::try_from(announced) {
            Ok(length) if length <= MAX_ANNOUNCED => length,
            _ => return Err(AbsurdLength(announced)),
        };
        if length < MIN_FRAME || length > self.frame_limit {
            self.start += PREFIX_BYTES;
            self.skip = length;
            return Ok(Some(if length < MIN_FRAME { Item::TooShort } else { Item::TooLong }));
        }
        let end = self.start + PREFIX_BYTES + length;
        if end > self.end {
            return Ok(None);
        }
        let bytes = &self.buffer[self.start..end];
        self.start = end;
        Ok(Some(Wire::new(bytes).map_or(Item::TooShort, Item::Frame)))
    }

    /// Whether the stream, if it ends here, ends inside a frame.
    #[must_use]
    pub const fn inside_frame(&self) -> bool {
        self.skip > 0 || self.start < self.end
    }
}

/// A frame with its length before it.
#[cfg(test)]
pub fn encode(frame: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(frame);
    bytes
}

#[cfg(test)]
mod tests {
    use super::{
        AbsurdLength, Deframer, Item, MAX_ANNOUNCED, MAX_FRAME, MIN_FRAME, PREFIX_BYTES, Wire, encode,
    };
    use rand::{Rng as _, RngCore as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    /// Feeds `stream` in pieces; the frames that came out, and how many were too short and too long.
    fn feed(
        deframer: &mut Deframer,
        mut stream: &[u8],
        mut piece: impl FnMut() -> usize,
    ) -> Result<(Vec<Vec<u8>>, [usize; 2]), AbsurdLength> {
        let (mut frames, mut rejected) = (Vec::new(), [0; 2]);
        while !stream.is_empty() {
            let space = deframer.space();
            let count = piece().min(stream.len()).min(space.len());
            assert!(count > 0, "the buffer must never be full");
            space[..count].copy_from_slice(&stream[..count]);
            stream = &stream[count..];
            deframer.filled(count);
            while let Some(item) = deframer.next_item()? {
                match item {
                    Item::Frame(wire) => frames.push(wire.frame().to_vec()),
                    Item::TooShort => rejected[0] += 1,
                    Item::TooLong => rejected[1] += 1,
                }
            }
        }
        Ok((frames, rejected))
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for round in 0..16 {
            let limit = if round % 2 == 0 { MAX_FRAME } else { 1514 };
            let (mut stream, mut frames, mut rejected) = (Vec::new(), Vec::new(), [0; 2]);
            for _ in 0..25 {
                let longest = [80, 1600, MAX_FRAME + 2, MAX_ANNOUNCED][random.random_range(0..4)];
                let length = random.random_range(0..=longest);
                let mut frame = vec![0; length];
                random.fill_bytes(&mut frame);
                stream.extend(encode(&frame));
                if (MIN_FRAME..=limit).contains(&frame.len()) {
                    frames.push(frame);
                } else {
                    rejected[usize::from(frame.len() > limit)] += 1;
                }
            }
            let most = [2, 50, 1500, 100_000][round % 4];
            let got = feed(&mut Deframer::new(limit), &stream, || random.random_range(1..=most)).unwrap();
            assert!(got == (frames, rejected), "round {round}");
        }
    }

    #[test]
    fn random_bytes_end_in_an_error_or_in_rejected_lengths_never_in_a_panic() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..2000 {
            let stream: Vec<u8> =
                (0..64).map(|_| if random.random() { 0 } else { random.random() }).collect();
            let mut deframer = Deframer::new(MAX_FRAME);
            if let Err(AbsurdLength(length)) = feed(&mut deframer, &stream, || 5) {
                assert!(usize::try_from(length).unwrap() > MAX_ANNOUNCED);
            }
        }
    }

    #[test]
    fn absurd_length_is_an_error_and_the_longest_possible_is_not() {
        let longest = u32::try_from(MAX_ANNOUNCED).unwrap();
        assert!(feed(&mut Deframer::new(MAX_FRAME), &longest.to_be_bytes(), || 4).is_ok());
        for length in [longest + 1, u32::MAX] {
            let result = feed(&mut Deframer::new(MAX_FRAME), &length.to_be_bytes(), || 4);
            assert_eq!(result, Err(AbsurdLength(length)));
        }
    }

    #[test]
    fn the_end_inside_a_frame_is_noticed() {
        let mut deframer = Deframer::new(MAX_FRAME);
        assert!(!deframer.inside_frame());
        feed(&mut deframer, &encode(&[0; 60]), || 64).unwrap();
        assert!(!deframer.inside_frame());
        feed(&mut deframer, &encode(&[0; 60])[..20], || 64).unwrap();
        assert!(deframer.inside_frame());
        let mut skipping = Deframer::new(1514);
        feed(&mut skipping, &encode(&[0; 2000])[..20], || 64).unwrap();
        assert!(skipping.inside_frame());
    }

    #[test]
    fn a_wire_frame_must_match_its_length() {
        let good = encode(&[1; MIN_FRAME]);
        assert!(Wire::new(&good).is_some());
        assert!(Wire::new(&good[..good.len() - 1]).is_none());
        assert!(Wire::new(&encode(&[1; MIN_FRAME - 1])).is_none());
        assert!(Wire::new(&good[..PREFIX_BYTES - 1]).is_none());
    }
}
