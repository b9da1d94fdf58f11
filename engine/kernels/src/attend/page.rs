//! The work on one page: scores of all queries, their exponentials, the weighted values.

use std::{array::from_fn, ops::Range};

use super::{
    super::{
        lanes::{LANES, Lanes, largest, sum},
        math::{exp, soft_cap},
    },
    HeadLayout, PAGE_POSITIONS, Reduce, ScoreRule, Scores, Vector,
    gathered::merged,
};

/// What a page's elements are held as.
pub(super) trait Element: Copy {
    fn load<L: Lanes>(self, l: L) -> L::F;
    /// Asks for two cache lines that will be needed soon.
    fn prefetch<L: Lanes>(l: L, from: *const u8, at: usize);
}

impl Element for Vector {
    #[inline(always)]
    fn load<L: Lanes>(self, l: L) -> L::F {
        l.load(&self.0)
    }

    #[inline(always)]
    fn prefetch<L: Lanes>(_l: L, _from: *const u8, _at: usize) {}
}

/// f16 bits, straight from memory.
impl Element for [u16; LANES] {
    #[inline(always)]
    fn load<L: Lanes>(self, l: L) -> L::F {
        l.load_half(&self)
    }

    #[inline(always)]
    fn prefetch<L: Lanes>(l: L, from: *const u8, at: usize) {
        l.prefetch(from.wrapping_add(at));
        l.prefetch(from.wrapping_add(at + 64));
    }
}

/// A page of keys and values apart, and the queries that look at it: `R` of these by `W` vectors at a time.
pub(super) struct Page<'a, E, const R: usize, const W: usize> {
    pub(super) keys: &'a [E],
    /// (positions, columns)
    pub(super) values: &'a [E],
    /// Which of the vectors of a value `values` has.
    pub(super) columns: Range<usize>,
    /// (queries, key_dim)
    pub(super) x: &'a [f32],
    /// What each query attends to.
    pub(super) slots: &'a [Range<usize>],
    pub(super) scoring: ScoreRule,
    pub(super) layout: HeadLayout,
    /// Where the next page begins, for prefetching only.
    pub(super) next: *const u8,
}

impl<E: Element, const R: usize, const W: usize> Reduce for Page<'_, E, R, W> {
    #[inline(always)]
    fn score<L: Lanes>(&mut self, l: L, scores: &mut [Scores], largest: &mut [f32], sums: &mut [f32]) {
        for first in (0..scores.len()).step_by(R) {
            self.score_some(l, first, scores);
            for query in first..scores.len().min(first + R) {
                let slots = self.slots[query].clone();
                (largest[query], sums[query]) = capped_exponentials(l, &mut scores[query].0, self.scoring, slots);
            }
        }
    }

    #[inline(always)]
    fn weigh<L: Lanes>(&mut self, l: L, p: &[Scores], factors: Option<[&[f32]; 2]>, out: &mut [Vector]) {
        let Range { start: mut column, end } = self.columns;
        while column + W <= end {
            self.weigh_columns::<L, W>(l, column, p, factors, out);
            column += W;
        }
        if column + 2 <= end {
            self.weigh_columns::<L, 2>(l, column, p, factors, out);
            column += 2;
        }
        if column < end {
            self.weigh_columns::<L, 1>(l, column, p, factors, out);
        }
    }
}

