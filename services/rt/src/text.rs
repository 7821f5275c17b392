//! Text of bounded length, made without a heap.

use core::fmt;

/// Text of at most `N` bytes; what does not fit is cut at a character's boundary.
#[derive(Clone, Copy, Debug)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
    cut: Cut,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cut {
    No,
    Yes,
}

impl<const N: usize> Text<N> {
    /// No text.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; N], length: 0, cut: Cut::No }
    }

    /// The text of some format arguments.
    #[must_use]
    pub fn of(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self::new();
        // Writing into it never fails; an error can only be that of a value's own formatting, whose text so
        // far stands.
        let _ = fmt::write(&mut text, arguments);
        text
    }

    /// Bytes as text; those that are not UTF-8 show as U+FFFD.
    #[must_use]
    pub fn lossy(bytes: &[u8]) -> Self {
        let mut text = Self::new();
        for chunk in bytes.utf8_chunks() {
            text.push(chunk.valid());
            if !chunk.invalid().is_empty() {
                text.push("\u{fffd}");
            }
        }
        text
    }

    fn push(&mut self, text: &str) {
        if self.cut == Cut::Yes {
            return;
        }
        let fitting = text.floor_char_boundary(N - self.length);
        if fitting < text.len() {
            self.cut = Cut::Yes;
        }
        if let (Some(to), Some(from)) =
            (self.bytes.get_mut(self.length..self.length + fitting), text.as_bytes().get(..fitting))
        {
            to.copy_from_slice(from);
            self.length += fitting;
        }
    }

    /// What was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("")
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Text;

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(Text::<8>::of(format_args!("{}-{}", 12, "abc")).as_str(), "12-abc");
        assert_eq!(Text::<4>::of(format_args!("abcdef")).as_str(), "abcd");
        assert_eq!(Text::<4>::of(format_args!("abcé")).as_str(), "abc");
        assert_eq!(Text::<5>::of(format_args!("abcé")).as_str(), "abcé");
        // Nothing follows a cut, even where it would fit.
        assert_eq!(Text::<4>::of(format_args!("abc{}{}", "é", "d")).as_str(), "abc");
        assert_eq!(Text::<0>::of(format_args!("a")).as_str(), "");
    }

    #[test]
    fn bytes_that_are_no_text_show() {
        assert_eq!(Text::<8>::lossy(b"ab\xffcd").as_str(), "ab\u{fffd}cd");
        assert_eq!(Text::<4>::lossy(b"ab\xffcd").as_str(), "ab");
    }

    #[test]
    fn any_text_stays_a_prefix() {
        let all = "Größe 漢字 🦀 plain";
        for split in (0..=all.len()).filter(|&at| all.is_char_boundary(at)) {
            let (first, second) = all.split_at(split);
            let text = Text::<11>::of(format_args!("{first}{second}"));
            assert!(all.starts_with(text.as_str()));
            assert!(text.as_str().len() <= 11);
        }
    }
}
