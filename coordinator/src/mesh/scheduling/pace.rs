//! How long steps take, learnt from those that came back, and what follows from that for the next ones: into how many
//! groups the decoding sequences are dealt, how many steps are under way at a time, how many prompt rows ride along
//! with tokens, and how many drafted tokens pay.
//!
//! The formulas: let n sequences decode in G groups of B rows each. A step of B rows takes the slowest stage t(B), and
//! all stages together T(B); H is what it spends on links. A sequence then gets a token every max(G·t(B), T(B) + H),
//! and M = (T + H) / t steps keep the slowest stage busy.

use std::{collections::BTreeMap, time::Duration};

use qmesh_net::StepTimes;

use crate::plan::chunk;

/// What is known of a pipeline's times, and what prompts may still take of them.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    stages: usize,
    /// Steps learnt from.
    learnt: u64,
    /// What was measured, by rows.
    steps: BTreeMap<usize, Known>,
    /// What follows from all measurements: times by rows, in rising order of both.
    curve: Vec<(usize, Times)>,
    /// Time of a step that is neither computing nor waiting for a stage, in seconds.
    hops: Option<f64>,
    /// Time that prompts may take from the sequences that decode and have not taken yet, in seconds.
    spare: f64,
    round: Round,
}

/// What a step takes of the stages.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Times {
    /// On the slowest stage, in seconds.
    slowest: f64,
    /// On all stages together, in seconds.
    sum: f64,
}

/// Prompts that wait, as a number for each sequence that decodes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct WaitingPrompts {
    /// Of those that take many steps.
    pub(crate) long: f64,
    /// Of those that are over after a few.
    pub(crate) short: f64,
}

/// How many tokens to draft.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Drafts {
    /// For each sequence.
    pub(crate) tokens: usize,
    /// Tokens a second of each sequence that are expected of it.
    pub(crate) rate: f64,
}

/// A round is one step of each group; all its steps get the same number of rows.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// Steps of it that have not been filled yet.
    steps: usize,
    /// Rows of each step: tokens and prompt rows together.
    rows: usize,
}

/// Whether prompts wait to be computed beside the sequences that decode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Prompts {
    None,
    Waiting,
}

/// What was measured of steps with one number of rows.
#[derive(Clone, Copy, Debug)]
struct Known {
    times: Times,
    /// After how many steps it was last measured.
    learnt: u64,
}

impl Pace {
    /// Nothing is known of a new pipeline.
    pub(crate) fn new(stages: usize) -> Self {
        Self { stages: stages.max(1), ..Self::default() }
    }

    /// Learns from a step of `rows` rows that came back after `whole`.
    pub(crate) fn learn(&mut self, rows: usize, times: StepTimes, whole: Duration) {
        let seconds = |us: u32| f64::from(us) / 1e6;
        let (compute, queued) = (seconds(times.compute_us), seconds(times.queued_us));
        let new = Times { slowest: seconds(times.slowest_us), sum: compute };
        self.learnt += 1;
        let (learnt, keep) = (self.learnt, STALE_STEPS.max((STALE_FILLS * self.fill(rows)) as u64));
        self.steps.retain(|_, known| learnt - known.learnt < keep);
        let first = self.first(rows, new);
        let known = self.steps.entry(bucket(rows)).or_insert(Known { times: first, learnt });
        known.learnt = learnt;
        let nearer = |known: f64, new: f64| known + FRESH * (new.clamp(known / OUTLIER, known * OUTLIER) - known);
        known.times = known.times.with(new, nearer);
        self.curve = rising(&self.steps);
        let hops = (whole.as_secs_f64() - compute - queued).max(0.0);
        let known = self.hops.get_or_insert(hops);
        *known += FRESH * (hops - *known);
    }

    /// The number of groups in which so many sequences decode: the one that gives the most tokens. Of several that give
    /// about as many it is the smallest; while prompts wait, whose rows fill up small groups, it is the largest.
    pub(crate) fn groups(&self, decoding: usize, prompts: Prompts) -> usize {
        if self.steps.is_empty() {
            return decoding.min(self.stages).max(1);
        }
        let mut rates = (1..=decoding).map(|groups| (groups, self.rate(decoding, groups)));
        let most = rates.clone().map(|(_, rate)| rate).fold(0.0, f64::max);
        let best = match prompts {
            Prompts::None => rates.find(|(_, rate)| *rate >= 0.999 * most),
            Prompts::Waiting => rates.rfind(|(_, rate)| *rate >= 0.98 * most),
        };
        best.map_or(1, |(groups, _)| groups)
    }

