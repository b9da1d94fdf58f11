//! `qmesh-bench decode`: time per token after a prompt, ours and llama.cpp's.

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use qmesh_engine::shard::Shard;

use crate::{
    bandwidth::Bandwidths,
    compare::{Comparison, PeerSamples, interleave, means, peer_and_setting, peer_headings, report},
    model::{self, BenchModel, Cost},
    options::{ComparisonOptions, most, positive},
    peer::{Peer, Setting, Test},
    report::{Cell, Report, ReportTable},
};

/// Options of `decode`.
#[derive(Args, Debug)]
pub struct DecodeOptions {
    #[command(flatten)]
    pub(super) comparison: ComparisonOptions,
    /// Tokens of a sample.
    #[arg(long, default_value_t = 64, value_parser = positive)]
    tokens: usize,
    /// Tokens of the prompt before them, which are not timed; several show what a longer context costs.
    #[arg(long, value_delimiter = ',', default_value = "32", value_parser = positive)]
    prompt: Vec<usize>,
    /// Sequences that decode at once, one row each; llama.cpp is beside one.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = positive)]
    rows: Vec<usize>,
}

/// Rows of a step of the prompt.
const PROMPT_CHUNK: usize = 256;

pub(super) fn run(options: &DecodeOptions) -> Result<Report> {
    let ComparisonOptions { run, models, peers } = &options.comparison;
    let (models, mut peers) = (models.open()?, peers.find()?);
    let mut bandwidths = Bandwidths::default();
    let (mut measured, mut notes) = (Vec::new(), Vec::new());
    for model in &models {
        let mb = Cost::of(model.spec()).weight_bytes as f64 / 1e6;
        notes.push(format!(
            "{}: {mb:.1} MB of weights read a step, a table that is only looked up in left out",
            model.name
        ));
        for threads in run.threads() {
            let (mut bench, note) = Bench::load(options, model, threads, &mut bandwidths)?;
            notes.push(note);
            for &prompt in &options.prompt {
                eprintln!("{} -t {threads}, prompt of {prompt}", model.name);
                measured.extend(bench.measure(options, prompt, &mut peers)?);
            }
        }
    }
    notes.push("ours includes sampling, llama-bench does not sample; read GB/s: plain loads over as many bytes".into());
    Ok(report(table(options, &measured, &peers), measured.iter().map(|m| &m.times), notes, peers))
}

/// What was measured of one model with one number of threads, one prompt and one number of rows.
#[derive(Debug)]
struct Measured {
    model: String,
    threads: usize,
    prompt: usize,
    rows: usize,
    weight_bytes: u64,
    /// This machine's read bandwidth over as many bytes.
    read_gbps: f64,
    /// Seconds per step, which is one token of each row.
    times: Comparison,
    /// Of the generated ids: equal wherever the arithmetic is.
    digest: String,
}

struct Bench<'a> {
    model: &'a BenchModel,
    shard: Shard,
    threads: usize,
    read_gbps: f64,
}

impl<'a> Bench<'a> {
    /// With a note on how it was loaded.
    fn load(
        options: &DecodeOptions,
        model: &'a BenchModel,
        threads: usize,
        bandwidths: &mut Bandwidths,
    ) -> Result<(Self, String)> {
        let read_gbps = bandwidths.read(usize::try_from(Cost::of(model.spec()).weight_bytes)?, threads);
        let positions = most(&options.prompt) + options.tokens;
        let (shard, note) = model.load(most(&options.rows) as u64, positions, threads)?;
        Ok((Self { model, shard, threads, read_gbps }, note))
    }

    /// One entry per number of rows.
    fn measure(&mut self, options: &DecodeOptions, prompt: usize, peers: &mut [Peer]) -> Result<Vec<Measured>> {
        let (lanes, test) = (&options.rows, Test::Decode { prompt, tokens: options.tokens });
        // Llama-bench decodes one sequence: it is beside one row only.
        let peers = if lanes.contains(&1) { peers } else { &mut [] };
        let prompts = (0..most(lanes) as u64).map(|session| {
            let ids = self.model.prompt(session, prompt);
            model::prefill(&mut self.shard, session, 0, &ids, PROMPT_CHUNK)
        });
        let first = prompts.collect::<Result<Vec<u32>>>()?;
        let mut digests = vec![None; lanes.len()];
        let settings = Setting::BOTH_ATTENTIONS;
        let contenders = lanes.len() + peers.len() * settings.len();
        let mut samples = interleave(contenders, options.comparison.run.repeat, |lane| {
            let Some(&rows) = lanes.get(lane) else {
                let (peer, setting) = peer_and_setting(lane - lanes.len(), &settings);
                return peers[peer].sample(&self.model.path, self.threads, test, setting);
            };
            let (seconds, digest) = self.sample(&first[..rows], prompt, options.tokens)?;
            let known = digests[lane].get_or_insert_with(|| digest.clone());
            ensure!(*known == digest, "{}: two runs of {rows} rows gave different tokens", self.model.name);
            Ok(seconds)
        })?;
        let beside = PeerSamples::by_peer(samples.split_off(lanes.len()), &settings);
        let measured = lanes.iter().zip(samples).zip(digests).map(|((&rows, ours), digest)| Measured {
            model: self.model.name.clone(),
            threads: self.threads,
            prompt,
            rows,
            weight_bytes: Cost::of(self.model.spec()).weight_bytes,
            read_gbps: self.read_gbps,
            times: Comparison { ours, peers: if rows == 1 { beside.clone() } else { vec![] } },
            digest: digest.unwrap_or_default(),
        });
        Ok(measured.collect())
    }

