//! Builds, runs, tests and measures Unum.
fn main() {}
