//! A set of the 256 vectors.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A set of vectors; the higher the vector, the more urgent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(transparent)]
pub(super) struct Vectors([u64; 4]);

const fn place(vector: u8) -> (usize, u64) {
    ((vector >> 6) as usize, 1 << (vector & 63))
}

impl Vectors {
    pub(super) const fn insert(&mut self, vector: u8) {
        let (word, bit) = place(vector);
        self.0[word] |= bit;
    }

    pub(super) const fn remove(&mut self, vector: u8) {
        let (word, bit) = place(vector);
        self.0[word] &= !bit;
    }

    pub(super) const fn contains(&self, vector: u8) -> bool {
        let (word, bit) = place(vector);
        self.0[word] & bit != 0
    }

    /// The highest. Usually there is none, which one test finds.
    #[expect(clippy::cast_possible_truncation, reason = "a bit's number is below 64")]
    pub(super) const fn highest(&self) -> Option<u8> {
        let [w0, w1, w2, w3] = self.0;
        if w0 | w1 | w2 | w3 == 0 {
            return None;
        }
        let (first, word) = match (w1, w2, w3) {
            (_, _, 1..) => (192, w3),
            (_, 1.., 0) => (128, w2),
            (1.., 0, 0) => (64, w1),
            (0, 0, 0) => (0, w0),
        };
        Some(first | (63 ^ word.leading_zeros()) as u8)
    }

    /// The 32 vectors from 32 * `index` (0 to 7) on, as a register shows them.
    #[expect(clippy::cast_possible_truncation, reason = "the half that is asked for")]
    pub(super) const fn register(&self, index: u32) -> u32 {
        (self.0[(index >> 1 & 3) as usize] >> ((index & 1) * 32)) as u32
    }
}
