//! Whole nodes on a simulated network, by seed.

mod application;
mod channels;
mod hostile;
mod members;
mod surroundings;
mod world;

/// The seeds that a test runs through: so many, or as many as `UNUM_SEEDS` says.
fn seeds(usual: u64) -> core::ops::Range<u64> {
    let given = std::env::var("UNUM_SEEDS").ok().and_then(|text| text.parse().ok());
    0..given.unwrap_or(usual)
}
