//! The exact search: which workers, in which order, with which layers.
//!
//! A state is (layers placed, kind of the last worker, how often scarce kinds are used, stages so far), and a step gives the
//! next layers to some worker. Workers that differ in nothing are one kind. At first every kind may be used without end,
//! which is a relaxation: its best answer is a bound, and where it uses no kind more often than there are workers of it, it
//! is the answer. Else that kind becomes scarce, its uses are counted in the state, and the search begins again (decremental
//! state-space relaxation; Righini and Salani 2008). States and steps are limited, by their numbers and not by a clock, so that
//! the same workers always get the same plan; beyond that the best plan known is taken, with its distance from the bound.

use std::ops::Range;

use super::Goal;

/// What the search knows of the workers. Times are in picoseconds.
#[derive(Debug)]
pub(super) struct Problem {
    /// Layers of the model.
    pub(super) layers: usize,
    /// `stages[kind][start]` holds the ranges from `start` that a worker of this kind may have, in increasing length; a
    /// range that it may not have is `None`.
    pub(super) stages: Vec<Vec<Vec<Option<StageTime>>>>,
    /// Workers of each kind.
    pub(super) counts: Vec<usize>,
    /// `hops[from][to]`: a row's way between workers of two kinds; the last index is the coordinator. `None` where there is
    /// no way.
    pub(super) hops: Vec<Vec<Option<u64>>>,
    /// Fewer stages than this are no plan.
    pub(super) stages_least: usize,
}

/// The time of a stage.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct StageTime {
    /// For one token of one stream.
    pub(super) token: u64,
    /// For its share of the work that keeps all stages busy.
    pub(super) load: u64,
}

/// Layers for a worker of some kind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) kind: usize,
    pub(super) layers: Range<usize>,
}

/// A way to deal the layers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Deal {
    /// One after the other.
    pub(super) places: Vec<Place>,
    /// By how much, in percent, another way could be better at most.
    pub(super) gap_percent: f64,
}

/// What a search has found.
#[derive(Debug)]
struct Found {
    places: Vec<Place>,
    /// A token's way through all of them.
    token: u64,
    /// No way to deal them takes less.
    bound: u64,
}

