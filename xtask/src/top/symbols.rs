//! Names for the guest's addresses, from its kernel's System.map.
//!
//! The addresses are those that the kernel was linked for: a kernel that moves itself (KASLR) has others.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Where Linux maps physical address 0 for its own image: `__START_KERNEL_map`.
const IMAGE_MAP: u64 = 0xffff_ffff_8000_0000;
/// Bytes of that mapping at most: `KERNEL_IMAGE_SIZE`.
const IMAGE_BYTES: u64 = 1 << 30;

/// The symbols of a kernel's image.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// Reads a System.map.
    ///
    /// # Errors
    /// The file cannot be read, or has no symbol of a kernel's image.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let symbols = Self::parse(&String::from_utf8_lossy(&text));
        ensure!(!symbols.0.is_empty(), "{} is no System.map: it names nothing of a kernel", path.display());
        Ok(symbols)
    }

    /// The symbols in a System.map's text; lines of another form, and what is outside the image, are left out.
    fn parse(text: &str) -> Self {
        let symbol = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let kind = words.next()?;
            let name = words.next()?;
            let is_one = kind.len() == 1 && words.next().is_none() && !name.contains(char::is_control);
            (is_one && address >= IMAGE_MAP).then(|| (address, name.to_owned()))
        };
        let mut symbols: Vec<_> = text.lines().filter_map(symbol).collect();
        // Of several names of one address the file's first stays.
        symbols.sort_by_key(|(address, _)| *address);
        symbols.dedup_by_key(|(address, _)| *address);
        Self(symbols)
    }

    /// The nearest symbol at or below a guest-virtual address, and how far above it that is. What is beyond the last
    /// symbol has none.
    pub fn at(&self, address: u64) -> Option<String> {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        let (start, name) = self.0.get(after.checked_sub(1)?)?;
        match address - start {
            0 => Some(name.clone()),
            _ if after == self.0.len() => None,
            offset => Some(format!("{name}+{offset:#x}")),
        }
    }

    /// The same for a guest-physical address, when it may be of the kernel's image.
    pub fn at_physical(&self, address: u64) -> Option<String> {
        (address < IMAGE_BYTES).then(|| self.at(IMAGE_MAP + address))?
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAP: &str = "\
0000000000000000 D __per_cpu_start
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81001000 t helper
no symbol at all
ffffffff8100zzzz T wrong
ffffffff81001800 T
ffffffff81001900 T two names
ffffffff82000000 d jiffies
ffffffff83000000 B _end
";

    #[test]
    fn the_nearest_lower_symbol_names_an_address() {
        let symbols = Symbols::parse(MAP);
        let at = |address| symbols.at(address);
        assert_eq!(at(0xffff_ffff_8100_0000).as_deref(), Some("_text"));
        assert_eq!(at(0xffff_ffff_8100_1950).as_deref(), Some("helper+0x950"));
        assert_eq!(at(0xffff_ffff_82ff_ffff).as_deref(), Some("jiffies+0xffffff"));
        assert_eq!(at(0xffff_ffff_8300_0000).as_deref(), Some("_end"));
        for nameless in [0, 0x40_1000, 0xffff_ffff_80ff_ffff, 0xffff_ffff_8300_0001, u64::MAX] {
            assert_eq!(at(nameless), None, "{nameless:x}");
        }
    }

    #[test]
    fn physical_addresses_are_those_of_the_image() {
        let symbols = Symbols::parse(MAP);
        assert_eq!(symbols.at_physical(0x100_1000).as_deref(), Some("helper"));
        assert_eq!(symbols.at_physical(0x1000), None);
        assert_eq!(symbols.at_physical(1 << 30), None);
        assert_eq!(symbols.at_physical(u64::MAX), None);
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"\xff\xfe not one").unwrap();
        assert!(Symbols::open(file.path()).unwrap_err().to_string().contains("is no System.map"));
        std::fs::write(file.path(), MAP).unwrap();
        assert_eq!(Symbols::open(file.path()).unwrap(), Symbols::parse(MAP));
        assert_eq!(Symbols::default().at(5), None);
    }

    proptest! {
        #[test]
        fn no_file_and_no_address_panic(text in "([0-9a-f]{0,18} [Tt]? ?[a-z ]{0,9}\n){0,9}", address in any::<u64>()) {
            let symbols = Symbols::parse(&text);
            let _ = (symbols.at(address), symbols.at_physical(address));
        }
    }
}
