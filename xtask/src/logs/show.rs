//! A line of the merged log as text: plain for a file, coloured for a terminal.

use std::fmt::Write as _;

use super::{Level, Line};

/// Whether to colour.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Colour {
    /// For a file.
    Plain,
    /// For a terminal, with ANSI escape sequences.
    Ansi,
}

impl Colour {
    /// What suits the standard output.
    pub fn of_stdout() -> Self {
        use std::io::IsTerminal;
        if std::io::stdout().is_terminal() { Self::Ansi } else { Self::Plain }
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Ansi => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

/// Columns for node and service.
const ORIGIN_COLUMNS: usize = 18;
/// Columns before the text: the time, the origin, the level, and what stands between.
const INDENT: usize = 12 + 1 + ORIGIN_COLUMNS + 1 + 5 + 1;

/// The line with its newline, and beneath it, indented, what belongs to it.
pub fn show(line: &Line, colour: Colour) -> String {
    let mut out = one(line, colour);
    for context in &line.context {
        let _ = write!(out, "    {} {}", colour.paint("2", "|"), one(context, colour));
    }
    out
}

fn one(line: &Line, colour: Colour) -> String {
    let micros = line.nanos / 1_000;
    let time = format!("{:5}.{:06}", micros / 1_000_000, micros % 1_000_000);
    let origin = format!("n{}/{}", line.node, clean(&line.service));
    let (level, code) = match line.level {
        None => ("", "0"),
        Some(Level::Trace) => ("TRACE", "2"),
        Some(Level::Debug) => ("DEBUG", "34"),
        Some(Level::Info) => ("INFO", "32"),
        Some(Level::Warn) => ("WARN", "33"),
        Some(Level::Error) => ("ERROR", "1;31"),
    };
    // Nodes in turn have one of six colours.
    let node_code = (31 + (line.node + 4) % 6).to_string();
    let mut out = format!(
        "{} {} {} ",
        colour.paint("2", &time),
        colour.paint(&node_code, &format!("{origin:ORIGIN_COLUMNS$}")),
        colour.paint(code, &format!("{level:5}")),
    );
    for (number, text) in line.text.trim_end().split('\n').enumerate() {
        if number > 0 {
            let _ = write!(out, "{:INDENT$}", "");
        }
        out.push_str(clean(text).trim_end());
        out.push('\n');
    }
    out
}

/// Text of a service with its control characters made visible: it must not steer the terminal.
fn clean(text: &str) -> String {
    let show = |letter: char| match letter {
        '\t' => "    ".to_owned(),
        letter if letter.is_control() => letter.escape_default().to_string(),
        letter => letter.to_string(),
    };
    text.chars().map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line {
            nanos: 12_345_678,
            tsc: 12_345_678,
            node: 1,
            service: "supervisor".to_owned(),
            level: Some(Level::Info),
            text: text.to_owned(),
            context: Vec::new(),
        }
    }

    #[test]
    fn a_plain_line() {
        assert_eq!(show(&line("all up"), Colour::Plain), "    0.012345 n1/supervisor      INFO  all up\n");
        let text = Line { level: None, ..line("two\nlines\n") };
        let indent = " ".repeat(INDENT);
        assert_eq!(
            show(&text, Colour::Plain),
            format!("    0.012345 n1/supervisor            two\n{indent}lines\n")
        );
    }

    #[test]
    fn what_belongs_to_a_line_is_indented_beneath_it() {
        let fault = Line { context: vec![line("before")], ..line("fault") };
        let shown = show(&fault, Colour::Plain);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[1], "    |     0.012345 n1/supervisor      INFO  before");
    }

    #[test]
    fn a_service_cannot_steer_the_terminal() {
        let shown = show(&line("\x1b[2Jgone\r\u{9b}x\ty"), Colour::Plain);
        assert!(shown.ends_with("INFO  \\u{1b}[2Jgone\\r\\u{9b}x    y\n"), "{shown}");
        let coloured = show(&line("x"), Colour::Ansi);
        assert!(coloured.contains("\x1b[32mINFO \x1b[0m x\n"), "{coloured}");
    }
}
