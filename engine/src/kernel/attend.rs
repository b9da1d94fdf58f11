//! Attention of some queries over the paged keys and values of one KV head.
//!
//! A page is a group of keys at fixed positions: it is reduced on its own, and pages are merged in increasing position
//! by one formula. So no result depends on how rows arrived, or on which queries share the work.

use half::f16;
use qmesh_models::spec::Window;

use super::{
    lanes::{Kernel, LANES, Lanes, largest, sum},
    math::{exp, padded},
};

/// Positions per page of the KV cache.
pub const PAGE_POSITIONS: usize = 64;
const KEY_BLOCKS: usize = PAGE_POSITIONS / LANES;

/// How keys and values of one head lie in a page, as f16 bits: the keys as blocks of sixteen positions, element after
/// element, so that a lane is a position; then the values as rows, filled up to whole lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLayout {
    pub(crate) head_dim: usize,
}

impl HeadLayout {
    /// Elements of a page.
    pub(crate) fn page_len(self) -> usize {
        PAGE_POSITIONS * (self.head_dim + self.value_len())
    }

    /// Writes the key and value of the page's position `slot`.
    pub(crate) fn write(self, page: &mut [u16], slot: usize, key: &[f32], value: &[f32]) {
        let (keys, values) = page.split_at_mut(PAGE_POSITIONS * self.head_dim);
        let block = &mut keys[slot / LANES * LANES * self.head_dim..];
        for (column, x) in block.as_chunks_mut::<LANES>().0.iter_mut().zip(key) {
            column[slot % LANES] = f16::from_f32(*x).to_bits();
        }
        for (to, x) in values[slot * self.value_len()..].iter_mut().zip(value) {
            *to = f16::from_f32(*x).to_bits();
        }
    }

    fn value_len(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
}

/// One query and the last position it attends to, its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) position: usize,
}

/// Softmax(scale · q·k)·v for each query.
pub(crate) struct Attend<'a> {
    pub(crate) layout: HeadLayout,
    /// The head's part of each page, from position 0 on, up to the last query's.
    pub(crate) pages: &'a [&'a [u16]],
    pub(crate) queries: &'a [Query<'a>],
    pub(crate) scale: f32,
    pub(crate) window: Window,
}

/// What a query has gathered so far: largest score, sum of exponentials, and (apart) the weighted values.
#[derive(Clone, Copy)]
struct Gathered {
    largest: f32,
    sum: f32,
}

impl Kernel for Attend<'_> {
    /// (queries, head_dim)
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Vec<f32> {
        let HeadLayout { head_dim } = self.layout;
        let vectors = self.layout.value_len() / LANES;
        let mut gathered = vec![Gathered { largest: f32::NEG_INFINITY, sum: 0.0 }; self.queries.len()];
        let mut outputs = vec![[0.0; LANES]; self.queries.len() * vectors];
        let mut widened = vec![[0.0; LANES]; self.layout.page_len() / LANES];
        for (index, page) in self.pages.iter().enumerate() {
            let ranges: Vec<_> = self.queries.iter().map(|q| self.range(*q, index)).collect();
            if ranges.iter().all(|(low, high)| low >= high) {
                continue;
            }
            for (wide, half) in widened.iter_mut().zip(page.as_chunks().0) {
                l.store(l.load_half(half), wide);
            }
            let (keys, values) = widened.split_at(KEY_BLOCKS * head_dim);
            let mut query = 0;
            while query < self.queries.len() {
                let mut scores = [[0.0; PAGE_POSITIONS]; 4];
                let count = if query + 4 <= self.queries.len() { 4 } else { 1 };
                if count == 4 {
                    let x = std::array::from_fn(|i| self.queries[query + i].x);
                    scores = score::<L, 4>(l, keys, x, self.scale);
                } else {
                    [scores[0]] = score::<L, 1>(l, keys, [self.queries[query].x], self.scale);
                }
                for scores in &mut scores[..count] {
                    let output = &mut outputs[query * vectors..][..vectors];
                    if ranges[query].0 < ranges[query].1 {
                        merge(l, scores, ranges[query], values, &mut gathered[query], output);
                    }
                    query += 1;
                }
            }
        }
        let mut out = Vec::with_capacity(self.queries.len() * head_dim);
        for (gathered, output) in gathered.iter().zip(outputs.chunks_exact(vectors)) {
            out.extend(output.as_flattened()[..head_dim].iter().map(|x| x / gathered.sum));
        }
        out
    }
}

