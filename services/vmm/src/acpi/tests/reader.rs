//! As much of an AML reader as a DSDT of names, scopes and devices needs (ACPI 6.5, 20.2).

use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;

use super::{u16_at, u32_at, u64_at};

/// What a name names.
#[derive(Clone, Debug, PartialEq)]
pub enum Aml {
    Integer(u64),
    Text(String),
    Buffer(Vec<u8>),
    Package(Vec<Aml>),
}

/// The bytes still to read, and what was named so far by path.
struct Reader<'a> {
    bytes: &'a [u8],
    names: BTreeMap<String, Aml>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(count);
        self.bytes = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    /// What a PkgLength (ACPI 6.5, 20.2.4) spans, after it.
    fn package(&mut self) -> &'a [u8] {
        let before = self.bytes.len();
        let lead = usize::from(self.byte());
        let length = match lead >> 6 {
            0 => lead,
            more => {
                assert_eq!(lead & 0x30, 0, "reserved");
                (0..more).fold(lead & 0xf, |length, i| length | usize::from(self.byte()) << (4 + 8 * i))
            }
        };
        self.take(length - (before - self.bytes.len()))
    }

    fn within<T>(&mut self, inner: &'a [u8], read: impl FnOnce(&mut Self) -> T) -> T {
        let outer = core::mem::replace(&mut self.bytes, inner);
        let value = read(self);
        assert!(self.bytes.is_empty(), "a package is longer than its contents");
        self.bytes = outer;
        value
    }

    fn path(&mut self, scope: &str) -> String {
        let root = self.bytes[0] == b'\\';
        if root {
            self.byte();
        }
        let segment = core::str::from_utf8(self.take(4)).unwrap();
        assert!(
            segment.bytes().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_'),
            "{segment}"
        );
        assert!(!segment.as_bytes()[0].is_ascii_digit(), "{segment}");
        if root { format!("\\{segment}") } else { format!("{scope}.{segment}") }
    }

    fn value(&mut self) -> Aml {
        match self.byte() {
            0 => Aml::Integer(0),
            1 => Aml::Integer(1),
            0x0a => Aml::Integer(self.byte().into()),
            0x0b => Aml::Integer(u16_at(self.take(2), 0).into()),
            0x0c => Aml::Integer(u32_at(self.take(4), 0).into()),
            0x0e => Aml::Integer(u64_at(self.take(8), 0)),
            0x0d => {
                let end = self.bytes.iter().position(|&byte| byte == 0).unwrap();
                let text = String::from_utf8(self.take(end).to_vec()).unwrap();
                self.byte();
                Aml::Text(text)
            }
            0x11 => {
                let inner = self.package();
                self.within(inner, |reader| {
                    let Aml::Integer(size) = reader.value() else { panic!("a buffer's size") };
                    Aml::Buffer(reader.take(usize::try_from(size).unwrap()).to_vec())
                })
            }
            0x12 => {
                let inner = self.package();
                self.within(inner, |reader| {
                    let count = reader.byte();
                    Aml::Package((0..count).map(|_| reader.value()).collect())
                })
            }
            other => panic!("value {other:#x}"),
        }
    }

    fn terms(&mut self, scope: &str) {
        while !self.bytes.is_empty() {
            match self.byte() {
                0x08 => {
                    let path = self.path(scope);
                    let value = self.value();
                    assert_eq!(self.names.insert(path.clone(), value), None, "{path} twice");
                }
                0x10 => self.scope(scope),
                0x5b => {
                    assert_eq!(self.byte(), 0x82, "a device");
                    self.scope(scope);
                }
                other => panic!("term {other:#x}"),
            }
        }
    }

    fn scope(&mut self, scope: &str) {
        let inner = self.package();
        self.within(inner, |reader| {
            let path = reader.path(scope);
            reader.terms(&path);
        });
    }
}

/// What a DSDT names.
pub fn names(dsdt: &[u8]) -> BTreeMap<String, Aml> {
    assert_eq!(dsdt[8], 2);
    let mut reader = Reader { bytes: &dsdt[36..], names: BTreeMap::new() };
    reader.terms("");
    reader.names
}
