//! `qmesh-bench speculate`: texts with drafted tokens and without, over links with delay.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use qmesh_coordinator::{mesh::Speculation, model::Model, plan::Workload, text::TextModel};
use qmesh_models::{
    chat::{Message, RenderOptions},
    tokenizer::Specials,
};
use qmesh_net::memory::Faults;

use super::streams::WARM_TOKENS;
use crate::{
    compare::interleave,
    model::BenchModel,
    options::{PipelineOptions, positive},
    pipeline::{Layout, ReadyMesh},
    record::{LoadRecord, same_tokens},
    report::{Cell, Report, ReportTable},
    statistics::geometric_mean,
};

/// Options of `speculate`.
#[derive(Args, Debug)]
pub struct SpeculateOptions {
    #[command(flatten)]
    pub(super) pipeline: PipelineOptions,
    /// Workers of a pipeline.
    #[arg(long, value_delimiter = ',', default_value = "2", value_parser = positive)]
    pub(super) stages: Vec<usize>,
    /// Round-trip times of every link, in milliseconds.
    #[arg(long, value_name = "MS", value_delimiter = ',', default_value = "0,50")]
    rtt: Vec<u32>,
    /// A small model with the same vocabulary that drafts as well, in a `shard-worker` beside this program with as many threads as
    /// a worker
    #[arg(long, value_name = "FILE")]
    draft_model: Option<PathBuf>,
    /// The most tokens of an answer.
    #[arg(long, default_value_t = 128, value_parser = positive)]
    tokens: usize,
}

/// What answers repeat much of, and what they do not.
const PROMPTS: [(&str, &str); 6] = [
    ("edit-code", include_str!("../../prompts/edit-code.txt")),
    ("edit-letter", include_str!("../../prompts/edit-letter.txt")),
    ("edit-table", include_str!("../../prompts/edit-table.txt")),
    ("chat-garden", include_str!("../../prompts/chat-garden.txt")),
    ("chat-history", include_str!("../../prompts/chat-history.txt")),
    ("chat-story", include_str!("../../prompts/chat-story.txt")),
];

pub(super) fn run(options: &SpeculateOptions) -> Result<Report> {
    let mut measured = Vec::new();
    for model in &options.pipeline.models.open()? {
        let prompts = prompts(&model.path).with_context(|| model.name.clone())?;
        for threads in options.pipeline.run.threads_each() {
            for &stages in &options.stages {
                eprintln!("{} -t {threads} a worker, {stages} stages", model.name);
                measured.extend(measure(options, model, threads, stages, &prompts)?);
            }
        }
    }
    let samples = measured.iter().map(|m| serde_json::json!({ "off": m.off.steady.all(), "on": m.on.steady.all() }));
    let (samples, tables) = (samples.collect(), vec![table(options, &measured)]);
    Ok(Report { tables, notes: vec![NOTE.into()], samples, ..Report::default() })
}

const NOTE: &str = "one greedy stream, tok/s from its first token to its last, to the end of the answer or --tokens; coordinator \
                    and workers are tasks of one process on a network in memory; the ids with and without drafts were \
                    checked to be equal";

/// One prompt's ids and what ends the answer.
#[derive(Debug)]
struct Prompt {
    name: &'static str,
    ids: Vec<u32>,
    ends: Arc<[u32]>,
}

/// Tokenised as a chat where the model can, else as text to continue.
fn prompts(path: &Path) -> Result<Vec<Prompt>> {
    let model = Model::open(path)?;
    let text = TextModel::of(&model, usize::MAX)?;
    let prompts = PROMPTS.map(|(name, content)| {
        let ids = match &text.template {
            Ok(_) => text.chat_prompt(&[Message::new("user", content)], &RenderOptions::new(SystemTime::now()))?,
            Err(_) => text.raw_prompt(content, Specials::Plain)?,
        };
        Ok(Prompt { name, ids, ends: model.ends() })
    });
    prompts.into_iter().collect()
}

/// What was measured of one prompt over one kind of link.
#[derive(Debug)]
struct Measured {
    model: String,
    threads: usize,
    stages: usize,
    rtt_ms: u32,
    prompt: &'static str,
    prompt_tokens: usize,
    off: LoadRecord,
    on: LoadRecord,
    drafted: u64,
    accepted: u64,
}