    /// Seconds per step of `tokens` steps after the prompt, and a digest of their ids. A step before warms up.
    fn sample(&mut self, first: &[u32], prompt: usize, tokens: usize) -> Result<(f64, String)> {
        model::decode(&mut self.shard, prompt, first.to_vec())?;
        let (mut ids, mut hasher) = (first.to_vec(), blake3::Hasher::new());
        let started = Instant::now();
        for position in prompt..prompt + tokens {
            ids = model::decode(&mut self.shard, position, ids)?;
            for id in &ids {
                hasher.update(&id.to_le_bytes());
            }
        }
        let seconds = started.elapsed().as_secs_f64() / tokens as f64;
        Ok((seconds, hasher.finalize().to_hex()[..8].to_owned()))
    }
}

fn table(options: &DecodeOptions, measured: &[Measured], peers: &[Peer]) -> ReportTable {
    let title = format!("Decode of {} tokens a sample; medians of {}", options.tokens, options.comparison.run.repeat);
    let headings = ["model", "threads", "prompt", "rows", "ms/step", "min", "max", "tok/s"].map(String::from);
    let ends = ["ratio", "GB/s", "read GB/s", "× one row", "× first prompt", "output"].map(String::from);
    let beside = peer_headings(peers, "tok/s").into_iter().chain(peer_headings(peers, "-fa"));
    let mut table = ReportTable::new(title, headings.into_iter().chain(beside).chain(ends));
    for m in measured {
        let (ours, seconds) = (&m.times.ours, m.times.ours.median());
        // Against the same run with one row, in tokens a second, and with the first prompt, in time.
        let beside = |rows, prompt| {
            let same = |o: &&Measured| o.model == m.model && (o.threads, o.rows, o.prompt) == (m.threads, rows, prompt);
            measured.iter().find(same).map(|other| other.times.ours.median())
        };
        let of_one_row = beside(1, m.prompt).filter(|_| m.rows > 1).map(|one| one / seconds * m.rows as f64);
        let of_first = beside(m.rows, options.prompt[0]).filter(|_| m.prompt != options.prompt[0]).map(|t| seconds / t);
        let mut row = vec![m.model.as_str().into(), Cell::count(m.threads), Cell::count(m.prompt), Cell::count(m.rows)];
        row.extend([seconds, ours.min(), ours.max()].map(|s| Cell::number(s * 1e3, 2)));
        row.push(Cell::number(m.rows as f64 / seconds, 2));
        row.extend(m.times.peer_rates(1.0, peers.len()));
        row.extend(m.times.peer_attentions(peers.len()));
        row.push(Cell::maybe(m.times.ratio(), 2));
        row.extend([m.weight_bytes as f64 / seconds / 1e9, m.read_gbps].map(|gbps| Cell::number(gbps, 1)));
        row.extend([of_one_row, of_first].map(|times| Cell::maybe(times, 2)));
        row.push(m.digest.as_str().into());
        table.rows.push(row);
    }
    let ratios = measured.iter().map(|m| ((m.threads, m.prompt, m.rows), m.times.ratio()));
    for ((threads, prompt, rows), mean) in means(ratios) {
        let known = [("threads", threads), ("prompt", prompt), ("rows", rows)].map(|(h, n)| (h, Cell::count(n)));
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
        options: DecodeOptions,
    }

    #[test]
    fn rows_and_prompts_are_held_against_the_first() {
        let options = Cli::parse_from(["decode", "-m", "a.gguf", "--prompt", "32,64", "--rows", "1,8"]).options;
        let measured = |model: &str, prompt, rows, ours, peers: &[f64]| Measured {
            model: model.into(),
            threads: 1,
            prompt,
            rows,
            weight_bytes: 2_000_000_000,
            read_gbps: 4.0,
            times: Comparison {
                ours: [ours].into_iter().collect(),
                peers: PeerSamples::by_peer(
                    peers.iter().map(|p| [*p].into_iter().collect()),
                    &Setting::BOTH_ATTENTIONS[..1],
                ),
            },
            digest: "0".into(),
        };
        let peers = vec![Peer { label: "native".into(), program: "llama-bench".into(), build: None }];
        let all = [
            measured("a", 32, 1, 0.5, &[1.0]),
            measured("a", 32, 8, 1.0, &[]),
            measured("a", 64, 1, 0.6, &[]),
            measured("b", 32, 1, 0.5, &[4.0]),
        ];
        let table = table(&options, &all, &peers);
        let at = |row: usize, heading: &str| {
            table.rows[row][table.columns.iter().position(|c| c == heading).unwrap()].clone()
        };
        assert_eq!(at(0, "native tok/s"), Cell::number(1.0, 2));
        assert_eq!((at(0, "ratio"), at(0, "GB/s")), (Cell::number(2.0, 2), Cell::number(4.0, 1)));
        assert_eq!((at(1, "× one row"), at(0, "× one row")), (Cell::number(4.0, 2), Cell::Empty));
        assert_eq!(at(2, "× first prompt"), Cell::number(1.2, 2));
        assert_eq!((table.rows.len(), at(4, "ratio")), (5, Cell::number(4.0, 2)));
    }

    #[test]
    fn a_model_decodes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/quant-Q4_0.gguf");
        let arguments = ["decode", "-m", path, "--prompt", "4,40", "--rows", "1,2", "--tokens", "3", "--repeat", "2"];
        let report = run(&Cli::parse_from(arguments.into_iter().chain(["-t", "1"])).options).unwrap();
        let table = &report.tables[0];
        assert_eq!(table.rows.len(), 4);
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
    }
}
