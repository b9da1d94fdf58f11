//! The first half of a block that goes by the gated delta rule: norm, products, convolution, state, gate, output product and
//! residual.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use qmesh_kernels::{
    Cpu,
    delta::{DeltaOutput, DeltaRow, decay, sigmoid},
    math::{GatedActivation, Sigmoid},
};
use qmesh_models::spec::{Activation, DeltaGates, DeltaOutputGate, GatedDeltaSpec, KeySharing};

use crate::{
    batch::Batch,
    linear::{Linear, Norm, Residual, project, project_add},
    ops,
    recurrence::{self, HeadRow, Rows, Rule, RuleShape},
};

/// Weights and shape of one layer's half.
#[derive(Debug)]
pub(crate) struct GatedDelta {
    pub(crate) spec: GatedDeltaSpec,
    /// Which of the shard's layers this is: its place in the states.
    pub(crate) layer: usize,
    pub(crate) norm: Option<Norm>,
    /// What a row is made of, in this order: q, k and v, together or apart; α and β, apart or together; the output's gate.
    pub(crate) inputs: Vec<Input>,
    /// (taps, channels), the oldest row's first.
    pub(crate) taps: Arc<[f32]>,
    /// One for each α.
    pub(crate) step_bias: Arc<[f32]>,
    /// One for each value head.
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

/// What makes a part of a row.
#[derive(Debug)]
pub(crate) enum Input {
    Straight(Linear),
    /// By way of fewer elements.
    Narrow {
        down: Linear,
        up: Linear,
    },
}

impl Input {
    /// What takes the layer's input.
    fn first(&self) -> &Linear {
        match self {
            Self::Straight(linear) => linear,
            Self::Narrow { down, .. } => down,
        }
    }
}

impl GatedDelta {
    /// What each row of x (rows, hidden) is answered by the states, gated: (rows, value_heads · head_dim). The states of
    /// the batch's sessions have the rows in them, or beside them, afterwards.
    pub(crate) fn mixed(&self, x: &Tensor, batch: &mut Batch<'_>) -> Result<Tensor> {
        let projected = self.projected(batch.cpu, x)?;
        let (rows, width) = projected.dims2()?;
        let out = ops::read(&projected, |projected| recurrence::run(self, batch, projected, width))?;
        Tensor::from_vec(out, (rows, self.spec.values()), &Device::Cpu)
    }

    /// All parts of each row of x, side by side.
    fn projected(&self, cpu: Cpu<'_>, x: &Tensor) -> Result<Tensor> {
        let linears: Vec<&Linear> = self.inputs.iter().map(Input::first).collect();
        let first = project(cpu, x, self.norm.as_ref(), &linears)?;
        let (mut parts, mut column, mut some_narrow) = (Vec::new(), 0, false);
        for input in &self.inputs {
            let part = first.narrow(1, column, input.first().matrix.rows)?;
            column += input.first().matrix.rows;
            parts.push(match input {
                Input::Straight(_) => part,
                Input::Narrow { up, .. } => {
                    some_narrow = true;
                    project(cpu, &part.contiguous()?, None, &[up])?
                }
            });
        }
        if some_narrow { Tensor::cat(&parts, 1)?.contiguous() } else { Ok(first) }
    }

    /// x + scale · norm(output(mixed)): (rows, hidden).
    pub(crate) fn output(&self, cpu: Cpu<'_>, mixed: &Tensor, x: &Tensor) -> Result<Tensor> {
        project_add(cpu, mixed, &self.output, &self.residual, x)
    }

    /// The key head of a value head, and which of those that share it the value head is.
    fn key_head(&self, head: usize) -> (usize, usize) {
        let GatedDeltaSpec { key_heads, value_heads, sharing, .. } = self.spec;
        match sharing {
            KeySharing::Adjacent => (head / (value_heads / key_heads), head % (value_heads / key_heads)),
            KeySharing::InTurn => (head % key_heads, head / key_heads),
        }
    }

    /// Of a head: what remains of each key element's part of the state, of those of a row; and its β.
    fn gates(&self, head: usize, row: &[f32], decays: &mut [f32]) -> f32 {
        let GatedDeltaSpec { key_heads, value_heads, head_dim, gates, .. } = self.spec;
        let (row, rate) = (&row[self.spec.channels()..], self.decay[head]);
        match gates {
            DeltaGates::Apart => {
                decays.fill(decay(rate, row[head] + self.step_bias[head]));
                row[value_heads + head]
            }
            DeltaGates::EachElement(_) => {
                let of_head = head * head_dim..(head + 1) * head_dim;
                let alphas = row[of_head.clone()].iter().zip(&self.step_bias[of_head]);
                decays.iter_mut().zip(alphas).for_each(|(x, (alpha, bias))| *x = decay(rate, alpha + bias));
                row[self.spec.alphas() + head]
            }
            DeltaGates::Together => {
                let (together, (key_head, of_it)) = (value_heads / key_heads, self.key_head(head));
                let row = &row[2 * key_head * together..];
                decays.fill(decay(rate, row[together + of_it] + self.step_bias[head]));
                row[of_it]
            }
        }
    }
}

impl Rule for GatedDelta {
    fn shape(&self) -> RuleShape {
        let GatedDeltaSpec { value_heads, head_dim, .. } = self.spec;
        let row_len = self.spec.row_len();
        RuleShape { layer: self.layer, heads: value_heads, keys: head_dim, values: head_dim, row_len }
    }

    fn load(&self, cpu: Cpu<'_>, rows: &Rows<'_>, position: usize, head: usize, row: &mut HeadRow) {
        let GatedDeltaSpec { key_heads, head_dim, .. } = self.spec;
        let (keys, (key_head, _)) = (key_heads * head_dim, self.key_head(head));
        let taps = (&self.taps[..], self.spec.channels());
        rows.convolve(cpu, position, key_head * head_dim, taps, None, &mut row.query);
        rows.convolve(cpu, position, keys + key_head * head_dim, taps, None, &mut row.key);
        rows.convolve(cpu, position, 2 * keys + head * head_dim, taps, None, &mut row.value);
        self.query_norm.apply(cpu, &mut row.query);
        self.key_norm.apply(cpu, &mut row.key);
        row.beta = sigmoid(self.gates(head, rows.get(position), &mut row.decay));
    }

    fn answer(&self, cpu: Cpu<'_>, state: &[f32], row: &mut HeadRow) {
        let HeadRow { query, key, value, decay, beta, out, .. } = row;
        DeltaOutput { state, row: DeltaRow { decay, key }, query, beta: *beta, value, out }.run(cpu.simd);
    }

    /// Normalised and gated.
    fn finish(&self, cpu: Cpu<'_>, rows: &Rows<'_>, position: usize, head: usize, row: &mut HeadRow, out: &mut [f32]) {
        self.head_norm.apply(cpu, &mut row.out);
        let gate = &rows.get(position)[self.spec.row_len() + head * out.len()..][..out.len()];
        match self.spec.output_gate {
            DeltaOutputGate::SigmoidNarrow(_) => {
                out.copy_from_slice(&row.out);
                Sigmoid { x: out, gate }.run(cpu.simd);
            }
            DeltaOutputGate::Silu => {
                out.copy_from_slice(gate);
                GatedActivation { activation: Activation::Silu, gate: out, up: Some(&row.out) }.run(cpu.simd);
            }
        }
    }
}
