//! The screen of `cargo xtask top`: sections one below the other, each a line of headings and a line for each thing.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::numbers::{UNKNOWN, count, kib, percent, time};
use super::overview::{Hot, Node, Overview};

/// What there is to see.
#[derive(Clone, Debug, PartialEq)]
pub enum View {
    /// A run.
    Run(Overview),
    /// None, for this reason.
    Nothing(String),
}

/// The lines of a section.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Section {
    columns: &'static [Column],
    rows: Vec<Vec<String>>,
}

/// A column.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Column {
    heading: &'static str,
    width: u16,
    side: Side,
}

/// Where the text of a column is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Left,
    Right,
}

const fn left(heading: &'static str, width: u16) -> Column {
    Column { heading, width, side: Side::Left }
}

const fn right(heading: &'static str, width: u16) -> Column {
    Column { heading, width, side: Side::Right }
}

const NODES: &[Column] = &[
    left("NODE", 6),
    left("member", 9),
    right("epoch", 6),
    right("cores", 5),
    right("load", 6),
    right("most", 6),
    right("free", 6),
    right("total", 6),
    right("clock +-", 8),
    right("log lost", 8),
];
const VCPUS: &[Column] = &[
    left("VCPU", 6),
    right("node", 4),
    right("core", 4),
    left("state", 8),
    right("load", 6),
    right("steal", 6),
    right("exits/s", 8),
    right("faults/s", 8),
    right("halts/s", 8),
];
const MEMORY: &[Column] = &[
    left("MEMORY", 6),
    right("used", 6),
    right("frames", 6),
    right("read", 6),
    right("write", 6),
    right("zero", 6),
    right("dormant", 7),
    right("mostly", 6),
    right("migrat", 6),
    right("bounce", 6),
    right("device", 6),
];
const FAULTS: &[Column] = &[
    left("FAULTS", 6),
    right("all/s", 6),
    right("read/s", 6),
    right("write/s", 7),
    right("window/s", 8),
    right("fetch/s", 7),
    right("kept/s", 6),
    right("given/s", 7),
    right("inval/s", 7),
    right("refused", 7),
];
const WIRE: &[Column] = &[
    left("WIRE", 6),
    left("link", 4),
    right("out B/s", 7),
    right("frames/s", 8),
    right("in B/s", 7),
    right("frames/s", 8),
    right("dropped", 7),
    right("again", 6),
    right("p50", 7),
    right("p99", 7),
];
const HOT: &[Column] = &[
    left("HOT PAGE", 10),
    right("faults", 6),
    left("symbol", 18),
    left("INSTRUCTION", 16),
    right("faults", 6),
    left("symbol", 19),
];

/// A number in short, or the sign for an unknown one.
fn known(number: Option<u64>, show: impl Fn(u64) -> String) -> String {
    number.map_or_else(|| UNKNOWN.to_owned(), show)
}

/// The sections of an overview, in their order.
pub fn sections(overview: &Overview) -> Vec<Section> {
    let nodes = |row: fn(&Node) -> Vec<String>| overview.nodes.iter().map(row).collect();
    vec![
        Section { columns: NODES, rows: nodes(node) },
        Section { columns: VCPUS, rows: vcpus(overview) },
        Section { columns: MEMORY, rows: nodes(memory) },
        Section { columns: FAULTS, rows: nodes(faults) },
        Section { columns: WIRE, rows: nodes(wire) },
        Section { columns: HOT, rows: hot(&overview.hot_pages, &overview.hot_instructions) },
    ]
}

fn name(node: &Node) -> String {
    format!("n{}", node.node)
}

fn node(node: &Node) -> Vec<String> {
    let member = match (node.member, node.may_act) {
        _ if node.age_ms > super::overview::OLD_MS => format!("silent {}", node.age_ms / 1_000),
        (Some(true), Some(false)) => "alone".to_owned(),
        (Some(true), _) => known(node.members, |members| format!("yes, of {members}")),
        (Some(false), _) => "no".to_owned(),
        (None, _) => UNKNOWN.to_owned(),
    };
    vec![
        name(node),
        member,
        known(node.epoch, count),
        known(node.cores, count),
        known(node.load_permille, percent),
        known(node.most_permille, percent),
        known(node.free_kib, kib),
        known(node.total_kib, kib),
        known(node.clock_error_ns, time),
        known(node.log_lost, count),
    ]
}

fn vcpus(overview: &Overview) -> Vec<Vec<String>> {
    let row = |vcpu: &super::overview::Vcpu| {
        vec![
            vcpu.vcpu.map_or_else(|| format!("?{}", vcpu.local), |number| number.to_string()),
            format!("n{}", vcpu.node),
            known(vcpu.core, count),
            vcpu.activity.unwrap_or(UNKNOWN).to_owned(),
            known(vcpu.load_permille, percent),
            known(vcpu.steal_permille, percent),
            known(vcpu.exits_per_second, count),
            known(vcpu.faults_per_second, count),
            known(vcpu.halts_per_second, count),
        ]
    };
    overview.vcpus.iter().map(row).collect()
}

fn memory(node: &Node) -> Vec<String> {
    let memory = &node.memory;
    let classes = &memory.classes;
    let numbers = [
        memory.frames_used,
        memory.frames_total,
        memory.read,
        memory.write,
        memory.zero,
        memory.dormant,
        classes.read_mostly,
        classes.migratory,
        classes.bouncing,
        classes.device,
    ];
    counts(node, &numbers)
}

