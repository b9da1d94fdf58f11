//! `GET /metrics`: what Prometheus reads, under names of our own and, where vLLM or llama-server have the same thing, under theirs as
//! well, so that their dashboards work.

mod format;
mod llama;
mod vllm;

use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{counter::ConstCounter, counter::Counter, family::Family, gauge::ConstGauge, histogram::Histogram},
    registry::Registry,
};

use self::{format::TextFormat, llama::LlamaTotals, vllm::VllmOfMesh};
use super::{Api, error::ApiError, timings::Timings};
use crate::{
    mesh::{
        MeshHandle,
        status::{DraftState, MeshState, MeshStatus, StageStatus},
    },
    text::{TextEnd, TextEndReason},
};

/// When the server started, as llama-server says it: counters that are smaller than before began anew then.
const STARTED: HeaderName = HeaderName::from_static("process-start-time-unix");
/// Upper bounds in seconds, as vLLM has them.
const FIRST_TOKEN_S: [f64; 20] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
];
const TOKEN_S: [f64; 15] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 1.0, 2.5];
const REQUEST_S: [f64; 14] = [0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 300.0];

const ENDED: &str = "Choices that came to their end, by why";
const KV_USED: &str = "KV positions that are promised, of all";

/// What is counted as requests are answered. Whatever the mesh knows by itself is read from its status.
pub(crate) struct Metrics {
    registry: Registry,
    times: Times,
    ended: Family<Outcome, Counter>,
    pooled: Counter,
    failed: Counter,
    llama: LlamaTotals,
}

/// How long what takes. Clones share it.
#[derive(Clone)]
struct Times {
    first_token: Histogram,
    per_token: Histogram,
    between: Histogram,
    request: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
}

