//! The first half of a block that goes by the gated delta rule: norm, products, convolution, state, gate, output product and
//! residual.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use qmesh_kernels::{
    Cpu,
    columns::Columns,
    convolution::Convolve,
    delta::{DeltaOutput, DeltaRow, DeltaUpdate, decay, sigmoid},
    math::Gate,
};
use qmesh_models::spec::{Activation, DeltaGates, GatedDeltaSpec, KeySharing};

use crate::{
    attention::{Batch, Slice},
    linear::{Linear, Norm, Residual, project, project_add},
    ops,
    states::{LastRows, LayerState, settled_after},
};

/// Weights and shape of one layer's half.
#[derive(Debug)]
pub(crate) struct GatedDelta {
    pub(crate) spec: GatedDeltaSpec,
    /// Which of the shard's layers this is: its place in the states.
    pub(crate) layer: usize,
    pub(crate) norm: Option<Norm>,
    pub(crate) qkv: Linear,
    /// α and β, apart or together.
    pub(crate) gates: Vec<Linear>,
    /// Of the output.
    pub(crate) output_gate: Linear,
    /// (taps, channels), the oldest row's first.
    pub(crate) taps: Arc<[f32]>,
    /// One for each value head, as the next.
    pub(crate) step_bias: Arc<[f32]>,
    pub(crate) decay: Arc<[f32]>,
    /// Makes a query as long as 1, divided by the root of its elements.
    pub(crate) query_norm: Norm,
    /// Makes a key as long as 1.
    pub(crate) key_norm: Norm,
    /// Of each value head's output.
    pub(crate) head_norm: Norm,
    pub(crate) output: Linear,
    pub(crate) residual: Residual,
}

/// One value head's way through the rows of one session.
struct Head<'a> {
    delta: &'a GatedDelta,
    cpu: Cpu<'a>,
    rows: Rows<'a>,
    /// Rows that are part of the state, before and after.
    settled: [usize; 2],
    head: usize,
    /// (head_dim, head_dim)
    state: &'a mut [f32],
    /// The head's part of the step's rows.
    out: Columns<'a, f32>,
}

/// The rows of one session: those of this step, and the last ones before it.
#[derive(Clone, Copy)]
struct Rows<'a> {
    last: &'a LastRows,
    /// (rows, width): q, k and v, α and β, and the output's gate.
    new: &'a [f32],
    width: usize,
    /// Position of the first new one.
    position: usize,
    end: usize,
}

/// A head's part of one row.
struct HeadRow {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    decay: Vec<f32>,
    beta: f32,
    out: Vec<f32>,
}

impl GatedDelta {
    /// What each row of x (rows, hidden) is answered by the states, gated: (rows, value_heads · head_dim). The states of
    /// the batch's sessions have the rows in them, or beside them, afterwards.
    pub(crate) fn mixed(&self, x: &Tensor, batch: &mut Batch<'_>) -> Result<Tensor> {
        let linears: Vec<&Linear> = [&self.qkv].into_iter().chain(&self.gates).chain([&self.output_gate]).collect();
        let projected = project(batch.cpu, x, self.norm.as_ref(), &linears)?;
        let (rows, width) = projected.dims2()?;
        let mut out = vec![0.0; rows * self.spec.values()];
        ops::read(&projected, |projected| {
            self.run(batch, projected, width, &mut out);
            self.hold(batch, projected, width);
        })?;
        Tensor::from_vec(out, (rows, self.spec.values()), &Device::Cpu)
    }

    /// x + scale · norm(output(mixed)): (rows, hidden).
    pub(crate) fn output(&self, cpu: Cpu<'_>, mixed: &Tensor, x: &Tensor) -> Result<Tensor> {
        project_add(cpu, mixed, &self.output, &self.residual, x)
    }

    /// Takes every value head through the rows of every session.
    fn run(&self, batch: &mut Batch<'_>, projected: &[f32], width: usize, mut out: &mut [f32]) {
        let GatedDeltaSpec { value_heads, head_dim, .. } = self.spec;
        let cpu = batch.cpu;
        let mut tasks = Vec::new();
        for Slice { states, first, rows, position, .. } in &mut batch.slices {
            let end = *position + *rows;
            let settled = [states.settled, settled_after(*position, end)];
            let LayerState { state, rows: last } = &mut states.layers[self.layer];
            let new = &projected[*first * width..(*first + *rows) * width];
            let of_session = Rows { last, new, width, position: *position, end };
            let (own, rest) = std::mem::take(&mut out).split_at_mut(*rows * self.spec.values());
            out = rest;
            let heads =
                state.chunks_exact_mut(head_dim * head_dim).zip(Columns::split(own, &vec![head_dim; value_heads]));
            tasks.extend(heads.enumerate().map(|(head, (state, out))| Head {
                delta: self,
                cpu,
                rows: of_session,
                settled,
                head,
                state,
                out,
            }));
        }
        cpu.team.each(tasks, Head::run);
    }

