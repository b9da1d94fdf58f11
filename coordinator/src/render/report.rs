//! What the mesh says of itself: `status`, and the tables after a run.

use std::time::Duration;

use qmesh_models::bytes::ByteCount;

use super::{
    count,
    plan::{expected, layers},
    table::{Align, pairs, table},
    workers,
};
use crate::{
    mesh::status::{
        DraftStatus, FoundStatus, FoundTier, LinkPassage, LinkStatus, MeshStatus, RecentStepsStatus, StageStatus,
    },
    plan::prediction::Prediction,
    text::TextEnd,
};

/// What a stage is, and what was planned for it.
const STAGE_COLUMNS: [(&str, Align); 5] = [
    ("stage", Align::Right),
    ("worker", Align::Left),
    ("layers", Align::Left),
    ("weights", Align::Right),
    ("planned", Align::Right),
];

/// The stages with their layers and sizes, as soon as there is a plan.
pub fn stages(status: &MeshStatus) -> String {
    table(&STAGE_COLUMNS, status.stages.iter().map(stage_cells))
}

/// The stages after work: what they held, what was planned for them, and how long they computed and sent.
pub fn stages_measured(status: &MeshStatus) -> String {
    let measured = [
        ("KV used", Align::Right),
        ("peak", Align::Right),
        ("steps", Align::Right),
        ("compute ms", Align::Right),
        ("p50 / p95", Align::Right),
        ("hop ms", Align::Right),
        ("to the next", Align::Left),
    ];
    let columns = [&STAGE_COLUMNS[..], &measured].concat();
    let rows = status.stages.iter().map(|stage| {
        let mut cells = stage_cells(stage);
        cells.push(format!("{} of {}", ByteCount(stage.kv_bytes_used), ByteCount(stage.kv_bytes)));
        cells.push(ByteCount(stage.peak_bytes).to_string());
        cells.push(stage.steps.to_string());
        cells.push(format!("{:.2}", stage.compute_ms));
        cells.push(stage.recent.map(percentiles).unwrap_or_default());
        cells.push(format!("{:.2}", stage.hop_ms));
        cells.push(stage.link.map(link).unwrap_or_default());
        cells
    });
    table(&columns, rows)
}

/// One line about a generation: tokens in and out, their rates, and the time to the first token.
pub fn rates(end: &TextEnd, first_token: Duration) -> String {
    let prefill = rate(end.prompt_tokens, end.prefill);
    let decode = rate(end.generated_tokens.saturating_sub(1), end.decode);
    format!(
        "{} ({prefill}) in, {} ({decode}) out, first token after {:.0} ms",
        count(end.prompt_tokens, "token"),
        count(end.generated_tokens, "token"),
        first_token.as_secs_f64() * 1e3
    )
}

/// One answer's times beside what the plan promised; `None` where it is too short to tell.
pub fn compared(end: &TextEnd, first_token: Duration, prediction: &Prediction) -> Option<String> {
    let seconds = end.decode.as_secs_f64();
    let tokens = end.generated_tokens.checked_sub(1).filter(|tokens| *tokens > 0 && seconds > 0.0)?;
    let (measured, expected) = (tokens as f64 / seconds, prediction.tokens_per_s);
    let computed = end.prompt_tokens - end.cached_tokens.min(end.prompt_tokens);
    let (first_ms, expected_ms) = (first_token.as_secs_f64() * 1e3, prediction.ttft_ms(computed.max(1)));
    let off = |measured: f64, expected: f64| 100.0 * (measured / expected - 1.0);
    Some(format!(
        "expected {expected:.1} tok/s and the first token after {expected_ms:.0} ms: it was {:+.0} % and {:+.0} %",
        off(measured, expected),
        off(first_ms, expected_ms)
    ))
}

