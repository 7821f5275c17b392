//! The kernel's tables: arrays whose places are taken one after another at boot.
//!
//! A table's size is a power of two and an index is masked by it, so that a look-up needs no bounds check. A place that
//! was not taken holds what the table was made with, which is harmless: a thread that is unused, a service that is down.

use core::ops::{Index, IndexMut};

/// `N` places, of which the first `len` are taken.
#[derive(Debug)]
pub struct Table<T, const N: usize> {
    places: [T; N],
    len: usize,
}

impl<T, const N: usize> Table<T, N> {
    const MASK: usize = {
        assert!(N.is_power_of_two());
        N - 1
    };

    /// A table with no place taken.
    #[must_use]
    pub const fn new(places: [T; N]) -> Self {
        Self { places, len: 0 }
    }

    /// How many places are taken.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no place is taken.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the next place.
    ///
    /// # Errors
    /// The value, when all places are taken.
    pub fn push(&mut self, value: T) -> Result<(), T> {
        match self.places.get_mut(self.len) {
            Some(place) => {
                *place = value;
                self.len += 1;
                Ok(())
            }
            None => Err(value),
        }
    }

    /// Takes the next place as it is.
    ///
    /// # Errors
    /// What `full` makes, when all places are taken.
    pub fn push_with<E>(&mut self, full: impl FnOnce() -> E) -> Result<&mut T, E> {
        let place = self.places.get_mut(self.len).ok_or_else(full)?;
        self.len += 1;
        Ok(place)
    }

    /// What is in a place, if it is taken.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&T> {
        self.places.get(..self.len)?.get(index)
    }

    /// The places that are taken, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().take(self.len)
    }

    /// The places that are taken, in order, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().take(self.len)
    }

    /// All places, for what links them.
    pub const fn places_mut(&mut self) -> &mut [T; N] {
        &mut self.places
    }

    /// Two places at once; `None` when they are the same.
    #[inline]
    pub fn pair_mut(&mut self, one: usize, other: usize) -> Option<[&mut T; 2]> {
        self.places.get_disjoint_mut([one & Self::MASK, other & Self::MASK]).ok()
    }
}

impl<T, const N: usize> Index<usize> for Table<T, N> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        &self.places[index & Self::MASK]
    }
}

impl<T, const N: usize> IndexMut<usize> for Table<T, N> {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.places[index & Self::MASK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_in_order_and_bounded() {
        let mut table = Table::new([0; 4]);
        assert!(table.is_empty() && table.get(0).is_none());
        for value in 1..=4 {
            assert_eq!(table.push(value), Ok(()));
        }
        assert_eq!(table.push(5), Err(5));
        assert!(table.iter().eq(&[1, 2, 3, 4]) && table.len() == 4);
        assert_eq!((table[1], table[5], table.get(4)), (2, 2, None));
        assert_eq!(table.pair_mut(1, 2), Some([&mut 2, &mut 3]));
        assert_eq!(table.pair_mut(1, 5), None);
    }
}
