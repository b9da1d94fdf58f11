//! Options that several commands take.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use qmesh_coordinator::plan::Workload;

use crate::{model::BenchModel, peer::Peer, report::ReportFormat};

/// How to run and what to do with the result.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    /// Threads to compute with; several numbers are measured one after the other. By default one and all physical cores,
    /// in pipelines one a worker.
    #[arg(short, long, value_delimiter = ',', value_parser = positive)]
    threads: Vec<usize>,
    /// Samples of everything; medians are shown.
    #[arg(long, default_value_t = 5, value_parser = positive)]
    pub repeat: usize,
    /// How the report is printed.
    #[arg(short, long, value_enum, default_value_t = ReportFormat::Md)]
    pub output: ReportFormat,
    /// A folder for a receipt: the report as JSON, with machine, load average, commit, command, models and peers.
    #[arg(long, value_name = "DIR")]
    pub receipt: Option<PathBuf>,
    /// CPUs to run on, llama.cpp too.
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    pub pin: Vec<usize>,
    /// A folder for plots, SVG files; not every command has some.
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
}

/// Options of a command that measures models beside llama.cpp.
#[derive(Args, Clone, Debug)]
pub struct ComparisonOptions {
    /// How to run.
    #[command(flatten)]
    pub run: RunOptions,
    /// On what.
    #[command(flatten)]
    pub models: ModelOptions,
    /// Beside whom.
    #[command(flatten)]
    pub peers: PeerOptions,
}

/// Options of a command that measures pipelines in this process.
#[derive(Args, Clone, Debug)]
pub struct PipelineOptions {
    /// How to run.
    #[command(flatten)]
    pub run: RunOptions,
    /// On what.
    #[command(flatten)]
    pub models: ModelOptions,
    /// How it is cut.
    #[command(flatten)]
    pub cut: CutOptions,
}

/// How pipelines are cut.
#[derive(Args, Clone, Copy, Debug)]
pub struct CutOptions {
    /// What the cut keeps all workers equally busy with, as `coordinator --workload`; by default what is measured.
    #[arg(long, value_enum)]
    workload: Option<Workload>,
}

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct ModelOptions {
    /// GGUF files.
    #[arg(short, long = "model", value_name = "PATH", required = true, num_args = 1..)]
    pub models: Vec<PathBuf>,
}

/// Whom to run beside.
#[derive(Args, Clone, Debug, Default)]
pub struct PeerOptions {
    /// A folder with llama.cpp's `llama-bench`; of several builds, the better one counts in each figure.
    #[arg(long, value_name = "DIR")]
    pub llama_bin: Vec<PathBuf>,
}

impl RunOptions {
    /// Threads of a whole model in one process.
    pub fn threads(&self) -> Vec<usize> {
        if !self.threads.is_empty() {
            return self.threads.clone();
        }
        let cores = sysinfo::System::physical_core_count().unwrap_or(1);
        if cores > 1 { vec![1, cores] } else { vec![1] }
    }

    /// Threads of each worker of a pipeline.
    pub fn threads_each(&self) -> Vec<usize> {
        if self.threads.is_empty() { vec![1] } else { self.threads.clone() }
    }
}

impl CutOptions {
    /// As asked for, or what is `measured`.
    pub fn workload(self, measured: Workload) -> Workload {
        self.workload.unwrap_or(measured)
    }
}

impl ModelOptions {
    /// Opens all of them, so that a wrong path is refused before anything is measured.
    ///
    /// # Errors
    /// Names the file that is no model.
    pub fn open(&self) -> Result<Vec<BenchModel>> {
        self.models.iter().map(|path| BenchModel::open(path).context("--model")).collect()
    }
}

impl PeerOptions {
    /// Finds all of them.
    ///
    /// # Errors
    /// Names the folder that has no `llama-bench`.
    pub fn find(&self) -> Result<Vec<Peer>> {
        let peers = self.llama_bin.iter().map(|folder| Peer::find(folder).context("--llama-bin"));
        let mut peers = peers.collect::<Result<Vec<_>>>()?;
        // Columns are told apart by their label.
        for i in 1..peers.len() {
            if peers[..i].iter().any(|p| p.label == peers[i].label) {
                peers[i].label = format!("{} #{}", peers[i].label, i + 1);
            }
        }
        Ok(peers)
    }
}

/// The largest of them, 1 of none.
pub fn most(numbers: &[usize]) -> usize {
    numbers.iter().copied().max().unwrap_or(1)
}

/// A number from 1 on.
///
/// # Errors
/// Says so.
pub fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "give a number from 1 on".into())
}
