//! `qmesh-bench prefill`: time of a prompt, ours and llama.cpp's.

mod stages;

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use qmesh_engine::shard::Shard;

use crate::{
    compare::{Comparison, PeerSamples, interleave, means, peer_and_setting, peer_headings, report},
    model::{self, BenchModel, Cost},
    options::{ComparisonOptions, CutOptions, positive},
    peer::{Peer, Setting, Test},
    report::{Cell, Report, ReportTable},
};

/// Options of `prefill`.
#[derive(Args, Debug)]
pub struct PrefillOptions {
    #[command(flatten)]
    pub(super) comparison: ComparisonOptions,
    #[command(flatten)]
    pub(super) cut: CutOptions,
    /// Tokens of the prompt.
    #[arg(long, value_delimiter = ',', default_value = "512", value_parser = positive)]
    prompt: Vec<usize>,
    /// Rows of a step; by default the whole prompt.
    #[arg(long, value_parser = positive)]
    chunk: Option<usize>,
    /// Through pipelines of so many workers on QUIC loopback instead; llama.cpp over as many ggml-rpc-servers.
    #[arg(long, value_delimiter = ',', conflicts_with = "chunk", value_parser = positive)]
    pub(super) stages: Vec<usize>,
}

pub(super) fn run(options: &PrefillOptions) -> Result<Report> {
    if !options.stages.is_empty() {
        return stages::run(options);
    }
    let ComparisonOptions { run, models, peers } = &options.comparison;
    let (models, mut peers) = (models.open()?, peers.find()?);
    let (mut measured, mut notes) = (Vec::new(), Vec::new());
    let positions = options.prompt.iter().copied().max().unwrap_or(1);
    for model in &models {
        for threads in run.threads() {
            let (mut shard, load_note) = model.load(1, positions, threads)?;
            notes.push(load_note);
            for &prompt in &options.prompt {
                eprintln!("{} -t {threads}, prompt of {prompt}", model.name);
                measured.push(measure(options, model, &mut shard, threads, prompt, &mut peers)?);
            }
        }
    }
    notes.push("GMAC/s counts the products with weights, the head's for one row, and no attention".into());
    Ok(report(table(options, &measured, &peers), measured.iter().map(|m| &m.times), notes, peers))
}

/// What was measured of one model with one number of threads and one prompt.
#[derive(Debug)]
struct Measured {
    model: String,
    threads: usize,
    prompt: usize,
    chunk: usize,
    macs: u64,
    /// Seconds per token.
    times: Comparison,
}

fn measure(
    options: &PrefillOptions,
    model: &BenchModel,
    shard: &mut Shard,
    threads: usize,
    prompt: usize,
    peers: &mut [Peer],
) -> Result<Measured> {
    let chunk = options.chunk.unwrap_or(prompt);
    let ids = model.prompt(0, prompt);
    let test = Test::Prefill { rows: prompt };
    // Warms up, and is what the others must sample too.
    let token = model::prefill(shard, 0, 0, &ids, chunk)?;
    let settings = Setting::BOTH_ATTENTIONS;
    let mut samples = interleave(1 + peers.len() * settings.len(), options.comparison.run.repeat, |lane| {
        if let Some(other) = lane.checked_sub(1) {
            let (peer, setting) = peer_and_setting(other, &settings);
            return peers[peer].sample(&model.path, threads, test, setting);
        }
        let started = Instant::now();
        let sampled = model::prefill(shard, 0, 0, &ids, chunk)?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(sampled == token, "{}: two runs of the prompt gave different tokens", model.name);
        Ok(seconds / prompt as f64)
    })?;
    let ours = samples.remove(0);
    let peers = PeerSamples::by_peer(samples, &settings);
    let Cost { layer_macs, head_macs, .. } = Cost::of(model.spec());
    let macs = layer_macs * prompt as u64 + head_macs;
    Ok(Measured { model: model.name.clone(), threads, prompt, chunk, macs, times: Comparison { ours, peers } })
}

fn table(options: &PrefillOptions, measured: &[Measured], peers: &[Peer]) -> ReportTable {
    let headings = ["model", "threads", "prompt", "chunk", "ms", "min", "max", "tok/s"].map(String::from);
    let ends = ["ratio", "GMAC/s"].map(String::from);
    let beside = peer_headings(peers, "tok/s").into_iter().chain(peer_headings(peers, "-fa"));
    let columns = headings.into_iter().chain(beside).chain(ends);
    let mut table = ReportTable::new(format!("Prefill; medians of {}", options.comparison.run.repeat), columns);
    for m in measured {
        let (ours, tokens) = (&m.times.ours, m.prompt as f64);
        let seconds = ours.median() * tokens;
        let mut row = vec![m.model.as_str().into()];
        row.extend([m.threads, m.prompt, m.chunk].map(Cell::count));
        row.extend([seconds, ours.min() * tokens, ours.max() * tokens].map(|s| Cell::number(s * 1e3, 1)));
        row.push(Cell::number(tokens / seconds, 1));
        row.extend(m.times.peer_rates(1.0, peers.len()));
        row.extend(m.times.peer_attentions(peers.len()));
        row.extend([Cell::maybe(m.times.ratio(), 2), Cell::number(m.macs as f64 / seconds / 1e9, 1)]);
        table.rows.push(row);
    }
    for ((threads, prompt, chunk), mean) in
        means(measured.iter().map(|m| ((m.threads, m.prompt, m.chunk), m.times.ratio())))
    {
        let known = [("threads", threads), ("prompt", prompt), ("chunk", chunk)].map(|(h, n)| (h, Cell::count(n)));
        table.push_mean(known, mean);
    }
    table
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: PrefillOptions,
    }

    #[test]
    fn a_prompt_is_computed_in_chunks() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/quant-Q8_0.gguf");
        let arguments = ["prefill", "-m", path, "--prompt", "20,5", "--chunk", "7", "--repeat", "2", "-t", "1"];
        let report = run(&Cli::parse_from(arguments).options).unwrap();
        let table = &report.tables[0];
        assert!(table.rows.len() == 2 && table.rows.iter().all(|row| row.len() == table.columns.len()));
    }
}
