//! A plan as a table, a picture and JSON.

use std::num::NonZeroUsize;

use qmesh_models::bytes::ByteCount;
use serde::Serialize;

use super::{
    count,
    picture::{self, StageBox},
    table::{Align, table},
};
use crate::plan::{
    Capacity, Goal, Plan, PlanInput, SpeedSource, StagePlan,
    alternatives::Alternatives,
    drafted::DraftPrediction,
    prediction::{Bottleneck, Prediction},
    quantisations::Fitting,
};

/// A plan and what it was made from, for `plan --json`.
#[derive(Debug, Serialize)]
pub struct PlanReport<'a> {
    model: &'a str,
    layers: usize,
    context: usize,
    kv_positions: usize,
    goal: Goal,
    stages: Vec<StageReport<'a>>,
    notes: Vec<String>,
    gap_percent: f64,
    prediction: Option<&'a Prediction>,
    alternatives: Option<&'a Alternatives>,
    quantisations: Option<&'a Fitting>,
    /// What a model that drafts is expected to bring.
    pub drafts: Option<&'a DraftPrediction>,
}

#[derive(Debug, Serialize)]
struct StageReport<'a> {
    stage: usize,
    worker: &'a str,
    threads: u32,
    first_layer: usize,
    end_layer: usize,
    weight_bytes: u64,
    /// How many of each layer's experts are in memory, where the others are on disk.
    experts_in_memory: Option<NonZeroUsize>,
    /// Bytes of experts on disk.
    disk_bytes: u64,
    kv_bytes: u64,
    state_bytes: u64,
    buffer_bytes: u64,
    process_bytes: u64,
    memory_bytes: u64,
    limit_bytes: u64,
    headroom_bytes: u64,
    token_ms: Option<f64>,
}

/// A column of bytes: its heading, and what stands there for a stage.
type SizeColumn = (&'static str, fn(&StageReport<'_>) -> u64);

impl<'a> PlanReport<'a> {
    /// The plan that `input` led to, with what it is expected to do and what else could be done, where that is known.
    pub fn new(
        input: &'a PlanInput<'_>,
        plan: &'a Plan,
        expected: Option<&'a (Prediction, Alternatives)>,
        quantisations: Option<&'a Fitting>,
    ) -> Self {
        let prediction = expected.map(|(prediction, _)| prediction);
        let stages = plan.stages.iter().enumerate().map(|(index, s)| {
            let token_ms = prediction.and_then(|prediction| prediction.stage_ms.get(index).copied());
            stage(index, s, &input.workers[s.worker], token_ms)
        });
        let verdict = expected.and_then(|(prediction, others)| others.verdict(plan, prediction));
        Self {
            model: &input.spec.name,
            layers: input.spec.layers.len(),
            context: input.context,
            kv_positions: input.kv_positions,
            goal: input.goal,
            stages: stages.collect(),
            notes: plan.notes.iter().cloned().chain(verdict).collect(),
            gap_percent: plan.gap_percent,
            prediction,
            alternatives: expected.map(|(_, alternatives)| alternatives),
            quantisations,
            drafts: None,
        }
    }

    /// A heading, the table, the picture, what is expected, and the notes.
    pub fn text(&self) -> String {
        let heading = format!(
            "{}: {} over {}, room for {} KV positions (context {})",
            self.model,
            count(self.layers, "layer"),
            count(self.stages.len(), "worker"),
            self.kv_positions,
            self.context
        );
        let mut parts = vec![heading, self.table()];
        if let Some(prediction) = self.prediction {
            parts.push(format!("\n{}\n", picture::text(&self.boxes())));
            parts.push(expected(prediction));
            parts.extend(self.alternatives.and_then(|others| one_more(others, prediction)));
            parts.extend(self.drafts.map(drafted));
        }
        if self.gap_percent > 0.0 {
            parts.push(format!("a better plan may exist, by {:.1} % at most", self.gap_percent));
        }
        parts.extend(self.quantisations.map(Fitting::to_string));
        parts.extend(self.notes.iter().map(|note| format!("note: {note}")));
        parts.join("\n")
    }

    /// The pipeline as SVG.
    pub fn svg(&self) -> String {
        picture::svg(&format!("{}, {}", self.model, count(self.stages.len(), "stage")), &self.boxes())
    }

    fn table(&self) -> String {
        let sizes: [SizeColumn; 9] = [
            ("weights", |stage| stage.weight_bytes),
            ("KV", |stage| stage.kv_bytes),
            ("states", |stage| stage.state_bytes),
            ("buffers", |stage| stage.buffer_bytes),
            ("process", |stage| stage.process_bytes),
            ("total", |stage| stage.memory_bytes),
            ("limit", |stage| stage.limit_bytes),
            ("headroom", |stage| stage.headroom_bytes),
            ("on disk", |stage| stage.disk_bytes),
        ];
        // What only some models or plans have.
        let is_shown = |(name, size): &SizeColumn| {
            !matches!(*name, "states" | "on disk") || self.stages.iter().any(|stage| size(stage) > 0)
        };
        let sizes: Vec<_> = sizes.into_iter().filter(is_shown).collect();
        let names = [("stage", Align::Right), ("worker", Align::Left), ("layers", Align::Left)];
        let columns = names.into_iter().chain(sizes.iter().map(|(name, _)| (*name, Align::Right)));
        let columns: Vec<_> = columns.chain(self.prediction.map(|_| ("token ms", Align::Right))).collect();
        let rows = self.stages.iter().map(|s| {
            let names = [s.stage.to_string(), s.worker.to_owned(), layers(s.first_layer, s.end_layer)];
            let sizes = sizes.iter().map(|(_, size)| ByteCount(size(s)).to_string());
            names.into_iter().chain(sizes).chain(s.token_ms.map(|ms| format!("{ms:.2}"))).collect()
        });
        table(&columns, rows)
    }

