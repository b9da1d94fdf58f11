//! A mixture of experts: each is computed for the rows that are routed to it, all of them in one fork and join.
//!
//! What a row gets does not depend on the rows beside it: its experts' outputs are added in the order of their scores.

mod router;
mod slots;

use candle_core::Tensor;
use qmesh_kernels::{Cpu, columns::Columns};
use qmesh_models::spec::Weighed;

pub(crate) use self::{
    router::{Router, sigmoids},
    slots::{ExpertFile, ExpertSlots, ExpertWeights, SlotsError, assembled},
};
use super::{Activations, Gated, Linear, Norm, ROWS_TOGETHER, Residual, Share, inner_products, products};
use crate::{error::EngineError, ops};

/// The experts of a layer and what chooses between them.
#[derive(Debug)]
pub(crate) struct Experts {
    pub(crate) router: Router,
    pub(crate) weights: ExpertWeights,
    /// What is between the layer's rows and those of experts, where these are others.
    pub(crate) latent: Option<LatentRows>,
    pub(crate) shared: Option<Shared>,
}

/// What makes experts' rows of a layer's, and a layer's of these.
#[derive(Debug)]
pub(crate) struct LatentRows {
    pub(crate) down: Linear,
    pub(crate) up: Linear,
}

/// The expert that every row goes through.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Its output is multiplied by σ(gate · x), where there is one.
    pub(crate) gate: Option<Linear>,
    pub(crate) expert: Gated,
}

/// The rows that an expert computes, and what each of them is multiplied by before.
#[derive(Clone, Debug, Default)]
struct Routed {
    rows: Vec<usize>,
    weights: Vec<f32>,
}

/// sum + scale · norm(Σ weight · expert(norm(x))): (rows, hidden).
pub(crate) fn routed(
    cpu: Cpu<'_>,
    x: &Tensor,
    before: Option<&Norm>,
    experts: &Experts,
    residual: &Residual,
    sum: &Tensor,
) -> Result<Tensor, EngineError> {
    let (inputs, mut out) = ops::read(x, |x| {
        let inputs = Activations::new(cpu, x, before, &experts.inputs());
        let out = experts.mix(cpu, &inputs, &inputs)?;
        Ok::<_, EngineError>((inputs, out))
    })??;
    ops::read(sum, |sum| residual.apply(cpu, &mut out, sum, sum.len() / inputs.rows))?;
    Ok(Tensor::from_vec(out, sum.dims(), sum.device())?)
}

/// One row's part in an expert's output.
struct Term {
    /// Which of the experts that have rows, in the order in which they are computed.
    expert: usize,
    /// Row of that expert's output.
    at: usize,
    weight: f32,
}

impl Experts {
    /// The matrices that take the half's input; those of one expert stand for all.
    pub(super) fn inputs(&self) -> Vec<&Linear> {
        let shared = self.shared.iter().flat_map(|shared| shared.gate.iter().chain(shared.expert.inputs()));
        let experts = match &self.latent {
            Some(latent) => vec![&latent.down],
            None => self.of_experts(),
        };
        std::iter::once(&self.router.scores).chain(experts).chain(shared).collect()
    }

    /// The matrices that take what experts take; those of one stand for all.
    fn of_experts(&self) -> Vec<&Linear> {
        self.weights.shape().into_iter().flat_map(Gated::inputs).collect()
    }

    /// Σ weight · expert(x), where the router takes `scored`: (rows, hidden).
    pub(super) fn mix(&self, cpu: Cpu<'_>, x: &Activations, scored: &Activations) -> Result<Vec<f32>, EngineError> {
        let (routed, mut terms) = self.route(cpu, scored);
        let narrow = self.latent.as_ref().map(|latent| {
            let rows = products(cpu, x, &[&latent.down], |_, _, _| ());
            Activations::new(cpu, &rows, None, &self.of_experts())
        });
        let (outputs, place) = self.outputs(cpu, &routed, narrow.as_ref().unwrap_or(x), x)?;
        terms.iter_mut().flatten().for_each(|term| term.expert = place[term.expert]);
        if let Some(shared) = &self.shared {
            for (row, (terms, weight)) in terms.iter_mut().zip(shared.weights(cpu, x)).enumerate() {
                terms.push(Term { expert: outputs.len() - 1, at: row, weight });
            }
        }
        let Some(latent) = &self.latent else {
            let width = self.weights.shape().map_or(0, |expert| expert.down.matrix.rows);
            return Ok(sums(cpu, &outputs, &terms, width));
        };
        // The shared one's term is the last.
        let of_experts: Vec<&[Term]> = terms.iter().map(|terms| &terms[..self.router.used]).collect();
        let sum = sums(cpu, &outputs, &of_experts, latent.up.matrix.cols);
        let sum = Activations::new(cpu, &sum, None, &[&latent.up]);
        let hidden = latent.up.matrix.rows;
        Ok(products(cpu, &sum, &[&latent.up], |row, first, y| {
            for Term { expert, at, weight } in &terms[row][self.router.used..] {
                let output = &outputs[*expert][at * hidden + first..];
                y.iter_mut().zip(output).for_each(|(sum, y)| *sum += weight * y);
            }
        }))
    }

