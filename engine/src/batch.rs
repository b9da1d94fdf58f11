//! The rows of a step as layers see them, with what these leave each other.

use std::ops::Range;

use qmesh_kernels::{Cpu, rope::RopeTable};

use crate::{
    cache::{Cache, Pages},
    layer_input::LayerInputRows,
    states::States,
};

/// The rows of a step as its layers see them.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) cpu: Cpu<'a>,
    pub(crate) cache: &'a Cache,
    /// One per kind of RoPE in the shard, with a row per row of the step.
    pub(crate) ropes: Vec<RopeTable>,
    pub(crate) slices: Vec<Slice>,
    /// What each row attends to by the last layer that has chosen it; nothing before one has.
    pub(crate) chosen: Vec<Chosen>,
    /// What layers take in beside the hidden state.
    pub(crate) layer_inputs: LayerInputRows,
}

/// Consecutive rows of one session.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) pages: Pages,
    pub(crate) states: States,
    /// Row of the step where it begins.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    /// Position of the first row.
    pub(crate) position: usize,
}

/// The positions that a row attends to, in increasing order.
#[derive(Debug)]
pub(crate) enum Chosen {
    /// So many, which are all.
    All(usize),
    Some(Vec<u32>),
}

/// Rows that go into one page.
pub(crate) struct Append<'a> {
    /// The first row, of the step.
    pub(crate) row: usize,
    pub(crate) positions: Range<usize>,
    /// The layer's part of the page.
    pub(crate) part: &'a mut [u16],
}

/// Rows from which on the team appends them.
const APPEND_TOGETHER: usize = 32;

impl Batch<'_> {
    /// The position of each row.
    pub(crate) fn positions(&self) -> Vec<usize> {
        self.slices.iter().flat_map(|slice| slice.position..slice.position + slice.rows).collect()
    }

    /// Gives `append` each row of the step in its pages, in the cache's part of `layer`.
    pub(crate) fn append(&mut self, layer: usize, append: impl Fn(&[RopeTable], Append<'_>) + Sync) {
        let Batch { cpu, cache, ropes, slices, chosen: _, layer_inputs: _ } = self;
        let rows: usize = slices.iter().map(|s| s.rows).sum();
        let mut tasks = Vec::new();
        for Slice { pages, first, rows, position, .. } in slices {
            let parts = cache.parts_mut(layer, pages, *position..*position + *rows);
            tasks.extend(parts.map(|(positions, part)| Append {
                row: *first + positions.start - *position,
                positions,
                part,
            }));
        }
        let work = |task: Append<'_>| append(ropes, task);
        if rows < APPEND_TOGETHER {
            tasks.into_iter().for_each(work);
        } else {
            cpu.team.each(tasks, work);
        }
    }
}
