//! What a plan will do, in tokens and seconds: from the stages' times and the links, by the formulas that bound a pipeline.

use serde::{Deserialize, Serialize};

use super::{
    Plan, PlanInput, StagePlan, chunk,
    cost::{Costs, Share},
    curve,
    link::{End, Link},
    speed::{PS_PER_S, Speed, SpeedSource},
};

/// What a plan is expected to do.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Prediction {
    /// Of each stage, in milliseconds: one token of one stream.
    pub stage_ms: Vec<f64>,
    /// What a token spends on links and at the coordinator, in milliseconds.
    pub hops_ms: f64,
    /// Of prompts alone, in increasing length.
    pub prompts: Vec<PromptTime>,
    /// Of one stream alone, without drafts.
    pub tokens_per_s: f64,
    /// Streams that `streams_tokens_per_s` is for.
    pub streams: usize,
    /// Of so many streams, together.
    pub streams_tokens_per_s: f64,
    /// What keeps the streams from being faster.
    pub bottleneck: Bottleneck,
    /// How the least certain of the speeds is known.
    pub source: SpeedSource,
}

/// What a prompt is expected to take.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct PromptTime {
    /// Its tokens.
    pub tokens: usize,
    /// From the request to the first token of the answer, in milliseconds.
    pub ttft_ms: f64,
}

impl Prediction {
    /// Milliseconds to the first token after a prompt of so many tokens: between the lengths that are predicted, or in
    /// proportion beyond the last.
    pub fn ttft_ms(&self, tokens: usize) -> f64 {
        let points = self.prompts.iter().map(|prompt| (prompt.tokens as f64, prompt.ttft_ms));
        curve::at(points, tokens as f64).unwrap_or(0.0)
    }
}

/// What keeps a pipeline from being faster.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// The stage with this index is always busy.
    Stage(usize),
    /// The link after the stage with this index is always busy.
    Link(usize),
    /// There are too few streams to keep everybody busy.
    Streams,
}

/// What `plan` will do, with so many streams at once; `None` where some worker's speed is not known.
pub fn predict(input: &PlanInput<'_>, plan: &Plan, streams: usize) -> Option<Prediction> {
    let pipeline = Pipeline::new(input, plan)?;
    let alone: Vec<f64> = pipeline.steps_s(1.0, POSITIONS).collect();
    let token_s = alone.iter().sum::<f64>() + pipeline.hops_s(1.0);
    let (streams_tokens_per_s, bottleneck) = pipeline.best(streams.max(1), POSITIONS);
    let lengths = PROMPTS.into_iter().filter(|tokens| *tokens <= input.context.max(PROMPTS[0]));
    let prompts = lengths.map(|tokens| {
        let ttft_ms = pipeline.prompt_s(tokens, input.chunk_rows.max(1)) * 1e3;
        PromptTime { tokens, ttft_ms }
    });
    Some(Prediction {
        stage_ms: alone.iter().map(|seconds| seconds * 1e3).collect(),
        hops_ms: pipeline.hops_s(1.0) * 1e3,
        prompts: prompts.collect(),
        tokens_per_s: 1.0 / token_s,
        streams: streams.max(1),
        streams_tokens_per_s,
        bottleneck,
        source: pipeline.source,
    })
}

/// Seconds from one step of a stream alone to its next, with so many rows that all want a token; `None` where some worker's speed
/// is not known.
pub(super) fn round_s(input: &PlanInput<'_>, plan: &Plan, rows: usize) -> Option<f64> {
    let pipeline = Pipeline::new(input, plan)?;
    Some(pipeline.steps_s(rows as f64, POSITIONS).sum::<f64>() + pipeline.hops_s(rows as f64))
}

/// What the steps of a stage take at most, by its worker's speed, with every sequence at the end of its context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepBound {
    /// A step of one row, in milliseconds.
    pub first_row_ms: f64,
    /// What each further row of a step adds, in milliseconds.
    pub further_row_ms: f64,
}