    /// The most steps that are under way at a time.
    pub(crate) fn steps_most(&self, groups: usize, rows: usize) -> usize {
        groups.max((SLACK * self.fill(rows)).ceil().clamp(1.0, STEPS_MOST) as usize + 1)
    }

    /// Prompt rows that ride along with `decode_rows` tokens, at most `most`. Tokens may take a little longer for them,
    /// and the longer the more prompts wait for each sequence that decodes.
    ///
    /// One long step holds up the tokens of all groups, and a second one right behind it costs them nothing more. So
    /// the decision is made for a round, and every step of the round is filled up to the same number of rows.
    pub(crate) fn prompt_rows(
        &mut self,
        decode_rows: usize,
        groups: usize,
        waiting: WaitingPrompts,
        most: usize,
    ) -> usize {
        let Some(alone) = self.token_time(decode_rows, groups) else { return most.min(1) };
        if self.round.steps == 0 {
            // What prompts cost tokens is only known where it was measured what tokens take without them.
            let measured = self.curve.first().is_some_and(|(least, _)| *least <= decode_rows);
            let most = if measured { most } else { 0 };
            let rows = self.spend(decode_rows, groups, waiting, most, alone);
            self.round = Round { steps: groups, rows: decode_rows + rows };
        }
        self.round.steps -= 1;
        self.round.rows.saturating_sub(decode_rows).min(most)
    }

    /// How many steps of prompts alone hold up nobody, and the rows of each: where `groups` steps leave stages idle,
    /// there is room for more steps that take about as long as theirs.
    pub(crate) fn between(&self, decode_rows: usize, groups: usize, most: usize) -> (usize, usize) {
        let Some(alone) = self.time(decode_rows) else { return (0, 0) };
        let fits = |rows: usize| self.time(rows).is_some_and(|t| t.slowest <= alone.slowest * (1.0 + NEARLY_FREE));
        (self.idle_steps(decode_rows, groups), (1..=most).take_while(|&rows| fits(rows)).count())
    }

    /// Steps like those of `groups` for which the pipeline has room beside them.
    fn idle_steps(&self, decode_rows: usize, groups: usize) -> usize {
        ((self.fill(decode_rows) + NEARLY_FREE).floor() as usize).saturating_sub(groups)
    }

    /// Adds a round's share of time to what prompts have saved up, and buys prompt rows of it, at most `most`. `alone`
    /// is what a token takes without prompts.
    fn spend(&mut self, decode_rows: usize, groups: usize, waiting: WaitingPrompts, most: usize, alone: f64) -> usize {
        let least = if waiting.short > 0.0 { PATIENCE_SHORT } else { PATIENCE_LONG };
        let share = least.max(PATIENCE_LONG * waiting.long + PATIENCE_SHORT * waiting.short);
        // What so many prompt rows cost each token.
        let extra = |rows: usize| self.token_time(decode_rows + rows, groups).map_or(f64::INFINITY, |t| t - alone);
        let trial = if self.idle_steps(decode_rows, groups) == 0 { TRIAL } else { 1.0 };
        let saved_most = (share.max(SAVED_MOST) * alone).max(trial * extra(1));
        let spare = (self.spare + share * alone).min(saved_most);
        let within_reach = (1..=most).map(|rows| (rows, extra(rows))).take_while(|(_, extra)| *extra <= saved_most);
        let within_reach: Vec<(usize, f64)> = within_reach.collect();
        // Rows for each round in the long run: dear ones come once in as many rounds as it takes to save up for them.
        let worth = |&(rows, extra): &(usize, f64)| rows as f64 / (extra / (share * alone)).ceil().max(1.0);
        let best = within_reach.iter().map(worth).fold(0.0, f64::max);
        let bought =
            within_reach.iter().rfind(|&&(rows, extra)| extra <= spare && worth(&(rows, extra)) >= FAIR * best);
        let (rows, cost) = bought.copied().unwrap_or_default();
        self.spare = spare - cost;
        rows
    }

    /// Rows of a chunk when only prompts are computed, of which so many rows are left together.
    pub(crate) fn chunk_rows(&self, prompts: usize, most: usize) -> usize {
        chunk::rows(self.stages, prompts, most)
    }

