//! Sparse attention by blocks: each KV head chooses the blocks of positions that its query heads attend to.
//!
//! What is chosen lies in pages as a session has them, or is gathered in pages of its own, in increasing position: so a row's result
//! follows from it as it would from a session that has no other positions, and depends on no other row.

use std::{borrow::Cow, ops::Range};

use qmesh_kernels::{
    Cpu,
    attend::{HeadLayout, PAGE_POSITIONS},
    index::{Products, WriteKey, choose},
    rope::RopeTable,
};
use qmesh_models::spec::BlockIndexerSpec;

use crate::{
    attention::tasks::Heads,
    batch::{Batch, Slice},
    indexer::attend_one,
    linear::{Linear, Norm},
};

/// Weights and shape of what chooses blocks in one layer.
#[derive(Debug)]
pub(crate) struct BlockIndexer {
    pub(crate) spec: BlockIndexerSpec,
    /// Which of the shard's RoPE tables it uses, if any: the layer's own.
    pub(crate) rope: Option<usize>,
    /// Of all KV heads.
    pub(crate) queries: Linear,
    pub(crate) query_norm: Norm,
    pub(crate) key: Linear,
    pub(crate) key_norm: Norm,
}

/// A row of the step, and what it chooses by.
struct Row<'a> {
    slice: &'a Slice,
    /// Of the step.
    row: usize,
    position: usize,
    /// Normalised and rotated, KV head after KV head; empty where it attends to all.
    queries: Vec<f32>,
}

/// The query heads of one KV head of a row.
struct HeadOfRow<'a, 'b> {
    row: &'a Row<'b>,
    head: usize,
    /// Of the blocks that the row sees; none where it attends to all.
    scores: &'a [f32],
}

impl BlockIndexer {
    /// Writes the key of row `row` of the step, which was projected, to its slot of the page's keys.
    pub(crate) fn append(
        &self,
        cpu: Cpu<'_>,
        ropes: &[RopeTable],
        row: usize,
        projected: &[f32],
        (page, slot): (&mut [u16], usize),
    ) {
        let key = self.placed(cpu, ropes, row, &self.key_norm, projected);
        WriteKey { page, slot, key: &key }.run(cpu.simd);
    }

    /// Whether some row of the step does not attend to all positions up to its own.
    pub(crate) fn chooses(&self, batch: &Batch<'_>) -> bool {
        batch.slices.iter().any(|slice| slice.position + slice.rows > self.spec.seen_whole())
    }

