//! The manifest of an image: which services there are, and every right that each of them has.
//!
//! [`Manifest::load`] reads the TOML, refuses all mistakes of the file at once, each with its line, and compiles the
//! rest to the descriptors that the kernel reads: a manifest that exists is sound. What is checked against the
//! built programs (an image over its budget) is checked when they are bundled.

mod check;
mod compile;
mod fields;
mod guest;
mod parse;
mod space;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use anyhow::Context;
use ipc::image::{ServiceDescriptor, SystemDescriptor};

pub use compile::MAX_BLOB_BYTES;
pub use guest::{Guest, InitrdSource, KernelSource, MAX_RAM_BYTES, MIN_RAM_BYTES, Overrides};

/// Something that stands in a manifest, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct At<T> {
    /// What it says.
    pub value: T,
    /// The line, from 1.
    pub line: usize,
}

/// A sound manifest, compiled.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The file it came from, as messages name it.
    pub file: String,
    /// The services, in the order of their numbers.
    pub services: Vec<Service>,
    /// What concerns the whole system. The blobs' lengths come with the blobs.
    pub system: SystemDescriptor,
    /// The services' descriptors, in the same order as `services`.
    pub descriptors: Vec<ServiceDescriptor>,
    /// The guest, when there is one.
    pub guest: Option<Guest>,
}

/// What the build has to know of a service, beyond its descriptor.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The package that builds it.
    pub package: String,
    /// The program within that package.
    pub binary: String,
    /// The largest size of its loaded image in bytes.
    pub image_bytes: At<u64>,
}

impl Manifest {
    /// Reads, checks and compiles the manifest in a file, its guest as a command line wants it.
    ///
    /// # Errors
    /// The file cannot be read, or [`Mistakes`].
    pub fn load(path: &Path, guest: &Overrides) -> anyhow::Result<Self> {
        let file = path.display().to_string();
        let text =
            std::fs::read_to_string(path).with_context(|| format!("the manifest {file} cannot be read"))?;
        Ok(Self::parse(&file, &text, guest)?)
    }

    /// Checks and compiles a manifest; `file` is its name in messages.
    ///
    /// # Errors
    /// All its mistakes.
    pub fn parse(file: &str, text: &str, overrides: &Overrides) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::new(file);
        let Some(mut draft) = parse::parse(text, &mut mistakes) else { return Err(mistakes.sorted()) };
        match &mut draft.guest {
            Some(guest) => guest.apply(overrides),
            None if *overrides == (Overrides { nodes: overrides.nodes, ..Overrides::default() }) => {}
            None => mistakes.add(1, "this manifest has no [guest], so nothing can be said of its guest"),
        }
        check::check(&draft, &mut mistakes);
        let (system, descriptors) = compile::compile(&draft, &mut mistakes);
        if !mistakes.list.is_empty() {
            return Err(mistakes.sorted());
        }
        let services = draft.services.into_iter().map(|s| s.build).collect();
        let guest = draft.guest.map(guest::GuestDraft::finish);
        Ok(Self { file: file.to_owned(), services, system, descriptors, guest })
    }

    /// The mistake that only shows once the programs are built, at a line of this manifest.
    #[must_use]
    pub fn mistake(&self, line: usize, text: String) -> Mistakes {
        let mut mistakes = Mistakes::new(&self.file);
        mistakes.add(line, text);
        mistakes
    }
}

/// One mistake in a manifest.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// A sentence that says what is wrong.
    pub text: String,
}

/// All mistakes of a manifest, in the order of their lines.
#[derive(Clone, Debug)]
pub struct Mistakes {
    /// The manifest's file.
    pub file: String,
    /// The mistakes.
    pub list: Vec<Mistake>,
}

impl Mistakes {
    fn new(file: &str) -> Self {
        Self { file: file.to_owned(), list: Vec::new() }
    }

    fn add(&mut self, line: usize, text: impl Into<String>) {
        self.list.push(Mistake { line, text: text.into() });
    }

    fn sorted(mut self) -> Self {
        self.list.sort();
        self.list.dedup();
        self
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.list.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{}: {}", self.file, mistake.line, mistake.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}
