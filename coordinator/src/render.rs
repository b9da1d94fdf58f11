//! What people see: tables, progress and notes. Results go to standard output, all of this to standard error, unless it
//! is the result.

pub mod model;
pub mod output;
pub mod picture;
pub mod plan;
pub mod progress;
pub mod report;
pub mod table;
mod vocabulary;

use std::{
    fmt::Display,
    io::{self, Write},
};

use qmesh_models::terminal;

/// Writes a line, fit for any terminal, to standard error. Nothing can be done where nobody listens, and `eprintln!`
/// would panic there.
pub fn note(line: impl Display) {
    let _closed = writeln!(io::stderr().lock(), "{}", terminal::escaped(&line.to_string()));
}

/// `1 worker`, `2 workers`.
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