    /// Seconds that a step of so many rows takes from end to end, with nothing in its way.
    pub(crate) fn step_time(&self, rows: usize) -> Option<f64> {
        self.time(rows).map(|times| times.sum + self.hops())
    }

    /// The most rows with which no stage computes for longer than so many seconds; 0 where nothing is known.
    pub(crate) fn rows_within(&self, seconds: f64) -> usize {
        let most = self.curve.last().map_or(0, |(rows, _)| rows * 2);
        (1..=most).take_while(|&rows| self.time(rows).is_some_and(|times| times.slowest <= seconds)).count()
    }

    /// How many drafted tokens pay for each of a group's `rows` sequences, at most `most`: as many as give the most
    /// tokens per time, if each is right with the probability `acceptance` where those before it were, and is there only
    /// `token_s` seconds after the one before it.
    pub(crate) fn drafts(&self, rows: usize, groups: usize, acceptance: f64, most: usize, token_s: f64) -> Drafts {
        let rate = |tokens: usize| {
            let expected = (1.0 - acceptance.powi(tokens as i32 + 1)) / (1.0 - acceptance).max(1e-9);
            let wait = token_s * tokens as f64;
            self.round_time(rows * (1 + tokens), groups, wait).map_or(0.0, |time| expected / time)
        };
        let drafts = (0..=most).map(|tokens| Drafts { tokens, rate: rate(tokens) });
        let best = drafts.max_by(|a, b| a.rate.total_cmp(&b.rate).then(b.tokens.cmp(&a.tokens)));
        best.unwrap_or_default()
    }

    /// What to begin with where the first step of so many rows took `new`. Where steps of more rows were measured, what
    /// follows from these counts more than a single step.
    fn first(&self, rows: usize, new: Times) -> Times {
        let inside = self.curve.last().is_some_and(|(most, _)| rows <= *most);
        match self.time(rows).filter(|_| inside) {
            Some(expected) => {
                expected.with(new, |expected, new| expected + FIRST * (new.min(OUTLIER * expected) - expected))
            }
            None => new,
        }
    }

    /// Steps of so many rows that keep the slowest stage busy.
    fn fill(&self, rows: usize) -> f64 {
        self.time(rows).map_or(self.stages as f64, |times| (times.sum + self.hops()) / times.slowest)
    }

    /// Seconds that a step spends on links.
    fn hops(&self) -> f64 {
        self.hops.unwrap_or(0.0)
    }

    /// Tokens a second of so many sequences in so many groups.
    fn rate(&self, decoding: usize, groups: usize) -> f64 {
        let rows = decoding.div_ceil(groups);
        let times = self.time(rows).unwrap_or_default();
        let fill = groups as f64 * times.slowest / (times.sum + self.hops()).max(1e-9);
        // Uneven times cost the most where the groups just fill the pipeline: with far fewer of them stages wait
        // anyway, and with far more there is always a step that waits for the stage.
        let even = 1.0 - UNEVEN * (1.0 - (fill - 1.0).abs() / (SLACK - 1.0)).max(0.0);
        decoding as f64 * even / self.token_time(rows, groups).unwrap_or(f64::INFINITY)
    }

    /// Seconds from one token of a sequence to its next.
    fn token_time(&self, rows: usize, groups: usize) -> Option<f64> {
        self.round_time(rows, groups, 0.0)
    }

    /// The same where a sequence waits for `wait` seconds before each of its steps.
    fn round_time(&self, rows: usize, groups: usize, wait: f64) -> Option<f64> {
        self.time(rows).map(|times| (groups as f64 * times.slowest).max(times.sum + self.hops() + wait))
    }