impl StepBound {
    /// Seconds that so many steps with so many rows together take at most; never zero.
    pub fn seconds(&self, steps: u64, rows: u64) -> f64 {
        let further = rows.saturating_sub(steps) as f64;
        ((steps as f64 * self.first_row_ms + further * self.further_row_ms) / 1e3).max(f64::MIN_POSITIVE)
    }
}

/// The bounds of each stage's steps; `None` where some worker's speed is not known. The time of a step grows the faster the
/// more rows it has, so that a straight line from one row to the largest step is above all between.
pub fn step_bounds(input: &PlanInput<'_>, plan: &Plan) -> Option<Vec<StepBound>> {
    let pipeline = Pipeline::new(input, plan)?;
    let positions = input.context as f64;
    let most = input.chunk_rows.max(2) as f64;
    let ends = pipeline.steps_s(1.0, positions).zip(pipeline.steps_s(most, positions));
    let bound = |(one, all): (f64, f64)| StepBound {
        first_row_ms: one * 1e3,
        further_row_ms: (all - one).max(0.0) * 1e3 / (most - 1.0),
    };
    Some(ends.map(bound).collect())
}

/// Bytes of a row that leaves a stage for the next one.
fn row_bytes(input: &PlanInput<'_>, stage: &StagePlan) -> f64 {
    (size_of::<f32>() * input.spec.row_width(stage.layers.end)) as f64
}

/// Picoseconds for so many bytes to get from one process to the next and to be taken up there.
pub(super) fn hop_ps(link: Link, bytes: f64) -> f64 {
    link.ps(bytes) + HOP_S * PS_PER_S
}

/// A plan's stages with their speeds and links.
struct Pipeline<'a> {
    costs: Costs<'a>,
    stages: Vec<(Share, Speed)>,
    /// From each stage to the next, and from the last one home.
    links: Vec<Link>,
    /// From the coordinator to the first stage.
    start: Link,
    /// Bytes of a row on the link after each stage.
    row_bytes: Vec<f64>,
    /// Seconds until all stages have opened a session, before which nothing of its prompt is sent.
    opening_s: f64,
    source: SpeedSource,
}

impl<'a> Pipeline<'a> {
    fn new(input: &PlanInput<'a>, plan: &Plan) -> Option<Self> {
        let speed = |stage: &StagePlan| input.workers.get(stage.worker)?.speed.clone();
        let stages: Option<Vec<_>> = plan.stages.iter().map(|stage| Some((stage.share(), speed(stage)?))).collect();
        let stages = stages.filter(|stages| !stages.is_empty())?;
        let stated = stages.iter().any(|(_, speed)| speed.source != SpeedSource::Measured);
        let ends: Vec<End> = plan.stages.iter().map(|s| End::Worker(s.worker)).chain([End::Coordinator]).collect();
        let links: Option<Vec<Link>> = ends.windows(2).map(|pair| input.links.between(pair[0], pair[1])).collect();
        let (home, link) = (End::Coordinator, |from, to| Some(hop_ps(input.links.between(from, to)?, 0.0)));
        let openings: Option<Vec<f64>> =
            ends.iter().take(stages.len()).map(|&stage| Some(link(home, stage)? + link(stage, home)?)).collect();
        Some(Self {
            costs: Costs::new(input),
            opening_s: openings?.into_iter().fold(0.0, f64::max) / PS_PER_S,
            stages,
            links: links?,
            start: input.links.between(End::Coordinator, ends[0])?,
            row_bytes: plan.stages.iter().map(|stage| row_bytes(input, stage)).collect(),
            source: if stated { SpeedSource::Stated } else { SpeedSource::Measured },
        })
    }

    /// Seconds of each stage for a step of `rows` rows that all want a token.
    fn steps_s(&self, rows: f64, positions: f64) -> impl Iterator<Item = f64> {
        self.stages.iter().map(move |(share, speed)| self.costs.step_ps(share, speed, rows, positions) / PS_PER_S)
    }

