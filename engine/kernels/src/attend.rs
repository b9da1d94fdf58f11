//! Attention of some queries over the paged keys and values of one KV head.
//!
//! A page is a group of keys at fixed positions: it is reduced on its own, and pages are merged in increasing position
//! by one formula. So no result depends on how rows arrived, on which queries share the work, or on who computed which
//! page.

mod gathered;
mod page;
mod shared;

use std::{cell::RefCell, ops::Range};

use qmesh_arithmetic::Window;
pub use qmesh_arithmetic::layout::PAGE_POSITIONS;

pub use self::gathered::{Gathered, Merge, Normalise};
use self::{
    gathered::merge_sums,
    page::{Element, Page},
    shared::SharedPage,
};
use super::{
    lanes::{Kernel, LANES, Lanes, Simd, entries},
    math::padded,
};

/// How keys and values of one head lie in a page, as f16 bits.
#[derive(Clone, Copy, Debug)]
pub enum HeadLayout {
    /// The keys as blocks of sixteen positions, element after element, so that a lane is a position; then the values as
    /// rows, filled up to whole lanes.
    Apart {
        /// Elements of a key, and of a value.
        head_dim: usize,
    },
    /// Only the keys, as rows, filled up to whole lanes: values are their first elements (latent attention).
    Shared {
        /// Elements of a key.
        key_dim: usize,
        /// Elements of a value; at most `key_dim`.
        value_dim: usize,
    },
}

impl HeadLayout {
    /// Elements of a page.
    pub fn page_len(self) -> usize {
        match self {
            Self::Apart { head_dim } => PAGE_POSITIONS * (head_dim + self.vectors() * LANES),
            Self::Shared { key_dim, .. } => PAGE_POSITIONS * key_dim.next_multiple_of(LANES),
        }
    }

    /// Elements of a key.
    pub fn key_dim(self) -> usize {
        match self {
            Self::Apart { head_dim } => head_dim,
            Self::Shared { key_dim, .. } => key_dim,
        }
    }

    /// Elements of a value.
    pub fn value_dim(self) -> usize {
        match self {
            Self::Apart { head_dim } => head_dim,
            Self::Shared { value_dim, .. } => value_dim,
        }
    }

    /// Copies what is kept of a position, by its slot in one page, to a slot of another.
    pub fn copy(self, (from, from_slot): (&[u16], usize), (to, to_slot): (&mut [u16], usize)) {
        let copy_row = |from: &[u16], to: &mut [u16], vectors: usize| {
            let len = vectors * LANES;
            to[to_slot * len..][..len].copy_from_slice(&from[from_slot * len..][..len]);
        };
        match self {
            Self::Apart { head_dim } => {
                let ((keys, values), (to_keys, to_values)) =
                    (from.split_at(PAGE_POSITIONS * head_dim), to.split_at_mut(PAGE_POSITIONS * head_dim));
                let place = |slot: usize| slot / LANES * LANES * head_dim + slot % LANES;
                let column = keys[place(from_slot)..].iter().step_by(LANES).take(head_dim);
                let to_column = to_keys[place(to_slot)..].iter_mut().step_by(LANES);
                to_column.zip(column).for_each(|(to, key)| *to = *key);
                copy_row(values, to_values, self.vectors());
            }
            Self::Shared { key_dim, .. } => copy_row(from, to, key_dim.div_ceil(LANES)),
        }
    }

    /// Vectors of sixteen lanes in a value.
    pub fn vectors(self) -> usize {
        self.value_dim().div_ceil(LANES)
    }

    /// Vectors of f32 that a page is widened to: all of it, or as much at a time as stays in the L1 cache.
    fn widened(self) -> usize {
        match self {
            Self::Apart { .. } => self.page_len() / LANES,
            Self::Shared { .. } => shared::WIDENED,
        }
    }
}

