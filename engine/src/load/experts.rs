//! The parts of a mixture of experts: all of the experts in memory, or some at a time.

use qmesh_kernels::{lanes::LANES, matrix::Matrix};
use qmesh_models::spec::{
    Bias, ExpertForm, ExpertScales, ExpertsSpec, LayerSpec, LayerTensor, SharedExpert, SharedGate, TensorRole,
};

use super::{
    layer::{LayerWeights, present},
    tensors::Filed,
};
use crate::{
    error::EngineError,
    linear::{
        Gated, Norm,
        both::Both,
        experts::{ExpertFile, ExpertSlots, ExpertWeights, Experts, LatentRows, Router, Shared, SlotsError, assembled},
    },
};

/// A tensor that has something of each expert, one expert's below the other's.
#[derive(Clone, Copy)]
struct Stack {
    tensor: LayerTensor,
    biases: Option<LayerTensor>,
    /// Of one expert.
    rows: usize,
    cols: usize,
}

impl LayerWeights<'_, '_> {
    pub(super) fn experts(&mut self, spec: &ExpertsSpec) -> Result<Experts, EngineError> {
        use LayerTensor::{ChoiceBias, ExpertLatentDown, ExpertLatentUp, Router as RouterTensor, RouterBias};
        let ExpertsSpec { count, used, latent, bias, ref routing, shared, .. } = *spec;
        let hidden = self.hidden;
        let weights = match self.filed(spec)? {
            Some(slots) => ExpertWeights::Filed(Box::new(slots)),
            None => ExpertWeights::InMemory(self.in_memory(spec)?),
        };
        let router = Router {
            scores: self.linear(RouterTensor, present(bias, RouterBias), count, hidden)?,
            choice_bias: present(routing.choice_bias, ChoiceBias).map(|bias| self.vector(bias, count)).transpose()?,
            expert_scales: match routing.expert_scales {
                ExpertScales::None => None,
                ExpertScales::Learned => Some(self.vector(LayerTensor::ExpertScales, count)?),
            },
            used,
            routing: routing.clone(),
        };
        let latent = match latent {
            Some(width) => Some(LatentRows {
                down: self.linear(ExpertLatentDown, None, width, hidden)?,
                up: self.linear(ExpertLatentUp, None, hidden, width)?,
            }),
            None => None,
        };
        let shared = shared.map(|shared| self.shared(spec, shared)).transpose()?;
        Ok(Experts { router, weights, latent, shared })
    }

    /// A gated FFN of width `inner` and the mixture beside it.
    pub(super) fn both(&mut self, layer: &LayerSpec, inner: usize, spec: &ExpertsSpec) -> Result<Both, EngineError> {
        use LayerTensor::{ExpertsNorm, PostExpertsNorm, PostGatedNorm, RouterNorm};
        let (hidden, eps) = (self.hidden, layer.norm.eps);
        let mut norm = |tensor| Ok::<_, EngineError>(Norm { gain: self.vector(tensor, hidden)?, bias: None, eps });
        let [after_gated, before, after] = [norm(PostGatedNorm)?, norm(ExpertsNorm)?, norm(PostExpertsNorm)?];
        // What the router takes is divided by the root of its width.
        let gains = self.vector(RouterNorm, hidden)?;
        let gain = gains.iter().map(|gain| gain / (hidden as f32).sqrt()).collect();
        Ok(Both {
            gated: self.gated(inner, spec.activation, Bias::None)?,
            experts: self.experts(spec)?,
            after_gated,
            around_experts: [before, after],
            before_router: Norm { gain, bias: None, eps },
        })
    }

    /// All experts.
    fn in_memory(&mut self, spec: &ExpertsSpec) -> Result<Vec<Gated>, EngineError> {
        let mut matrices = Vec::new();
        for Stack { tensor, biases, rows, cols } in stacks(spec, self.hidden) {
            matrices.push(self.stacked(tensor, biases, [spec.count, rows, cols])?.into_iter());
        }
        let expert = |_| {
            let linears = matrices.iter_mut().filter_map(Iterator::next).collect();
            assembled(spec, linears).ok_or_else(|| self.no_whole_groups(LayerTensor::ExpertGateUps, spec.inner))
        };
        (0..spec.count).map(expert).collect()
    }

    /// Room for some experts at a time, where their matrices stay in files.
    fn filed(&mut self, spec: &ExpertsSpec) -> Result<Option<ExpertSlots>, EngineError> {
        let Some(slots) = self.weights.in_memory else { return Ok(None) };
        let mut files = Vec::new();
        for stack in stacks(spec, self.hidden) {
            let Some(file) = self.file(spec, stack)? else { return Ok(None) };
            files.push(file);
        }
        ExpertSlots::new(spec, files, slots.get()).map(Some).map_err(|refused| match refused {
            SlotsError::Memory { needed } => {
                EngineError::OutOfMemory { needed, tensor: format!("experts of layer {}", self.layer) }
            }
            SlotsError::Shape => self.no_whole_groups(LayerTensor::ExpertGateUps, spec.inner),
        })
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

    fn shared(&mut self, experts: &ExpertsSpec, spec: SharedExpert) -> Result<Shared, EngineError> {
        use LayerTensor::{SharedDown, SharedGate as Gate, SharedRouter, SharedUp};
        let (hidden, inner) = (self.hidden, spec.inner);
        let up = self.linear(SharedUp, None, inner, hidden)?;
        let (gate, up) = match experts.form {
            ExpertForm::Gated | ExpertForm::GatedTogether => (self.linear(Gate, None, inner, hidden)?, Some(up)),
            ExpertForm::Plain => (up, None),
        };
        let down = self.linear(SharedDown, None, hidden, inner)?;
        let outer = match spec.gate {
            SharedGate::None => None,
            SharedGate::Sigmoid => Some(self.linear(SharedRouter, None, 1, hidden)?),
        };
        Ok(Shared { gate: outer, expert: Gated { activation: spec.activation, gate, up, down } })
    }
}

/// What experts are made of, as files have it.
fn stacks(spec: &ExpertsSpec, hidden: usize) -> Vec<Stack> {
    use LayerTensor::{
        ExpertDownBiases, ExpertDowns, ExpertGateBiases, ExpertGateUps, ExpertGates, ExpertUpBiases, ExpertUps,
    };
    let (inner, width) = (spec.inner, spec.latent.unwrap_or(hidden));
    let first = |tensor, biases, rows| Stack { tensor, biases, rows, cols: width };
    let firsts = match spec.form {
        ExpertForm::Plain => vec![first(ExpertUps, None, inner)],
        ExpertForm::Gated => vec![
            first(ExpertGates, present(spec.bias, ExpertGateBiases), inner),
            first(ExpertUps, present(spec.bias, ExpertUpBiases), inner),
        ],
        ExpertForm::GatedTogether => vec![first(ExpertGateUps, None, 2 * inner)],
    };
    let biases = present(spec.bias, ExpertDownBiases);
    let downs = Stack { tensor: ExpertDowns, biases, rows: width, cols: inner };
    firsts.into_iter().chain([downs]).collect()
}
