//! What vLLM says of itself at a time, by its names, so that its dashboards work.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use super::{KV_USED, kv_used};
use crate::mesh::MeshHandle;

/// What the mesh says of itself, when it is asked. Its registry adds the model's name.
#[derive(Debug)]
pub(super) struct VllmOfMesh(pub(super) MeshHandle);

impl Collector for VllmOfMesh {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.status();
        for (name, help, value) in [
            ("vllm:prompt_tokens", "Tokens of prompts", status.prompt_tokens),
            ("vllm:generation_tokens", "Tokens generated", status.generated_tokens),
            ("vllm:num_preemptions", "Sequences that gave their room up to older ones", status.preemptions),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        for (name, help, value) in [
            ("vllm:num_requests_running", "Sequences being computed", status.running as f64),
            ("vllm:num_requests_waiting", "Requests that wait for room", status.waiting as f64),
            ("vllm:kv_cache_usage_perc", KV_USED, kv_used(&status)),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
