//! The `evenkeel` command: trains, compares and measures batch-normalised networks.

#[cfg_attr(not(test), expect(dead_code, reason = "the commands that draw come later"))]
mod chart;
mod files;

#[cfg_attr(not(test), expect(dead_code, reason = "the commands that print come later"))]
mod term;

fn main() {}