/// Writes a key and a value to the page's position `slot`.
pub struct Write<'a> {
    /// How the page is laid out.
    pub layout: HeadLayout,
    /// The page.
    pub page: &'a mut [u16],
    /// The position in it.
    pub slot: usize,
    /// (key_dim)
    pub key: &'a [f32],
    /// (value_dim); nobody looks at it where values are part of keys.
    pub value: &'a [f32],
}

entries!(Write<'_> => ());

impl Kernel for Write<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        let head_dim = match self.layout {
            HeadLayout::Apart { head_dim } => head_dim,
            HeadLayout::Shared { key_dim, .. } => {
                return write_row(l, self.page, self.slot, key_dim.div_ceil(LANES), self.key);
            }
        };
        let (keys, values) = self.page.split_at_mut(PAGE_POSITIONS * head_dim);
        write_column(l, keys, self.slot, self.key);
        write_row(l, values, self.slot, self.layout.vectors(), self.value);
    }
}

/// Writes a key among those of a page that lie as blocks of sixteen positions, element after element.
#[inline(always)]
pub(super) fn write_column<L: Lanes>(l: L, keys: &mut [u16], slot: usize, key: &[f32]) {
    let block = &mut keys[slot / LANES * LANES * key.len()..][..LANES * key.len()];
    for (columns, x) in block.chunks_mut(LANES * LANES).zip(key.chunks(LANES)) {
        let mut halves = [0; LANES];
        l.store_half(l.load(&padded(x, 0.0)), &mut halves);
        for (column, half) in columns.as_chunks_mut::<LANES>().0.iter_mut().zip(halves) {
            column[slot % LANES] = half;
        }
    }
}

/// Writes a row of so many vectors, filled up with zeros.
#[inline(always)]
fn write_row<L: Lanes>(l: L, rows: &mut [u16], slot: usize, vectors: usize, x: &[f32]) {
    let row = &mut rows.as_chunks_mut().0[slot * vectors..][..vectors];
    for (to, x) in row.iter_mut().zip(x.chunks(LANES)) {
        l.store_half(l.load(&padded(x, 0.0)), to);
    }
}

/// What makes a weight of a query and a key, and which keys a query sees.
#[derive(Clone, Copy, Debug)]
pub struct ScoreRule {
    /// Factor on the product of query and key.
    pub scale: f32,
    /// Scaled scores s become cap · tanh(s / cap).
    pub soft_cap: Option<f32>,
    /// How far back a query sees.
    pub window: Window,
}

impl ScoreRule {
    /// The pages that hold what queries at `positions` (not empty) attend to.
    pub fn pages(self, positions: Range<usize>) -> Range<usize> {
        self.first(positions.start) / PAGE_POSITIONS..positions.end.div_ceil(PAGE_POSITIONS)
    }

    /// The first position that a query at `position` attends to.
    pub fn first(self, position: usize) -> usize {
        match self.window {
            Window::Full => 0,
            Window::Sliding(n) => (position + 1).saturating_sub(n),
            Window::Chunked(n) => position / n * n,
        }
    }

    /// The slots of a page that a query at `position` attends to; it may be none.
    #[inline(always)]
    fn slots(self, position: usize, page: usize) -> Range<usize> {
        let slot = |at: usize| at.saturating_sub(page * PAGE_POSITIONS).min(PAGE_POSITIONS);
        slot(self.first(position))..slot(position + 1)
    }
}

/// Queries of one KV head at consecutive positions.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// (rows, heads that share the KV head, key_dim)
    pub x: &'a [f32],
    /// Query heads that share the KV head.
    pub heads: usize,
    /// Of the first row.
    pub position: usize,
}

/// Gathers what queries find in some consecutive pages: softmax(scale · q·k)·v, but for the division.
pub struct Attend<'a> {
    /// How the pages are laid out.
    pub layout: HeadLayout,
    /// What makes weights.
    pub scoring: ScoreRule,
    /// Who attends.
    pub queries: Queries<'a>,
    /// The head's part of each page.
    pub pages: &'a [&'a [u16]],
    /// Which page of the sequence the first one is.
    pub first_page: usize,
    /// Where the results go.
    pub into: Target<'a>,
}

