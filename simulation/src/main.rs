//! Replays one world and tells its story, or runs many and tells which of them found something.

use std::{
    io::{self, Write},
    ops::Range,
    process::ExitCode,
};

use clap::{Parser, ValueEnum};
use qmesh_simulation::{Plant, Story, story};

/// One seeded world of a coordinator and its workers.
#[derive(Debug, Parser)]
struct Args {
    /// Replay this seed, and tell its story.
    #[arg(long, required_unless_present = "seeds", conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run these seeds, such as 0..500, and tell which of them found something.
    #[arg(long, value_parser = seeds)]
    seeds: Option<Range<u64>>,
    /// Put a fault in.
    #[arg(long, value_enum)]
    plant: Option<Planted>,
}

/// Faults by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Planted {
    PageFreedTwice,
    OldFrameTaken,
    SessionNeverClosed,
}

impl From<Planted> for Plant {
    fn from(planted: Planted) -> Self {
        match planted {
            Planted::PageFreedTwice => Self::PageFreedTwice,
            Planted::OldFrameTaken => Self::OldFrameTaken,
            Planted::SessionNeverClosed => Self::SessionNeverClosed,
        }
    }
}

fn main() -> io::Result<ExitCode> {
    let Args { seed, seeds, plant } = Args::parse();
    let (plant, mut out) = (plant.map(Plant::from), io::stdout().lock());
    let mut found = 0;
    if let Some(seed) = seed {
        let story = story(seed, plant);
        write!(out, "{story}")?;
        found += story.findings.len();
    }
    for seed in seeds.into_iter().flatten() {
        out.flush()?;
        let Story { findings, totals, .. } = story(seed, plant);
        if let Some(first) = findings.first() {
            writeln!(out, "seed {seed}: {first}")?;
            found += 1;
        } else {
            writeln!(out, "seed {seed}: {totals:?}")?;
        }
    }
    Ok(if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("seeds are given as FROM..TO")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    Ok(number(from)?..number(to)?)
}