impl Attend<'_> {
    /// The slots of page `index` that the query attends to.
    fn range(&self, query: Query<'_>, index: usize) -> (usize, usize) {
        let first = match self.window {
            Window::Full => 0,
            Window::Sliding(n) => (query.position + 1).saturating_sub(n),
        };
        let slot = |position: usize| position.saturating_sub(index * PAGE_POSITIONS).min(PAGE_POSITIONS);
        (slot(first), slot(query.position + 1))
    }
}

/// Scores of `R` queries against all keys of a page; lane = position, terms added serially over the elements.
#[inline(always)]
fn score<L: Lanes, const R: usize>(
    l: L,
    keys: &[[f32; LANES]],
    x: [&[f32]; R],
    scale: f32,
) -> [[f32; PAGE_POSITIONS]; R] {
    let mut scores = [[0.0; PAGE_POSITIONS]; R];
    let head_dim = keys.len() / KEY_BLOCKS;
    let x = x.map(|x| &x[..head_dim]);
    for pair in 0..KEY_BLOCKS / 2 {
        // Two blocks at once, for enough independent sums.
        let (first, second) = keys[2 * pair * head_dim..][..2 * head_dim].split_at(head_dim);
        let mut sums = [[l.splat(0.0); 2]; R];
        for i in 0..head_dim {
            let (a, b) = (l.load(&first[i]), l.load(&second[i]));
            for r in 0..R {
                let q = l.splat(x[r][i]);
                sums[r] = [l.fma(q, a, sums[r][0]), l.fma(q, b, sums[r][1])];
            }
        }
        for r in 0..R {
            for (i, sum) in sums[r].into_iter().enumerate() {
                l.store(l.mul(sum, l.splat(scale)), &mut scores[r].as_chunks_mut().0[2 * pair + i]);
            }
        }
    }
    scores
}

/// Reduces the slots `low..high` of a page and merges them with what the query gathered in the pages before.
#[inline(always)]
fn merge<L: Lanes>(
    l: L,
    scores: &mut [f32; PAGE_POSITIONS],
    (low, high): (usize, usize),
    values: &[[f32; LANES]],
    gathered: &mut Gathered,
    output: &mut [[f32; LANES]],
) {
    // Slots outside the range may hold anything: they are overwritten, never multiplied by zero.
    scores[..low].fill(f32::NEG_INFINITY);
    scores[high..].fill(f32::NEG_INFINITY);
    let mut top = l.splat(f32::NEG_INFINITY);
    for block in scores.as_chunks().0 {
        top = l.max(top, l.load(block));
    }
    let top = largest(l, top);
    for block in scores.as_chunks_mut().0 {
        l.store(exp(l, l.sub(l.load(block), l.splat(top))), block);
    }
    scores[..low].fill(0.0);
    scores[high..].fill(0.0);
    let mut sums = l.splat(0.0);
    for block in scores.as_chunks().0 {
        sums = l.add(sums, l.load(block));
    }
    let both = if gathered.largest > top { gathered.largest } else { top };
    let mut factors = [0.0; LANES];
    l.store(exp(l, l.load(&padded(&[gathered.largest - both, top - both], 0.0))), &mut factors);
    let [old, new, ..] = factors;
    *gathered = Gathered { largest: both, sum: gathered.sum.mul_add(old, sum(l, sums) * new) };
    let width = output.len();
    let (fours, rest) = output.as_chunks_mut::<4>();
    let first = 4 * fours.len();
    for (i, output) in fours.iter_mut().enumerate() {
        weigh(l, &scores[low..high], &values[low * width + 4 * i..], width, [old, new], output);
    }
    for (i, output) in rest.iter_mut().enumerate() {
        weigh(
            l,
            &scores[low..high],
            &values[low * width + first + i..],
            width,
            [old, new],
            std::array::from_mut(output),
        );
    }
}

