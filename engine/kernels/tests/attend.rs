//! Attention against f64, and the same bits on every tier, in any company, from pages gathered together or apart.

use std::ops::Range;

use half::f16;
use qmesh_arithmetic::Window;
use qmesh_kernels::{
    attend::{Attend, Gathered, HeadLayout, Merge, Normalise, PAGE_POSITIONS, Queries, ScoreRule, Target, Write},
    lanes::Simd,
};

use crate::random::noise;

const POSITIONS: usize = 200;
const HEADS: usize = 3;

/// What only some families have.
#[derive(Clone, Default)]
struct Extras {
    soft_cap: Option<f32>,
    sinks: Vec<f32>,
}

struct Case {
    layout: HeadLayout,
    scoring: ScoreRule,
    keys: Vec<f32>,
    values: Vec<f32>,
    pages: Vec<Vec<u16>>,
    /// (positions, heads, key_dim)
    queries: Vec<f32>,
    /// Of the heads, or nothing.
    sinks: Vec<f32>,
}

impl Case {
    fn new(layout: HeadLayout, window: Window, extras: &Extras, simd: Simd) -> Self {
        let (key_dim, value_dim) = (layout.key_dim(), layout.value_dim());
        let keys = noise(POSITIONS * key_dim, 1);
        let values = match layout {
            HeadLayout::Apart { .. } => noise(POSITIONS * value_dim, 2),
            HeadLayout::Shared { .. } => keys.chunks(key_dim).flat_map(|key| &key[..value_dim]).copied().collect(),
        };
        // What was never written is NaN, as a stale page might be.
        let mut pages = vec![vec![f16::NAN.to_bits(); layout.page_len()]; POSITIONS.div_ceil(PAGE_POSITIONS)];
        let rows = keys.chunks(key_dim).zip(values.chunks(value_dim));
        for (position, (key, value)) in rows.enumerate() {
            let page = &mut pages[position / PAGE_POSITIONS];
            Write { layout, page, slot: position % PAGE_POSITIONS, key, value }.run(simd);
        }
        let Extras { soft_cap, sinks } = extras.clone();
        let scoring = ScoreRule { scale: 0.7, soft_cap, window };
        Self { layout, scoring, keys, values, pages, queries: noise(POSITIONS * HEADS * key_dim, 3), sinks }
    }

    /// Of the rows at `positions`, their pages gathered in runs that end before each page of `cuts`.
    fn attend(&self, simd: Simd, positions: Range<usize>, cuts: &[usize]) -> Vec<f32> {
        let width = HEADS * self.layout.key_dim();
        let x = &self.queries[positions.start * width..positions.end * width];
        let pages = self.scoring.pages(positions.clone());
        let cuts = cuts.iter().copied().filter(|cut| pages.contains(cut) && *cut > pages.start);
        let ends = cuts.clone().chain([pages.end]);
        let mut first = None;
        for (start, end) in [pages.start].into_iter().chain(cuts).zip(ends) {
            let count = x.len() / self.layout.key_dim();
            let mut gathered = match first {
                None => Gathered::start(self.layout, count, &self.sinks),
                Some(_) => Gathered::new(self.layout, count, end - start),
            };
            let queries = Queries { x, heads: HEADS, position: positions.start };
            let into = if first.is_none() { Target::Merged(&mut gathered) } else { Target::Apart(&mut gathered) };
            let run: Vec<&[u16]> = self.pages[start..end].iter().map(Vec::as_slice).collect();
            let Self { layout, scoring, .. } = *self;
            Attend { layout, scoring, queries, pages: &run, first_page: start, into }.gather(simd);
            match &mut first {
                Some(first) => Merge { into: first, later: &mut gathered }.run(simd),
                None => first = Some(gathered),
            }
        }
        let mut out = vec![0.0; positions.len() * self.width()];
        let mut rows: Vec<&mut [f32]> = out.chunks_mut(self.width()).collect();
        Normalise { gathered: &first.unwrap(), out: &mut rows, value_dim: self.layout.value_dim() }.run(simd);
        out
    }

    /// Elements of what a row attends to.
    fn width(&self) -> usize {
        HEADS * self.layout.value_dim()
    }

