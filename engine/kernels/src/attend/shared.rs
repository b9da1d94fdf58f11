//! The work on a page whose values are the first elements of its keys, as in latent attention.
//!
//! There many query heads look at one key head, so the page is taken in stripes of its columns: each is widened once, in
//! the order that the products want it in, and stays in the L1 cache while all queries go over it. The sums are those of
//! a page of keys and values apart: scores add their terms serially over the elements, values over the positions.

use std::{array::from_fn, ops::Range};

use super::{
    super::lanes::{LANES, Lanes},
    HeadLayout, PAGE_POSITIONS, Reduce, ScoreRule, Scores, Vector,
    page::{Page, capped_exponentials},
};

/// Vectors of a key, or of a value, in a stripe.
const STRIPE: usize = 4;
/// Vectors of f32 in a stripe of all positions: 16 KiB.
pub(super) const WIDENED: usize = PAGE_POSITIONS * STRIPE;
/// Blocks of sixteen positions in a page.
const BLOCKS: usize = PAGE_POSITIONS / LANES;

/// A page and the queries that look at it: `R` of these by `W` vectors at a time.
pub(super) struct SharedPage<'a, const R: usize, const W: usize> {
    /// (positions, vectors of a key)
    pub(super) rows: &'a [[u16; LANES]],
    /// The next page, for prefetching only.
    pub(super) next: &'a [[u16; LANES]],
    /// (queries, key_dim)
    pub(super) x: &'a [f32],
    /// What each query attends to.
    pub(super) slots: &'a [Range<usize>],
    pub(super) scoring: ScoreRule,
    pub(super) layout: HeadLayout,
    /// Room for a stripe.
    pub(super) widened: &'a mut [Vector],
}

impl<const R: usize, const W: usize> Reduce for SharedPage<'_, R, W> {
    #[inline(always)]
    fn score<L: Lanes>(&mut self, l: L, scores: &mut [Scores], largest: &mut [f32], sums: &mut [f32]) {
        scores.iter_mut().for_each(|scores| scores.0 = [0.0; PAGE_POSITIONS]);
        let vectors = self.layout.key_dim().div_ceil(LANES);
        for first in (0..vectors).step_by(STRIPE) {
            let columns = first..vectors.min(first + STRIPE);
            self.turn(l, columns.clone());
            for query in (0..scores.len()).step_by(R) {
                for block in (0..BLOCKS).step_by(W) {
                    self.add_stripe(l, columns.clone(), query, block, scores);
                }
            }
        }
        for (query, scores) in scores.iter_mut().enumerate() {
            for block in scores.0.as_chunks_mut().0 {
                l.store(l.mul(l.load(block), l.splat(self.scoring.scale)), block);
            }
            let slots = self.slots[query].clone();
            (largest[query], sums[query]) = capped_exponentials(l, &mut scores.0, self.scoring, slots);
        }
    }

    #[inline(always)]
    fn weigh<L: Lanes>(&mut self, l: L, p: &[Scores], factors: Option<[&[f32]; 2]>, out: &mut [Vector]) {
        let (vectors, stride) = (self.layout.vectors(), self.layout.key_dim().div_ceil(LANES));
        for first in (0..vectors).step_by(STRIPE) {
            let columns = first..vectors.min(first + STRIPE);
            for (slot, to) in self.widened.chunks_exact_mut(columns.len()).take(PAGE_POSITIONS).enumerate() {
                for (half, wide) in self.rows[slot * stride + first..].iter().zip(to) {
                    l.store(l.load_half(half), &mut wide.0);
                }
            }
            let Self { x, slots, scoring, layout, .. } = *self;
            let (values, next) = (&*self.widened, self.next.as_ptr().cast());
            Page::<_, R, W> { keys: &[], values, columns, x, slots, scoring, layout, next }.weigh(l, p, factors, out);
        }
    }
}

impl<const R: usize, const W: usize> SharedPage<'_, R, W> {
    /// Widens a stripe of all keys, element after element: (elements, blocks), lane = position.
    #[inline(always)]
    fn turn<L: Lanes>(&mut self, l: L, columns: Range<usize>) {
        let stride = self.layout.key_dim().div_ceil(LANES);
        for block in 0..BLOCKS {
            for column in columns.clone() {
                let mut rows = [l.splat(0.0); LANES];
                for (position, row) in rows.iter_mut().enumerate() {
                    let at = (LANES * block + position) * stride + column;
                    *row = l.load_half(&self.rows[at]);
                    if column.is_multiple_of(2) {
                        // Two vectors of f16 are a cache line.
                        l.prefetch(self.next[at..].as_ptr().cast());
                    }
                }
                let first = (column - columns.start) * LANES * BLOCKS + block;
                for (element, column) in l.transpose(rows).into_iter().enumerate() {
                    l.store(column, &mut self.widened[first + element * BLOCKS].0);
                }
            }
        }
    }

    /// Adds the stripe's terms to the scores of the `R` queries from `first` on against `W` blocks of keys; the last query
    /// stands in for those beyond it.
    #[inline(always)]
    fn add_stripe<L: Lanes>(&self, l: L, columns: Range<usize>, first: usize, block: usize, scores: &mut [Scores]) {
        let key_dim = self.layout.key_dim();
        let elements = columns.start * LANES..key_dim.min(columns.end * LANES);
        let queries: [usize; R] = from_fn(|r| (first + r).min(scores.len() - 1));
        let x: [&[f32]; R] = from_fn(|r| &self.x[queries[r] * key_dim..][elements.clone()]);
        let mut sums = [[l.splat(0.0); W]; R];
        for (sums, query) in sums.iter_mut().zip(queries) {
            let scores = &scores[query].0.as_chunks().0[block..];
            sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum = l.load(score));
        }
        for (i, keys) in self.widened.chunks_exact(BLOCKS).take(elements.len()).enumerate() {
            let mut column = [l.splat(0.0); W];
            for w in 0..W {
                column[w] = l.load(&keys[block + w].0);
            }
            for r in 0..R {
                let q = l.splat(x[r][i]);
                for w in 0..W {
                    sums[r][w] = l.fma(q, column[w], sums[r][w]);
                }
            }
        }
        for (sums, query) in sums.into_iter().zip(queries) {
            let scores = &mut scores[query].0.as_chunks_mut().0[block..];
            sums.into_iter().zip(scores).for_each(|(sum, score)| l.store(sum, score));
        }
    }
}
