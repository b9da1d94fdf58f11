//! `qmesh-bench transfers`: how quickly a worker gets its tensors, and what that does to those who are decoding.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use qmesh_coordinator::{mesh::Speculation, plan::Workload};
use qmesh_net::PlanEpoch;

use crate::{
    bare_stream,
    clients::Decoding,
    compare::interleave,
    emulation::Emulation,
    fetching::{cold, fetched},
    model::BenchModel,
    options::{PipelineOptions, positive},
    pipeline::{Layout, ReadyMesh},
    report::{Cell, Report, ReportTable},
    statistics::Samples,
};

/// Options of `transfers`.
#[derive(Args, Debug)]
pub struct TransfersOptions {
    #[command(flatten)]
    pub(super) pipeline: PipelineOptions,
    /// Clients that decode while another worker gets its tensors.
    #[arg(long, default_value_t = 8, value_parser = positive)]
    clients: usize,
    /// Tokens that each client gets before that.
    #[arg(long, default_value_t = 64, value_parser = positive)]
    tokens: usize,
}

pub(super) fn run(options: &TransfersOptions) -> Result<Report> {
    let (mut idle, mut beside) = (Vec::new(), Vec::new());
    for model in &options.pipeline.models.open()? {
        eprintln!("{}: one worker, nothing else", model.name);
        idle.push(alone(options, model)?);
        eprintln!("{}: one worker more beside {} clients", model.name, options.clients);
        beside.push(while_decoding(options, model)?);
    }
    let samples = idle.iter().map(|idle| idle.ours.all().into()).collect();
    let tables = vec![idle_table(options, &idle), beside_table(options, &beside)];
    Ok(Report { tables, notes: NOTES.map(String::from).to_vec(), samples, ..Report::default() })
}

const NOTES: [&str; 3] = [
    "alone: a `shard-worker` process gets all tensors from the coordinator over QUIC loopback, from the plan to the last byte, \
     hashed and written to its cache; bare: as many bytes over one QUIC stream between two threads, read and thrown away; both \
     have the same CPUs",
    "beside: two emulated stages, which wait and do not compute, serve the clients, and a third worker joins that has nothing of \
     the model; all are tasks of one process on a network in memory, QUIC included",
    "gaps between tokens in the seconds before the new plan, and from then until its last byte has come",
];

/// What one worker got, with nothing else to do.
struct Idle {
    model: String,
    bytes: u64,
    /// Seconds.
    ours: Samples,
    bare: Samples,
}

/// Gaps between tokens, in seconds.
#[derive(Default)]
struct Beside {
    model: String,
    bytes: u64,
    seconds: Samples,
    calm: Samples,
    busy: Samples,
}

fn alone(options: &TransfersOptions, model: &BenchModel) -> Result<Idle> {
    let layout = layout(options, model, 1);
    let (mut bytes, mut ours, mut bare) = (0, Samples::default(), Samples::default());
    interleave(2, options.pipeline.run.repeat, |lane| {
        let seconds = if lane == 0 {
            let fetched = cold(&layout)?;
            bytes = fetched.bytes;
            ours.push(fetched.seconds());
            fetched.seconds()
        } else {
            let seconds = bare_stream::seconds(model.spec().shard_bytes(&(0..model.spec().layers.len())))?;
            bare.push(seconds);
            seconds
        };
        Ok(seconds)
    })?;
    Ok(Idle { model: model.name.clone(), bytes, ours, bare })
}

fn while_decoding(options: &TransfersOptions, model: &BenchModel) -> Result<Beside> {
    let layout = layout(options, model, 2);
    let mut measured = Beside { model: model.name.clone(), ..Beside::default() };
    for _ in 0..options.pipeline.run.repeat {
        let mut pipeline = ReadyMesh::growing(&layout, EMULATION)?;
        let handle = pipeline.handle();
        let prompts = (0..options.clients as u64).map(|client| model.prompt(client, PROMPT)).collect();
        let decoding = pipeline.block_on(Decoding::start(&handle, prompts, options.tokens, most_tokens(options)))?;
        let calm = Instant::now();
        thread::sleep(CALM);
        let mut events = handle.events();
        let newcomer = pipeline.grow(EMULATION)?;
        let fetched = pipeline.block_on(fetched(&mut events, model.spec(), PlanEpoch(2), &newcomer))?;
        let streams = pipeline.block_on(decoding.stop())?;
        measured.calm.extend(streams.iter().flat_map(|s| s.gaps_s(|time| calm < time && time <= fetched.from)));
        measured.busy.extend(streams.iter().flat_map(|s| s.gaps_s(|time| fetched.from < time && time <= fetched.to)));
        measured.bytes = fetched.bytes;
        measured.seconds.push(fetched.seconds());
        pipeline.stop();
    }
    Ok(measured)
}

fn layout<'a>(options: &TransfersOptions, model: &'a BenchModel, stages: usize) -> Layout<'a> {
    Layout {
        model,
        stages,
        threads: 1,
        context: PROMPT + most_tokens(options),
        sessions: options.clients,
        speculation: Speculation::Off,
        drafter: None,
        workload: options.pipeline.cut.workload(Workload::Replies),
    }
}

/// Enough to go on for as long as a transfer can take.
fn most_tokens(options: &TransfersOptions) -> usize {
    options.tokens + 8192
}

fn idle_table(options: &TransfersOptions, measured: &[Idle]) -> ReportTable {
    let title = format!("A worker gets all tensors; medians of {}", options.pipeline.run.repeat);
    let mut table = ReportTable::new(title, ["model", "MB", "MB/s", "bare MB/s", "of bare"]);
    for idle in measured {
        let rate = |seconds: &Samples| megabytes(idle.bytes) / seconds.median();
        let mut row: Vec<Cell> = vec![idle.model.as_str().into(), Cell::number(megabytes(idle.bytes), 0)];
        row.extend([rate(&idle.ours), rate(&idle.bare)].map(|rate| Cell::number(rate, 0)));
        row.push(Cell::number(rate(&idle.ours) / rate(&idle.bare), 2));
        table.rows.push(row);
    }
    table
}

fn beside_table(options: &TransfersOptions, measured: &[Beside]) -> ReportTable {
    let title = format!("A worker gets its tensors while {} clients decode", options.clients);
    let headings = ["model", "MB", "MB/s", "ITL p50 ms", "ITL p99 ms", "beside p50 ms", "beside p99 ms", "p99 ratio"];
    let mut table = ReportTable::new(title, headings);
    for beside in measured {
        let Beside { model, bytes, seconds, calm, busy } = beside;
        let rate = megabytes(*bytes) / seconds.median();
        let mut row: Vec<Cell> = vec![model.as_str().into()];
        row.extend([megabytes(*bytes), rate].map(|number| Cell::number(number, 0)));
        let times = [calm.median(), calm.quantile(0.99), busy.median(), busy.quantile(0.99)];
        row.extend(times.map(|s| Cell::number(s * 1e3, 1)));
        row.push(Cell::number(busy.quantile(0.99) / calm.quantile(0.99), 2));
        table.rows.push(row);
    }
    table
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A step of a large model on a usual machine.
const EMULATION: Emulation = Emulation { base_us: 36_000, row_us: 500 };
/// The clients decode alone for so long.
const CALM: Duration = Duration::from_secs(4);
/// Tokens of the clients' prompts.
const PROMPT: usize = 16;
