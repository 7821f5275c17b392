//! Figures of all repetitions, and what was to be reached.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

/// A measured figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: String,
}

impl Figure {
    /// A figure, its value rounded to hundredths.
    pub fn new(name: &str, value: f64, unit: &str) -> Self {
        Self { name: name.to_owned(), value: (value * 100.0).round() / 100.0, unit: unit.to_owned() }
    }
}

/// What a figure is to be at most.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The figure's name.
    pub figure: &'static str,
    /// Its largest value.
    pub most: f64,
    /// The same of another system.
    pub reference: &'static str,
}

/// The figures of all repetitions, in the order in which they were first added.
#[derive(Debug, Default)]
pub struct Table {
    targets: &'static [Target],
    order: Vec<String>,
    rows: BTreeMap<String, (String, Vec<f64>)>,
    runs: usize,
}

impl Table {
    /// An empty table whose figures are compared with targets.
    pub fn with(targets: &'static [Target]) -> Self {
        Self { targets, ..Self::default() }
    }

    /// Adds a repetition's figures.
    ///
    /// # Errors
    /// They are none, or other ones than before.
    pub fn add(&mut self, figures: Vec<Figure>) -> Result<()> {
        ensure!(!figures.is_empty(), "nothing was measured");
        for Figure { name, value, unit } in figures {
            let (known_unit, values) = self.rows.entry(name.clone()).or_insert_with(|| {
                self.order.push(name.clone());
                (unit.clone(), Vec::new())
            });
            ensure!(*known_unit == unit, "{name} is measured in {known_unit} and in {unit}");
            ensure!(values.len() == self.runs, "{name} is not measured once in every run");
            values.push(value);
        }
        self.runs += 1;
        let lacking = self.rows.iter().find(|(_, (_, values))| values.len() != self.runs);
        ensure!(lacking.is_none(), "{} is not measured in every run", lacking.map_or("", |(name, _)| name));
        Ok(())
    }

    /// A line for each figure.
    pub fn lines(&self) -> Vec<String> {
        let rows = self.order.iter().filter_map(|name| Some((name, self.rows.get(name)?)));
        rows.map(|(name, (unit, values))| {
            let shown: String = values.iter().map(|value| format!(" {value:>12}")).collect();
            let spread = if values.len() > 1 { format!("  {}", spread(values)) } else { String::new() };
            let target = self.targets.iter().find(|target| target.figure == name);
            let verdict = target.map_or_else(String::new, |target| format!("  {}", verdict(target, values)));
            format!("{name:<30}{shown} {unit:<14}{spread}{verdict}").trim_end().to_owned()
        })
        .collect()
    }
}

/// How figures of several runs differ.
fn spread(values: &[f64]) -> String {
    let (low, high) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)));
    if low == high { "same".into() } else { format!("differ by {:.1} %", (high - low) / high * 100.0) }
}

/// Whether the worst of some figures reaches a target.
fn verdict(target: &Target, values: &[f64]) -> String {
    let met = if values.iter().all(|&value| value <= target.most) { "met" } else { "MISSED" };
    format!("target {}: {met} ({})", target.most, target.reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, value: f64, unit: &str) -> Figure {
        Figure::new(name, value, unit)
    }

    #[test]
    fn a_table_shows_how_runs_differ() {
        let mut table = Table::default();
        table.add(vec![figure("b", 300.0, "ns"), figure("a", 1.0, "us")]).unwrap();
        table.add(vec![figure("b", 300.0, "ns"), figure("a", 0.5, "us")]).unwrap();
        let lines = table.lines();
        assert!(lines[0].starts_with("b ") && lines[0].ends_with("same"), "{lines:?}");
        assert!(lines[1].ends_with("differ by 50.0 %"), "{lines:?}");
    }

    #[test]
    fn a_target_is_met_when_all_runs_meet_it() {
        const TARGETS: &[Target] = &[Target { figure: "a", most: 1.7, reference: "KVM: 2.6" }];
        let mut table = Table::with(TARGETS);
        table.add(vec![figure("a", 1.7, "times"), figure("b", 9.0, "s")]).unwrap();
        let lines = table.lines();
        assert!(lines[0].ends_with("target 1.7: met (KVM: 2.6)"), "{lines:?}");
        assert!(!lines[1].contains("target"), "{lines:?}");
        table.add(vec![figure("a", 1.71, "times"), figure("b", 9.0, "s")]).unwrap();
        assert!(table.lines()[0].ends_with("target 1.7: MISSED (KVM: 2.6)"));
    }

    #[test]
    fn figures_that_come_and_go_are_errors() {
        let mut table = Table::default();
        assert!(table.add(Vec::new()).is_err());
        table.add(vec![figure("a", 1.0, "ns")]).unwrap();
        assert!(table.add(vec![figure("a", 1.0, "us")]).is_err());
        let mut table = Table::default();
        assert!(table.add(vec![figure("a", 1.0, "ns"), figure("a", 2.0, "ns")]).is_err());
        let mut table = Table::default();
        table.add(vec![figure("a", 1.0, "ns"), figure("b", 2.0, "ns")]).unwrap();
        assert!(
            table.add(vec![figure("a", 1.0, "ns")]).unwrap_err().to_string().contains("b is not measured")
        );
    }
}