impl Problem {
    /// The best way for `goal`; `None` where there is no way at all.
    pub(super) fn best(&self, goal: Goal) -> Option<Deal> {
        let mut effort = Effort { scarce: Vec::new(), steps_left: STEPS_MOST };
        let fastest = self.fastest(u64::MAX, u64::MAX, &mut effort)?;
        let token_most = match goal {
            Goal::Latency => {
                let gap_percent = gap_percent(fastest.token, fastest.bound);
                return Some(Deal { places: fastest.places, gap_percent });
            }
            Goal::Balanced => fastest.token.saturating_add(fastest.token / BALANCED_SHARE),
            Goal::Throughput => u64::MAX,
        };
        let mut loads = self.loads();
        loads.retain(|&load| load < self.load_of(&fastest.places));
        let (mut low, mut high, mut best) = (0, loads.len(), fastest.places);
        // The larger the largest load may be, the less a token may take.
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.fastest(loads[middle], token_most, &mut effort) {
                Some(found) => (best, high) = (found.places, middle),
                None => low = middle + 1,
            }
        }
        let gap_percent = self.load_gap_percent(&loads[..high], self.load_of(&best), token_most, &effort);
        Some(Deal { places: best, gap_percent })
    }

    /// By how much a way could be better whose stages have the largest load `best`, when no way was found for the smaller
    /// `loads`: a search that was cut short has proved nothing.
    fn load_gap_percent(&self, loads: &[u64], best: u64, token_most: u64, effort: &Effort) -> f64 {
        let impossible = |&load: &u64| self.bound(load, effort).is_none_or(|token| token > token_most);
        match loads.last() {
            Some(last) if !impossible(last) => {
                let possible = loads.partition_point(impossible);
                gap_percent(best, loads[possible])
            }
            Some(_) | None => 0.0,
        }
    }

    /// No way without a stage whose load is above `load_most` takes a token less than this; `None` where there is none.
    fn bound(&self, load_most: u64, effort: &Effort) -> Option<u64> {
        let filled = self.filled(load_most)?;
        // A search that ran out of steps proves nothing, and neither would another one.
        if effort.steps_left == 0 {
            return Some(filled);
        }
        let mut again = effort.clone();
        match Search::run(self, load_most, &mut again) {
            Some(search) => search.best().map(|(token, _)| token.max(filled)),
            None => Some(filled),
        }
    }

    /// What all layers take at least if every worker takes those that it computes fastest, as many as it has room for and
    /// wherever they lie; `None` where they have no room for all layers.
    fn filled(&self, load_most: u64) -> Option<u64> {
        let offer = |(kind, &count): (usize, &usize)| {
            let ranges = || self.stages[kind].iter().flat_map(|ranges| (1_u64..).zip(ranges));
            let allowed =
                || ranges().filter_map(|(length, stage)| Some((length, stage.filter(|s| s.load <= load_most)?)));
            let most = allowed().map(|(length, _)| length).max()?;
            let least = allowed().map(|(length, stage)| stage.token / length).min()?;
            Some((least, most * count as u64))
        };
        let mut offers: Vec<(u64, u64)> = self.counts.iter().enumerate().filter_map(offer).collect();
        offers.sort_unstable();
        let (mut left, mut token) = (self.layers as u64, 0_u64);
        for (each, most) in offers {
            let taken = most.min(left);
            left -= taken;
            token = token.saturating_add(each.saturating_mul(taken));
        }
        (left == 0).then_some(token)
    }

    /// The fastest way for a token, which may take so long, without a stage whose load is above `load_most`; among equal ones
    /// the most even. What turns out to be scarce is added to the effort, for the next search.
    fn fastest(&self, load_most: u64, token_most: u64, effort: &mut Effort) -> Option<Found> {
        let mut bound = self.filled(load_most)?;
        while bound <= token_most {
            let Some(search) = Search::run(self, load_most, effort) else {
                let known = self.in_order(load_most).map(|(token, places)| Found { places, token, bound });
                return known.filter(|found| found.token <= token_most);
            };
            let (token, places) = search.best()?;
            bound = bound.max(token);
            match self.overused(&places) {
                Some(kind) => effort.scarce.push(kind),
                None => return (token <= token_most).then_some(Found { places, token, bound }),
            }
        }
        None
    }

    /// The loads that a stage may have, in increasing order; where there are very many, those that differ.
    fn loads(&self) -> Vec<u64> {
        let stages = self.stages.iter().flatten().flatten().flatten();
        let mut loads: Vec<u64> = stages.map(|stage| stage.load).collect();
        loads.sort_unstable();
        loads.dedup();
        if loads.len() > LOADS_MOST {
            loads.dedup_by(|next, kept| *next - *kept < *kept / LOAD_STEPS);
        }
        loads
    }

    /// The largest load of a deal's stages.
    pub(super) fn load_of(&self, places: &[Place]) -> u64 {
        places.iter().filter_map(|place| self.stage(place)).map(|stage| stage.load).max().unwrap_or(0)
    }

    fn stage(&self, place: &Place) -> Option<StageTime> {
        *self.stages[place.kind].get(place.layers.start)?.get(place.layers.len().checked_sub(1)?)?
    }

    /// The first kind of which more workers are used than there are.
    fn overused(&self, places: &[Place]) -> Option<usize> {
        let used = |kind: usize| places.iter().filter(|place| place.kind == kind).count();
        (0..self.counts.len()).find(|&kind| used(kind) > self.counts[kind])
    }

    fn states(&self, scarce: &[usize]) -> usize {
        let uses = scarce.iter().fold(1_usize, |n, &kind| n.saturating_mul(self.counts[kind] + 1));
        uses.saturating_mul((self.layers + 1) * self.counts.len() * (self.stages_least + 1))
    }

    /// The best way that uses the kinds one after the other, as they are numbered: quick to find, and never more workers
    /// than there are.
    fn in_order(&self, load_most: u64) -> Option<(u64, Vec<Place>)> {
        let workers: Vec<usize> =
            self.counts.iter().enumerate().flat_map(|(kind, &count)| std::iter::repeat_n(kind, count)).collect();
        let end = self.counts.len();
        // best[placed] holds the cost, the last kind and the places so far.
        let mut best: Vec<Option<(Cost, usize, Vec<Place>)>> = vec![None; self.layers + 1];
        best[0] = Some((Cost::default(), end, Vec::new()));
        for &kind in &workers {
            for start in (0..self.layers).rev() {
                let Some((cost, last, places)) = best[start].clone() else { continue };
                let Some(hop) = self.hops[last][kind] else { continue };
                for (length, stage) in self.stages[kind][start].iter().enumerate() {
                    let Some(stage) = *stage else { continue };
                    if stage.load > load_most {
                        break;
                    }
                    let (cost, layers) = (cost.after(hop, stage), start..start + length + 1);
                    if best[layers.end].as_ref().is_none_or(|(known, ..)| cost < *known) {
                        let place = Place { kind, layers: layers.clone() };
                        best[layers.end] = Some((cost, kind, [places.clone(), vec![place]].concat()));
                    }
                }
            }
        }
        let (cost, last, places) = best.pop().flatten()?;
        let home = self.hops[last][end]?;
        (places.len() >= self.stages_least).then_some((cost.token.saturating_add(home), places))
    }
}

