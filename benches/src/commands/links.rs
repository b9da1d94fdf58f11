//! `qmesh-bench links`: pipelines over links with delay and a limited rate, in one process, with real compute.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use qmesh_coordinator::{mesh::Speculation, plan::Workload};
use qmesh_net::memory::Faults;

use super::streams::WARM_TOKENS;
use crate::{
    clients::Load,
    compare::interleave,
    ideal::{Best, PipelineBounds, hops_s},
    model::BenchModel,
    options::{PipelineOptions, most, positive},
    pipeline::{Layout, ReadyMesh},
    plot::Plot,
    record::{LATENCY_HEADINGS, LoadRecord, STEP_HEADINGS, same_tokens},
    report::{Cell, Report, ReportTable},
    step_bench::{StepBench, step_table},
};

/// Options of `links`.
#[derive(Args, Debug)]
pub struct LinksOptions {
    #[command(flatten)]
    pub(super) pipeline: PipelineOptions,
    /// Workers of a pipeline.
    #[arg(long, value_delimiter = ',', default_value = "2", value_parser = positive)]
    pub(super) stages: Vec<usize>,
    /// Round-trip times of every link, in milliseconds.
    #[arg(long, value_name = "MS", value_delimiter = ',', default_value = "0,20,50,100")]
    rtt: Vec<u32>,
    /// Rates of every link and direction, in Mbit/s; 0 is no limit.
    #[arg(long, value_name = "MBIT", value_delimiter = ',', default_value = "0")]
    rate: Vec<u32>,
    /// Clients that decode at once.
    #[arg(long, value_delimiter = ',', default_value = "1,8", value_parser = positive)]
    clients: Vec<usize>,
    /// Tokens of each client's prompt.
    #[arg(long, default_value_t = 32, value_parser = positive)]
    prompt: usize,
    /// Tokens that each client wants.
    #[arg(long, default_value_t = 64, value_parser = positive)]
    tokens: usize,
}

pub(super) fn run(options: &LinksOptions) -> Result<Report> {
    let (mut measured, mut steps) = (Vec::new(), step_table());
    for model in &options.pipeline.models.open()? {
        for threads in options.pipeline.run.threads_each() {
            for &stages in &options.stages {
                eprintln!("{} -t {threads} a worker, {stages} stages", model.name);
                let (of_stages, bench) = measure(options, model, threads, stages)?;
                measured.extend(of_stages);
                steps.rows.extend(bench.rows(&model.name));
            }
        }
    }
    let samples = measured.iter().map(|m| m.record.steady.all().into()).collect();
    let tables = vec![table(options, &measured), steps];
    let warnings = measured.iter().filter_map(|m| {
        let LinkLane { rtt_ms, rate_mbit, clients } = m.lane;
        m.record.warning(&format!("{}, {rtt_ms} ms, {rate_mbit} Mbit/s, {clients} clients", m.model))
    });
    let notes = warnings.chain(NOTES.map(String::from)).collect();
    Ok(Report { tables, notes, samples, plots: plots(&measured), ..Report::default() })
}

const NOTES: [&str; 3] = [
    "coordinator and workers are tasks of one process on a network in memory, QUIC included; every link has the delay and \
     the rate, those to and from the coordinator too",
    "ideal: the best over all numbers of groups, with (stages + 1) · RTT / 2 on links and 4 bytes an element from stage to \
     stage; steps and shares as in `streams`",
    "timers wake some 0.1 ms late, which a hop pays and the ideal does not",
];

/// A link's condition and who is on it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct LinkLane {
    rtt_ms: u32,
    rate_mbit: u32,
    clients: usize,
}

/// What was measured of one model with one number of threads and stages over one kind of link.
#[derive(Debug)]
struct Measured {
    model: String,
    threads: usize,
    stages: usize,
    lane: LinkLane,
    record: LoadRecord,
    best: Best,
}

