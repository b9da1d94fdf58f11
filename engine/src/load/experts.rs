//! The parts of a mixture of experts.

use qmesh_models::spec::{ExpertForm, ExpertsSpec, LayerTensor, SharedExpert, SharedGate};

use super::{
    layer::{LayerWeights, linears, parts, present},
    shape,
};
use crate::{
    error::EngineError,
    linear::{
        Gated, Linear,
        experts::{Experts, LatentRows, Router, Shared},
    },
};

impl LayerWeights<'_, '_> {
    pub(super) fn experts(&mut self, spec: &ExpertsSpec) -> Result<Experts, EngineError> {
        use LayerTensor::{
            ChoiceBias, ExpertDownBiases, ExpertDowns, ExpertLatentDown, ExpertLatentUp, Router as RouterTensor,
            RouterBias,
        };
        let ExpertsSpec { count, used, inner, latent, activation, bias, ref routing, shared, .. } = *spec;
        let (hidden, width) = (self.hidden, latent.unwrap_or(self.hidden));
        let firsts = self.firsts(spec, width)?;
        let downs = self.stacked(ExpertDowns, present(bias, ExpertDownBiases), [count, width, inner])?;
        let experts = firsts.into_iter().zip(downs);
        let experts = experts.map(|((gate, up), down)| Gated { activation, gate, up, down }).collect();
        let router = Router {
            scores: self.linear(RouterTensor, present(bias, RouterBias), count, hidden)?,
            choice_bias: present(routing.choice_bias, ChoiceBias).map(|bias| self.vector(bias, count)).transpose()?,
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
        Ok(Experts { router, experts, latent, shared })
    }

    /// What takes each expert's input: its gate and what that is multiplied by, or, where there is no gate, its one product.
    fn firsts(&mut self, spec: &ExpertsSpec, width: usize) -> Result<Vec<(Linear, Option<Linear>)>, EngineError> {
        use LayerTensor::{ExpertGateBiases, ExpertGateUps, ExpertGates, ExpertUpBiases, ExpertUps};
        let ExpertsSpec { count, inner, form, bias, .. } = *spec;
        let (gates, ups) = match form {
            ExpertForm::Plain => {
                let ups = self.stacked(ExpertUps, None, [count, inner, width])?;
                return Ok(ups.into_iter().map(|up| (up, None)).collect());
            }
            ExpertForm::Gated => (
                self.stacked(ExpertGates, present(bias, ExpertGateBiases), [count, inner, width])?,
                self.stacked(ExpertUps, present(bias, ExpertUpBiases), [count, inner, width])?,
            ),
            ExpertForm::GatedTogether => {
                let both = self.stacked(ExpertGateUps, None, [count, 2 * inner, width])?;
                let what = || {
                    let name = format!("{ExpertGateUps:?} of layer {}", self.layer);
                    shape(&name, format!("gates of {inner} rows: not whole groups of 16"))
                };
                let halves = parts(&both, 0..inner).zip(parts(&both, inner..2 * inner));
                halves.map(|(gates, ups)| (linears(gates), linears(ups))).ok_or_else(what)?
            }
        };
        Ok(gates.into_iter().zip(ups.into_iter().map(Some)).collect())
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
        Ok(Shared { gate: outer, expert: Gated { activation: experts.activation, gate, up, down } })
    }
}
