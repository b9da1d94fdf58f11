//! A layer's experts: all of them in memory, or some at a time.

use qmesh_kernels::{lanes::LANES, matrix::Matrix};
use qmesh_models::spec::{Activation, ExpertsSpec, LayerTensor, SharedExpert, SharedGate, TensorRole};

use super::{
    layer::{LayerWeights, present},
    missing,
    tensors::Filed,
};
use crate::{
    error::EngineError,
    linear::{
        Gated,
        experts::{ExpertFile, ExpertSlots, ExpertWeights, Experts, Router, Shared},
    },
};

/// A tensor that has one matrix of each expert, one below the other.
#[derive(Clone, Copy)]
struct Stack {
    tensor: LayerTensor,
    biases: Option<LayerTensor>,
    /// Of one expert's matrix.
    rows: usize,
    cols: usize,
}

impl LayerWeights<'_, '_> {
    pub(super) fn experts(&mut self, spec: &ExpertsSpec) -> Result<Experts, EngineError> {
        use LayerTensor::{ChoiceBias, Router as RouterTensor, RouterBias};
        let ExpertsSpec { count, used, activation, bias, ref routing, shared, .. } = *spec;
        let weights = match self.filed(spec)? {
            Some(slots) => ExpertWeights::Filed(Box::new(slots)),
            None => ExpertWeights::InMemory(self.in_memory(spec)?),
        };
        let router = Router {
            scores: self.linear(RouterTensor, present(bias, RouterBias), count, self.hidden)?,
            choice_bias: present(routing.choice_bias, ChoiceBias).map(|bias| self.vector(bias, count)).transpose()?,
            used,
            routing: routing.clone(),
        };
        let shared = shared.map(|shared| self.shared(shared, activation)).transpose()?;
        Ok(Experts { router, weights, shared })
    }

    /// All experts.
    fn in_memory(&mut self, spec: &ExpertsSpec) -> Result<Vec<Gated>, EngineError> {
        let [gates, ups, downs] = stacks(spec, self.hidden);
        let mut stacked = |Stack { tensor, biases, rows, cols }| self.stacked(tensor, biases, [spec.count, rows, cols]);
        let experts = stacked(gates)?.into_iter().zip(stacked(ups)?).zip(stacked(downs)?);
        let activation = spec.activation;
        Ok(experts.map(|((gate, up), down)| Gated { activation, gate, up: Some(up), down }).collect())
    }

    /// Room for some experts at a time, where their matrices stay in files.
    fn filed(&mut self, spec: &ExpertsSpec) -> Result<Option<ExpertSlots>, EngineError> {
        let Some(slots) = self.weights.in_memory else { return Ok(None) };
        let [gates, ups, downs] = stacks(spec, self.hidden);
        let Some(gates) = self.file(spec, gates)? else { return Ok(None) };
        let mut file = |stack: Stack| {
            let role = TensorRole::Layer(self.layer, stack.tensor);
            self.file(spec, stack)?.ok_or_else(|| missing(role))
        };
        let files = [gates, file(ups)?, file(downs)?];
        ExpertSlots::new(spec.activation, files, slots.get())
            .map(Some)
            .map_err(|needed| EngineError::OutOfMemory { needed, tensor: format!("experts of layer {}", self.layer) })
    }

    /// A stack that stays in its file; `None` for one in memory.
    fn file(&mut self, spec: &ExpertsSpec, stack: Stack) -> Result<Option<ExpertFile>, EngineError> {
        let Stack { tensor, biases, rows, cols } = stack;
        let role = TensorRole::Layer(self.layer, tensor);
        let Some(Filed { dtype, file, .. }) = self.weights.filed(role, spec.count * rows, cols)? else {
            return Ok(None);
        };
        let row_bytes = dtype.row_bytes(cols).filter(|_| rows.is_multiple_of(LANES));
        let row_bytes = row_bytes.filter(|row_bytes| Matrix::packed_len(dtype, rows, *row_bytes).is_some());
        let row_bytes = row_bytes.ok_or_else(|| self.no_whole_groups(tensor, rows))?;
        let biases = self.biases(biases, spec.count, rows)?;
        Ok(Some(ExpertFile { file, dtype, rows, cols, row_bytes, biases }))
    }

    fn shared(&mut self, spec: SharedExpert, activation: Activation) -> Result<Shared, EngineError> {
        use LayerTensor::{SharedDown, SharedGate as Gate, SharedRouter, SharedUp};
        let (hidden, inner) = (self.hidden, spec.inner);
        let expert = Gated {
            activation,
            gate: self.linear(Gate, None, inner, hidden)?,
            up: Some(self.linear(SharedUp, None, inner, hidden)?),
            down: self.linear(SharedDown, None, hidden, inner)?,
        };
        let gate = match spec.gate {
            SharedGate::None => None,
            SharedGate::Sigmoid => Some(self.linear(SharedRouter, None, 1, hidden)?),
        };
        Ok(Shared { gate, expert })
    }
}

/// Of the gates, the ups and the downs.
fn stacks(spec: &ExpertsSpec, hidden: usize) -> [Stack; 3] {
    use LayerTensor::{ExpertDownBiases, ExpertDowns, ExpertGateBiases, ExpertGates, ExpertUpBiases, ExpertUps};
    let stack = |tensor, biases, rows, cols| Stack { tensor, biases: present(spec.bias, biases), rows, cols };
    [
        stack(ExpertGates, ExpertGateBiases, spec.inner, hidden),
        stack(ExpertUps, ExpertUpBiases, spec.inner, hidden),
        stack(ExpertDowns, ExpertDownBiases, hidden, spec.inner),
    ]
}