fn measure(
    options: &SpeculateOptions,
    model: &BenchModel,
    threads: usize,
    stages: usize,
    prompts: &[Prompt],
) -> Result<Vec<Measured>> {
    let longest = prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0);
    let pipeline = |speculation| {
        let drafter = options.draft_model.as_deref().filter(|_| speculation == Speculation::On);
        let (context, sessions) = (longest.max(WARM_PROMPT) + options.tokens.max(WARM_TOKENS), 1);
        let workload = options.pipeline.cut.workload(Workload::Replies);
        ReadyMesh::tasks(&Layout { model, stages, threads, context, sessions, speculation, drafter, workload })
    };
    let pipelines = [pipeline(Speculation::Off)?, pipeline(Speculation::On)?];
    let lanes: Vec<(u32, &Prompt)> =
        options.rtt.iter().flat_map(|&rtt| prompts.iter().map(move |p| (rtt, p))).collect();
    let mut measured: Vec<Measured> = lanes
        .iter()
        .map(|(rtt_ms, prompt)| Measured {
            model: model.name.clone(),
            threads,
            stages,
            rtt_ms: *rtt_ms,
            prompt: prompt.name,
            prompt_tokens: prompt.ids.len(),
            off: LoadRecord::default(),
            on: LoadRecord::default(),
            drafted: 0,
            accepted: 0,
        })
        .collect();
    let mut known = [None; 2];
    // Off and on right after each other.
    interleave(lanes.len() * 2, options.pipeline.run.repeat, |lane| {
        let ((rtt_ms, prompt), measured) = (lanes[lane / 2], &mut measured[lane / 2]);
        let pipeline = &pipelines[lane % 2];
        if known[lane % 2].replace(rtt_ms) != Some(rtt_ms) {
            pipeline.faults(Faults { delay: Duration::from_millis(rtt_ms.into()) / 2, ..Faults::default() });
            // QUIC and the coordinator learn the new times first.
            pipeline.run(vec![model.prompt(0, WARM_PROMPT)], WARM_TOKENS, &Arc::from([]))?;
        }
        let run = pipeline.run(vec![prompt.ids.clone()], options.tokens, &prompt.ends)?;
        ensure!(run.streams.iter().all(|s| s.ids.len() > 1), "{}: the answer has but one token", prompt.name);
        measured.drafted += run.steps.drafted;
        measured.accepted += run.steps.accepted;
        if lane % 2 == 0 { measured.off.push(&run) } else { measured.on.push(&run) }
    })?;
    for m in &measured {
        same_tokens(&format!("{}, {}, drafts off and on", m.model, m.prompt), [&m.off, &m.on])?;
    }
    pipelines.into_iter().for_each(ReadyMesh::stop);
    Ok(measured)
}

/// Rows of the prompt before the first answer over other links.
const WARM_PROMPT: usize = 128;

fn table(options: &SpeculateOptions, measured: &[Measured]) -> ReportTable {
    let title = format!(
        "Drafted tokens: answers of up to {} tokens, real compute over links in memory; medians of {}",
        options.tokens, options.pipeline.run.repeat
    );
    let starts = ["model", "threads", "stages", "RTT ms", "prompt", "prompt tokens", "tokens"];
    let ends = ["off tok/s", "on tok/s", "ratio", "drafted", "accepted", "output"];
    let mut table = ReportTable::new(title, starts.into_iter().chain(ends));
    for m in measured {
        let (off, on) = (m.off.rate(), m.on.rate());
        let tokens = (m.off.gaps.all().len() + m.off.steady.all().len()) / m.off.steady.all().len().max(1);
        let mut row = vec![m.model.as_str().into(), Cell::count(m.threads), Cell::count(m.stages)];
        row.extend([Cell::number(m.rtt_ms.into(), 0), m.prompt.into()]);
        row.extend([Cell::count(m.prompt_tokens), Cell::count(tokens)]);
        row.extend([off, on, on / off].map(|number| Cell::number(number, 2)));
        let share = (m.drafted > 0).then(|| m.accepted as f64 / m.drafted as f64);
        row.extend([Cell::number(m.drafted as f64, 0), Cell::maybe(share, 2), m.on.digest.as_str().into()]);
        table.rows.push(row);
    }
    for (kind, rtt_ms) in ["edit", "chat"].into_iter().flat_map(|kind| options.rtt.iter().map(move |rtt| (kind, *rtt)))
    {
        let same = measured.iter().filter(|m| m.rtt_ms == rtt_ms && m.prompt.starts_with(kind));
        let ratios: Vec<f64> = same.map(|m| m.on.rate() / m.off.rate()).collect();
        if let Some(mean) = geometric_mean(&ratios) {
            table.push_mean([("RTT ms", Cell::number(rtt_ms.into(), 0)), ("prompt", kind.into())], mean);
        }
    }
    table
}