    fn boxes(&self) -> Vec<StageBox> {
        let one = |s: &StageReport<'_>| StageBox {
            worker: s.worker.to_owned(),
            layers: layers(s.first_layer, s.end_layer),
            ms: s.token_ms,
            memory_share: s.memory_bytes as f64 / s.limit_bytes.max(1) as f64,
        };
        self.stages.iter().map(one).collect()
    }
}

/// What a plan is expected to do, in a few lines.
pub fn expected(prediction: &Prediction) -> String {
    let Prediction { streams, streams_tokens_per_s, tokens_per_s, hops_ms, ref stage_ms, .. } = *prediction;
    let token_ms = 1e3 / tokens_per_s;
    let compute_ms: f64 = stage_ms.iter().sum();
    let prompt = prediction.prompts.iter().find(|prompt| prompt.tokens >= SHOWN_PROMPT).or(prediction.prompts.last());
    let prompt = prompt.map_or_else(String::new, |prompt| {
        let per_s = prompt.tokens as f64 / prompt.ttft_ms * 1e3;
        format!("; {} in give the first token after {:.0} ms ({per_s:.0} tok/s)", prompt.tokens, prompt.ttft_ms)
    });
    let source = match prediction.source {
        SpeedSource::Measured => "measured on these workers",
        SpeedSource::Stated | SpeedSource::Presumed => "from memory bandwidths, not measured",
    };
    let bound = match prediction.bottleneck {
        Bottleneck::Stage(stage) => format!("stage {stage} is the bottleneck"),
        Bottleneck::Link(stage) => format!("the link after stage {stage} is the bottleneck"),
        Bottleneck::Streams => "more streams would get more".to_owned(),
    };
    format!(
        "expected: {tokens_per_s:.1} tok/s for one stream ({token_ms:.2} ms a token: {compute_ms:.2} computing, \
         {hops_ms:.2} on links){prompt}\n          {streams_tokens_per_s:.1} tok/s for {} together; {bound}\n          \
         ({source}; drafts come on top)",
        count(streams, "stream")
    )
}

/// Whether a model that drafts pays, with both figures.
fn drafted(drafts: &DraftPrediction) -> String {
    let DraftPrediction { model, memory_bytes, token_ms, assumed_acceptance, tokens_per_s, alone_tokens_per_s, .. } =
        drafts;
    let (verdict, memory) = (if drafts.pays { "pays" } else { "does not pay" }, ByteCount(*memory_bytes));
    let tokens = count(drafts.drafts, "token");
    let right = assumed_acceptance * 100.0;
    format!(
        "drafts by {model}: {tokens_per_s:.1} tok/s for one stream instead of {alone_tokens_per_s:.1}, with {tokens} at a time: \
         {verdict}\n          (on this machine {memory} and {token_ms:.2} ms a token, measured; that {right:.0} % of them are right is \
         assumed)"
    )
}

fn one_more(others: &Alternatives, prediction: &Prediction) -> Option<String> {
    let more = others.one_more.as_ref()?;
    let gain = |new: f64, old: f64| 100.0 * (new / old - 1.0);
    let one = gain(more.tokens_per_s, prediction.tokens_per_s);
    let all = gain(more.streams_tokens_per_s, prediction.streams_tokens_per_s);
    Some(format!(
        "one more worker like {}: {one:+.0} % for one stream, {all:+.0} % for {}",
        more.worker,
        count(prediction.streams, "stream")
    ))
}

/// `0..10 (10)`: the first layer, the one after the last, and how many.
pub fn layers(first: usize, end: usize) -> String {
    format!("{first}..{end} ({})", end.saturating_sub(first))
}

fn stage<'a>(index: usize, planned: &StagePlan, worker: &'a Capacity, token_ms: Option<f64>) -> StageReport<'a> {
    StageReport {
        stage: index,
        worker: &worker.name,
        threads: worker.threads,
        first_layer: planned.layers.start,
        end_layer: planned.layers.end,
        weight_bytes: planned.weight_bytes,
        experts_in_memory: planned.experts_in_memory,
        disk_bytes: planned.disk_bytes,
        kv_bytes: planned.kv_bytes,
        state_bytes: planned.state_bytes,
        buffer_bytes: planned.buffer_bytes,
        process_bytes: planned.process_bytes,
        memory_bytes: planned.memory_bytes,
        limit_bytes: worker.memory_bytes,
        headroom_bytes: planned.headroom_bytes,
        token_ms,
    }
}

/// The prompt whose time is shown.
const SHOWN_PROMPT: usize = 512;