    /// Attention of every row to the blocks that its KV heads choose; `out` is (rows, heads, head_dim), and `projected` gives of a row
    /// of the step what was projected for its queries. The rows' keys are in the cache.
    pub(crate) fn attend<'a>(
        &self,
        heads: &Heads<'_>,
        batch: &Batch<'_>,
        projected: impl Fn(usize) -> &'a [f32],
        out: &mut [f32],
    ) {
        let (threads, width) =
            (batch.cpu.team.threads(), heads.groups * heads.group * batch.cache.layout(heads.layer).value_dim());
        let rows = batch.slices.iter().flat_map(|slice| (0..slice.rows).map(move |row| (slice, row)));
        let rows: Vec<_> = rows.map(|(slice, row)| self.row(batch, slice, row, &projected)).collect();
        // So many at a time that each thread has the scores of one.
        for (rows, out) in rows.chunks(threads).zip(out.chunks_mut(threads * width)) {
            let scores = self.scores(heads, batch, rows);
            let of_heads = rows.iter().zip(&scores).flat_map(|(row, scores)| {
                scores.iter().enumerate().map(move |(head, scores)| HeadOfRow { row, head, scores })
            });
            let tasks = of_heads.zip(out.chunks_exact_mut(width / heads.groups)).collect();
            batch.cpu.team.each(tasks, |(head, out): (HeadOfRow<'_, '_>, &mut [f32])| {
                self.attend_head(heads, batch, head, out);
            });
        }
    }

    fn row<'a, 'b>(
        &self,
        batch: &Batch<'_>,
        slice: &'b Slice,
        row: usize,
        projected: &impl Fn(usize) -> &'a [f32],
    ) -> Row<'b> {
        let (position, row) = (slice.position + row, slice.first + row);
        let queries = match position < self.spec.seen_whole() {
            true => Vec::new(),
            false => self.placed(batch.cpu, &batch.ropes, row, &self.query_norm, projected(row)),
        };
        Row { slice, row, position, queries }
    }

    /// Queries or a key of row `row` of the step, as they meet each other.
    fn placed(&self, cpu: Cpu<'_>, ropes: &[RopeTable], row: usize, norm: &Norm, projected: &[f32]) -> Vec<f32> {
        let mut placed = projected.to_vec();
        norm.apply(cpu, &mut placed);
        if let Some(rope) = self.rope {
            ropes[rope].rotate(cpu.simd, row, &mut placed, self.spec.head_dim);
        }
        placed
    }

    /// The scores of all blocks that each row sees, for each of its KV heads; none of rows that attend to all. All threads score
    /// runs of whole blocks and whole pages.
    fn scores(&self, heads: &Heads<'_>, batch: &Batch<'_>, rows: &[Row<'_>]) -> Vec<Vec<Vec<f32>>> {
        let (cpu, block) = (batch.cpu, self.spec.block);
        let blocks = |row: &Row<'_>| if row.queries.is_empty() { 0 } else { row.position / block + 1 };
        let mut scores: Vec<Vec<Vec<f32>>> =
            rows.iter().map(|row| vec![vec![0.0; blocks(row)]; heads.groups]).collect();
        let whole = whole_pages(block) / block;
        let mut tasks = Vec::new();
        for (row, scores) in rows.iter().zip(&mut scores) {
            let runs = cpu.team.threads().div_ceil(rows.len());
            let run = blocks(row).div_ceil(runs).max(1).next_multiple_of(whole);
            let mut of_heads: Vec<_> = scores.iter_mut().map(|scores| scores.chunks_mut(run)).collect();
            for first in (0..blocks(row)).step_by(run) {
                tasks.push((row, first, of_heads.iter_mut().filter_map(Iterator::next).collect()));
            }
        }
        cpu.team.each(tasks, |(row, first, scores): (&Row<'_>, usize, Vec<&mut [f32]>)| {
            self.score(heads.layer, batch, row, first, scores);
        });
        scores
    }

    /// The scores of some blocks of a row, from the `first` on, for each of its KV heads.
    fn score(&self, layer: usize, batch: &Batch<'_>, row: &Row<'_>, first: usize, mut scores: Vec<&mut [f32]>) {
        let block = self.spec.block;
        let count = scores.first().map_or(0, |scores| scores.len());
        let positions = first * block..((first + count) * block).min(row.position + 1);
        let numbers = positions.start / PAGE_POSITIONS..positions.end.div_ceil(PAGE_POSITIONS);
        let pages = batch.cache.index_keys(layer, &row.slice.pages, numbers.clone());
        let mut products = vec![[0.0; PAGE_POSITIONS]; scores.len()];
        scores.iter_mut().for_each(|scores| scores.fill(f32::NEG_INFINITY));
        for (page, number) in pages.into_iter().zip(numbers) {
            Products { queries: &row.queries, page, products: &mut products }.run(batch.cpu.simd);
            let seen = number * PAGE_POSITIONS..positions.end.min((number + 1) * PAGE_POSITIONS);
            for (scores, products) in scores.iter_mut().zip(&products) {
                for (position, product) in seen.clone().zip(products) {
                    let score = &mut scores[position / block - first];
                    *score = score.max(*product);
                }
            }
        }
        let own = row.position / block;
        for scores in scores {
            for (at, score) in (first..).zip(scores) {
                if at + self.spec.local > own {
                    *score = f32::INFINITY;
                }
            }
        }
    }

    /// Attention of the query heads of one KV head of a row, by the scores of its blocks; to all where there are none.
    fn attend_head(
        &self,
        heads: &Heads<'_>,
        batch: &Batch<'_>,
        HeadOfRow { row, head, scores }: HeadOfRow<'_, '_>,
        out: &mut [f32],
    ) {
        let layout = batch.cache.layout(heads.layer);
        let seen = row.position + 1;
        let pages = batch.cache.head(heads.layer, &row.slice.pages, head, 0..seen.div_ceil(PAGE_POSITIONS));
        let of_block = |block: u32| {
            let first = block as usize * self.spec.block;
            first..seen.min(first + self.spec.block)
        };
        let chosen: Vec<Range<usize>> = if scores.is_empty() {
            std::iter::once(0..seen).collect()
        } else {
            choose(scores, self.spec.used).into_iter().map(of_block).collect()
        };
        let count = chosen.iter().map(ExactSizeIterator::len).sum();
        let gathered = gathered(layout, &pages, &chosen);
        let pages: Vec<&[u16]> = gathered.iter().map(|page| &**page).collect();
        attend_one(heads, batch, (row.row, head), (&pages, count), out);
    }
}