impl<E: Element, const R: usize, const W: usize> Page<'_, E, R, W> {
    /// Scores of the `R` queries from `first` on; the last query stands in for those beyond it.
    #[inline(always)]
    fn score_some<L: Lanes>(&self, l: L, first: usize, scores: &mut [Scores]) {
        let key_dim = self.layout.key_dim();
        let queries: [usize; R] = from_fn(|r| (first + r).min(scores.len() - 1));
        let x: [&[f32]; R] = from_fn(|r| &self.x[queries[r] * key_dim..][..key_dim]);
        let (low, high) = (self.slots[first].start, self.slots[queries[R - 1]].end);
        let half = PAGE_POSITIONS / 2;
        if W == 4 && low < half && high > half {
            self.score_blocks::<L, 4>(l, 0, x, queries, scores);
        } else {
            for pair in low / half..high.div_ceil(half) {
                self.score_blocks::<L, 2>(l, 2 * pair, x, queries, scores);
            }
        }
    }

    /// Scores of `R` queries against `B` blocks of keys; lane = position, terms added serially over the elements.
    #[inline(always)]
    fn score_blocks<L: Lanes, const B: usize>(
        &self,
        l: L,
        block: usize,
        x: [&[f32]; R],
        queries: [usize; R],
        scores: &mut [Scores],
    ) {
        let key_dim = self.layout.key_dim();
        let keys: [&[E]; B] = from_fn(|b| &self.keys[(block + b) * key_dim..][..key_dim]);
        let mut sums = [[l.splat(0.0); B]; R];
        for i in 0..key_dim {
            E::prefetch(l, self.values.as_ptr().cast(), i * 128);
            // Closures over lanes might not be inlined, and then lack the instruction set.
            let mut column = [l.splat(0.0); B];
            for b in 0..B {
                column[b] = keys[b][i].load(l);
            }
            for r in 0..R {
                let q = l.splat(x[r][i]);
                for b in 0..B {
                    sums[r][b] = l.fma(q, column[b], sums[r][b]);
                }
            }
        }
        for r in 0..R {
            let blocks = &mut scores[queries[r]].0.as_chunks_mut().0[block..];
            for (sum, block) in sums[r].into_iter().zip(blocks) {
                l.store(l.mul(sum, l.splat(self.scoring.scale)), block);
            }
        }
    }

    /// [`Reduce::weigh`] for `C` vectors of the values and all queries.
    #[inline(always)]
    fn weigh_columns<L: Lanes, const C: usize>(
        &self,
        l: L,
        column: usize,
        p: &[Scores],
        factors: Option<[&[f32]; 2]>,
        out: &mut [Vector],
    ) {
        let vectors = self.layout.vectors();
        for first in (0..p.len()).step_by(R) {
            let queries: [usize; R] = from_fn(|r| (first + r).min(p.len() - 1));
            let slots: [Range<usize>; R] = from_fn(|r| self.slots[queries[r]].clone());
            let sums = self.weighted::<L, C>(l, column, from_fn(|r| &p[queries[r]].0), &slots);
            for r in 0..R.min(p.len() - first) {
                if slots[r].is_empty() {
                    continue;
                }
                let out = &mut out[queries[r] * vectors + column..][..C];
                for (out, sum) in out.iter_mut().zip(sums[r]) {
                    let sum = match factors {
                        Some([old, new]) => merged(l, l.load(&out.0), old[queries[r]], sum, new[queries[r]]),
                        None => sum,
                    };
                    l.store(sum, &mut out.0);
                }
            }
        }
    }

    /// Σ p·v over each query's slots, terms added serially over the positions; lane = element of the value.
    #[inline(always)]
    fn weighted<L: Lanes, const C: usize>(
        &self,
        l: L,
        column: usize,
        p: [&[f32; PAGE_POSITIONS]; R],
        slots: &[Range<usize>; R],
    ) -> [[L::F; C]; R] {
        // Slots outside a query's range may hold anything, so what not all see is added for each on its own.
        let start = slots.iter().fold(0, |start, slots| start.max(slots.start));
        let end = slots.iter().fold(PAGE_POSITIONS, |end, slots| end.min(slots.end)).max(start);
        let mut own = [[l.splat(0.0); C]; R];
        for r in 0..R {
            for slot in slots[r].start..slots[r].end.min(start) {
                add(l, &mut own[r], p[r], slot, self.value::<L, C>(l, slot, column));
            }
        }
        let mut sums = own;
        for slot in start..end {
            E::prefetch(l, self.next, (slot * self.columns.len() + column) * 32);
            let value = self.value::<L, C>(l, slot, column);
            for r in 0..R {
                add(l, &mut sums[r], p[r], slot, value);
            }
        }
        own = sums;
        for r in 0..R {
            for slot in slots[r].start.max(end)..slots[r].end {
                add(l, &mut own[r], p[r], slot, self.value::<L, C>(l, slot, column));
            }
        }
        own
    }

    #[inline(always)]
    fn value<L: Lanes, const C: usize>(&self, l: L, slot: usize, column: usize) -> [L::F; C] {
        let row = &self.values[slot * self.columns.len() + column - self.columns.start..][..C];
        let mut value = [l.splat(0.0); C];
        for c in 0..C {
            value[c] = row[c].load(l);
        }
        value
    }
}

#[inline(always)]
fn add<L: Lanes, const C: usize>(l: L, sums: &mut [L::F; C], p: &[f32; PAGE_POSITIONS], slot: usize, value: [L::F; C]) {
    let p = l.splat(p[slot]);
    for c in 0..C {
        sums[c] = l.fma(p, value[c], sums[c]);
    }
}

/// Scaled scores → capped, and what [`exponentials`] makes of them.
#[inline(always)]
pub(super) fn capped_exponentials<L: Lanes>(
    l: L,
    scores: &mut [f32; PAGE_POSITIONS],
    scoring: ScoreRule,
    slots: Range<usize>,
) -> (f32, f32) {
    if let Some(cap) = scoring.soft_cap {
        cap_scores(l, scores, cap);
    }
    exponentials(l, scores, slots)
}

#[inline(always)]
fn cap_scores<L: Lanes>(l: L, scores: &mut [f32; PAGE_POSITIONS], cap: f32) {
    for block in scores.as_chunks_mut().0 {
        l.store(soft_cap(l, l.load(block), cap), block);
    }
}

/// Scores → exp(score − largest) in the slots, and largest and sum; −∞ and 0 where there are no slots.
#[inline(always)]
fn exponentials<L: Lanes>(l: L, scores: &mut [f32; PAGE_POSITIONS], slots: Range<usize>) -> (f32, f32) {
    if slots == (0..PAGE_POSITIONS) {
        return block_exponentials(l, scores.as_chunks_mut().0, |_| {});
    }
    // What lies outside may be anything: it is overwritten, never multiplied by zero.
    let (start, end) = (slots.start / LANES * LANES, slots.end.next_multiple_of(LANES));
    scores[start..slots.start].fill(f32::NEG_INFINITY);
    scores[slots.end..end].fill(f32::NEG_INFINITY);
    block_exponentials(l, scores[start..end].as_chunks_mut().0, |blocks| {
        blocks.as_flattened_mut()[..slots.start - start].fill(0.0);
        blocks.as_flattened_mut()[slots.end - start..].fill(0.0);
    })
}

#[inline(always)]
fn block_exponentials<L: Lanes>(l: L, blocks: &mut [[f32; LANES]], clear: impl Fn(&mut [[f32; LANES]])) -> (f32, f32) {
    let mut top = l.splat(f32::NEG_INFINITY);
    for block in &*blocks {
        top = l.max(top, l.load(block));
    }
    let top = largest(l, top);
    for block in &mut *blocks {
        l.store(exp(l, l.sub(l.load(block), l.splat(top))), block);
    }
    clear(blocks);
    let mut sums = l.splat(0.0);
    for block in &*blocks {
        sums = l.add(sums, l.load(block));
    }
    (top, sum(l, sums))
}
