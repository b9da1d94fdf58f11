//! `qmesh-bench prefill --stages`: time to the first token of a prompt through pipelines of real workers.

use std::time::Instant;

use anyhow::{Context, Result};
use qmesh_coordinator::{mesh::Speculation, plan::Workload};
use qmesh_engine::shard::Shard;

use super::PrefillOptions;
use crate::{
    clients::{Load, firsts},
    commands::streams::{lanes, one_process_threads, servers, split_peers},
    compare::{Comparison, PeerSamples, interleave, peer_and_setting, peer_headings, report},
    machine::{cpus, cpus_of_worker, on_cpus},
    model::{self, BenchModel},
    options::{ComparisonOptions, most},
    peer::{Peer, Setting, Test},
    pipeline::{CHUNK_ROWS, Layout, ReadyMesh},
    record::{LoadRecord, same_tokens},
    report::{Cell, Report, ReportTable},
    rpc::RpcServers,
    statistics::Samples,
};

pub(super) fn run(options: &PrefillOptions) -> Result<Report> {
    let ComparisonOptions { run, models, peers } = &options.comparison;
    let models = models.open()?;
    let (mut peers, mut notes) = split_peers(peers.find()?);
    let mut measured = Vec::new();
    for model in &models {
        for threads in run.threads_each() {
            eprintln!("{} -t {threads} a worker", model.name);
            measured.extend(measure(options, model, threads, &mut peers)?);
        }
    }
    notes.push(NOTE.into());
    Ok(report(table(options, &measured, &peers), measured.iter().map(|m| &m.times), notes, peers))
}

const NOTE: &str = "ms to the first token; one process: tok/s of the whole model without workers, with as many threads as \
                    all stages have together; bound: one stage's time × the largest stage's share of the weights, what \
                    chunks of one row would reach if they cost no more; llama.cpp: llama-bench over ggml-rpc-server processes \
                    on the same CPUs, the best of -fa 0, 1 with -ub 128, 256, 512";

/// Micro-batches that llama.cpp is tried with.
const UBATCHES: [usize; 3] = [128, 256, 512];

/// What was measured of one model with one number of threads and stages and one prompt.
#[derive(Debug)]
struct Measured {
    model: String,
    threads: usize,
    stages: usize,
    prompt: usize,
    largest_share: f64,
    /// Seconds per token.
    times: Comparison,
    /// Seconds per token of the whole model in one process with as many threads as all stages have.
    one_process: Samples,
}

/// A whole model in this process.
struct OneProcess {
    threads: usize,
    cpus: Vec<usize>,
    shard: Shard,
}

impl OneProcess {
    fn load(model: &BenchModel, threads: usize, positions: usize) -> Result<Self> {
        let cpus = cpus_of_worker(&cpus(), 0, threads);
        let (shard, _) = on_cpus(&cpus, || model.load(1, positions, threads))?;
        Ok(Self { threads, cpus, shard })
    }

    /// Seconds of a prompt, in the chunks of a pipeline of one stage.
    fn seconds(&mut self, ids: &[u32]) -> Result<f64> {
        let started = Instant::now();
        on_cpus(&self.cpus, || model::prefill(&mut self.shard, 0, 0, ids, CHUNK_ROWS))?;
        Ok(started.elapsed().as_secs_f64())
    }
}

fn measure(options: &PrefillOptions, model: &BenchModel, threads: usize, peers: &mut [Peer]) -> Result<Vec<Measured>> {
    let (stages, prompts) = (&options.stages, &options.prompt);
    let pipelines = stages.iter().map(|&stages| {
        let (context, speculation, drafter) = (most(prompts) + 1, Speculation::Off, None);
        let workload = options.cut.workload(Workload::Prompts);
        ReadyMesh::processes(&Layout { model, stages, threads, context, sessions: 1, speculation, drafter, workload })
    });
    let pipelines = pipelines.collect::<Result<Vec<_>>>()?;
    let servers: Vec<Vec<RpcServers>> =
        peers.iter().map(|peer| servers(peer, stages, threads)).collect::<Result<_>>()?;
    let lanes = lanes(stages, prompts);
    let one_process =
        one_process_threads(threads, stages).into_iter().map(|t| OneProcess::load(model, t, most(prompts)));
    let mut one_process = one_process.collect::<Result<Vec<_>>>()?;
    let load = |prompt| Load { clients: 1, prompt, tokens: 1 };
    // The coordinator learns what steps take.
    for pipeline in &pipelines {
        pipeline.load(model, load(most(prompts)))?;
    }
    let mut records = vec![LoadRecord::default(); lanes.len()];
    let settings = Setting::each(&UBATCHES);
    let contenders = 2 + peers.len() * settings.len();
    let mut samples = interleave(lanes.len() * contenders, options.comparison.run.repeat, |lane| {
        let (contender, lane) = (lane / lanes.len(), lane % lanes.len());
        let (at, prompt) = lanes[lane];
        if contender == 1 {
            let all = threads * stages[at];
            let own = one_process.iter_mut().find(|own| own.threads == all).context("no such process")?;
            return Ok(own.seconds(&model.prompt(0, prompt))? / prompt as f64);
        }
        let Some(other) = contender.checked_sub(2) else {
            let run = pipelines[at].load(model, load(prompt))?;
            records[lane].push(&run)?;
            return Ok(firsts(&run.streams).median() / prompt as f64);
        };
        let (peer, setting) = peer_and_setting(other, &settings);
        let test = Test::Prefill { rows: prompt };
        peers[peer].sample_split(&servers[peer][at], &model.path, threads, test, setting)
    })?;
    for &prompt in prompts {
        let same = lanes.iter().zip(&records).filter(|((_, p), _)| *p == prompt).map(|(_, record)| record);
        same_tokens(&format!("{}, prompt of {prompt}", model.name), same)?;
    }
    let mut one_process = samples.split_off(lanes.len());
    let beside = one_process.split_off(lanes.len());
    let ours = samples.into_iter().zip(one_process);
    let measured = lanes.iter().zip(ours).enumerate().map(|(lane, (&(at, prompt), (ours, one_process)))| {
        let peers = PeerSamples::by_peer(beside.iter().skip(lane).step_by(lanes.len()).cloned(), &settings);
        Measured {
            model: model.name.clone(),
            threads,
            stages: stages[at],
            prompt,
            largest_share: pipelines[at].shares(model).into_iter().fold(0.0, f64::max),
            times: Comparison { ours, peers },
            one_process,
        }
    });
    let measured = measured.collect();
    pipelines.into_iter().for_each(ReadyMesh::stop);
    Ok(measured)
}