/// The least number of positions that are whole blocks and whole pages.
fn whole_pages(block: usize) -> usize {
    (1..).map(|blocks| blocks * block).find(|positions| positions.is_multiple_of(PAGE_POSITIONS)).unwrap_or(block)
}

/// The pages of these positions, in increasing order: the session's own where they are whole pages but for the last, others where
/// they are not.
fn gathered<'a>(layout: HeadLayout, pages: &[&'a [u16]], chosen: &[Range<usize>]) -> Vec<Cow<'a, [u16]>> {
    let before_last = chosen.split_last().map_or(chosen, |(_, before)| before);
    let is_whole = |range: &Range<usize>| range.start.is_multiple_of(PAGE_POSITIONS);
    let ends_whole = |range: &Range<usize>| range.end.is_multiple_of(PAGE_POSITIONS);
    if chosen.iter().all(is_whole) && before_last.iter().all(ends_whole) {
        let numbers = chosen.iter().flat_map(|range| range.start / PAGE_POSITIONS..range.end.div_ceil(PAGE_POSITIONS));
        return numbers.map(|number| Cow::Borrowed(pages[number])).collect();
    }
    copied(layout, pages, chosen).into_iter().map(Cow::Owned).collect()
}

/// The rows of these positions, in pages of their own.
fn copied(layout: HeadLayout, pages: &[&[u16]], chosen: &[Range<usize>]) -> Vec<Vec<u16>> {
    let positions: Vec<usize> = chosen.iter().cloned().flatten().collect();
    let copied = positions.chunks(PAGE_POSITIONS).map(|positions| {
        let mut page = vec![0; layout.page_len()];
        for (slot, position) in positions.iter().enumerate() {
            layout.copy((pages[position / PAGE_POSITIONS], position % PAGE_POSITIONS), (&mut page, slot));
        }
        page
    });
    copied.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: HeadLayout = HeadLayout::Apart { head_dim: 5 };

    /// Pages in which each element is another.
    fn pages(count: usize) -> Vec<Vec<u16>> {
        let len = LAYOUT.page_len();
        (0..count).map(|page| (0..len).map(|at| (page * len + at) as u16).collect()).collect()
    }

    #[test]
    fn whole_pages_are_not_copied_and_would_be_the_same() {
        let held = pages(5);
        let pages: Vec<&[u16]> = held.iter().map(Vec::as_slice).collect();
        let chosen = [64..192, 256..320];
        let gathered = gathered(LAYOUT, &pages, &chosen);
        assert!(gathered.iter().all(|page| matches!(page, Cow::Borrowed(_))));
        assert_eq!(gathered, copied(LAYOUT, &pages, &chosen));
        assert_eq!(gathered.iter().map(|page| page[0]).collect::<Vec<_>>(), [1, 2, 4].map(|page| held[page][0]));
        // The last one may end anywhere.
        assert!(matches!(
            super::gathered(LAYOUT, &pages, &[0..64, 128..130])[..],
            [Cow::Borrowed(_), Cow::Borrowed(_)]
        ));
    }

    #[test]
    fn positions_are_gathered_in_their_order() {
        let held = pages(3);
        let pages: Vec<&[u16]> = held.iter().map(Vec::as_slice).collect();
        let chosen = [3..5, 60..70, 130..190];
        let gathered = gathered(LAYOUT, &pages, &chosen);
        assert_eq!(gathered.len(), 2);
        for (at, position) in chosen.into_iter().flatten().enumerate() {
            let alone = |page: &[u16], slot| {
                let mut alone = vec![0; LAYOUT.page_len()];
                LAYOUT.copy((page, slot), (&mut alone, 0));
                alone
            };
            let found = alone(&gathered[at / PAGE_POSITIONS], at % PAGE_POSITIONS);
            assert_eq!(found, alone(pages[position / PAGE_POSITIONS], position % PAGE_POSITIONS), "{position}");
            assert_eq!(found.iter().filter(|x| **x != 0).count(), 5 + LAYOUT.vectors() * 16, "{position}");
        }
    }

    #[test]
    fn runs_are_of_whole_blocks_and_whole_pages() {
        assert_eq!([1, 8, 64, 96, 128, 5].map(whole_pages), [64, 64, 64, 192, 128, 320]);
    }
}