    /// Holds the last of the step's rows beside the states.
    fn hold(&self, batch: &mut Batch<'_>, projected: &[f32], width: usize) {
        let row_len = self.spec.row_len();
        for Slice { states, first, rows, position, .. } in &mut batch.slices {
            let last = &mut states.layers[self.layer].rows;
            for row in 0..*rows {
                last.put(*position + row, &projected[(*first + row) * width..][..row_len]);
            }
        }
    }

    /// The key head of a value head, and which of those that share it the value head is.
    fn key_head(&self, head: usize) -> (usize, usize) {
        let GatedDeltaSpec { key_heads, value_heads, sharing, .. } = self.spec;
        match sharing {
            KeySharing::Adjacent => (head / (value_heads / key_heads), head % (value_heads / key_heads)),
            KeySharing::InTurn => (head % key_heads, head / key_heads),
        }
    }

    /// A head's α and β among those of a row.
    fn gates(&self, head: usize, row: &[f32]) -> (f32, f32) {
        let GatedDeltaSpec { key_heads, value_heads, gates, .. } = self.spec;
        let row = &row[self.spec.channels()..];
        match gates {
            DeltaGates::Apart => (row[head], row[value_heads + head]),
            DeltaGates::Together => {
                let (together, (key_head, of_it)) = (value_heads / key_heads, self.key_head(head));
                let row = &row[2 * key_head * together..];
                (row[together + of_it], row[of_it])
            }
        }
    }
}

impl Head<'_> {
    fn run(mut self) {
        let head_dim = self.delta.spec.head_dim;
        let zeros = || vec![0.0; head_dim];
        let mut row = HeadRow { query: zeros(), key: zeros(), value: zeros(), decay: zeros(), beta: 0.0, out: zeros() };
        let ([before, after], end) = (self.settled, self.rows.end);
        // The state with rows that may yet be taken back.
        let mut ahead = Vec::new();
        for position in before..end {
            let is_last = position + 1 == end;
            if position == after && !is_last {
                ahead.extend_from_slice(self.state);
            }
            self.load(position, &mut row);
            let state = if ahead.is_empty() { &mut *self.state } else { &mut ahead[..] };
            let HeadRow { query, key, value, decay, beta, out } = &mut row;
            let delta_row = DeltaRow { decay, key };
            DeltaOutput { state, row: delta_row, query, beta: *beta, value, out }.run(self.cpu.simd);
            // No row comes after the last one yet.
            if position < after || !is_last {
                DeltaUpdate { state, row: delta_row, correction: value }.run(self.cpu.simd);
            }
            if position >= self.rows.position {
                self.finish(position, out);
            }
        }
    }

    /// q, k and v of the row at `position`, convolved and normalised, and its gates.
    fn load(&self, position: usize, row: &mut HeadRow) {
        let (delta, head_dim) = (self.delta, self.delta.spec.head_dim);
        let keys = delta.spec.key_heads * head_dim;
        let (key_head, _) = delta.key_head(self.head);
        self.convolve(position, key_head * head_dim, &mut row.query);
        self.convolve(position, keys + key_head * head_dim, &mut row.key);
        self.convolve(position, 2 * keys + self.head * head_dim, &mut row.value);
        delta.query_norm.apply(self.cpu, &mut row.query);
        delta.key_norm.apply(self.cpu, &mut row.key);
        let (alpha, beta) = delta.gates(self.head, self.rows.get(position));
        row.decay.fill(decay(delta.decay[self.head], alpha + delta.step_bias[self.head]));
        row.beta = sigmoid(beta);
    }

    /// The channels from `channel` on, convolved over the row at `position` and those before it.
    fn convolve(&self, position: usize, channel: usize, out: &mut [f32]) {
        let (taps, channels) = (self.delta.spec.taps, self.delta.spec.channels());
        let first = (position + 1).saturating_sub(taps);
        let all = self.delta.taps.chunks_exact(channels).skip(taps - (position + 1 - first)).zip(first..);
        let terms: Vec<(&[f32], &[f32])> = all
            .map(|(taps, position)| (&taps[channel..][..out.len()], &self.rows.get(position)[channel..][..out.len()]))
            .collect();
        Convolve { terms: &terms, out }.run(self.cpu.simd);
    }

    /// Puts out the row at `position`: normalised and gated.
    fn finish(&mut self, position: usize, out: &mut [f32]) {
        self.delta.head_norm.apply(self.cpu, out);
        let gate = &self.rows.get(position)[self.delta.spec.row_len() + self.head * out.len()..][..out.len()];
        let gated = self.out.row(position - self.rows.position);
        gated.copy_from_slice(gate);
        Gate { activation: Activation::Silu, gate: gated, up: Some(out) }.run(self.cpu.simd);
    }
}

impl<'a> Rows<'a> {
    /// The row at `position`: what was projected of it, without the output's gate where it is an earlier one.
    fn get(&self, position: usize) -> &'a [f32] {
        match position.checked_sub(self.position) {
            Some(row) => &self.new[row * self.width..][..self.width],
            None => self.last.get(position),
        }
    }
}
