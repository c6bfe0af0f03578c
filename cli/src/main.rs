//! The `evenkeel` command: trains, compares and measures batch-normalised networks.

#[cfg_attr(not(test), expect(dead_code, reason = "the commands that draw come later"))]
mod chart;
mod files;

fn main() {}