/// output ← old · output + new · Σ p·v, terms added serially over the positions; lane = element of the value.
#[inline(always)]
fn weigh<L: Lanes, const C: usize>(
    l: L,
    p: &[f32],
    values: &[[f32; LANES]],
    stride: usize,
    [old, new]: [f32; 2],
    output: &mut [[f32; LANES]; C],
) {
    let mut sums = [l.splat(0.0); C];
    for (p, value) in p.iter().zip(values.chunks(stride)) {
        for c in 0..C {
            sums[c] = l.fma(l.splat(*p), l.load(&value[c]), sums[c]);
        }
    }
    for c in 0..C {
        let sum = l.fma(l.load(&output[c]), l.splat(old), l.mul(sums[c], l.splat(new)));
        l.store(sum, &mut output[c]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{lanes::Simd, matrix::tests::noise};

    /// In f64, from the rounded keys and values.
    fn naive(keys: &[Vec<f32>], values: &[Vec<f32>], query: Query<'_>, scale: f32, first: usize) -> Vec<f64> {
        let round = |x: f32| f16::from_f32(x).to_f64();
        let score = |k: &Vec<f32>| k.iter().zip(query.x).map(|(k, q)| round(*k) * f64::from(*q)).sum::<f64>();
        let attended = first..query.position + 1;
        let p: Vec<f64> = keys[attended.clone()].iter().map(|k| (score(k) * f64::from(scale)).exp()).collect();
        let total: f64 = p.iter().sum();
        let weighted = |i: usize| values[attended.clone()].iter().zip(&p).map(|(v, p)| round(v[i]) * p).sum::<f64>();
        (0..query.x.len()).map(|i| weighted(i) / total).collect()
    }

    #[test]
    fn all_tiers_and_groupings_give_the_same_bits_close_to_f64() {
        for (head_dim, window) in
            [(16, Window::Full), (40, Window::Sliding(70)), (80, Window::Full), (128, Window::Sliding(9))]
        {
            let layout = HeadLayout { head_dim };
            let positions = 200;
            let rows = |seed| noise(positions * head_dim, seed).chunks(head_dim).map(<[f32]>::to_vec).collect();
            let (keys, values): (Vec<_>, Vec<_>) = (rows(1), rows(2));
            // What was never written is NaN, as a stale page might be.
            let mut pages = vec![vec![f16::NAN.to_bits(); layout.page_len()]; positions.div_ceil(PAGE_POSITIONS)];
            for (p, (key, value)) in keys.iter().zip(&values).enumerate() {
                layout.write(&mut pages[p / PAGE_POSITIONS], p % PAGE_POSITIONS, key, value);
            }
            let pages: Vec<&[u16]> = pages.iter().map(Vec::as_slice).collect();
            let x = noise(9 * head_dim, 3);
            let places = [0, 1, 62, 63, 64, 100, 127, 128, 199];
            let queries: Vec<_> = x.chunks(head_dim).zip(places).map(|(x, position)| Query { x, position }).collect();
            let attend = |simd: Simd, queries: &[Query<'_>]| {
                let pages = &pages[..queries[queries.len() - 1].position / PAGE_POSITIONS + 1];
                simd.run(Attend { layout, pages, queries, scale: 0.7, window })
            };
            let together = attend(Simd::available()[0], &queries);
            for simd in Simd::available() {
                assert_eq!(attend(simd, &queries), together, "{}", simd.name());
            }
            for (query, y) in queries.iter().zip(together.chunks(head_dim)) {
                assert_eq!(attend(Simd::available()[0], &[*query]), y, "alone at {}", query.position);
                let first = match window {
                    Window::Full => 0,
                    Window::Sliding(n) => (query.position + 1).saturating_sub(n),
                };
                for (y, e) in y.iter().zip(naive(&keys, &values, *query, 0.7, first)) {
                    assert!((f64::from(*y) - e).abs() < 1e-5, "position {}: {y} for {e}", query.position);
                }
            }
        }
    }
}
