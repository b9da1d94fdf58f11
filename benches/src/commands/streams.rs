//! `qmesh-bench streams`: clients that decode at once through pipelines of real workers, ours and llama.cpp's.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use clap::Args;
use qmesh_coordinator::{mesh::Speculation, plan::Workload};

use crate::{
    clients::Load,
    compare::{Comparison, PeerSamples, interleave, peer_and_setting, peer_headings, report},
    datagram,
    ideal::{Best, PipelineBounds, StepTable},
    machine::{cpus, cpus_of_worker},
    model::BenchModel,
    options::{ComparisonOptions, CutOptions, most, positive},
    peer::{Peer, Setting},
    pipeline::{Layout, ReadyMesh},
    plot::Plot,
    record::{LATENCY_HEADINGS, LoadRecord, STEP_HEADINGS, same_tokens},
    report::{Cell, Report, ReportTable},
    rpc::RpcServers,
    step_bench::{StepBench, step_table},
};

/// Options of `streams`.
#[derive(Args, Debug)]
pub struct StreamsOptions {
    #[command(flatten)]
    pub(super) comparison: ComparisonOptions,
    #[command(flatten)]
    pub(super) cut: CutOptions,
    /// Workers of a pipeline, each on CPUs of its own.
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = positive)]
    pub(super) stages: Vec<usize>,
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

pub(super) fn run(options: &StreamsOptions) -> Result<Report> {
    let ComparisonOptions { run, models, peers } = &options.comparison;
    let models = models.open()?;
    let (mut peers, mut notes) = split_peers(peers.find()?);
    let (mut measured, mut steps) = (Vec::new(), step_table());
    for model in &models {
        for threads in run.threads_each() {
            eprintln!("{} -t {threads} a worker", model.name);
            let mut bench = Bench::start(options, model, threads, &peers)?;
            measured.extend(bench.measure(&mut peers)?);
            steps.rows.extend(bench.steps.iter().flat_map(|steps| steps.rows(&model.name)));
            bench.pipelines.into_iter().for_each(ReadyMesh::stop);
        }
    }
    notes.extend(measured.iter().filter_map(|m| {
        m.record.warning(&format!("{} -t {}, {} stages, {} clients", m.model, m.threads, m.stages, m.clients))
    }));
    notes.extend(NOTES.map(String::from));
    for model in &models {
        let (row_bytes, delay) = hop_floor(model)?;
        let micros = delay * 1e6;
        notes.push(format!("{}: a bare datagram of the {row_bytes} bytes of a row takes {micros:.0} µs", model.name));
    }
    let table = table(options, &measured, &peers);
    let plots = plots(&measured, &peers);
    let mut report = report(table, measured.iter().map(|m| &m.times), notes, peers);
    report.tables.push(steps);
    report.plots = plots;
    Ok(report)
}

/// Those that can split a model, and a note on each that cannot.
pub(super) fn split_peers(peers: Vec<Peer>) -> (Vec<Peer>, Vec<String>) {
    let (can, cannot): (Vec<Peer>, Vec<Peer>) = peers.into_iter().partition(|peer| peer.rpc_server().is_some());
    let notes = cannot.iter().map(|p| format!("{} has no ggml-rpc-server and was left out", p.label)).collect();
    (can, notes)
}

/// The servers of `peer` for each number of stages.
pub(super) fn servers(peer: &Peer, stages: &[usize], threads: usize) -> Result<Vec<RpcServers>> {
    let program = peer.rpc_server().context("no ggml-rpc-server")?;
    stages.iter().map(|&count| RpcServers::start(&program, count, threads)).collect()
}

/// Bytes of a row between two stages, and the seconds that a datagram of them takes from one thread to another.
fn hop_floor(model: &BenchModel) -> Result<(usize, f64)> {
    let row_bytes = (model.spec().hidden * size_of::<f32>()).min(DATAGRAM_MOST);
    Ok((row_bytes, datagram::one_way(row_bytes)?))
}

/// Bytes of the largest datagram; loopback fragments none below it.
const DATAGRAM_MOST: usize = 60_000;

const NOTES: [&str; 4] = [
    "tok/s of all clients together while all decode, \"with prompts\" from the first request to the last token; llama.cpp: \
     llama-bench for one client, llama-batched-bench's decode for more, over ggml-rpc-server processes on the same CPUs",
    "ideal: the best over all numbers of groups of min(rows / slowest stage, clients / (sum of stages + hops)), from the \
     steps of the second table, each stage's share of the weights, and the least hops measured with as many stages",
    "one process: tok/s of the whole model without workers, with as many threads as all stages have together, by the \
     second table",
    "compute, slowest, hops: of a mean step, prompts included: over all stages, of its slowest one, and what was neither \
     computing nor waiting for a stage, on one hop more than there are stages",
];

