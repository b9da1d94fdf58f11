//! What people see: tables, progress and notes. Results go to standard output, all of this to standard error, unless it
//! is the result.

pub mod dashboard;
pub mod model;
pub mod output;
pub mod picture;
pub mod plan;
pub mod progress;
pub mod report;
pub mod table;
mod vocabulary;
pub mod workers;

use std::fmt::Display;

/// Tells the user of something, on standard error, in a line that is fit for any terminal.
pub fn note(line: impl Display) {
    qmesh_logging::note(&line.to_string());
}

/// `1 worker`, `2 workers`.
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