fn faults(node: &Node) -> Vec<String> {
    let faults = &node.faults;
    let numbers = [
        faults.faults_per_second,
        faults.reads_per_second,
        faults.writes_per_second,
        faults.window_per_second,
        faults.fetched_per_second,
        faults.kept_per_second,
        faults.given_per_second,
        faults.invalidated_per_second,
        faults.refused,
    ];
    counts(node, &numbers)
}

fn counts(node: &Node, numbers: &[Option<u64>]) -> Vec<String> {
    let numbers = numbers.iter().map(|&number| known(number, count));
    std::iter::once(name(node)).chain(numbers).collect()
}

fn wire(node: &Node) -> Vec<String> {
    let wire = &node.wire;
    let link = match wire.link_up {
        Some(true) => "up",
        Some(false) => "down",
        None => UNKNOWN,
    };
    vec![
        name(node),
        link.to_owned(),
        known(wire.sent_bytes_per_second, count),
        known(wire.sent_frames_per_second, count),
        known(wire.received_bytes_per_second, count),
        known(wire.received_frames_per_second, count),
        known(wire.dropped, count),
        known(wire.retransmitted, count),
        known(wire.round_trip_p50_ns, time),
        known(wire.round_trip_p99_ns, time),
    ]
}

/// Pages on the left, instructions on the right.
fn hot(pages: &[Hot], instructions: &[Hot]) -> Vec<Vec<String>> {
    let cells = |hot: Option<&Hot>| {
        let cells = hot.map(|hot| {
            let symbol = hot.symbol.clone().unwrap_or_default();
            [format!("{:x}", hot.address), count(hot.faults), symbol]
        });
        cells.unwrap_or_default()
    };
    let lines = pages.len().max(instructions.len());
    (0..lines)
        .map(|line| [cells(pages.get(line)), cells(instructions.get(line))].into_iter().flatten().collect())
        .collect()
}

/// How many of `room` lines each section has, which would have so many: all have lines in turns.
fn share_out(wanted: &[usize], room: usize) -> Vec<usize> {
    let mut given = vec![0; wanted.len()];
    let mut left = room;
    while left > 0 && given != wanted {
        for (given, wanted) in given.iter_mut().zip(wanted) {
            if *given < *wanted && left > 0 {
                *given += 1;
                left -= 1;
            }
        }
    }
    given
}

/// Draws what there is to see.
pub fn draw(frame: &mut Frame, view: &View) {
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Line::from("q, Esc or Ctrl-C ends this, not the run").dim(), bottom);
    let overview = match view {
        View::Nothing(why) => {
            frame.render_widget(Line::from("unum").bold(), top);
            frame.render_widget(Paragraph::new(why.as_str()), middle);
            return;
        }
        View::Run(overview) => overview,
    };
    frame.render_widget(status(overview), top);
    let sections = sections(overview);
    let wanted: Vec<_> = sections.iter().map(|section| section.rows.len() + 1).collect();
    let heights = share_out(&wanted, usize::from(middle.height));
    let lengths = heights.iter().map(|&lines| Constraint::Length(u16::try_from(lines).unwrap_or(u16::MAX)));
    let areas = Layout::vertical(lengths).split(middle);
    for ((section, &lines), &area) in sections.iter().zip(&heights).zip(areas.iter()) {
        if lines > 0 {
            frame.render_widget(table(section, lines), area);
        }
    }
}

fn status(overview: &Overview) -> Line<'static> {
    let (nodes, vcpus) = (overview.nodes.len(), overview.vcpus.len());
    let age = overview.age_ms / 1_000;
    if overview.is_old() {
        let text = format!("unum: the state is {age} s old: the run has ended, or its nodes say nothing");
        return Line::from(text).bold().fg(Color::Red);
    }
    Line::from(format!("unum: {nodes} nodes, {vcpus} vCPUs")).bold()
}

/// A section in so many lines, which are one at least. What does not fit is counted in the last one.
fn table(section: &Section, lines: usize) -> Table<'static> {
    let rows = lines.saturating_sub(1);
    let missing = section.rows.len().saturating_sub(rows);
    // The line that counts them takes one more away.
    let shown = if missing > 0 { rows.saturating_sub(1) } else { rows };
    let cell = |text: String, column: &Column| {
        let line = Line::from(text);
        Cell::from(if column.side == Side::Right { line.right_aligned() } else { line })
    };
    let row = |row: &Vec<String>| {
        Row::new(row.iter().zip(section.columns).map(|(text, column)| cell(text.clone(), column)))
    };
    let mut all: Vec<Row> = section.rows.iter().take(shown).map(row).collect();
    if missing > 0 && rows > 0 {
        let more = format!("+{}", section.rows.len() - shown);
        all.push(Row::new([Cell::from(more)]).dim());
    }
    let headings = section.columns.iter().map(|column| cell(column.heading.to_owned(), column));
    let widths = section.columns.iter().map(|column| Constraint::Length(column.width));
    Table::new(all, widths).header(Row::new(headings).style(Style::new().bold().fg(Color::Cyan)))
}

#[cfg(test)]
mod tests;
