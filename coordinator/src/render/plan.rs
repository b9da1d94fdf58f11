//! A plan as a table and as JSON.

use qmesh_models::bytes::ByteCount;
use serde::Serialize;

use super::{
    count,
    table::{Align, table},
};
use crate::plan::{Capacity, Plan, PlanInput, StagePlan};

/// A plan and what it was made from, for `plan --json`.
#[derive(Debug, Serialize)]
pub struct PlanReport<'a> {
    model: &'a str,
    layers: usize,
    context: usize,
    kv_positions: usize,
    stages: Vec<StageReport<'a>>,
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
struct StageReport<'a> {
    stage: usize,
    worker: &'a str,
    threads: u32,
    first_layer: usize,
    end_layer: usize,
    weight_bytes: u64,
    kv_bytes: u64,
    buffer_bytes: u64,
    process_bytes: u64,
    memory_bytes: u64,
    limit_bytes: u64,
    headroom_bytes: u64,
}

impl<'a> PlanReport<'a> {
    /// The plan that `input` led to.
    pub fn new(input: &'a PlanInput<'_>, plan: &'a Plan) -> Self {
        let stages =
            plan.stages.iter().enumerate().map(|(index, s)| stage(index, s, &input.workers[s.worker])).collect();
        Self {
            model: &input.spec.name,
            layers: input.spec.layers.len(),
            context: input.context,
            kv_positions: input.kv_positions,
            stages,
            notes: &plan.notes,
        }
    }

    /// A heading, the table and the notes.
    pub fn text(&self) -> String {
        let columns = [
            ("stage", Align::Right),
            ("worker", Align::Left),
            ("layers", Align::Left),
            ("weights", Align::Right),
            ("KV", Align::Right),
            ("buffers", Align::Right),
            ("process", Align::Right),
            ("total", Align::Right),
            ("limit", Align::Right),
            ("headroom", Align::Right),
        ];
        let rows = self.stages.iter().map(|s| {
            let parts = [s.weight_bytes, s.kv_bytes, s.buffer_bytes, s.process_bytes];
            let totals = [s.memory_bytes, s.limit_bytes, s.headroom_bytes];
            let sizes = parts.into_iter().chain(totals).map(|size| ByteCount(size).to_string());
            let names = [s.stage.to_string(), s.worker.to_owned(), layers(s.first_layer, s.end_layer)];
            names.into_iter().chain(sizes).collect()
        });
        let heading = format!(
            "{}: {} over {}, room for {} KV positions (context {})",
            self.model,
            count(self.layers, "layer"),
            count(self.stages.len(), "worker"),
            self.kv_positions,
            self.context
        );
        let notes = self.notes.iter().map(|note| format!("note: {note}"));
        [heading, table(&columns, rows)].into_iter().chain(notes).collect::<Vec<_>>().join("\n")
    }
}

/// `0..10 (10)`: the first layer, the one after the last, and how many.
pub fn layers(first: usize, end: usize) -> String {
    format!("{first}..{end} ({})", end.saturating_sub(first))
}

fn stage<'a>(index: usize, planned: &StagePlan, worker: &'a Capacity) -> StageReport<'a> {
    StageReport {
        stage: index,
        worker: &worker.name,
        threads: worker.threads,
        first_layer: planned.layers.start,
        end_layer: planned.layers.end,
        weight_bytes: planned.weight_bytes,
        kv_bytes: planned.kv_bytes,
        buffer_bytes: planned.buffer_bytes,
        process_bytes: planned.process_bytes,
        memory_bytes: planned.memory_bytes,
        limit_bytes: worker.memory_bytes,
        headroom_bytes: planned.headroom_bytes,
    }
}