    /// The times of a step of so many rows, `None` before anything was measured. Between two numbers of rows that were
    /// measured they lie on the line through these; beyond all of them on the line through the first and the last; and
    /// where there is only one they follow the usual shape.
    fn time(&self, rows: usize) -> Option<Times> {
        let rows = rows.max(1);
        let (below, above) = self.curve.split_at(self.curve.partition_point(|(known, _)| *known <= rows));
        let (nearest, other) = match (below, above) {
            ([.., low], [high, ..]) => (low, Some(high)),
            ([rest @ .., low], []) => (low, rest.first()),
            ([], [high, rest @ ..]) => (high, rest.last()),
            ([], []) => return None,
        };
        let (known, x) = (nearest.0 as f64, rows as f64);
        let usual = (SHAPE_STEP + SHAPE_ROW * x) / (SHAPE_STEP + SHAPE_ROW * known);
        let Some((other, at_other)) = other else { return Some(nearest.1.with(nearest.1, |t, _| t * usual)) };
        let slope = |t: f64, u: f64| (u - t) / (*other as f64 - known);
        // Times neither fall with more rows nor grow faster than the rows; beyond what was measured they do grow.
        let least = match (below.is_empty(), above.is_empty()) {
            (true, _) => usual,
            (false, true) => 1.0 + GROWTH * (x / known - 1.0),
            (false, false) => 1.0,
        };
        let line = |t: f64, u: f64| (t + slope(t, u) * (x - known)).clamp(t * least, t * (x / known).max(1.0));
        Some(nearest.1.with(*at_other, line))
    }
}

impl Times {
    /// Both times, each made of its own and the other's.
    fn with(self, other: Self, make: impl Fn(f64, f64) -> f64) -> Self {
        Self { slowest: make(self.slowest, other.slowest), sum: make(self.sum, other.sum) }
    }
}

/// The measured times without what made some of them longer than those of more rows: only disturbances do that.
fn rising(steps: &BTreeMap<usize, Known>) -> Vec<(usize, Times)> {
    let mut least = Times { slowest: f64::INFINITY, sum: f64::INFINITY };
    let falling = steps.iter().rev().map(|(rows, known)| {
        least = least.with(known.times, f64::min);
        (*rows, least)
    });
    let mut curve: Vec<_> = falling.collect();
    curve.reverse();
    curve
}

/// The number of rows under which a measurement is kept: few rows exactly, more of them to a sixteenth.
fn bucket(rows: usize) -> usize {
    if rows <= EXACT_ROWS { rows.max(1) } else { rows.next_multiple_of((rows.next_power_of_two() / 16).max(1)) }
}

/// A measured time is forgotten after so many steps without another one, so that what went badly once is tried again. A
/// trial fills the pipeline, so where that takes many steps it must not come too often: hence the second figure, which
/// counts the steps that fill the pipeline once.
const STALE_STEPS: u64 = 256;
const STALE_FILLS: f64 = 18.0;
/// How much a new time counts beside what is known.
const FRESH: f64 = 0.2;
/// How much the first time of a number of rows counts beside what was expected of it.
const FIRST: f64 = 0.4;
/// A step counts as at most so many times longer or shorter than those before it: one that was disturbed tells little.
const OUTLIER: f64 = 1.5;
/// Up to so many rows every number is measured by itself.
const EXACT_ROWS: usize = 16;
/// Where only one number of rows was measured, a step of m rows is taken to need `SHAPE_STEP` + `SHAPE_ROW`·m times
/// what one of one row needs.
const SHAPE_STEP: f64 = 0.6;
const SHAPE_ROW: f64 = 0.4;
/// Beyond the most rows that were measured, a step with twice as many takes at least so much longer.
const GROWTH: f64 = 0.25;
/// How many times the steps that fill the pipeline are under way, so that uneven times leave no stage idle.
const SLACK: f64 = 1.25;
/// Share of the tokens that uneven times cost where the groups just fill the pipeline.
const UNEVEN: f64 = 0.04;
/// How much longer a token may take, as a share of its time, for each long prompt that waits beside each sequence that
/// decodes, and at least.
const PATIENCE_LONG: f64 = 0.2;
/// The same for each short prompt, which is over soon.
const PATIENCE_SHORT: f64 = 1.0;
/// What prompts have not used of their time they may use at once later, up to this share of a token's time.
const SAVED_MOST: f64 = 0.3;
/// Where already one row costs more than that, prompts may save up so many times what one row costs: whether more rows
/// come at that price shows by trying.
const TRIAL: f64 = 2.0;
/// Rows are bought only if waiting and saving up would not buy more in the long run: they must be this share of it.
const FAIR: f64 = 0.9;
/// A step that takes longer by no more than this share counts as taking no longer.
const NEARLY_FREE: f64 = 0.1;
/// Steps under way at most: far more than any pipeline needs.
const STEPS_MOST: f64 = 200.0;

#[cfg(test)]
mod tests;