fn measure(
    options: &LinksOptions,
    model: &BenchModel,
    threads: usize,
    stages: usize,
) -> Result<(Vec<Measured>, StepBench)> {
    let (context, sessions) = (options.prompt + options.tokens, most(&options.clients));
    let (speculation, workload) = (Speculation::Off, options.pipeline.cut.workload(Workload::Replies));
    let layout = Layout { model, stages, threads, context, sessions, speculation, drafter: None, workload };
    let pipeline = ReadyMesh::tasks(&layout)?;
    // Not pinned, as these workers are not.
    let mut steps = StepBench::load(model, threads, Vec::new(), sessions, options.prompt + options.tokens / 2)?;
    let load = |clients, tokens| Load { clients, prompt: options.prompt, tokens };
    let lanes = lanes(options);
    let mut records = vec![LoadRecord::default(); lanes.len()];
    interleave(1 + lanes.len(), options.pipeline.run.repeat, |lane| {
        let Some(lane) = lane.checked_sub(1) else { return steps.sample() };
        let LinkLane { clients, .. } = lanes[lane];
        pipeline.faults(lanes[lane].faults());
        // QUIC and the coordinator learn the new times first.
        pipeline.load(model, load(clients, options.tokens.min(WARM_TOKENS)))?;
        records[lane].push(&pipeline.load(model, load(clients, options.tokens))?)
    })?;
    for &clients in &options.clients {
        let same = lanes.iter().zip(&records).filter(|(lane, _)| lane.clients == clients).map(|(_, record)| record);
        same_tokens(&format!("{}, {clients} clients", model.name), same)?;
    }
    let measured = lanes.into_iter().zip(records).map(|(lane, record)| {
        let limits = PipelineBounds {
            steps: steps.table(),
            shares: pipeline.shares(model),
            hops_s: hops_s(stages, f64::from(lane.rtt_ms) / 1e3),
            row_wire_s: lane.row_wire_s(model.spec().hidden),
        };
        let best = limits.best(lane.clients);
        Measured { model: model.name.clone(), threads, stages, lane, record, best }
    });
    let measured = measured.collect();
    pipeline.stop();
    Ok((measured, steps))
}

fn lanes(options: &LinksOptions) -> Vec<LinkLane> {
    let links = options.rtt.iter().flat_map(|&rtt_ms| options.rate.iter().map(move |&rate| (rtt_ms, rate)));
    let lanes = links.flat_map(|(rtt_ms, rate_mbit)| {
        options.clients.iter().map(move |&clients| LinkLane { rtt_ms, rate_mbit, clients })
    });
    lanes.collect()
}

impl LinkLane {
    fn faults(self) -> Faults {
        Faults {
            delay: Duration::from_millis(u64::from(self.rtt_ms)) / 2,
            rate: u64::from(self.rate_mbit) * BYTES_PER_MBIT,
            ..Faults::default()
        }
    }

    /// Of an activation row of `hidden` elements.
    fn row_wire_s(self, hidden: usize) -> f64 {
        let bytes = (hidden * size_of::<f32>()) as f64;
        if self.rate_mbit == 0 { 0.0 } else { bytes / (u64::from(self.rate_mbit) * BYTES_PER_MBIT) as f64 }
    }
}

const BYTES_PER_MBIT: u64 = 125_000;

fn table(options: &LinksOptions, measured: &[Measured]) -> ReportTable {
    let title = format!(
        "Streams of {} tokens after prompts of {} over links in memory, real compute; medians of {}",
        options.tokens, options.prompt, options.pipeline.run.repeat
    );
    let starts = ["model", "threads", "stages", "RTT ms", "Mbit/s", "clients", "tok/s", "ideal", "groups", "of ideal"];
    let columns = starts.into_iter().chain(LATENCY_HEADINGS).chain(STEP_HEADINGS).chain(["output"]);
    let mut table = ReportTable::new(title, columns);
    for m in measured {
        let LinkLane { rtt_ms, rate_mbit, clients } = m.lane;
        let rate = m.record.rate();
        let mut row = vec![m.model.as_str().into()];
        row.extend([m.threads, m.stages].map(Cell::count));
        row.push(Cell::number(rtt_ms.into(), 0));
        row.push(if rate_mbit == 0 { Cell::Empty } else { Cell::number(rate_mbit.into(), 0) });
        row.extend([Cell::count(clients), Cell::number(rate, 2), Cell::number(m.best.tokens_per_s, 2)]);
        row.extend([Cell::count(m.best.groups), Cell::number(rate / m.best.tokens_per_s, 2)]);
        row.extend(m.record.latency_cells());
        row.extend(m.record.step_cells());
        row.push(m.record.digest.as_str().into());
        table.rows.push(row);
    }
    table
}

fn plots(measured: &[Measured]) -> Vec<Plot> {
    let mut plots: Vec<Plot> = Vec::new();
    for m in measured {
        let name = format!("links-{}-t{}-s{}", m.model, m.threads, m.stages);
        let title = format!("{}, {} stages: share of the ideal", m.model, m.stages);
        if plots.last().is_none_or(|plot| plot.name != name) {
            plots.push(Plot { name, title, x: "RTT, ms", y: "measured / ideal", lines: Vec::new() });
        }
        let Some(plot) = plots.last_mut() else { continue };
        let LinkLane { rtt_ms, rate_mbit, clients } = m.lane;
        let limit = if rate_mbit == 0 { String::new() } else { format!(", {rate_mbit} Mbit/s") };
        plot.push(&format!("{clients} clients{limit}"), rtt_ms.into(), m.record.rate() / m.best.tokens_per_s);
    }
    plots
}
