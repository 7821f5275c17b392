//! From a record's bytes to text, with the defmt table of the program that wrote it.
//!
//! The tables are taken from the ELF files when a run begins and kept beside its logs, so that a log stays readable
//! after the programs were built anew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use defmt_decoder::{DecodeError, Encoding, Table};
use ipc::abi::{LOG_KERNEL, LOG_TEXT, LogRecord};
use serde::{Deserialize, Serialize};

use super::Level;

/// The name under which the kernel's records are shown.
pub const KERNEL: &str = "kernel";

/// A program that writes to the log.
#[derive(Clone, Debug)]
pub struct Program {
    /// The service's name.
    pub name: String,
    /// Its ELF file as it was built.
    pub elf: PathBuf,
}

/// The tables of all programs of an image.
#[derive(Debug, Deserialize, Serialize)]
pub struct Tables {
    kernel: Entry,
    services: Vec<Entry>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Entry {
    name: String,
    /// `None`: the program has no defmt messages.
    table: Option<Table>,
}

/// A record in words.
#[derive(Debug, Eq, PartialEq)]
pub struct Decoded {
    /// Who wrote it.
    pub service: String,
    /// How urgent it is; plain text has no level.
    pub level: Option<Level>,
    /// What it says.
    pub text: String,
}

impl Tables {
    /// Takes the tables from the ELF files of the kernel and of the services, these in the order of their numbers.
    ///
    /// # Errors
    /// A file cannot be read, or its table is not one that this version of defmt reads.
    pub fn of(kernel: &Path, services: impl IntoIterator<Item = Program>) -> anyhow::Result<Self> {
        let kernel = Entry::of(Program { name: KERNEL.to_owned(), elf: kernel.to_owned() })?;
        Ok(Self { kernel, services: services.into_iter().map(Entry::of).collect::<Result<_, _>>()? })
    }

    /// Keeps the tables in a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let bytes = postcard::to_extend(self, Vec::new())?;
        std::fs::write(path, bytes).with_context(|| format!("{} cannot be written", path.display()))
    }

    /// Reads the tables that were kept in a file.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        postcard::from_bytes(&bytes)
            .with_context(|| format!("{} holds no tables of this version", path.display()))
    }

    /// The name of the service with this number.
    pub fn name(&self, service: usize) -> Option<&str> {
        self.services.get(service).map(|entry| entry.name.as_str())
    }

    /// Puts a record into words; what cannot be decoded is said to be so.
    pub fn decode(&self, record: &LogRecord, bytes: &[u8]) -> Decoded {
        let number = record.service;
        let entry =
            if number == LOG_KERNEL { Some(&self.kernel) } else { self.services.get(usize::from(number)) };
        let service = entry.map_or_else(|| format!("service-{number}"), |entry| entry.name.clone());
        let warning = |text| (Some(Level::Warn), text);
        let (level, text) = if record.flags & LOG_TEXT != 0 {
            (None, String::from_utf8_lossy(bytes).into_owned())
        } else {
            match entry.map(|entry| entry.table.as_ref()) {
                None => warning(format!("a record of a service that is not in the image: {}", hex(bytes))),
                Some(None) => warning(format!("a record of a program without a defmt table: {}", hex(bytes))),
                Some(Some(table)) => decode(table, bytes).unwrap_or_else(|why| {
                    warning(format!("a record that cannot be decoded ({why}): {}", hex(bytes)))
                }),
            }
        };
        Decoded { service, level, text }
    }
}

impl Entry {
    fn of(program: Program) -> anyhow::Result<Self> {
        let elf = program.elf.display();
        let bytes = std::fs::read(&program.elf).with_context(|| format!("{elf} cannot be read"))?;
        let table =
            Table::parse(&bytes).with_context(|| format!("the defmt table of {elf} cannot be read"))?;
        let raw = table.as_ref().is_none_or(|table| table.encoding() == Encoding::Raw);
        ensure!(raw, "{elf} was built with another encoding of defmt than 'raw'");
        Ok(Self { name: program.name, table })
    }
}

fn decode(table: &Table, bytes: &[u8]) -> Result<(Option<Level>, String), &'static str> {
    // The decoder believes that what it reads was made from its table, and panics over some of what was not.
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        let (frame, used) = table.decode(bytes)?;
        let level = frame.level().map(|level| level.as_str());
        let level = Level::NAMES.iter().find(|(_, name)| Some(*name) == level).map(|(level, _)| *level);
        Ok((level, frame.display_message().to_string(), used))
    }));
    match decoded {
        Ok(Ok((level, text, used))) if used == bytes.len() => Ok((level, text)),
        Ok(Ok(_)) => Err("it is too long"),
        Ok(Err(DecodeError::UnexpectedEof)) => Err("it is cut off"),
        Ok(Err(DecodeError::Malformed)) => Err("it is malformed"),
        Err(_) => Err("it is not what its table says"),
    }
}