fn table(options: &PrefillOptions, measured: &[Measured], peers: &[Peer]) -> ReportTable {
    let title = format!("Prefill through workers on QUIC loopback; medians of {}", options.comparison.run.repeat);
    let headings = ["model", "threads", "stages", "prompt", "ms", "min", "max", "tok/s", "× one stage", "one process"];
    let bounds = ["bound ms", "of bound"];
    let beside = ["tok/s", "-fa", "-ub"].into_iter().flat_map(|unit| peer_headings(peers, unit));
    let ours = headings.into_iter().chain(bounds).map(String::from);
    let mut table = ReportTable::new(title, ours.chain(beside).chain(["ratio".into()]));
    for m in measured {
        let (ours, tokens) = (&m.times.ours, m.prompt as f64);
        let same = |o: &&Measured| o.model == m.model && (o.threads, o.stages, o.prompt) == (m.threads, 1, m.prompt);
        let one = measured.iter().find(same).filter(|_| m.stages > 1).map(|one| one.times.ours.median());
        let bound = one.map(|one| one * m.largest_share);
        let mut row = vec![m.model.as_str().into()];
        row.extend([m.threads, m.stages, m.prompt].map(Cell::count));
        row.extend([ours.median(), ours.min(), ours.max()].map(|s| Cell::number(s * tokens * 1e3, 1)));
        row.extend([Cell::number(1.0 / ours.median(), 1), Cell::maybe(one.map(|one| one / ours.median()), 2)]);
        row.push(Cell::number(1.0 / m.one_process.median(), 1));
        row.push(Cell::maybe(bound.map(|bound| bound * tokens * 1e3), 1));
        row.push(Cell::maybe(bound.map(|bound| bound / ours.median()), 2));
        row.extend(m.times.peer_rates(1.0, peers.len()));
        row.extend(m.times.peer_attentions(peers.len()));
        row.extend(m.times.peers.iter().map(|peer| Cell::count(peer.fastest().0.ubatch)));
        row.push(Cell::maybe(m.times.ratio(), 2));
        table.rows.push(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_micro_batch_counts() {
        let samples = [3.0, 1.0, 2.0].map(|seconds| Samples::from_iter([seconds]));
        let settings: Vec<Setting> = Setting::each(&UBATCHES).into_iter().step_by(2).collect();
        let [peer] = <[_; 1]>::try_from(PeerSamples::by_peer(samples, &settings)).unwrap();
        let (setting, fastest) = peer.fastest();
        assert_eq!((fastest, setting.ubatch), (&Samples::from_iter([1.0]), 256));
    }

    #[test]
    fn stages_are_held_against_one() {
        let options = clap::Parser::parse_from(["prefill", "-m", "a.gguf", "--stages", "1,2"]);
        let Cli { options } = options;
        let measured = |stages, seconds: f64| Measured {
            model: "a".into(),
            threads: 1,
            stages,
            prompt: 1000,
            largest_share: if stages == 1 { 1.0 } else { 0.6 },
            times: Comparison { ours: Samples::from_iter([seconds]), peers: Vec::new() },
            one_process: Samples::from_iter([0.005]),
        };
        let table = table(&options, &[measured(1, 0.01), measured(2, 0.008)], &[]);
        let at = |heading: &str| table.rows[1][table.columns.iter().position(|c| c == heading).unwrap()].clone();
        assert_eq!((at("ms"), at("× one stage")), (Cell::number(8000.0, 1), Cell::number(1.25, 2)));
        assert_eq!((at("bound ms"), at("of bound")), (Cell::number(6000.0, 1), Cell::number(0.75, 2)));
    }

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        options: PrefillOptions,
    }
}
