//! A mixture of experts: each is computed for the rows that are routed to it, all of them in one fork and join.
//!
//! What a row gets does not depend on the rows beside it: its experts' outputs are added in the order of their scores.

mod router;

use candle_core::{Result, Tensor};
use qmesh_kernels::{Cpu, columns::Columns};
use qmesh_models::spec::Weighed;

pub(crate) use self::router::Router;
use self::router::sigmoids;
use super::{Activations, Gated, Linear, Norm, ROWS_TOGETHER, Residual, Share, copy_row, inner_products, products};
use crate::ops;

/// The experts of a layer and what chooses between them.
#[derive(Debug)]
pub(crate) struct Experts {
    pub(crate) router: Router,
    pub(crate) experts: Vec<Gated>,
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
) -> Result<Tensor> {
    ops::map2("routed", x, sum, |x, sum| {
        let inputs = Activations::new(cpu, x, before, &experts.inputs());
        let mut out = experts.mix(cpu, &inputs);
        residual.apply(cpu, &mut out, sum, x.len() / inputs.rows);
        out
    })
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
    fn inputs(&self) -> Vec<&Linear> {
        let shared = self.shared.iter().flat_map(|shared| shared.gate.iter().chain(shared.expert.inputs()));
        let experts = match &self.latent {
            Some(latent) => vec![&latent.down],
            None => self.of_experts(),
        };
        std::iter::once(&self.router.scores).chain(experts).chain(shared).collect()
    }

    /// The matrices that take what experts take; those of one stand for all.
    fn of_experts(&self) -> Vec<&Linear> {
        self.experts.iter().take(1).flat_map(Gated::inputs).collect()
    }

    /// Σ weight · expert(x): (rows, hidden).
    fn mix(&self, cpu: Cpu<'_>, x: &Activations) -> Vec<f32> {
        let (routed, mut terms) = self.route(cpu, x);
        let narrow = self.latent.as_ref().map(|latent| {
            let rows = products(cpu, x, &[&latent.down], |_, _, _| ());
            Activations::new(cpu, &rows, None, &self.of_experts())
        });
        let mut halves = self.halves(&routed, &mut terms, narrow.as_ref().unwrap_or(x));
        let routed = halves.len();
        if let Some(shared) = &self.shared {
            let weights = shared.weights(cpu, x);
            for (row, (terms, weight)) in terms.iter_mut().zip(weights).enumerate() {
                terms.push(Term { expert: routed, at: row, weight });
            }
            halves.push((&shared.expert, x.gather(&(0..x.rows).collect::<Vec<_>>())));
        }
        let outputs = outputs(cpu, &halves);
        let Some(latent) = &self.latent else { return sums(cpu, &outputs, &terms, halves[0].0.down.matrix.rows) };
        // The shared one's term is the last.
        let of_experts: Vec<&[Term]> = terms.iter().map(|terms| &terms[..self.router.used]).collect();
        let sum = sums(cpu, &outputs, &of_experts, latent.up.matrix.cols);
        let sum = Activations::new(cpu, &sum, None, &[&latent.up]);
        let hidden = latent.up.matrix.rows;
        products(cpu, &sum, &[&latent.up], |row, first, y| {
            for Term { expert, at, weight } in &terms[row][self.router.used..] {
                let output = &outputs[*expert][at * hidden + first..];
                y.iter_mut().zip(output).for_each(|(sum, y)| *sum += weight * y);
            }
        })
    }

    /// The experts that have rows, each with these, and the terms' experts by their places among them.
    fn halves(&self, routed: &[Routed], terms: &mut [Vec<Term>], x: &Activations) -> Vec<(&Gated, Activations)> {
        let mut halves = Vec::new();
        let mut place = vec![0; self.experts.len()];
        for ((expert, routed), place) in
            self.experts.iter().zip(routed).zip(&mut place).filter(|((_, r), _)| !r.rows.is_empty())
        {
            *place = halves.len();
            let mut x = x.gather(&routed.rows);
            match self.router.routing.weighed {
                Weighed::Input => x.weigh(routed.weights.iter().copied()),
                Weighed::Output => {}
            }
            halves.push((expert, x));
        }
        terms.iter_mut().flatten().for_each(|term| term.expert = place[term.expert]);
        halves
    }

    /// The rows of each expert, and each row's terms, which name experts by their place among all.
    fn route(&self, cpu: Cpu<'_>, x: &Activations) -> (Vec<Routed>, Vec<Vec<Term>>) {
        let count = self.experts.len();
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
        let tiles = share.compute(cpu, x);
        (0..x.rows).for_each(|row| copy_row(tiles[row..].iter().step_by(x.rows), columns.row(row)));
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
