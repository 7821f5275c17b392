//! Typed reading of TOML tables that notes every mistake with its line and goes on.

use std::ops::Range;

use toml_edit::{Item, TableLike, Value};

use super::{At, Mistakes};

/// The text of a manifest, by lines.
pub struct Lines(Vec<usize>);

impl Lines {
    /// Finds the lines of a text.
    pub fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// The line, from 1, of the byte where a span begins.
    pub fn line(&self, span: Option<Range<usize>>) -> usize {
        let at = span.map_or(0, |span| span.start);
        1 + self.0.partition_point(|&newline| newline < at)
    }
}

/// One table of a manifest, as it is read key by key.
///
/// Every key that is asked for is a known one; [`Fields::finish`] reports the others.
pub struct Fields<'a> {
    table: &'a dyn TableLike,
    lines: &'a Lines,
    what: &'static str,
    /// Where the table begins.
    pub line: usize,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Begins to read a table that stands at `line`; `what` names its kind in messages.
    pub fn new(table: &'a dyn TableLike, lines: &'a Lines, what: &'static str, line: usize) -> Self {
        Self { table, lines, what, line, known: Vec::new() }
    }

    fn get(&mut self, key: &'static str) -> Option<(&'a Item, usize)> {
        self.known.push(key);
        let (name, item) = self.table.get_key_value(key)?;
        let line = self.lines.line(item.span().or_else(|| name.span()));
        Some((item, line))
    }

    /// The value of a key, read by `read`, which says what it wants when it refuses.
    fn typed<T>(
        &mut self,
        key: &'static str,
        mistakes: &mut Mistakes,
        wanted: &str,
        read: impl FnOnce(&'a Item) -> Option<T>,
    ) -> Option<At<T>> {
        let (item, line) = self.get(key)?;
        let value = read(item);
        if value.is_none() {
            mistakes.add(line, format!("'{key}' must be {wanted}, but it is {}", show(item)));
        }
        value.map(|value| At { value, line })
    }

    /// Reports a key that must be there and is not.
    pub fn need<T>(&self, key: &str, value: Option<T>, mistakes: &mut Mistakes) -> Option<T> {
        if value.is_none() && self.table.get(key).is_none() {
            mistakes.add(self.line, format!("this {} has no '{key}'", self.what));
        }
        value
    }

    /// A text.
    pub fn text(&mut self, key: &'static str, mistakes: &mut Mistakes) -> Option<At<String>> {
        self.typed(key, mistakes, "a text", |item| item.as_str().map(str::to_owned))
    }

    /// A name: 1 to `longest` bytes of lower-case letters, digits and hyphens.
    pub fn name(&mut self, key: &'static str, longest: usize, mistakes: &mut Mistakes) -> Option<At<String>> {
        let name = self.text(key, mistakes)?;
        let text = &name.value;
        if text.len() > longest {
            mistakes
                .add(name.line, format!("the name '{text}' is {} bytes long, {longest} at most", text.len()));
        }
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || !text.bytes().all(letters) {
            mistakes.add(
                name.line,
                format!("the name '{text}' must be of lower-case letters, digits and hyphens"),
            );
        }
        Some(name)
    }

    /// A whole number of a range.
    pub fn number<T: TryFrom<i64>>(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<i64>,
        mistakes: &mut Mistakes,
    ) -> Option<At<T>> {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        self.typed(key, mistakes, &wanted, |item| {
            let number = item.as_integer().filter(|number| range.contains(number))?;
            T::try_from(number).ok()
        })
    }

    /// A list of whole numbers of a range.
    pub fn numbers<T: TryFrom<i64>>(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<i64>,
        mistakes: &mut Mistakes,
    ) -> Option<At<Vec<T>>> {
        let wanted = format!("a list of whole numbers from {} to {}", range.start(), range.end());
        self.typed(key, mistakes, &wanted, |item| {
            let read = |value: &Value| {
                let number = value.as_integer().filter(|number| range.contains(number))?;
                T::try_from(number).ok()
            };
            item.as_array()?.iter().map(read).collect()
        })
    }

    /// A truth value, false when it is not given.
    pub fn flag(&mut self, key: &'static str, mistakes: &mut Mistakes) -> bool {
        self.typed(key, mistakes, "true or false", Item::as_bool).is_some_and(|flag| flag.value)
    }

    /// A size in bytes, such as "32K": whole pages, within a range of bytes.
    pub fn size(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        mistakes: &mut Mistakes,
    ) -> Option<At<u64>> {
        let size = self.typed(key, mistakes, "a size such as \"4K\", \"32K\" or \"1M\"", |item| {
            let (number, factor) = split(item.as_str()?, &[("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)])?;
            number.checked_mul(factor)
        })?;
        let page = ipc::abi::PAGE_SIZE as u64;
        if !size.value.is_multiple_of(page) {
            mistakes.add(size.line, format!("'{key}' must be a multiple of 4K, the size of a page"));
            return None;
        }
        if !range.contains(&size.value) {
            let (least, most) = (show_bytes(*range.start()), show_bytes(*range.end()));
            mistakes.add(size.line, format!("'{key}' must be from {least} to {most}"));
            return None;
        }
        Some(size)
    }

    /// A time in microseconds, such as "50ms", within a range of microseconds.
    pub fn time_us(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        mistakes: &mut Mistakes,
    ) -> Option<At<u64>> {
        let time =
            self.typed(key, mistakes, "a time such as \"200us\", \"50ms\", \"10s\" or \"1h\"", |item| {
                let units = [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("h", 3_600_000_000)];
                let (number, factor) = split(item.as_str()?, &units)?;
                number.checked_mul(factor)
            })?;
        if time.value == 0 {
            mistakes.add(time.line, format!("'{key}' must not be zero"));
            return None;
        }
        if !range.contains(&time.value) {
            let (least, most) = (range.start(), range.end());
            mistakes.add(time.line, format!("'{key}' must be from {least} to {most} microseconds"));
            return None;
        }
        Some(time)
    }

    /// A list of texts, each with its line; empty when it is not given.
    pub fn texts(&mut self, key: &'static str, mistakes: &mut Mistakes) -> Vec<At<String>> {
        let lines = self.lines;
        self.typed(key, mistakes, "a list of texts", |item| {
            let read = |value: &Value| {
                Some(At { value: value.as_str()?.to_owned(), line: lines.line(value.span()) })
            };
            item.as_array()?.iter().map(read).collect()
        })
        .map_or_else(Vec::new, |texts: At<Vec<_>>| texts.value)
    }

    /// The table of a key.
    pub fn table(
        &mut self,
        key: &'static str,
        what: &'static str,
        mistakes: &mut Mistakes,
    ) -> Option<Fields<'a>> {
        let table = self.typed(key, mistakes, "a table", Item::as_table_like)?;
        Some(Fields::new(table.value, self.lines, what, table.line))
    }

    /// The tables of a list, written `[[key]]` or `key = [{ .. }]`; none when it is not given.
    pub fn tables(
        &mut self,
        key: &'static str,
        what: &'static str,
        mistakes: &mut Mistakes,
    ) -> Vec<Fields<'a>> {
        let lines = self.lines;
        self.typed(key, mistakes, "a list of tables", |item| {
            if let Some(tables) = item.as_array_of_tables() {
                let read =
                    |table: &'a toml_edit::Table| Fields::new(table, lines, what, lines.line(table.span()));
                return Some(tables.iter().map(read).collect());
            }
            let read = |value: &'a Value| {
                let table = value.as_inline_table()?;
                Some(Fields::new(table, lines, what, lines.line(value.span())))
            };
            item.as_array()?.iter().map(read).collect()
        })
        .map_or_else(Vec::new, |tables: At<Vec<_>>| tables.value)
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self, mistakes: &mut Mistakes) {
        for (key, item) in self.table.iter().filter(|(key, _)| !self.known.contains(key)) {
            let name = self.table.get_key_value(key).and_then(|(name, _)| name.span());
            let line = self.lines.line(name.or_else(|| item.span()));
            let known = self.known.join(", ");
            mistakes.add(line, format!("unknown key '{key}' in a {}, which knows: {known}", self.what));
        }
    }
}

/// Splits "32K" into its number and its unit's factor.
fn split(text: &str, units: &[(&str, u64)]) -> Option<(u64, u64)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    Some((number.parse().ok()?, *factor))
}

/// A number of bytes as a manifest would say it.
pub fn show_bytes(bytes: u64) -> String {
    match bytes {
        0 => "0K".to_owned(),
        _ if bytes.is_multiple_of(1 << 30) => format!("{}G", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}M", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}K", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

/// A value as a message shows it.
fn show(item: &Item) -> String {
    match item {
        Item::Value(Value::String(text)) => format!("{:?}", text.value()),
        Item::Value(Value::Integer(number)) => number.value().to_string(),
        Item::Value(Value::Float(number)) => number.value().to_string(),
        Item::Value(Value::Boolean(flag)) => flag.value().to_string(),
        Item::Value(Value::Array(_)) => "another list".to_owned(),
        other => format!("of the type {}", other.type_name()),
    }
}
