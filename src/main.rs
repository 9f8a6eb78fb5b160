//! `sluice`
fn main() {}
