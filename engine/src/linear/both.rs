//! A gated FFN and a mixture of experts side by side, each between norms of its own.

use candle_core::Tensor;
use qmesh_kernels::Cpu;

use super::{Activations, Gated, Norm, Residual, experts::Experts, inner_products, products};
use crate::{error::EngineError, ops};

/// Both, and the norms around them but for the one before the gated FFN.
#[derive(Debug)]
pub(crate) struct Both {
    pub(crate) gated: Gated,
    pub(crate) experts: Experts,
    pub(crate) after_gated: Norm,
    /// Before the experts, and after their sum.
    pub(crate) around_experts: [Norm; 2],
    pub(crate) before_router: Norm,
}

/// sum + scale · norm(after(gated(before(x))) + after(Σ weight · expert(before(x)))), each with norms of its own: (rows, hidden).
pub(crate) fn both(
    cpu: Cpu<'_>,
    x: &Tensor,
    before: Option<&Norm>,
    both: &Both,
    residual: &Residual,
    sum: &Tensor,
) -> Result<Tensor, EngineError> {
    let Both { gated, experts, after_gated, around_experts: [before_experts, after_experts], before_router } = both;
    let mut out = ops::read(x, |x| {
        let inner = inner_products(cpu, &[(gated, Activations::new(cpu, x, before, &gated.inputs()))]);
        let mut out = products(cpu, &inner[0], &[&gated.down], |_, _, _| ());
        after_gated.apply_together(cpu, &mut out);
        let taken = Activations::new(cpu, x, Some(before_experts), &experts.inputs());
        let scored = Activations::new(cpu, x, Some(before_router), &[&experts.router.scores]);
        let mut mixed = experts.mix(cpu, &taken, &scored)?;
        after_experts.apply_together(cpu, &mut mixed);
        out.iter_mut().zip(mixed).for_each(|(out, mixed)| *out += mixed);
        Ok::<_, EngineError>(out)
    })??;
    ops::read(sum, |sum| residual.apply(cpu, &mut out, sum, gated.down.matrix.rows))?;
    Ok(Tensor::from_vec(out, sum.dims(), sum.device())?)
}
