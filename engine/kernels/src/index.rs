//! The indexer of sparse attention: keys of its own in pages, the scores of positions, and the choice of the highest.
//!
//! A position's score knows nothing of other positions, and the order of scores and positions is total: so the choice does not
//! depend on which pages are scored together, or by whom.

use super::{
    attend::{PAGE_POSITIONS, write_column},
    lanes::{Kernel, LANES, Lanes, entries},
};

/// Writes a key to the page's position `slot`: keys lie as blocks of sixteen positions, element after element, so that a lane is a
/// position.
pub struct WriteKey<'a> {
    /// The page's keys, as f16 bits: (positions · key_dim).
    pub page: &'a mut [u16],
    /// The position in it.
    pub slot: usize,
    /// (key_dim)
    pub key: &'a [f32],
}

/// Scores a page's positions for one row: Σ weight · max(0, query · key) over the heads, in their order; a product's terms are added
/// serially over the elements.
pub struct Score<'a> {
    /// (heads, key_dim)
    pub queries: &'a [f32],
    /// (heads)
    pub weights: &'a [f32],
    /// The page's keys, as f16 bits: (positions · key_dim).
    pub page: &'a [u16],
    /// Of all positions of the page, whether or not they are written.
    pub scores: &'a mut [f32; PAGE_POSITIONS],
}

/// The products of each head's query with the keys of a page's positions; their terms are added serially over the elements.
pub struct Products<'a> {
    /// (heads, key_dim), of which there is one row of products each.
    pub queries: &'a [f32],
    /// The page's keys, as f16 bits: (positions · key_dim).
    pub page: &'a [u16],
    /// Of all positions of the page, whether or not they are written; at least one head's.
    pub products: &'a mut [[f32; PAGE_POSITIONS]],
}

entries!(WriteKey<'_> => (), Score<'_> => (), Products<'_> => ());

impl Kernel for WriteKey<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        write_column(l, self.page, self.slot, self.key);
    }
}

impl Kernel for Score<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(mut self, l: L) {
        if L::LARGE_TILES {
            self.blocks::<L, 4>(l);
        } else {
            self.blocks::<L, 2>(l);
        }
    }
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(mut self, l: L) {
        if L::LARGE_TILES {
            self.blocks::<L, 4>(l);
        } else {
            self.blocks::<L, 2>(l);
        }
    }
}

impl Products<'_> {
    /// `B` blocks of sixteen positions at a time.
    #[inline(always)]
    fn blocks<L: Lanes, const B: usize>(&mut self, l: L) {
        let key_dim = self.queries.len() / self.products.len();
        for (at, keys) in self.page.as_chunks::<LANES>().0.chunks_exact(B * key_dim).enumerate() {
            let (whole, rest) = self.products.as_chunks_mut::<TOGETHER>();
            let rest_first = whole.len() * TOGETHER;
            for (index, products) in whole.iter_mut().enumerate() {
                let sums = head_products::<L, B, TOGETHER>(l, self.queries, key_dim, index * TOGETHER, keys);
                for (sums, products) in sums.iter().zip(products) {
                    store_blocks(l, sums, products, at);
                }
            }
            for (index, products) in rest.iter_mut().enumerate() {
                let [sums] = head_products::<L, B, 1>(l, self.queries, key_dim, rest_first + index, keys);
                store_blocks(l, &sums, products, at);
            }
        }
    }
}

/// Stores what was computed of the `at`-th `B` blocks of positions.
#[inline(always)]
fn store_blocks<L: Lanes, const B: usize>(l: L, sums: &[L::F; B], products: &mut [f32; PAGE_POSITIONS], at: usize) {
    for (sum, products) in sums.iter().zip(&mut products.as_chunks_mut::<LANES>().0[at * B..]) {
        l.store(*sum, products);
    }
}

/// Heads that go over a block of keys together.
const TOGETHER: usize = 2;

impl Score<'_> {
    /// `B` blocks of sixteen positions at a time.
    #[inline(always)]
    fn blocks<L: Lanes, const B: usize>(&mut self, l: L) {
        let key_dim = self.queries.len() / self.weights.len();
        let keys = self.page.as_chunks::<LANES>().0.chunks_exact(B * key_dim);
        for (keys, scores) in keys.zip(self.scores.as_chunks_mut::<LANES>().0.chunks_exact_mut(B)) {
            let mut totals = [l.splat(0.0); B];
            let whole = self.weights.len() / TOGETHER * TOGETHER;
            for first in (0..whole).step_by(TOGETHER) {
                add_heads::<L, B, TOGETHER>(l, self.queries, self.weights, first, keys, &mut totals);
            }
            for first in whole..self.weights.len() {
                add_heads::<L, B, 1>(l, self.queries, self.weights, first, keys, &mut totals);
            }
            for b in 0..B {
                l.store(totals[b], &mut scores[b]);
            }
        }
    }
}

/// Adds what the `H` heads from `first` on give to the scores of `B` blocks of positions.
#[inline(always)]
fn add_heads<L: Lanes, const B: usize, const H: usize>(
    l: L,
    queries: &[f32],
    weights: &[f32],
    first: usize,
    keys: &[[u16; LANES]],
    totals: &mut [L::F; B],
) {
    let sums = head_products::<L, B, H>(l, queries, queries.len() / weights.len(), first, keys);
    for h in 0..H {
        let weight = l.splat(weights[first + h]);
        for b in 0..B {
            totals[b] = l.fma(weight, l.max(l.splat(0.0), sums[h][b]), totals[b]);
        }
    }
}

/// The products of the queries of the `H` heads from `first` on with the keys of `B` blocks of positions.
#[inline(always)]
fn head_products<L: Lanes, const B: usize, const H: usize>(
    l: L,
    queries: &[f32],
    key_dim: usize,
    first: usize,
    keys: &[[u16; LANES]],
) -> [[L::F; B]; H] {
    let mut sums = [[l.splat(0.0); B]; H];
    for i in 0..key_dim {
        let mut column = [l.splat(0.0); B];
        for b in 0..B {
            column[b] = l.load_half(&keys[b * key_dim + i]);
        }
        for h in 0..H {
            let query = l.splat(queries[(first + h) * key_dim + i]);
            for b in 0..B {
                sums[h][b] = l.fma(query, column[b], sums[h][b]);
            }
        }
    }
    sums
}

/// The positions of the `used` highest of `scores`, in increasing order; of equal scores the earlier ones. All where there are
/// no more.
pub fn choose(scores: &[f32], used: usize) -> Vec<u32> {
    let all = 0..scores.len() as u32;
    if scores.len() <= used {
        return all.collect();
    }
    let mut ordered: Vec<u64> = scores.iter().zip(all).map(|(score, position)| order(*score, position)).collect();
    ordered.select_nth_unstable_by(used.saturating_sub(1), |a, b| b.cmp(a));
    let mut chosen: Vec<u32> = ordered[..used].iter().map(|order| !(*order as u32)).collect();
    chosen.sort_unstable();
    chosen
}

/// A number that is larger for a larger score, and for an earlier position where scores are equal.
fn order(score: f32, position: u32) -> u64 {
    // Adding 0 makes −0 and 0 the same.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ascending) << 32 | u64::from(!position)
}