    /// Seconds of each stage for a chunk of a prompt, behind so many positions of it.
    fn chunks_s(&self, rows: usize, before: usize) -> impl Iterator<Item = f64> {
        self.stages.iter().map(move |(share, speed)| self.costs.chunk_ps(share, speed, rows, before) / PS_PER_S)
    }

    /// Seconds that a step of `rows` rows is on links, the coordinator's included.
    fn hops_s(&self, rows: f64) -> f64 {
        let last = self.links.len() - 1;
        let bytes = |hop: usize| if hop == last { 0.0 } else { rows * self.row_bytes[hop] };
        let links = self.links.iter().enumerate().map(|(hop, link)| hop_ps(*link, bytes(hop)));
        (hop_ps(self.start, 0.0) + links.sum::<f64>()) / PS_PER_S
    }

    /// Seconds that the link after each stage is busy with a step of `rows` rows.
    fn wires_s(&self, rows: f64) -> impl Iterator<Item = f64> {
        let inner = &self.links[..self.links.len() - 1];
        let wires = inner.iter().zip(&self.row_bytes);
        wires.map(move |(link, row_bytes)| link.bytes_per_s.map_or(0.0, |rate| rows * row_bytes / rate))
    }

    /// Seconds until the first token of a prompt that comes in chunks, one behind the other. The last row wants a token.
    fn prompt_s(&self, prompt_tokens: usize, rows_most: usize) -> f64 {
        // When each stage is done with the chunk before.
        let mut done = vec![0.0_f64; self.stages.len()];
        let mut before = 0;
        while before < prompt_tokens {
            let left = prompt_tokens - before;
            let rows = chunk::rows(self.stages.len(), left, rows_most).min(left);
            let mut arrived = 0.0;
            let wires = self.wires_s(rows as f64).chain([0.0]);
            for ((seconds, done), wire) in self.chunks_s(rows, before).zip(&mut done).zip(wires) {
                *done = done.max(arrived) + seconds;
                arrived = *done + wire;
            }
            before += rows;
        }
        let head = self
            .stages
            .last()
            .map_or(0.0, |(share, speed)| self.costs.head_bytes(&share.layers) as f64 * speed.head(1.0) / PS_PER_S);
        self.opening_s + done.last().copied().unwrap_or(0.0) + head + self.hops_s(1.0)
    }

    /// The most tokens a second of so many streams, dealt into groups that follow each other as the scheduler deals them, and
    /// what bounds them. All groups take the time of the largest.
    fn best(&self, streams: usize, positions: f64) -> (f64, Bottleneck) {
        let rate = |groups: usize| {
            let rows = streams.div_ceil(groups) as f64;
            let steps: Vec<f64> = self.steps_s(rows, positions).collect();
            let alone = steps.iter().sum::<f64>() + self.hops_s(rows);
            let busy = |seconds: f64| groups as f64 * seconds;
            let stages = steps.into_iter().enumerate().map(|(stage, s)| (busy(s), Bottleneck::Stage(stage)));
            let links = self.wires_s(rows).enumerate().map(|(hop, s)| (busy(s), Bottleneck::Link(hop)));
            let all = [(alone, Bottleneck::Streams)].into_iter().chain(stages).chain(links);
            let (round, bottleneck) = all.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, Bottleneck::Streams));
            (streams as f64 / round.max(1e-12), bottleneck)
        };
        let rates = (1..=streams).map(rate);
        rates.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, Bottleneck::Streams))
    }
}

/// Where in their texts streams are taken to be.
const POSITIONS: f64 = 256.0;
/// Lengths of prompts that are predicted.
const PROMPTS: [usize; 9] = [1, 16, 32, 64, 128, 256, 512, 2048, 8192];
/// What a frame costs between two processes of one machine, from the end of one stage's step to the beginning of the next
/// one's: packing, encrypting, two system calls and waking two threads.
const HOP_S: f64 = 0.15e-3;
