//! The commands, one file each.

pub mod decode;
pub mod kernels;
pub mod prefill;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::{options::RunOptions, report::Report};

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Products of each tensor type by rows, beside the read bandwidth of the machine.
    Kernels(kernels::KernelsOptions),
    /// Time per token of a whole model in one shard, without a network.
    Decode(decode::DecodeOptions),
    /// Time of a prompt through a whole model in one shard, without a network.
    Prefill(prefill::PrefillOptions),
}

impl Command {
    /// Measures.
    ///
    /// # Errors
    /// Names the flag or file that is to blame.
    pub fn run(&self) -> Result<Report> {
        match self {
            Self::Kernels(options) => kernels::run(options),
            Self::Decode(options) => decode::run(options),
            Self::Prefill(options) => prefill::run(options),
        }
    }

    /// As on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kernels(_) => "kernels",
            Self::Decode(_) => "decode",
            Self::Prefill(_) => "prefill",
        }
    }

    /// How it is run.
    pub fn options(&self) -> &RunOptions {
        match self {
            Self::Kernels(options) => &options.run,
            Self::Decode(options) => &options.comparison.run,
            Self::Prefill(options) => &options.comparison.run,
        }
    }

    /// The models it is run on.
    pub fn models(&self) -> &[PathBuf] {
        match self {
            Self::Kernels(_) => &[],
            Self::Decode(options) => &options.comparison.models.models,
            Self::Prefill(options) => &options.comparison.models.models,
        }
    }
}