/// What was measured of one model with one number of threads, stages and clients.
#[derive(Debug)]
struct Measured {
    model: String,
    threads: usize,
    stages: usize,
    clients: usize,
    /// Seconds per token of all clients together.
    times: Comparison,
    record: LoadRecord,
    best: Best,
    /// Tokens a second of the whole model in one process with as many threads as all stages have.
    one_process: f64,
}

struct Bench<'a> {
    options: &'a StreamsOptions,
    model: &'a BenchModel,
    threads: usize,
    /// By stages.
    pipelines: Vec<ReadyMesh>,
    /// By peer and stages.
    servers: Vec<Vec<RpcServers>>,
    /// Of the whole model in this process, with one worker's threads and with those of all stages.
    steps: Vec<StepBench>,
}

impl<'a> Bench<'a> {
    fn start(options: &'a StreamsOptions, model: &'a BenchModel, threads: usize, peers: &[Peer]) -> Result<Self> {
        let (context, sessions) = (options.prompt + options.tokens, most(&options.clients));
        let pipelines = options.stages.iter().map(|&stages| {
            let (speculation, workload) = (Speculation::Off, options.cut.workload(Workload::Replies));
            ReadyMesh::processes(&Layout {
                model,
                stages,
                threads,
                context,
                sessions,
                speculation,
                drafter: None,
                workload,
            })
        });
        let pipelines = pipelines.collect::<Result<Vec<_>>>()?;
        let servers = peers.iter().map(|peer| servers(peer, &options.stages, threads)).collect::<Result<_>>()?;
        let position = options.prompt + options.tokens / 2;
        let steps = one_process_threads(threads, &options.stages)
            .into_iter()
            .map(|threads| StepBench::load(model, threads, cpus_of_worker(&cpus(), 0, threads), sessions, position));
        let steps = steps.collect::<Result<_>>()?;
        Ok(Self { options, model, threads, pipelines, servers, steps })
    }

    fn measure(&mut self, peers: &mut [Peer]) -> Result<Vec<Measured>> {
        let Self { options, model, threads, pipelines, servers, steps } = self;
        let lanes = lanes(&options.stages, &options.clients);
        let load = |clients| Load { clients, prompt: options.prompt, tokens: options.tokens };
        for &(at, clients) in &lanes {
            pipelines[at].load(model, Load { tokens: options.tokens.min(WARM_TOKENS), ..load(clients) })?;
        }
        let mut records = vec![LoadRecord::default(); lanes.len()];
        // The steps take their turn too: what disturbs the machine shall meet them as well.
        let count = steps.len();
        let settings = Setting::BOTH_ATTENTIONS;
        let contenders = 1 + peers.len() * settings.len();
        let mut samples = interleave(count + lanes.len() * contenders, options.comparison.run.repeat, |lane| {
            let Some(lane) = lane.checked_sub(count) else { return steps[lane].sample() };
            let (contender, lane) = (lane / lanes.len(), lane % lanes.len());
            let (at, clients) = lanes[lane];
            let Some(other) = contender.checked_sub(1) else {
                return records[lane].push(&pipelines[at].load(model, load(clients))?);
            };
            let (peer, setting) = peer_and_setting(other, &settings);
            peers[peer].sample_clients(&servers[peer][at], &model.path, *threads, load(clients), setting)
        })?;
        let beside = samples.split_off(count + lanes.len());
        for &clients in &options.clients {
            let same = lanes.iter().zip(&records).filter(|((_, c), _)| *c == clients).map(|(_, record)| record);
            same_tokens(&format!("{}, {clients} clients", model.name), same)?;
        }
        let measured = lanes.iter().zip(&records).enumerate().map(|(lane, (&(at, clients), record))| {
            let least = lanes.iter().zip(&records).filter(|((a, _), _)| *a == at).map(|(_, r)| r.hops_s());
            let hops_s = least.fold(f64::NAN, f64::min);
            let tables: Vec<StepTable> = steps.iter().map(StepBench::table).collect();
            let threads_in_all = *threads * options.stages[at];
            let whole = steps.iter().position(|steps| steps.threads() == threads_in_all).unwrap_or_default();
            let limits = PipelineBounds {
                steps: tables[0].clone(),
                shares: pipelines[at].shares(model),
                hops_s,
                row_wire_s: 0.0,
            };
            Measured {
                model: model.name.clone(),
                threads: *threads,
                stages: options.stages[at],
                clients,
                times: Comparison {
                    ours: record.steady.clone(),
                    peers: PeerSamples::by_peer(beside.iter().skip(lane).step_by(lanes.len()).cloned(), &settings),
                },
                record: record.clone(),
                best: limits.best(clients),
                one_process: clients as f64 / tables[whole].seconds(clients as f64),
            }
        });
        Ok(measured.collect())
    }
}

