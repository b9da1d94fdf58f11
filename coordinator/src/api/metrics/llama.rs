//! What llama-server counts, by its names, so that its dashboards work.

use std::{fmt, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        gauge::ConstGauge,
    },
    registry::Registry,
};

use crate::{api::timings::Timings, mesh::status::MeshStatus};

/// Tokens and seconds of all answers that have ended. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct LlamaTotals {
    prompt: Counter,
    cached: Counter,
    prompt_seconds: Counter<f64, AtomicU64>,
    predicted: Counter,
    /// Of those, the ones that had a step of their own.
    decoded: Counter,
    predicted_seconds: Counter<f64, AtomicU64>,
}

impl LlamaTotals {
    pub(super) fn register(&self, registry: &mut Registry) {
        let Self { prompt, cached, prompt_seconds, predicted, decoded: _, predicted_seconds } = self;
        registry.register("llamacpp:prompt_tokens", "Tokens of prompts that were computed", prompt.clone());
        registry.register("llamacpp:prompt_tokens_cached", "Tokens of prompts that were there already", cached.clone());
        registry.register("llamacpp:prompt_seconds", "Time of prompts", prompt_seconds.clone());
        registry.register("llamacpp:tokens_predicted", "Tokens generated", predicted.clone());
        registry.register("llamacpp:tokens_predicted_seconds", "Time of generating", predicted_seconds.clone());
    }

    /// An answer has ended, or a text has become a vector.
    pub(super) fn add(&self, timings: Timings) {
        self.prompt.inc_by(timings.computed as u64);
        self.cached.inc_by(timings.cached as u64);
        self.prompt_seconds.inc_by(timings.prefill.as_secs_f64());
        self.predicted.inc_by(timings.generated as u64);
        self.decoded.inc_by(timings.generated.saturating_sub(1) as u64);
        self.predicted_seconds.inc_by(timings.decode.as_secs_f64());
    }

    /// What follows from the totals and from the mesh as it is.
    pub(super) fn encode(&self, status: &MeshStatus, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in [
            ("llamacpp:n_decode", "Steps of this plan", status.steps.count),
            ("llamacpp:spec_decode_num_draft_tokens", "Tokens drafted", status.drafted_tokens),
            ("llamacpp:spec_decode_num_accepted_tokens", "Of those, the right ones", status.accepted_tokens),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let rate = |tokens: &Counter, seconds: &Counter<f64, AtomicU64>| {
            if seconds.get() > 0.0 { tokens.get() as f64 / seconds.get() } else { 0.0 }
        };
        for (name, help, value) in [
            ("llamacpp:prompt_tokens_seconds", "Tokens of prompts a second", rate(&self.prompt, &self.prompt_seconds)),
            (
                "llamacpp:predicted_tokens_seconds",
                "Tokens generated a second, by each answer",
                rate(&self.decoded, &self.predicted_seconds),
            ),
            ("llamacpp:requests_processing", "Sequences being computed", status.running as f64),
            ("llamacpp:requests_deferred", "Requests that wait for room", status.waiting as f64),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
