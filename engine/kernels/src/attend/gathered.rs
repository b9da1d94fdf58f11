//! What queries have gathered from some pages, and the one formula that merges it.

use super::{
    super::{
        lanes::{Kernel, LANES, Lanes, entries},
        math::exp,
    },
    HeadLayout, Vector,
};

/// For some queries, in one or more parts: the largest score, the sum of exponentials, the weighted values.
#[derive(Debug)]
pub struct Gathered {
    queries: usize,
    vectors: usize,
    /// (parts, queries filled up to whole lanes)
    largest: Vec<[f32; LANES]>,
    /// As `largest`; zero where a query attends to nothing of the part.
    sums: Vec<[f32; LANES]>,
    /// (parts, queries, vectors)
    values: Vec<Vector>,
}

/// One part of [`Gathered`].
pub(super) struct Part<'a> {
    pub(super) largest: &'a mut [[f32; LANES]],
    pub(super) sums: &'a mut [[f32; LANES]],
    pub(super) values: &'a mut [Vector],
}

impl Gathered {
    /// Nothing yet.
    pub fn new(layout: HeadLayout, queries: usize, parts: usize) -> Self {
        let (vectors, groups) = (layout.vectors(), queries.div_ceil(LANES));
        Self {
            queries,
            vectors,
            largest: vec![[f32::NEG_INFINITY; LANES]; parts * groups],
            sums: vec![[0.0; LANES]; parts * groups],
            values: vec![Vector([0.0; LANES]); parts * queries * vectors],
        }
    }

    /// One part, with nothing in it but the sinks of the heads that take turns in the queries, where there are any.
    pub fn start(layout: HeadLayout, queries: usize, sinks: &[f32]) -> Self {
        let mut gathered = Self::new(layout, queries, 1);
        let sums = gathered.sums.as_flattened_mut()[..queries].iter_mut();
        let scores = gathered.largest.as_flattened_mut()[..queries].iter_mut();
        for ((largest, sum), sink) in scores.zip(sums).zip(sinks.iter().cycle()) {
            (*largest, *sum) = (*sink, 1.0);
        }
        gathered
    }

    pub(super) fn part(&mut self, index: usize) -> Part<'_> {
        let (groups, len) = (self.queries.div_ceil(LANES), self.queries * self.vectors);
        Part {
            largest: &mut self.largest[index * groups..][..groups],
            sums: &mut self.sums[index * groups..][..groups],
            values: &mut self.values[index * len..][..len],
        }
    }

    fn parts(&self) -> usize {
        self.sums.len() / self.queries.div_ceil(LANES)
    }
}

/// Merges parts, in their order, into the first part of what was gathered before them.
pub struct Merge<'a> {
    /// The earlier pages, which take the later ones up.
    pub into: &'a mut Gathered,
    /// The later pages.
    pub later: &'a mut Gathered,
}

entries!(Merge<'_> => (), Normalise<'_, '_> => ());

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        let vectors = self.into.vectors;
        let into = self.into.part(0);
        let [mut old, mut new] = [(); 2].map(|()| vec![[0.0; LANES]; into.sums.len()]);
        for index in 0..self.later.parts() {
            let part = self.later.part(index);
            merge_sums(l, into.largest, into.sums, part.largest, part.sums, [&mut old, &mut new]);
            let factors = old.as_flattened().iter().zip(new.as_flattened()).zip(part.sums.as_flattened());
            let rows = into.values.chunks_exact_mut(vectors).zip(part.values.chunks_exact(vectors));
            for ((into, values), ((old, new), sum)) in rows.zip(factors) {
                if *sum == 0.0 {
                    continue;
                }
                for (into, values) in into.iter_mut().zip(values) {
                    l.store(merged(l, l.load(&into.0), *old, l.load(&values.0), *new), &mut into.0);
                }
            }
        }
    }
}

/// Divides the first part's values by their sums.
pub struct Normalise<'a, 'b> {
    /// All pages, merged into one part.
    pub gathered: &'a Gathered,
    /// Per row (heads that share the KV head, value_dim).
    pub out: &'a mut [&'b mut [f32]],
    /// Elements of a value.
    pub value_dim: usize,
}

impl Kernel for Normalise<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        let Gathered { vectors, sums, values, .. } = self.gathered;
        let outs = self.out.iter_mut().flat_map(|row| row.chunks_exact_mut(self.value_dim));
        for ((out, values), sum) in outs.zip(values.chunks_exact(*vectors)).zip(sums.as_flattened()) {
            let (whole, rest) = out.as_chunks_mut();
            for (out, value) in whole.iter_mut().zip(values) {
                l.store(l.div(l.load(&value.0), l.splat(*sum)), out);
            }
            if let Some(value) = values.get(whole.len()) {
                let mut quotients = [0.0; LANES];
                l.store(l.div(l.load(&value.0), l.splat(*sum)), &mut quotients);
                rest.copy_from_slice(&quotients[..rest.len()]);
            }
        }
    }
}

/// Merges a part's largest scores and sums into those before, and leaves the factors on the values of both.
#[inline(always)]
pub(super) fn merge_sums<L: Lanes>(
    l: L,
    into_largest: &mut [[f32; LANES]],
    into_sums: &mut [[f32; LANES]],
    largest: &[[f32; LANES]],
    sums: &[[f32; LANES]],
    [old, new]: [&mut [[f32; LANES]]; 2],
) {
    let into = into_largest.iter_mut().zip(into_sums);
    let factors = old.iter_mut().zip(new);
    for (((into_largest, into_sum), (largest, sum)), (old, new)) in into.zip(largest.iter().zip(sums)).zip(factors) {
        let (before, top) = (l.load(into_largest), l.load(largest));
        let both = l.max(before, top);
        let (a, b) = (exp(l, l.sub(before, both)), exp(l, l.sub(top, both)));
        l.store(a, old);
        l.store(b, new);
        let (mut tops, mut totals) = ([0.0; LANES], [0.0; LANES]);
        l.store(both, &mut tops);
        l.store(l.fma(l.load(into_sum), a, l.mul(l.load(sum), b)), &mut totals);
        for i in 0..LANES {
            if sum[i] != 0.0 {
                (into_largest[i], into_sum[i]) = (tops[i], totals[i]);
            }
        }
    }
}

/// old · before + new · values.
#[inline(always)]
pub(super) fn merged<L: Lanes>(l: L, before: L::F, old: f32, values: L::F, new: f32) -> L::F {
    l.fma(before, l.splat(old), l.mul(values, l.splat(new)))
}