/// The first bytes of a record that nothing else can be said of.
fn hex(bytes: &[u8]) -> String {
    let shown: Vec<_> = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let more = if bytes.len() > shown.len() { " ..." } else { "" };
    format!("{}{more}", shown.join(" "))
}

#[cfg(test)]
pub mod testing {
    use serde_json::json;

    use super::{Entry, Tables};

    /// Tables of a kernel without messages and of the services "supervisor" and "health", which have some.
    pub fn tables() -> Tables {
        let entry =
            |tag: &str, string: &str| json!({ "string": { "tag": tag, "string": string }, "raw_symbol": "" });
        let table = json!({
            "timestamp": null,
            "entries": {
                "1": entry("Info", "all services up in {=u32} us"),
                "2": entry("Error", "{=str} is lost"),
                "3": entry("Warn", "at {=u64:iso8601s}"),
                "4": entry("Debug", "fine"),
            },
            "bitflags": {},
            "encoding": "Raw",
        });
        let table = |name: &str| Entry {
            name: name.to_owned(),
            table: Some(serde_json::from_value(table.clone()).unwrap()),
        };
        Tables {
            kernel: Entry { name: "kernel".to_owned(), table: None },
            services: vec![table("supervisor"), table("health")],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::tables;
    use super::*;

    fn decode(service: u16, flags: u16, bytes: &[u8]) -> (String, Option<Level>, String) {
        let record = LogRecord { tsc: 0, service, core: 0, bytes: 0, flags };
        let Decoded { service, level, text } = tables().decode(&record, bytes);
        (service, level, text)
    }

    #[test]
    fn records_become_words() {
        let words = |service: &str, level, text: &str| (service.to_owned(), level, text.to_owned());
        assert_eq!(
            decode(0, 0, &[1, 0, 0x10, 0x27, 0, 0]),
            words("supervisor", Some(Level::Info), "all services up in 10000 us")
        );
        let text = [&[2, 0, 5, 0, 0, 0][..], b"frame"].concat();
        assert_eq!(decode(1, 0, &text), words("health", Some(Level::Error), "frame is lost"));
        assert_eq!(decode(LOG_KERNEL, LOG_TEXT, b"4 cores"), words("kernel", None, "4 cores"));
        assert_eq!(decode(1, LOG_TEXT, b"\xff!"), words("health", None, "\u{fffd}!"));
    }

    #[test]
    fn what_cannot_be_decoded_is_said_to_be_so() {
        let warned = |service, bytes: &[u8], words: &str| {
            let (_, level, text) = decode(service, 0, bytes);
            assert_eq!(level, Some(Level::Warn));
            assert!(text.contains(words), "{text}");
        };
        warned(0, &[1, 0, 0x10], "(it is cut off): 01 00 10");
        warned(0, &[1, 0, 0, 0, 0, 0, 0], "(it is too long)");
        warned(0, &[9, 0], "(it is malformed)");
        warned(0, &[], "(it is cut off)");
        // The decoder panics over this one: a date that is none.
        warned(0, &[3, 0, 255, 255, 255, 255, 255, 255, 255, 255], "(it is not what its table says)");
        warned(7, &[1, 2, 3], "not in the image: 01 02 03");
        warned(LOG_KERNEL, &[0; 40], "without a defmt table: 00 00");
    }

    #[test]
    fn kept_tables_decode_the_same() {
        let path = tempfile::NamedTempFile::new().unwrap();
        tables().save(path.path()).unwrap();
        let kept = Tables::open(path.path()).unwrap();
        let record = LogRecord { tsc: 0, service: 1, core: 0, bytes: 0, flags: 0 };
        assert_eq!(kept.decode(&record, &[4, 0]).text, "fine");
        std::fs::write(path.path(), b"\xff\xff\xff\xff\xff").unwrap();
        assert!(Tables::open(path.path()).is_err());
    }

    proptest! {
        #[test]
        fn no_record_panics(index in 0_u8..6, bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            decode(1, 0, &[&[index, 0], &bytes[..]].concat());
        }
    }
}