/// Where the pages' results go.
pub enum Target<'a> {
    /// All into one part, which has gathered the pages before.
    Merged(&'a mut Gathered),
    /// Each into a part of its own, to be merged later.
    Apart(&'a mut Gathered),
}

/// Sixteen f32 in one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Vector([f32; LANES]);

/// Of one query for the keys of a page.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Scores([f32; PAGE_POSITIONS]);

/// Memory that a thread uses again for each run of pages.
#[derive(Default)]
struct Scratch {
    /// (queries): of a page, then their exponentials.
    scores: Vec<Scores>,
    /// (queries): what each attends to.
    slots: Vec<Range<usize>>,
    /// A page as f32, or a part of it.
    widened: Vec<Vector>,
    /// (queries, filled up to whole lanes), of a page.
    largest: Vec<[f32; LANES]>,
    sums: Vec<[f32; LANES]>,
    /// Factors on what was gathered before, and on the page's.
    factors: [Vec<[f32; LANES]>; 2],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// From this many queries on, widening a page once pays.
const WIDENED_QUERIES: usize = 9;

impl Attend<'_> {
    /// Runs it in the thread's scratch memory.
    pub fn gather(self, simd: Simd) {
        SCRATCH.with_borrow_mut(|scratch| {
            let count = self.queries.x.len() / self.layout.key_dim();
            let groups = count.div_ceil(LANES);
            scratch.scores.resize(count, Scores([0.0; PAGE_POSITIONS]));
            scratch.widened.resize(self.layout.widened(), Vector([0.0; LANES]));
            let [old, new] = &mut scratch.factors;
            for lanes in [&mut scratch.largest, &mut scratch.sums, old, new] {
                lanes.resize(groups, [0.0; LANES]);
            }
            simd.run(Gather { attend: self, scratch });
        });
    }
}

struct Gather<'a, 'b> {
    attend: Attend<'a>,
    scratch: &'b mut Scratch,
}

impl Kernel for Gather<'_, '_> {
    type Output = ();

    /// As many queries by vectors at a time as there are registers; all queries of a few, so that a page is read once.
    #[inline(always)]
    fn compute<L: Lanes>(mut self, l: L) {
        match (self.attend.layout, L::LARGE_TILES, self.scratch.scores.len()) {
            (HeadLayout::Shared { .. }, false, _) => self.shared::<L, 2, 2>(l),
            (HeadLayout::Shared { .. }, true, _) => self.shared::<L, 4, 4>(l),
            (HeadLayout::Apart { .. }, false, ..WIDENED_QUERIES) => self.halves::<L, 2, 2>(l),
            (HeadLayout::Apart { .. }, false, _) => self.widened::<L, 2, 2>(l),
            (HeadLayout::Apart { .. }, true, ..=2) => self.halves::<L, 2, 4>(l),
            (HeadLayout::Apart { .. }, true, ..=4) => self.halves::<L, 4, 4>(l),
            (HeadLayout::Apart { .. }, true, ..=6) => self.halves::<L, 6, 2>(l),
            (HeadLayout::Apart { .. }, true, ..WIDENED_QUERIES) => self.halves::<L, 8, 2>(l),
            (HeadLayout::Apart { .. }, true, _) => self.widened::<L, 4, 4>(l),
        }
    }
}

/// A page and the queries that look at it, whatever its layout.
trait Reduce {
    /// Leaves each query's exp(score − largest) in `scores`, its largest score, and the sum of the exponentials.
    fn score<L: Lanes>(&mut self, l: L, scores: &mut [Scores], largest: &mut [f32], sums: &mut [f32]);

    /// Adds each query's values, weighted by `p`: with factors, to what is there, each times its factor.
    fn weigh<L: Lanes>(&mut self, l: L, p: &[Scores], factors: Option<[&[f32]; 2]>, out: &mut [Vector]);
}

impl Gather<'_, '_> {
    #[inline(always)]
    fn halves<L: Lanes, const R: usize, const W: usize>(&mut self, l: L) {
        let pages = self.attend.pages;
        for (index, page) in pages.iter().enumerate() {
            let next = pages[(index + 1).min(pages.len() - 1)].as_ptr();
            self.page::<L, _, R, W>(l, index, page.as_chunks::<LANES>().0, next);
        }
    }

    #[inline(always)]
    fn widened<L: Lanes, const R: usize, const W: usize>(&mut self, l: L) {
        let mut widened = std::mem::take(&mut self.scratch.widened);
        for (index, page) in self.attend.pages.iter().enumerate() {
            for (wide, half) in widened.iter_mut().zip(page.as_chunks().0) {
                l.store(l.load_half(half), &mut wide.0);
            }
            self.page::<L, _, R, W>(l, index, &widened, page.as_ptr());
        }
        self.scratch.widened = widened;
    }

    #[inline(always)]
    fn page<L: Lanes, E: Element, const R: usize, const W: usize>(
        &mut self,
        l: L,
        index: usize,
        elements: &[E],
        next: *const u16,
    ) {
        let Attend { layout, scoring, queries, .. } = self.attend;
        let slots = self.slots(index);
        let (keys, values) = elements.split_at(PAGE_POSITIONS / LANES * layout.key_dim());
        let (x, next, columns) = (queries.x, next.cast(), 0..layout.vectors());
        let page = Page::<_, R, W> { keys, values, columns, x, slots: &slots, scoring, layout, next };
        self.reduce(l, index, page);
        self.scratch.slots = slots;
    }

    #[inline(always)]
    fn shared<L: Lanes, const R: usize, const W: usize>(&mut self, l: L) {
        let Attend { layout, scoring, queries, pages, .. } = self.attend;
        let mut widened = std::mem::take(&mut self.scratch.widened);
        for (index, page) in pages.iter().enumerate() {
            let slots = self.slots(index);
            let next = pages[(index + 1).min(pages.len() - 1)].as_chunks().0;
            let (rows, x, widened) = (page.as_chunks().0, queries.x, &mut widened[..]);
            let page = SharedPage::<R, W> { rows, next, x, slots: &slots, scoring, layout, widened };
            self.reduce(l, index, page);
            self.scratch.slots = slots;
        }
        self.scratch.widened = widened;
    }

    /// What each query attends to in the page, in memory that is given back to the scratch.
    #[inline(always)]
    fn slots(&mut self, index: usize) -> Vec<Range<usize>> {
        let Attend { scoring, queries, first_page, .. } = self.attend;
        let mut slots = std::mem::take(&mut self.scratch.slots);
        let rows = queries.position..queries.position + self.scratch.scores.len() / queries.heads;
        let seen = rows.map(|position| scoring.slots(position, first_page + index));
        slots.clear();
        slots.extend(seen.flat_map(|slots| std::iter::repeat_n(slots, queries.heads)));
        slots
    }

    #[inline(always)]
    fn reduce<L: Lanes>(&mut self, l: L, index: usize, mut page: impl Reduce) {
        let Scratch { scores, largest, sums, factors: [old, new], .. } = &mut *self.scratch;
        match &mut self.attend.into {
            Target::Merged(gathered) => {
                let part = gathered.part(0);
                page.score(l, scores, largest.as_flattened_mut(), sums.as_flattened_mut());
                merge_sums(l, part.largest, part.sums, largest, sums, [old, new]);
                page.weigh(l, scores, Some([old.as_flattened(), new.as_flattened()]), part.values);
            }
            Target::Apart(gathered) => {
                let part = gathered.part(index);
                page.score(l, scores, part.largest.as_flattened_mut(), part.sums.as_flattened_mut());
                page.weigh(l, scores, None, part.values);
            }
        }
    }
}
