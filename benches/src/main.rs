//! The `qmesh-bench` binary: parses, pins, runs one command, prints its report and writes the receipt; or writes a model.

use std::{io::Write, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use qmesh_benches::{
    commands::{
        Measurement,
        synth::{self, SynthOptions},
    },
    machine,
    receipt::{self, LoadAverage},
};

/// Measures qmesh, with llama.cpp beside it in the same interleaved run.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    #[command(flatten)]
    Measure(Measurement),
    /// Writes a GGUF of random weights in the shape of a published model; llama.cpp loads it too.
    Synth(SynthOptions),
}

fn main() -> ExitCode {
    let done = match &Cli::parse().task {
        Task::Measure(command) => measure(command),
        Task::Synth(options) => synth::run(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(command: &Measurement) -> anyhow::Result<()> {
    let options = command.options();
    machine::pin(&options.pin)?;
    let before = machine::load_average();
    let mut report = command.run()?;
    let load = LoadAverage { before, after: machine::load_average() };
    report.notes.push(load.note(command.threads()));
    let cpus = machine::cpus().len();
    if cpus > 0 && command.threads() > cpus + 1 {
        report
            .notes
            .push(format!("WARNING: {} threads on {cpus} CPUs: stages waited for each other", command.threads()));
    }
    if cfg!(debug_assertions) {
        report.notes.push("WARNING: a development build; measure with `cargo build --release`".into());
    }
    std::io::stdout().lock().write_all(report.render(options.output).as_bytes())?;
    if let Some(folder) = &options.plot {
        std::fs::create_dir_all(folder).with_context(|| format!("--plot {}", folder.display()))?;
        for plot in &report.plots {
            eprintln!("plot: {}", plot.write(folder)?.display());
        }
    }
    if let Some(folder) = &options.receipt {
        let path = receipt::write(folder, command, &report, load)?;
        eprintln!("receipt: {}", path.display());
    }
    Ok(())
}
