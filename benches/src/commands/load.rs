//! `qmesh-bench load`: what a long prompt does to those who are decoding, and they to it.

use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use qmesh_coordinator::{mesh::Speculation, plan::Workload};

use crate::{
    clients::{Decoding, Load, RunningRequest, Stream, firsts},
    compare::interleave,
    model::BenchModel,
    options::{PipelineOptions, positive},
    pipeline::{Layout, ReadyMesh},
    report::{Cell, Report, ReportTable},
    statistics::Samples,
};

/// Options of `load`.
#[derive(Args, Debug)]
pub struct LoadOptions {
    #[command(flatten)]
    pub(super) pipeline: PipelineOptions,
    /// Workers of a pipeline, each on CPUs of its own.
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = positive)]
    pub(super) stages: Vec<usize>,
    /// Clients that decode meanwhile, after prompts of 32 tokens.
    #[arg(long, value_delimiter = ',', default_value = "4", value_parser = positive)]
    clients: Vec<usize>,
    /// Tokens of the prompt that arrives.
    #[arg(long, default_value_t = 4096, value_parser = positive)]
    prompt: usize,
    /// Tokens that each client gets before it arrives.
    #[arg(long, default_value_t = 64, value_parser = positive)]
    tokens: usize,
}

pub(super) fn run(options: &LoadOptions) -> Result<Report> {
    let mut measured = Vec::new();
    for model in &options.pipeline.models.open()? {
        for threads in options.pipeline.run.threads_each() {
            for (at, clients) in super::streams::lanes(&options.stages, &options.clients) {
                let stages = options.stages[at];
                eprintln!("{} -t {threads} a worker, {stages} stages, {clients} clients", model.name);
                measured.push(measure(options, model, threads, stages, clients)?);
            }
        }
    }
    let samples = measured.iter().map(|m| m.loaded.all().into()).collect();
    let tables = vec![table(options, &measured)];
    Ok(Report { tables, notes: vec![NOTE.into()], samples, ..Report::default() })
}

const NOTE: &str = "unloaded: gaps between tokens before the prompt arrives; loaded: those that end between its arrival and \
                    its first token; ratios: of their medians, and of the loaded p99 to the unloaded median; samples: the \
                    prompt's seconds to its first token beside the streams";

/// Tokens of the prompts of those who decode.
const STREAM_PROMPT: usize = 32;

/// What was measured of one model with one number of threads, stages and clients.
#[derive(Debug, Default)]
struct Measured {
    model: String,
    threads: usize,
    stages: usize,
    clients: usize,
    /// Seconds between tokens before the prompt.
    calm: Samples,
    /// Seconds between tokens while it is computed.
    busy: Samples,
    /// Seconds to the prompt's first token without anyone else.
    alone: Samples,
    /// Seconds to the prompt's first token beside the streams.
    loaded: Samples,
}

fn measure(
    options: &LoadOptions,
    model: &BenchModel,
    threads: usize,
    stages: usize,
    clients: usize,
) -> Result<Measured> {
    let most = stream_tokens(options);
    let context = options.prompt.max(STREAM_PROMPT + most) + 1;
    let (speculation, workload) = (Speculation::Off, options.pipeline.cut.workload(Workload::Mixed));
    let layout =
        Layout { model, stages, threads, context, sessions: clients + 1, speculation, drafter: None, workload };
    let pipeline = ReadyMesh::processes(&layout)?;
    let mut measured = Measured { model: model.name.clone(), threads, stages, clients, ..Measured::default() };
    let alone = Load { clients: 1, prompt: options.prompt, tokens: 1 };
    // The coordinator learns what steps take.
    pipeline.load(model, Load { clients, prompt: STREAM_PROMPT, tokens: options.tokens })?;
    interleave(2, options.pipeline.run.repeat, |lane| {
        if lane == 0 {
            let seconds = firsts(&pipeline.load(model, alone)?.streams).median();
            measured.alone.push(seconds);
            return Ok(seconds);
        }
        let (prompt, streams) = pipeline.block_on(arrive(options, model, &pipeline, clients))?;
        let (from, to) = (prompt.submitted, prompt.times.last().copied().unwrap_or(prompt.submitted));
        measured.calm.extend(streams.iter().flat_map(|s| s.gaps_s(|time| time <= from)));
        measured.busy.extend(streams.iter().flat_map(|s| s.gaps_s(|time| from < time && time <= to)));
        measured.loaded.push(prompt.first_s());
        Ok(prompt.first_s())
    })?;
    pipeline.stop();
    Ok(measured)
}

/// Enough to go on for as long as the prompt can take: a step computes at least one of its rows.
fn stream_tokens(options: &LoadOptions) -> usize {
    options.tokens + options.prompt
}

/// Lets the clients decode, then sends the prompt, and cancels them when its first token is there.
async fn arrive(
    options: &LoadOptions,
    model: &BenchModel,
    pipeline: &ReadyMesh,
    clients: usize,
) -> Result<(Stream, Vec<Stream>)> {
    let handle = pipeline.handle();
    let prompts = (0..clients as u64).map(|client| model.prompt(client, STREAM_PROMPT)).collect();
    let decoding = Decoding::start(&handle, prompts, options.tokens, stream_tokens(options)).await?;
    let prompt = model.prompt(clients as u64, options.prompt);
    let prompt = RunningRequest::submit(&handle, clients as u64, prompt, 1, Arc::from([]))?.finish().await;
    Ok((prompt?, decoding.stop().await?))
}

fn table(options: &LoadOptions, measured: &[Measured]) -> ReportTable {
    let title = format!(
        "A prompt of {} tokens arrives while others decode; workers on QUIC loopback; medians of {}",
        options.prompt, options.pipeline.run.repeat
    );
    let itl = ["ITL p50 ms", "ITL p99 ms", "loaded p50 ms", "loaded p99 ms", "loaded max ms", "ratio", "p99 ratio"];
    let ttft = ["TTFT alone ms", "TTFT loaded ms", "TTFT ratio"];
    let mut table =
        ReportTable::new(title, ["model", "threads", "stages", "clients"].into_iter().chain(itl).chain(ttft));
    for m in measured {
        let (calm, p99) = (m.calm.median(), m.busy.quantile(0.99));
        let mut row = vec![m.model.as_str().into()];
        row.extend([m.threads, m.stages, m.clients].map(Cell::count));
        let times = [calm, m.calm.quantile(0.99), m.busy.median(), p99, m.busy.max()];
        row.extend(times.map(|s| Cell::number(s * 1e3, 1)));
        row.extend([m.busy.median() / calm, p99 / calm].map(|ratio| Cell::number(ratio, 2)));
        let (alone, loaded) = (m.alone.median(), m.loaded.median());
        row.extend([alone, loaded].map(|s| Cell::number(s * 1e3, 1)));
        row.push(Cell::number(loaded / alone, 2));
        table.rows.push(row);
    }
    table
}