    /// In f64, from the rounded keys and values: head `head` of the row at `position`.
    fn naive(&self, position: usize, head: usize) -> Vec<f64> {
        let (key_dim, value_dim) = (self.layout.key_dim(), self.layout.value_dim());
        let round = |x: f32| f16::from_f32(x).to_f64();
        let query = &self.queries[(position * HEADS + head) * key_dim..][..key_dim];
        let attended = self.scoring.first(position)..position + 1;
        let key = |at: usize| &self.keys[at * key_dim..][..key_dim];
        let dot = |at: usize| key(at).iter().zip(query).map(|(k, q)| round(*k) * f64::from(*q)).sum::<f64>();
        let cap = |s: f64| self.scoring.soft_cap.map(f64::from).map_or(s, |cap| cap * (s / cap).tanh());
        let p: Vec<f64> = attended.clone().map(|at| cap(dot(at) * f64::from(self.scoring.scale)).exp()).collect();
        let sink = self.sinks.get(head).map_or(0.0, |sink| f64::from(*sink).exp());
        let total = p.iter().sum::<f64>() + sink;
        let value = |at: usize, i: usize| round(self.values[at * value_dim + i]);
        (0..value_dim).map(|i| attended.clone().zip(&p).map(|(at, p)| value(at, i) * p).sum::<f64>() / total).collect()
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_tier_grouping_and_cut_gives_the_same_bits_close_to_f64() {
    let plain = Extras::default();
    let capped = Extras { soft_cap: Some(2.0), ..Extras::default() };
    // One head's sink is far above its scores, one's far below.
    let sinking = Extras { sinks: vec![9.0, -0.5, -40.0], ..Extras::default() };
    let apart = |head_dim| HeadLayout::Apart { head_dim };
    let shared = |key_dim, value_dim| HeadLayout::Shared { key_dim, value_dim };
    for (layout, window, extras) in [
        (apart(16), Window::Full, &plain),
        (apart(16), Window::Full, &capped),
        (apart(40), Window::Sliding(70), &plain),
        (apart(64), Window::Full, &plain),
        (apart(64), Window::Sliding(20), &sinking),
        (apart(64), Window::Chunked(50), &plain),
        (apart(80), Window::Chunked(64), &capped),
        (apart(80), Window::Sliding(130), &plain),
        (apart(96), Window::Full, &plain),
        (apart(128), Window::Sliding(9), &plain),
        (shared(24, 16), Window::Full, &plain),
        (shared(40, 33), Window::Sliding(20), &sinking),
        (shared(144, 128), Window::Full, &capped),
        (shared(192, 80), Window::Sliding(130), &plain),
    ] {
        check(layout, window, extras);
    }
}

fn check(layout: HeadLayout, window: Window, extras: &Extras) {
    let case = Case::new(layout, window, extras, Simd::available()[0]);
    let width = case.width();
    let together = case.attend(Simd::available()[0], 0..POSITIONS, &[]);
    for simd in Simd::available() {
        assert_eq!(Case::new(layout, window, extras, simd).pages, case.pages, "{}", simd.name());
        for (positions, cuts) in
            [(0..POSITIONS, &[][..]), (0..POSITIONS, &[1, 3]), (61..68, &[]), (120..197, &[2]), (199..200, &[1, 2, 3])]
        {
            let part = case.attend(simd, positions.clone(), cuts);
            let expected = &together[positions.start * width..positions.end * width];
            assert_eq!(bits(&part), bits(expected), "{} {layout:?} {positions:?} {cuts:?}", simd.name());
        }
    }
    for position in [0, 1, 31, 62, 63, 64, 100, 127, 128, 199] {
        let alone = case.attend(Simd::available()[0], position..position + 1, &[]);
        assert_eq!(bits(&alone), bits(&together[position * width..][..width]), "{layout:?} alone at {position}");
        for (head, y) in alone.chunks(layout.value_dim()).enumerate() {
            for (y, e) in y.iter().zip(case.naive(position, head)) {
                assert!((f64::from(*y) - e).abs() < 1e-5, "{layout:?} at {position}: {y} for {e}");
            }
        }
    }
}

#[test]
fn windows_begin_with_their_last_positions_or_with_their_chunk() {
    let first =
        |window| [0, 48, 49, 50, 99, 100, 149].map(|at| ScoreRule { scale: 1.0, soft_cap: None, window }.first(at));
    assert_eq!(first(Window::Full), [0; 7]);
    assert_eq!(first(Window::Sliding(50)), [0, 0, 0, 1, 50, 51, 100]);
    assert_eq!(first(Window::Chunked(50)), [0, 0, 0, 50, 50, 100, 100]);
}