/// Threads of the whole model in one process beside these pipelines: as many as one worker has, and as all have together.
pub(super) fn one_process_threads(threads: usize, stages: &[usize]) -> Vec<usize> {
    let all = [1].iter().chain(stages).map(|stages| threads * stages);
    all.collect::<BTreeSet<usize>>().into_iter().collect()
}

/// Every number of clients with every number of stages, these by index.
pub(super) fn lanes(stages: &[usize], clients: &[usize]) -> Vec<(usize, usize)> {
    (0..stages.len()).flat_map(|at| clients.iter().map(move |&clients| (at, clients))).collect()
}

/// Tokens that let the coordinator learn what steps take.
pub(super) const WARM_TOKENS: usize = 16;

fn table(options: &StreamsOptions, measured: &[Measured], peers: &[Peer]) -> ReportTable {
    let title = format!(
        "Streams of {} tokens after prompts of {} through workers on QUIC loopback; medians of {}",
        options.tokens, options.prompt, options.comparison.run.repeat
    );
    let starts = ["model", "threads", "stages", "clients", "tok/s", "with prompts", "× one stage", "one process"];
    let ideals = ["ideal", "groups", "of ideal"];
    let ours = starts.into_iter().chain(ideals).chain(LATENCY_HEADINGS).chain(STEP_HEADINGS).map(String::from);
    let ends = ["ratio", "output"].map(String::from);
    let beside = peer_headings(peers, "tok/s").into_iter().chain(peer_headings(peers, "-fa"));
    let mut table = ReportTable::new(title, ours.chain(beside).chain(ends));
    for m in measured {
        let rate = m.record.rate();
        let one = measured.iter().find(|o| {
            o.model == m.model && (o.threads, o.stages, o.clients) == (m.threads, 1, m.clients) && m.stages > 1
        });
        let mut row = vec![m.model.as_str().into()];
        row.extend([m.threads, m.stages, m.clients].map(Cell::count));
        row.extend([rate, 1.0 / m.record.whole.median()].map(|rate| Cell::number(rate, 2)));
        row.push(Cell::maybe(one.map(|one| rate / one.record.rate()), 2));
        row.push(Cell::number(m.one_process, 2));
        row.extend([Cell::number(m.best.tokens_per_s, 2), Cell::count(m.best.groups)]);
        row.push(Cell::number(rate / m.best.tokens_per_s, 2));
        row.extend(m.record.latency_cells());
        row.extend(m.record.step_cells());
        row.extend(m.times.peer_rates(1.0, peers.len()));
        row.extend(m.times.peer_attentions(peers.len()));
        row.extend([Cell::maybe(m.times.ratio(), 2), m.record.digest.as_str().into()]);
        table.rows.push(row);
    }
    table
}

fn plots(measured: &[Measured], peers: &[Peer]) -> Vec<Plot> {
    let mut plots: Vec<Plot> = Vec::new();
    for m in measured {
        let name = format!("streams-{}-t{}", m.model, m.threads);
        let title = format!("{}, {} threads a worker: tokens a second of all clients", m.model, m.threads);
        if plots.last().is_none_or(|plot| plot.name != name) {
            plots.push(Plot { name, title, x: "clients", y: "tok/s", lines: Vec::new() });
        }
        let Some(plot) = plots.last_mut() else { continue };
        let (stages, clients) = (m.stages, m.clients as f64);
        plot.push(&format!("qmesh, {stages} stages"), clients, m.record.rate());
        plot.push(&format!("ideal, {stages} stages"), clients, m.best.tokens_per_s);
        for (peer, samples) in peers.iter().zip(&m.times.peers) {
            plot.push(&format!("{}, {stages} stages", peer.label), clients, 1.0 / samples.median());
        }
    }
    plots
}
