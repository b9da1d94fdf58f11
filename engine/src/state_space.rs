//! The first half of a block with a state space: norm, products, convolution, state, gate, norm of groups, output product and
//! residual.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use qmesh_kernels::{
    Cpu,
    delta::{DeltaRow, LinearOutput, decay, softplus},
    math::GatedActivation,
    norm::RmsNorm,
};
use qmesh_models::spec::{Activation, StateSpaceSpec};

use crate::{
    batch::Batch,
    linear::{Linear, Norm, Residual, project, project_add},
    ops,
    recurrence::{self, HeadRow, Rows, Rule, RuleShape},
};

/// Weights and shape of one layer's half.
#[derive(Debug)]
pub(crate) struct StateSpace {
    pub(crate) spec: StateSpaceSpec,
    /// Which of the shard's layers this is: its place in the states.
    pub(crate) layer: usize,
    pub(crate) norm: Option<Norm>,
    /// x, B and C.
    pub(crate) input: Linear,
    pub(crate) time_step: Linear,
    /// Of the output.
    pub(crate) output_gate: Linear,
    /// (taps, channels), the oldest row's first.
    pub(crate) taps: Arc<[f32]>,
    /// (channels)
    pub(crate) bias: Option<Arc<[f32]>>,
    /// One for each head, as the next.
    pub(crate) step_bias: Arc<[f32]>,
    pub(crate) decay: Arc<[f32]>,
    pub(crate) skip: Arc<[f32]>,
    /// Gains of the norm: (groups, elements of a group's heads).
    pub(crate) group_gains: Arc<[f32]>,
    pub(crate) eps: f32,
    pub(crate) output: Linear,
    pub(crate) residual: Residual,
}

impl StateSpace {
    /// What the states put out for each row of x (rows, hidden), gated and normalised: (rows, heads · head_dim). The states
    /// of the batch's sessions have the rows in them, or beside them, afterwards.
    pub(crate) fn mixed(&self, x: &Tensor, batch: &mut Batch<'_>) -> Result<Tensor> {
        let linears = [&self.input, &self.time_step, &self.output_gate];
        let projected = project(batch.cpu, x, self.norm.as_ref(), &linears)?;
        let (rows, width) = projected.dims2()?;
        let mut out = ops::read(&projected, |projected| recurrence::run(self, batch, projected, width))?;
        self.normalize(batch.cpu, &mut out);
        Tensor::from_vec(out, (rows, self.spec.values()), &Device::Cpu)
    }

    /// x + scale · norm(output(mixed)): (rows, hidden).
    pub(crate) fn output(&self, cpu: Cpu<'_>, mixed: &Tensor, x: &Tensor) -> Result<Tensor> {
        project_add(cpu, mixed, &self.output, &self.residual, x)
    }

    /// Normalises each group of each row.
    fn normalize(&self, cpu: Cpu<'_>, out: &mut [f32]) {
        let (values, eps) = (self.spec.values(), self.eps);
        cpu.team.each(out.chunks_exact_mut(values).collect(), |row: &mut [f32]| {
            let width = values / self.spec.groups;
            for (x, gain) in row.chunks_exact_mut(width).zip(self.group_gains.chunks_exact(width)) {
                RmsNorm { x, gain, eps }.run(cpu.simd);
            }
        });
    }
}

impl Rule for StateSpace {
    fn shape(&self) -> RuleShape {
        let StateSpaceSpec { heads, head_dim, state_size, .. } = self.spec;
        RuleShape { layer: self.layer, heads, keys: state_size, values: head_dim, row_len: self.spec.row_len() }
    }

    fn load(&self, cpu: Cpu<'_>, rows: &Rows<'_>, position: usize, head: usize, row: &mut HeadRow) {
        let StateSpaceSpec { heads, head_dim, groups, state_size, .. } = self.spec;
        let (x, group) = (self.spec.values(), head / (heads / groups));
        let (taps, bias) = ((&self.taps[..], self.spec.channels()), self.bias.as_deref());
        rows.convolve(cpu, position, head * head_dim, taps, bias, &mut row.skipped);
        rows.convolve(cpu, position, x + group * state_size, taps, bias, &mut row.key);
        rows.convolve(cpu, position, x + (groups + group) * state_size, taps, bias, &mut row.query);
        let step = rows.get(position)[self.spec.channels() + head] + self.step_bias[head];
        row.decay.fill(decay(self.decay[head], step));
        let step = softplus(step);
        row.value.iter_mut().zip(&row.skipped).for_each(|(value, x)| *value = step * x);
    }

    fn answer(&self, cpu: Cpu<'_>, state: &[f32], row: &mut HeadRow) {
        let HeadRow { query, key, value, decay, out, .. } = row;
        LinearOutput { state, row: DeltaRow { decay, key }, query, correction: value, out }.run(cpu.simd);
    }

    /// With what goes past the state, and gated.
    fn finish(&self, cpu: Cpu<'_>, rows: &Rows<'_>, position: usize, head: usize, row: &mut HeadRow, out: &mut [f32]) {
        let skip = self.skip[head];
        row.out.iter_mut().zip(&row.skipped).for_each(|(y, x)| *y += skip * x);
        out.copy_from_slice(&rows.get(position)[self.spec.row_len() + head * out.len()..][..out.len()]);
        GatedActivation { activation: Activation::Silu, gate: out, up: Some(&row.out) }.run(cpu.simd);
    }
}
