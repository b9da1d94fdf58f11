//! The commands, one file each.

pub mod api;
pub mod decode;
pub mod emulate;
pub mod kernels;
pub mod links;
pub mod load;
pub mod predict;
pub mod prefill;
pub mod speculate;
pub mod streams;
pub mod synth;
pub mod transfers;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::{
    options::{RunOptions, most},
    report::Report,
};

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Measurement {
    /// Products of each tensor type by rows, beside the read bandwidth of the machine.
    Kernels(kernels::KernelsOptions),
    /// Time per token of a whole model in one shard, without a network.
    Decode(decode::DecodeOptions),
    /// Time of a prompt through a whole model in one shard, without a network, or with --stages through a pipeline.
    Prefill(prefill::PrefillOptions),
    /// Clients that decode at once through pipelines of workers on QUIC loopback.
    Streams(streams::StreamsOptions),
    /// What a long prompt does to those who are decoding, and they to it.
    Load(load::LoadOptions),
    /// Pipelines over links with delay and a limited rate, in one process, with real compute.
    Links(links::LinksOptions),
    /// Pipelines whose stages wait instead of computing, over links with delay.
    Emulate(emulate::EmulateOptions),
    /// What plans promise beside what comes of it: workers of different speeds, links with delay.
    Predict(predict::PredictOptions),
    /// Answers with drafted tokens and without, over links with delay.
    Speculate(speculate::SpeculateOptions),
    /// How quickly a worker gets its tensors, and what that does to those who are decoding.
    Transfers(transfers::TransfersOptions),
    /// What the API adds to a token, and whether silent connections keep anybody waiting.
    Api(api::ApiOptions),
}

impl Measurement {
    /// Measures.
    ///
    /// # Errors
    /// Names the flag or file that is to blame.
    pub fn run(&self) -> Result<Report> {
        match self {
            Self::Kernels(options) => kernels::run(options),
            Self::Decode(options) => decode::run(options),
            Self::Prefill(options) => prefill::run(options),
            Self::Streams(options) => streams::run(options),
            Self::Load(options) => load::run(options),
            Self::Links(options) => links::run(options),
            Self::Emulate(options) => emulate::run(options),
            Self::Predict(options) => predict::run(options),
            Self::Speculate(options) => speculate::run(options),
            Self::Transfers(options) => transfers::run(options),
            Self::Api(options) => api::run(options),
        }
    }

    /// As on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kernels(_) => "kernels",
            Self::Decode(_) => "decode",
            Self::Prefill(_) => "prefill",
            Self::Streams(_) => "streams",
            Self::Load(_) => "load",
            Self::Links(_) => "links",
            Self::Emulate(_) => "emulate",
            Self::Predict(_) => "predict",
            Self::Transfers(_) => "transfers",
            Self::Speculate(_) => "speculate",
            Self::Api(_) => "api",
        }
    }

    /// How it is run.
    pub fn options(&self) -> &RunOptions {
        match self {
            Self::Kernels(options) => &options.run,
            Self::Decode(options) => &options.comparison.run,
            Self::Prefill(options) => &options.comparison.run,
            Self::Streams(options) => &options.comparison.run,
            Self::Load(options) => &options.pipeline.run,
            Self::Links(options) => &options.pipeline.run,
            Self::Emulate(options) => &options.pipeline.run,
            Self::Predict(options) => &options.pipeline.run,
            Self::Speculate(options) => &options.pipeline.run,
            Self::Transfers(options) => &options.pipeline.run,
            Self::Api(options) => &options.pipeline.run,
        }
    }

    /// The models it is run on.
    pub fn models(&self) -> &[PathBuf] {
        match self {
            Self::Kernels(_) => &[],
            Self::Decode(options) => &options.comparison.models.models,
            Self::Prefill(options) => &options.comparison.models.models,
            Self::Streams(options) => &options.comparison.models.models,
            Self::Load(options) => &options.pipeline.models.models,
            Self::Links(options) => &options.pipeline.models.models,
            Self::Emulate(options) => &options.pipeline.models.models,
            Self::Predict(options) => &options.pipeline.models.models,
            Self::Speculate(options) => &options.pipeline.models.models,
            Self::Transfers(options) => &options.pipeline.models.models,
            Self::Api(options) => &options.pipeline.models.models,
        }
    }

    /// The most threads that compute at once, the coordinator's among them.
    pub fn threads(&self) -> usize {
        let run = self.options();
        match self.stages() {
            [] => most(&run.threads()),
            stages => most(stages) * most(&run.threads_each()) + 1,
        }
    }

    /// Workers of its pipelines that compute; none where there is no pipeline.
    fn stages(&self) -> &[usize] {
        match self {
            Self::Kernels(_) | Self::Decode(_) | Self::Emulate(_) | Self::Transfers(_) | Self::Api(_) => &[],
            Self::Predict(_) => &predict::STAGES,
            Self::Prefill(options) => &options.stages,
            Self::Streams(options) => &options.stages,
            Self::Load(options) => &options.stages,
            Self::Links(options) => &options.stages,
            Self::Speculate(options) => &options.stages,
        }
    }
}
