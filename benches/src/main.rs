//! The `qmesh-bench` binary: parses, pins, runs one command, prints its report and writes the receipt.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use qmesh_benches::{
    commands::Command,
    machine,
    receipt::{self, LoadAverage},
};

/// Measures qmesh, with llama.cpp beside it in the same interleaved run.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    let options = command.options();
    machine::pin(&options.pin)?;
    let before = machine::load_average();
    let mut report = command.run()?;
    let load = LoadAverage { before, after: machine::load_average() };
    report.notes.push(load.note(options.threads.iter().copied().max().unwrap_or(1)));
    if cfg!(debug_assertions) {
        report.notes.push("WARNING: a development build; measure with `cargo build --release`".into());
    }
    std::io::stdout().lock().write_all(report.render(options.output).as_bytes())?;
    if let Some(folder) = &options.receipt {
        let path = receipt::write(folder, command, &report, load)?;
        eprintln!("receipt: {}", path.display());
    }
    Ok(())
}