fn gap_percent(found: u64, bound: u64) -> f64 {
    (100.0 * (found as f64 / bound.max(1) as f64 - 1.0)).max(0.0)
}

/// How good a partial deal is: less is better, fields compared in order.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
struct Cost {
    token: u64,
    /// Breaks the ties of equal workers: 8, 8, 7, 7 layers rather than 8, 8, 8, 6.
    squares: u128,
}

impl Cost {
    fn after(self, hop: u64, stage: StageTime) -> Self {
        let square = u128::from(stage.load) * u128::from(stage.load);
        let token = self.token.saturating_add(hop).saturating_add(stage.token);
        Self { token, squares: self.squares.saturating_add(square) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Label {
    cost: Cost,
    /// The state before, and the layers before that.
    from: usize,
}

/// What a search knows from those before it, and what it may still take.
#[derive(Clone, Debug)]
struct Effort {
    /// Kinds whose uses are counted.
    scarce: Vec<usize>,
    steps_left: u64,
}

/// One pass over the states, with the uses of scarce kinds counted.
struct Search<'a> {
    problem: &'a Problem,
    /// What a use of each kind adds to the state's number, and the most uses; 0 and `usize::MAX` where it is not scarce.
    weights: Vec<(usize, usize)>,
    /// Different numbers of uses.
    uses: usize,
    labels: Vec<Option<Label>>,
}

impl<'a> Search<'a> {
    /// A whole search; `None` if that takes more states or steps than are left.
    fn run(problem: &'a Problem, load_most: u64, effort: &mut Effort) -> Option<Self> {
        let Effort { scarce, steps_left } = effort;
        if *steps_left == 0 || problem.states(scarce) > STATES_MOST {
            return None;
        }
        let mut weights = vec![(0, usize::MAX); problem.counts.len()];
        let mut uses = 1;
        for &kind in scarce.iter() {
            weights[kind] = (uses, problem.counts[kind]);
            uses *= problem.counts[kind] + 1;
        }
        let mut search = Self { problem, weights, uses, labels: vec![None; problem.states(scarce)] };
        search.fill(load_most, steps_left);
        (*steps_left > 0).then_some(search)
    }

    fn fill(&mut self, load_most: u64, steps_left: &mut u64) {
        let coordinator = self.problem.counts.len();
        for kind in 0..coordinator {
            let steps = self.extend(START, Cost::default(), 0, kind, self.problem.hops[coordinator][kind], load_most);
            *steps_left = steps_left.saturating_sub(steps);
        }
        let per_layer = self.labels.len() / (self.problem.layers + 1);
        for state in per_layer..self.labels.len() - per_layer {
            let Some(Label { cost, .. }) = self.labels[state] else { continue };
            let (placed, last) = (state / per_layer, self.kind_of(state));
            if *steps_left == 0 {
                return;
            }
            for kind in 0..coordinator {
                // One worker alone does not hand rows to itself.
                if kind != last || self.problem.counts[kind] > 1 {
                    let steps = self.extend(state, cost, placed, kind, self.problem.hops[last][kind], load_most);
                    *steps_left = steps_left.saturating_sub(steps);
                }
            }
        }
    }

    /// Gives layers from `placed` on to a worker of this kind, in every length that it may have; how many steps that took.
    fn extend(
        &mut self,
        state: usize,
        cost: Cost,
        placed: usize,
        kind: usize,
        hop: Option<u64>,
        load_most: u64,
    ) -> u64 {
        let (weight, most) = self.weights[kind];
        let (used, stages) = if state == START { (0, 0) } else { (self.used_of(state), self.stages_of(state)) };
        let Some(hop) = hop.filter(|_| weight == 0 || used / weight % (most + 1) < most) else { return 1 };
        let (used, stages) = (used + weight, (stages + 1).min(self.problem.stages_least));
        let mut steps = 1;
        for (length, stage) in self.problem.stages[kind][placed].iter().enumerate() {
            let Some(stage) = *stage else { continue };
            // Further layers only add to it.
            if stage.load > load_most {
                break;
            }
            steps += 1;
            let cost = cost.after(hop, stage);
            let next = self.state(placed + length + 1, kind, used, stages);
            if self.labels[next].is_none_or(|known| cost < known.cost) {
                self.labels[next] = Some(Label { cost, from: state });
            }
        }
        steps
    }

    /// The least cost with all layers placed, the way home included, and the places that lead there.
    fn best(&self) -> Option<(u64, Vec<Place>)> {
        let (problem, coordinator) = (self.problem, self.problem.counts.len());
        let per_layer = self.labels.len() / (problem.layers + 1);
        let ends = (self.labels.len() - per_layer..self.labels.len()).filter_map(|state| {
            let home = problem.hops[self.kind_of(state)][coordinator]?;
            let label = self.labels[state].filter(|_| self.stages_of(state) == problem.stages_least)?;
            Some((Cost { token: label.cost.token.saturating_add(home), ..label.cost }, state))
        });
        let (cost, mut state) = ends.min()?;
        let mut places = Vec::new();
        while let Some(label) = self.labels[state] {
            let start = if label.from == START { 0 } else { label.from / per_layer };
            places.push(Place { kind: self.kind_of(state), layers: start..state / per_layer });
            if label.from == START {
                break;
            }
            state = label.from;
        }
        places.reverse();
        Some((cost.token, places))
    }

    fn state(&self, placed: usize, kind: usize, used: usize, stages: usize) -> usize {
        let kinds = self.problem.counts.len();
        ((placed * kinds + kind) * self.uses + used) * (self.problem.stages_least + 1) + stages
    }

    fn kind_of(&self, state: usize) -> usize {
        state / (self.problem.stages_least + 1) / self.uses % self.problem.counts.len()
    }

    fn used_of(&self, state: usize) -> usize {
        state / (self.problem.stages_least + 1) % self.uses
    }

    fn stages_of(&self, state: usize) -> usize {
        state % (self.problem.stages_least + 1)
    }
}

/// Where a deal begins: no state has this number.
const START: usize = usize::MAX;
/// A balanced plan's tokens take at most a twentieth longer than those of the fastest one.
const BALANCED_SHARE: u64 = 20;
/// Above this many loads, those are one that differ by less than the next.
const LOADS_MOST: usize = 1000;
/// A part of so many.
const LOAD_STEPS: u64 = 500;
/// Some 25 MB of labels.
const STATES_MOST: usize = 1 << 19;
/// Labels that are compared in all searches for one plan: about half a second.
const STEPS_MOST: u64 = 100_000_000;