    /// What the experts that have rows make of these rows of `x`, and which of the outputs is each one's. The last one is what the
    /// shared expert makes of all rows of `whole`.
    fn outputs(
        &self,
        cpu: Cpu<'_>,
        routed: &[Routed],
        x: &Activations,
        whole: &Activations,
    ) -> Result<(Vec<Vec<f32>>, Vec<usize>), EngineError> {
        let used: Vec<usize> = (0..routed.len()).filter(|&expert| !routed[expert].rows.is_empty()).collect();
        let rounds = self.weights.rounds(used);
        let (mut computed, mut place) = (Vec::new(), vec![0; routed.len()]);
        for (number, round) in rounds.iter().enumerate() {
            let experts = self.weights.experts(cpu, round)?;
            if let Some(next) = rounds.get(number + 1) {
                self.weights.read_ahead(next);
            }
            let mut halves: Vec<(&Gated, Activations)> = Vec::with_capacity(experts.len() + 1);
            for (expert, &index) in experts.iter().zip(round) {
                place[index] = computed.len() + halves.len();
                halves.push((expert, self.taken(x, &routed[index])));
            }
            if let (Some(shared), true) = (&self.shared, number + 1 == rounds.len()) {
                halves.push((&shared.expert, whole.gather(&(0..whole.rows).collect::<Vec<_>>())));
            }
            computed.extend(outputs(cpu, &halves));
        }
        Ok((computed, place))
    }

    /// The rows of x that an expert computes.
    fn taken(&self, x: &Activations, routed: &Routed) -> Activations {
        let mut taken = x.gather(&routed.rows);
        match self.router.routing.weighed {
            Weighed::Input => taken.weigh(routed.weights.iter().copied()),
            Weighed::Output => {}
        }
        taken
    }

    /// The rows of each expert, and each row's terms, which name experts by their place among all.
    fn route(&self, cpu: Cpu<'_>, x: &Activations) -> (Vec<Routed>, Vec<Vec<Term>>) {
        let count = self.weights.count();
        let (mut routed, mut terms) = (vec![Routed::default(); count], Vec::with_capacity(x.rows));
        let scores = products(cpu, x, &[&self.router.scores], |_, _, _| ()); // (rows, experts)
        for (row, scores) in scores.chunks_exact(count).enumerate() {
            let mut of_row = Vec::with_capacity(self.router.used + 1);
            for (expert, weight) in self.router.choose(cpu.simd, scores) {
                let of_expert = &mut routed[expert];
                let outer = match self.router.routing.weighed {
                    Weighed::Input => 1.0,
                    Weighed::Output => weight,
                };
                of_row.push(Term { expert, at: of_expert.rows.len(), weight: outer });
                of_expert.rows.push(row);
                of_expert.weights.push(weight);
            }
            terms.push(of_row);
        }
        (routed, terms)
    }
}

impl Shared {
    /// What each row's output is multiplied by.
    fn weights(&self, cpu: Cpu<'_>, x: &Activations) -> Vec<f32> {
        let Some(gate) = &self.gate else { return vec![1.0; x.rows] };
        let mut scores = products(cpu, x, &[gate], |_, _, _| ());
        sigmoids(cpu.simd, &mut scores);
        scores
    }
}

/// down(act(gate(x)) · up(x)) of each expert: (its rows, hidden).
fn outputs(cpu: Cpu<'_>, halves: &[(&Gated, Activations)]) -> Vec<Vec<f32>> {
    let inner = inner_products(cpu, halves);
    let rows = inner.iter().map(|x| x.rows).max().unwrap_or(1);
    let len = Share::len(cpu, rows, halves.iter().map(|(half, _)| half.down.matrix.groups()).sum());
    let mut outputs: Vec<_> = halves.iter().map(|(half, x)| vec![0.0; x.rows * half.down.matrix.rows]).collect();
    let mut tasks = Vec::new();
    for (((half, _), x), out) in halves.iter().zip(&inner).zip(&mut outputs) {
        let shares: Vec<_> = Share::cut(&half.down, len).collect();
        let widths: Vec<_> = shares.iter().map(Share::width).collect();
        let columns = Columns::split(out, &widths);
        tasks.extend(shares.into_iter().zip(columns).map(|(share, columns)| (x, share, columns)));
    }
    cpu.team.each(tasks, |(x, share, mut columns): (&Activations, Share<'_>, Columns<'_, f32>)| {
        share.write(cpu, x, &mut columns);
    });
    outputs
}

/// Σ weight · output of each row's terms, in their order: (rows, width).
fn sums<T: AsRef<[Term]> + Sync>(cpu: Cpu<'_>, outputs: &[Vec<f32>], terms: &[T], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; terms.len() * width];
    let tasks = terms.chunks(ROWS_TOGETHER).zip(sums.chunks_mut(ROWS_TOGETHER * width)).collect();
    cpu.team.each(tasks, |(terms, sums): (&[T], &mut [f32])| {
        for (terms, sum) in terms.iter().zip(sums.chunks_exact_mut(width)) {
            for Term { expert, at, weight } in terms.as_ref() {
                let output = &outputs[*expert][at * width..][..width];
                sum.iter_mut().zip(output).for_each(|(sum, y)| *sum += weight * y);
            }
        }
    });
    sums
}