/// A whole status, for `status`.
pub fn status(status: &MeshStatus) -> String {
    let summary = [
        ("model", status.model.clone()),
        ("state", format!("{}: {}", status.state.name(), status.text)),
        ("plan", if status.epoch == 0 { "none yet".to_owned() } else { format!("epoch {}", status.epoch) }),
        (
            "room",
            format!(
                "{} of {} KV positions used, context {}",
                status.kv_positions_used, status.kv_positions, status.context
            ),
        ),
        ("requests", format!("{} running, {} waiting", status.running, status.waiting)),
        ("tokens", format!("{} read, {} generated", status.prompt_tokens, status.generated_tokens)),
        ("uptime", uptime(status.uptime_s)),
    ];
    let drafts = status.draft_model.as_ref().map(|draft| ("drafts", drafts(status, draft)));
    let summary = pairs(summary.into_iter().chain(drafts));
    let columns = [
        ("worker", Align::Left),
        ("address", Align::Left),
        ("peer", Align::Left),
        ("memory", Align::Right),
        ("threads", Align::Right),
        ("rtt ms", Align::Right),
        ("stage", Align::Right),
        ("note", Align::Left),
    ];
    let rows = status.workers.iter().map(|worker| {
        vec![
            worker.name.clone(),
            worker.address.clone(),
            worker.peer.clone(),
            ByteCount(worker.memory_bytes).to_string(),
            worker.threads.to_string(),
            format!("{:.2}", worker.rtt_ms),
            worker.stage.map_or_else(|| "-".to_owned(), |stage| stage.to_string()),
            worker.note.clone().or_else(|| worker.found.and_then(found)).unwrap_or_default(),
        ]
    });
    let mut parts = vec![summary];
    parts.extend(status.change.as_ref().map(|change| format!("plan {} is next: {}", change.epoch, change.text)));
    if !status.asking.is_empty() {
        parts.push(workers::asking(&status.asking));
    }
    if !status.workers.is_empty() {
        parts.push(table(&columns, rows));
    }
    if !status.stages.is_empty() {
        parts.push(stages_measured(status));
    }
    parts.extend(status.prediction.as_ref().map(expected));
    parts.join("\n\n")
}

/// What a small model drafts, and what the text does beside it.
fn drafts(status: &MeshStatus, draft: &DraftStatus) -> String {
    let DraftStatus { model, state, memory_bytes, token_ms, drafted_tokens, accepted_tokens, .. } = draft;
    let took = token_ms.map(|ms| format!(", {ms:.1} ms a token")).unwrap_or_default();
    let by_text = status.drafted_tokens.saturating_sub(*drafted_tokens);
    let right_of_text = status.accepted_tokens.saturating_sub(*accepted_tokens);
    format!(
        "{model} is {}, {}{took}: {accepted_tokens} of {drafted_tokens} tokens were right; from the text, {right_of_text} of {by_text}",
        state.name(),
        ByteCount(*memory_bytes)
    )
}

/// `direct, 12.3 ms there and back`.
pub(super) fn link(link: LinkStatus) -> String {
    let passage = match link.passage {
        LinkPassage::Direct => "direct",
        LinkPassage::Relayed => "relayed",
    };
    format!("{passage}, {:.1} ms there and back", link.rtt_ms)
}

/// `found on the DHT in 2.1 s`; nothing of a worker that had the address.
fn found(found: FoundStatus) -> Option<String> {
    (found.by != FoundTier::Address).then(|| format!("found {}", found.way()))
}

/// `10.0 / 40.2`: milliseconds of half of the last steps, and of 95 of 100.
pub(super) fn percentiles(recent: RecentStepsStatus) -> String {
    format!("{:.1} / {:.1}", recent.p50_ms, recent.p95_ms)
}

fn stage_cells(stage: &StageStatus) -> Vec<String> {
    vec![
        stage.stage.to_string(),
        stage.worker.clone(),
        layers(stage.first_layer, stage.end_layer),
        ByteCount(stage.weight_bytes).to_string(),
        ByteCount(stage.planned_bytes).to_string(),
    ]
}

fn rate(tokens: usize, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if tokens == 0 || seconds <= 0.0 { "-".to_owned() } else { format!("{:.1} tok/s", tokens as f64 / seconds) }
}

/// `45 s`, `12 min`, `3 h 5 min`.
pub(super) fn uptime(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} min"),
        _ => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{
            SpeedSource,
            prediction::{Bottleneck, PromptTime},
        },
        text::TextEndReason,
    };

    #[test]
    fn rates_need_a_time() {
        let end = TextEnd {
            reason: TextEndReason::EndToken,
            prompt_tokens: 30,
            generated_tokens: 11,
            thought_tokens: 0,
            stop: None,
            cached_tokens: 0,
            prefill: Duration::from_millis(100),
            decode: Duration::from_millis(500),
        };
        let line = rates(&end, Duration::from_millis(120));
        assert_eq!(line, "30 tokens (300.0 tok/s) in, 11 tokens (20.0 tok/s) out, first token after 120 ms");
        let prediction = Prediction {
            stage_ms: vec![40.0],
            hops_ms: 0.0,
            prompts: vec![PromptTime { tokens: 10, ttft_ms: 50.0 }, PromptTime { tokens: 50, ttft_ms: 150.0 }],
            tokens_per_s: 25.0,
            streams: 8,
            streams_tokens_per_s: 40.0,
            bottleneck: Bottleneck::Stage(0),
            source: SpeedSource::Measured,
        };
        let line = compared(&end, Duration::from_millis(120), &prediction).unwrap();
        assert_eq!(line, "expected 25.0 tok/s and the first token after 100 ms: it was -20 % and +20 %");
        let one = TextEnd { generated_tokens: 1, decode: Duration::ZERO, ..end };
        assert!(rates(&one, Duration::ZERO).contains("1 token (-) out"));
    }
}