/// The times of one choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChoiceTimes {
    started: Instant,
    /// When text came first and last.
    came: Option<(Instant, Instant)>,
    /// From handing it in until its prompt was computed.
    prefilled: Option<Duration>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Outcome {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfStage {
    stage: usize,
    worker: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfWorker {
    worker: String,
}

/// Answers with everything.
pub(crate) async fn metrics(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let (mut text, format) = (String::new(), TextFormat::wanted(&headers));
    encode(&mut text, &api.metrics.registry).map_err(|error| ApiError::Internal { text: error.to_string() })?;
    let head = [(header::CONTENT_TYPE, format.content_type().to_owned()), (STARTED, api.created_s.to_string())];
    Ok((head, format.write(text)).into_response())
}

impl Metrics {
    /// Nothing is counted yet of the model of this name.
    pub(crate) fn new(mesh: MeshHandle, model: &str) -> Self {
        let (times, llama) = (Times::new(), LlamaTotals::default());
        let (ended, pooled, failed) = (Family::<Outcome, Counter>::default(), Counter::default(), Counter::default());
        let mut registry = Registry::default();
        for (name, _, help, histogram) in times.named() {
            registry.register(name, help, histogram.clone());
        }
        registry.register("qmesh_requests_ended", ENDED, ended.clone());
        registry.register("qmesh_embeddings", "Texts that became vectors", pooled.clone());
        registry.register(
            "qmesh_requests_failed",
            "Choices and vectors that failed after they had begun",
            failed.clone(),
        );
        llama.register(&mut registry);
        registry.register_collector(Box::new(OfMesh { mesh: mesh.clone(), llama: llama.clone() }));
        // vLLM's dashboards choose among models by this label.
        let vllm = registry.sub_registry_with_label((Cow::Borrowed("model_name"), Cow::Owned(model.to_owned())));
        for (_, name, help, histogram) in times.named() {
            vllm.register(name, help, histogram.clone());
        }
        vllm.register("vllm:request_success", ENDED, ended.clone());
        vllm.register_collector(Box::new(VllmOfMesh(mesh)));
        Self { registry, times, ended, pooled, failed, llama }
    }

    /// Text of a choice has come. When the first did.
    pub(crate) fn text_came(&self, times: &mut ChoiceTimes) -> Instant {
        let now = Instant::now();
        let (first, last) = times.came.unwrap_or((now, now));
        if times.came.is_some() {
            self.times.between.observe((now - last).as_secs_f64());
        }
        times.came = Some((first, now));
        first
    }

    /// A choice is over.
    pub(crate) fn ended(&self, times: ChoiceTimes, end: &TextEnd) {
        self.llama.add(Timings::of(end));
        let tokens = end.generated_tokens;
        let seconds = |time: Duration| time.as_secs_f64();
        let Times { first_token, per_token, request, queue, prefill, decode, .. } = &self.times;
        request.observe(seconds(times.started.elapsed()));
        if let Some((first, _)) = times.came {
            first_token.observe(seconds(first - times.started));
            if tokens > 1 {
                per_token.observe(seconds(first.elapsed()) / (tokens - 1) as f64);
            }
        }
        if let Some(prefilled) = times.prefilled {
            queue.observe(seconds(prefilled.saturating_sub(end.prefill)));
        }
        prefill.observe(seconds(end.prefill));
        decode.observe(seconds(end.decode));
        let finished_reason = match end.reason {
            TextEndReason::EndToken | TextEndReason::StopString => "stop",
            TextEndReason::Length => "length",
            TextEndReason::Calls => "tool_calls",
        };
        self.ended.get_or_create(&Outcome { finished_reason }).inc();
    }

    /// A text of so many tokens has become a vector.
    pub(crate) fn pooled(&self, times: ChoiceTimes, tokens: usize) {
        let took = times.started.elapsed();
        self.llama.add(Timings { computed: tokens, prefill: took, ..Timings::default() });
        self.times.request.observe(took.as_secs_f64());
        self.pooled.inc();
    }

    /// A choice or a vector has failed.
    pub(crate) fn failed(&self) {
        self.failed.inc();
    }
}

impl Times {
    fn new() -> Self {
        let histogram = |bounds: &[f64]| Histogram::new(bounds.iter().copied());
        Self {
            first_token: histogram(&FIRST_TOKEN_S),
            per_token: histogram(&TOKEN_S),
            between: histogram(&TOKEN_S),
            request: histogram(&REQUEST_S),
            queue: histogram(&FIRST_TOKEN_S),
            prefill: histogram(&FIRST_TOKEN_S),
            decode: histogram(&REQUEST_S),
        }
    }

    /// Each with our name, vLLM's, and what it is.
    fn named(&self) -> [(&'static str, &'static str, &'static str, &Histogram); 7] {
        [
            (
                "qmesh_time_to_first_token_seconds",
                "vllm:time_to_first_token_seconds",
                "From the request to the first text",
                &self.first_token,
            ),
            (
                "qmesh_time_per_output_token_seconds",
                "vllm:request_time_per_output_token_seconds",
                "Mean time of a token after the first, per request",
                &self.per_token,
            ),
            (
                "qmesh_inter_token_seconds",
                "vllm:inter_token_latency_seconds",
                "From a text to the next one of its answer; drafted tokens come together",
                &self.between,
            ),
            ("qmesh_request_seconds", "vllm:e2e_request_latency_seconds", "From the request to its end", &self.request),
            (
                "qmesh_request_queue_seconds",
                "vllm:request_queue_time_seconds",
                "What a request waited for room",
                &self.queue,
            ),
            (
                "qmesh_request_prefill_seconds",
                "vllm:request_prefill_time_seconds",
                "From there to the first token",
                &self.prefill,
            ),
            (
                "qmesh_request_decode_seconds",
                "vllm:request_decode_time_seconds",
                "From the first token to the last",
                &self.decode,
            ),
        ]
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl ChoiceTimes {
    /// A choice begins to be waited for.
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), came: None, prefilled: None }
    }

    /// Its prompt is computed, so long after it was handed in.
    pub(crate) fn prefilled(&mut self, took: Duration) {
        self.prefilled = Some(took);
    }
}

/// What the mesh says of itself, when it is asked.
#[derive(Debug)]
struct OfMesh {
    mesh: MeshHandle,
    llama: LlamaTotals,
}

impl Collector for OfMesh {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.mesh.status();
        self.llama.encode(&status, &mut encoder)?;
        totals(&status, &mut encoder)?;
        gauges(&status, &mut encoder)?;
        stages(&status, &mut encoder)?;
        let rtt = |worker: &crate::mesh::status::WorkerStatus| {
            (OfWorker { worker: worker.name.clone() }, worker.rtt_ms / 1e3)
        };
        labelled(
            &mut encoder,
            "qmesh_worker_rtt_seconds",
            "Round trip of a worker's link",
            status.workers.iter().map(rtt),
        )
    }
}

fn totals(status: &MeshStatus, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    for (name, help, value) in [
        ("qmesh_prompt_tokens", "Tokens of prompts", status.prompt_tokens),
        ("qmesh_cached_tokens", "Of those, what earlier prompts had left on the stages", status.cached_tokens),
        ("qmesh_generated_tokens", "Tokens generated", status.generated_tokens),
        ("qmesh_drafted_tokens", "Tokens drafted", status.drafted_tokens),
        ("qmesh_accepted_tokens", "Of those, the right ones", status.accepted_tokens),
        ("qmesh_preemptions", "Sequences that gave their room up to older ones", status.preemptions),
        ("qmesh_weight_bytes_sent", "Bytes of tensors that this coordinator has sent", status.weight_bytes_sent),
    ] {
        let counter = ConstCounter::new(value);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    drafts(status, encoder)
}

/// What a small model drafted: part of all drafts.
fn drafts(status: &MeshStatus, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Some(draft) = &status.draft_model else { return Ok(()) };
    for (name, help, value) in [
        ("qmesh_model_drafted_tokens", "Of the drafted tokens, those of the draft model", draft.drafted_tokens),
        ("qmesh_model_accepted_tokens", "Of those, the right ones", draft.accepted_tokens),
    ] {
        let counter = ConstCounter::new(value);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    for (name, help, value) in [
        (
            "qmesh_draft_model_ready",
            "1 while a small model drafts",
            f64::from(u8::from(draft.state == DraftState::Ready)),
        ),
        ("qmesh_draft_model_bytes", "Memory that the draft model takes at most", draft.memory_bytes as f64),
        ("qmesh_draft_token_seconds", "What a token of the draft model takes", draft.token_ms.unwrap_or(0.0) / 1e3),
    ] {
        let gauge = ConstGauge::new(value);
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    Ok(())
}

fn gauges(status: &MeshStatus, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    for (name, help, value) in [
        ("qmesh_ready", "1 while tokens can flow", f64::from(u8::from(status.state == MeshState::Ready))),
        ("qmesh_plan_epoch", "Of the plan that serves or is loaded", f64::from(status.epoch)),
        ("qmesh_requests_running", "Sequences being computed", status.running as f64),
        ("qmesh_requests_waiting", "Requests that wait for room", status.waiting as f64),
        ("qmesh_kv_used_ratio", KV_USED, kv_used(status)),
        (
            "qmesh_bubble_ratio",
            "Of the stages' time in steps of this plan, what they wait for the slowest",
            bubble(status),
        ),
    ] {
        let gauge = ConstGauge::new(value);
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    Ok(())
}

fn stages(status: &MeshStatus, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    type Value = fn(&StageStatus) -> Option<f64>;
    let values: [(&str, &str, Value); 10] = [
        ("qmesh_stage_steps", "Steps that a stage has computed under this plan", |stage| Some(stage.steps as f64)),
        ("qmesh_stage_compute_mean_seconds", "Mean time of a step in a stage's layers", |stage| {
            Some(stage.compute_ms / 1e3)
        }),
        ("qmesh_stage_compute_p50_seconds", "Half of a stage's last steps took at most so long", |stage| {
            stage.recent.map(|recent| recent.p50_ms / 1e3)
        }),
        ("qmesh_stage_compute_p95_seconds", "95 of 100 of a stage's last steps took at most so long", |stage| {
            stage.recent.map(|recent| recent.p95_ms / 1e3)
        }),
        ("qmesh_stage_hop_mean_seconds", "Mean time to hand a step on", |stage| Some(stage.hop_ms / 1e3)),
        ("qmesh_stage_weight_bytes", "Bytes of a stage's tensors", |stage| Some(stage.weight_bytes as f64)),
        ("qmesh_stage_planned_bytes", "Memory that the plan gives a stage", |stage| Some(stage.planned_bytes as f64)),
        ("qmesh_stage_kv_bytes", "Bytes of a stage's KV cache: keys and values of all positions", |stage| {
            Some(stage.kv_bytes as f64)
        }),
        ("qmesh_stage_kv_used_bytes", "Of those, what is promised to sequences and to kept beginnings", |stage| {
            Some(stage.kv_bytes_used as f64)
        }),
        ("qmesh_stage_peak_bytes", "Peak memory that the worker measured", |stage| Some(stage.peak_bytes as f64)),
    ];
    for (name, help, value) in values {
        let one =
            |stage: &StageStatus| Some((OfStage { stage: stage.stage, worker: stage.worker.clone() }, value(stage)?));
        labelled(encoder, name, help, status.stages.iter().filter_map(one))?;
    }
    Ok(())
}

/// One gauge for each set of labels.
fn labelled<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (L, f64)>,
) -> fmt::Result {
    let kind = ConstGauge::new(0.0).metric_type();
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn kv_used(status: &MeshStatus) -> f64 {
    status.kv_positions_used as f64 / status.kv_positions.max(1) as f64
}

fn bubble(status: &MeshStatus) -> f64 {
    let whole = status.steps.slowest_ms * status.stages.len() as f64;
    if whole > 0.0 { (1.0 - status.steps.compute_ms / whole).max(0.0) } else { 0.0 }
}
