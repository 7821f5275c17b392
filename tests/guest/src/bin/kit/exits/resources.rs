//! What Linux lists as somebody's: `/proc/ioports` and `/proc/iomem`.

use core::ops::RangeInclusive;
use std::fs;

use anyhow::{Context, Result};

/// A line of either file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resource {
    /// The addresses; from 0 to 0 for a reader without the right to see them.
    pub range: RangeInclusive<u64>,
    /// Whose it is.
    pub name: String,
}

impl Resource {
    /// Whether it is a bus, which has room for others.
    pub fn is_bus(&self) -> bool {
        self.name.starts_with("PCI Bus") || self.name.starts_with("PCI conf")
    }
}

/// The lines of a file.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &str) -> Result<Vec<Resource>> {
    Ok(parse(&fs::read_to_string(path).with_context(|| path.to_owned())?))
}

fn parse(text: &str) -> Vec<Resource> {
    let line = |line: &str| {
        let (range, name) = line.trim().split_once(" : ")?;
        let (first, last) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Resource { range: number(first)?..=number(last)?, name: name.to_owned() })
    };
    text.lines().filter_map(line).collect()
}

/// The parts of `within` that are nobody's.
pub fn gaps(resources: &[Resource], within: RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
    let mut taken: Vec<_> = resources.iter().filter(|r| !r.is_bus()).map(|r| r.range.clone()).collect();
    taken.sort_by_key(|range| *range.start());
    let mut gaps = Vec::new();
    let mut next = *within.start();
    for range in taken {
        if *range.start() > next && next <= *within.end() {
            gaps.push(next..=(range.start() - 1).min(*within.end()));
        }
        next = next.max(range.end().saturating_add(1));
    }
    if next <= *within.end() {
        gaps.push(next..=*within.end());
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_between_what_is_taken() {
        let resources = parse(
            "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\nc0000000-febfffff : PCI Bus 0000:00\n  \
             fd000000-fdffffff : 0000:00:01.0\nfec00000-fec003ff : IOAPIC 0\n",
        );
        assert_eq!(resources.len(), 5);
        assert_eq!(
            gaps(&resources, 0xc000_0000..=0xfec0_0fff),
            [0xc000_0000..=0xfcff_ffff, 0xfe00_0000..=0xfebf_ffff, 0xfec0_0400..=0xfec0_0fff]
        );
        assert_eq!(gaps(&resources, 0..=0xfff), []);
        assert_eq!(gaps(&[], 5..=9), [5..=9]);
    }
}
