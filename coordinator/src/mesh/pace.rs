//! How long steps take, learnt from those that came back, and what follows for the next ones: how many groups decode in
//! turn, how many steps are under way, how many prompt rows ride along, how long a draft pays.
//!
//! Formulas: with n sequences in G groups of B rows, t(B) the slowest stage's time, T(B) the sum over all stages and H the
//! time on links, a token takes max(G·t(B), T(B) + H), and M = (T + H) / t groups fill the pipeline.

use std::{collections::BTreeMap, time::Duration};

use qmesh_net::StepTimes;

/// What is known of the pipeline's times.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    stages: usize,
    /// Steps learnt from.
    learnt: u64,
    /// By rows.
    steps: BTreeMap<usize, Known>,
    /// What follows from all of them: rows, and the times of [`Known`], which never fall with more rows.
    curve: Vec<(usize, [f64; 2])>,
    /// Time of a step that is neither computing nor waiting for a stage, in seconds.
    hops: Option<f64>,
    /// Seconds that prompts may take from those who decode.
    spare: f64,
    round: Round,
}

/// What is left of a step of each group.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    steps: usize,
    /// Of each step, those that decode and those of prompts.
    rows: usize,
}

/// Whether prompts wait to be computed beside those who decode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Prompts {
    None,
    Waiting,
}

/// The time of steps with so many rows.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The slowest stage's time, and the sum over stages, in seconds.
    times: [f64; 2],
    /// When it was last measured.
    learnt: u64,
}

/// Steps after which a time counts no more, at least, and in times of those that fill the pipeline: what went badly once
/// shall be tried again, but not so often that the trials, which fill the pipeline, cost more than they can find.
const STALE: (u64, f64) = (256, 18.0);
/// How much a new time counts.
const FRESH: f64 = 0.2;
/// How much the first one counts where another one is expected.
const FIRST: f64 = 0.4;
/// No step counts as so many times longer or shorter than those before it: one that was disturbed tells little.
const OUTLIER: f64 = 1.5;
/// Row counts from which on times of neighbours count as one.
const EXACT_ROWS: usize = 16;
/// A step of m rows takes as long as one of one row times a + b·m, where nothing was measured.
const SHAPE: (f64, f64) = (0.6, 0.4);
/// Beyond the most rows measured, a step takes at least so much longer for each time as many rows.
const GROWTH: f64 = 0.25;
/// More groups than fill the pipeline, so that uneven times leave no stage idle.
const SLACK: f64 = 1.25;
/// What is lost to uneven times with no more groups than fill it.
const UNEVEN: f64 = 0.04;
/// How much longer a token may take for each long prompt that waits beside each sequence that decodes, as a share of its
/// time; and for each short one, which is over soon.
const PATIENCE: (f64, f64) = (0.2, 1.0);
/// What prompts have not used of it can be used at once later, up to this share of a token's time.
const SAVED_MOST: f64 = 0.3;
/// Where already one row takes longer than that, so much longer: whether more of them come at that price shows by trying.
const TRIAL: f64 = 2.0;
/// Rows are not bought for less than this share of what the same time, saved up, could buy.
const FAIR: f64 = 0.9;
/// Share of a step by which the room for it may be too small.
const NEARLY_FREE: f64 = 0.1;
/// Rows whose time a step costs however few it has: what makes short chunks dear.
const CHUNK_COST_ROWS: f64 = 5.0;
/// Shortest chunk of a prompt that has the pipeline to itself.
const CHUNK_LEAST: usize = 32;

impl Pace {
    /// Nothing is known of a new pipeline.
    pub(crate) fn new(stages: usize) -> Self {
        Self { stages: stages.max(1), ..Self::default() }
    }

    /// Learns from a step of `rows` rows that took `whole`.
    pub(crate) fn learn(&mut self, rows: usize, times: StepTimes, whole: Duration) {
        let seconds = |us: u32| f64::from(us) / 1e6;
        let (compute, queued) = (seconds(times.compute_us), seconds(times.queued_us));
        let new = [seconds(times.slowest_us), compute];
        self.learnt += 1;
        let (learnt, keep) = (self.learnt, STALE.0.max((STALE.1 * self.fill(rows)) as u64));
        self.steps.retain(|_, known| learnt - known.learnt < keep);
        let first = self.first(rows, new);
        let known = self.steps.entry(bucket(rows)).or_insert(Known { times: first, learnt });
        known.learnt = learnt;
        for (known, new) in known.times.iter_mut().zip(new) {
            *known += FRESH * (new.clamp(*known / OUTLIER, *known * OUTLIER) - *known);
        }
        self.curve = rising(&self.steps);
        let hops = (whole.as_secs_f64() - compute - queued).max(0.0);
        let known = self.hops.get_or_insert(hops);
        *known += FRESH * (hops - *known);
    }

    /// Groups in which so many sequences decode: as many as give the most tokens. Of numbers that give about as many, the
    /// least, or while prompts wait, whose rows fill up small groups, the largest.
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

    /// Steps under way at a time.
    pub(crate) fn steps_most(&self, groups: usize, rows: usize) -> usize {
        groups.max((SLACK * self.fill(rows)).ceil().clamp(1.0, STEPS_MOST) as usize + 1)
    }

    /// Prompt rows that ride along with `decode_rows`, so that tokens take little longer than without them: the more
    /// prompts, `long` and `short` ones, wait for each sequence that decodes, the longer.
    ///
    /// One long step holds up the tokens of all groups, and another one behind it costs them nothing more: rows are
    /// decided on for a round, a step of each group, and fill its steps to the same number.
    pub(crate) fn prompt_rows(&mut self, decode_rows: usize, groups: usize, waiting: [f64; 2], most: usize) -> usize {
        let Some(alone) = self.token_time(decode_rows, groups) else { return most.min(1) };
        if self.round.steps == 0 {
            // Without a measure of what tokens take alone there is none of what prompts cost them.
            let measured = self.curve.first().is_some_and(|(least, _)| *least <= decode_rows);
            let most = if measured { most } else { 0 };
            let rows = self.spend(decode_rows, groups, waiting, most, alone);
            self.round = Round { steps: groups, rows: decode_rows + rows };
        }
        self.round.steps -= 1;
        self.round.rows.saturating_sub(decode_rows).min(most)
    }

    /// Steps of prompts alone, and their rows, that hold up nobody: where `groups` do not fill the pipeline, it has room for
    /// more steps about as long as theirs.
    pub(crate) fn between(&self, decode_rows: usize, groups: usize, most: usize) -> (usize, usize) {
        let Some([alone, _]) = self.time(decode_rows) else { return (0, 0) };
        let fits = |rows: usize| self.time(rows).is_some_and(|[slowest, _]| slowest <= alone * (1.0 + NEARLY_FREE));
        (self.idle_steps(decode_rows, groups), (1..=most).take_while(|&rows| fits(rows)).count())
    }

    /// Steps like those of `groups` that the pipeline has room for beside them.
    fn idle_steps(&self, decode_rows: usize, groups: usize) -> usize {
        ((self.fill(decode_rows) + NEARLY_FREE).floor() as usize).saturating_sub(groups)
    }

    /// As many prompt rows as the time is there for that was saved up to now.
    fn spend(&mut self, decode_rows: usize, groups: usize, [long, short]: [f64; 2], most: usize, alone: f64) -> usize {
        let least = if short > 0.0 { PATIENCE.1 } else { PATIENCE.0 };
        let share = least.max(PATIENCE.0 * long + PATIENCE.1 * short);
        let extra = |rows: usize| self.token_time(decode_rows + rows, groups).map_or(f64::INFINITY, |t| t - alone);
        let trial = if self.idle_steps(decode_rows, groups) == 0 { TRIAL } else { 1.0 };
        let saved_most = (share.max(SAVED_MOST) * alone).max(trial * extra(1));
        let spare = (self.spare + share * alone).min(saved_most);
        let within_reach = (1..=most).map(|rows| (rows, extra(rows))).take_while(|(_, extra)| *extra <= saved_most);
        let within_reach: Vec<(usize, f64)> = within_reach.collect();
        // Rows a round in the long run, where they come once in as many rounds as it takes to save the time for them.
        let worth = |&(rows, extra): &(usize, f64)| rows as f64 / (extra / (share * alone)).ceil().max(1.0);
        let best = within_reach.iter().map(worth).fold(0.0, f64::max);
        let bought = within_reach.iter().rfind(|choice| choice.1 <= spare && worth(choice) >= FAIR * best);
        let (rows, cost) = bought.copied().unwrap_or_default();
        self.spare = spare - cost;
        rows
    }

    /// Rows of a chunk when only prompts are computed, together P = `prompts` rows: C = √(P·a / ((S − 1)·b)).
    pub(crate) fn chunk_rows(&self, prompts: usize, most: usize) -> usize {
        if self.stages == 1 {
            return most;
        }
        let best = (prompts as f64 * CHUNK_COST_ROWS / (self.stages - 1) as f64).sqrt() as usize;
        best.next_multiple_of(CHUNK_LEAST).min(most)
    }

    /// Seconds that a step of so many rows takes from end to end, with nothing in its way.
    pub(crate) fn step_time(&self, rows: usize) -> Option<f64> {
        self.time(rows).map(|[_, sum]| sum + self.hops())
    }

    /// The most rows with which no stage computes for longer than so many seconds; 0 where nothing is known.
    pub(crate) fn rows_within(&self, seconds: f64) -> usize {
        let most = self.curve.last().map_or(0, |(rows, _)| rows * 2);
        (1..=most).take_while(|&rows| self.time(rows).is_some_and(|[slowest, _]| slowest <= seconds)).count()
    }

    /// Drafted tokens that pay, up to `most`, for each of a group's `rows` sequences: most tokens per time, where each is
    /// right with the probability `acceptance` if those before it were.
    pub(crate) fn draft_rows(&self, rows: usize, groups: usize, acceptance: f64, most: usize) -> usize {
        let rate = |drafts: usize| {
            let expected = (1.0 - acceptance.powi(drafts as i32 + 1)) / (1.0 - acceptance).max(1e-9);
            self.token_time(rows * (1 + drafts), groups).map_or(0.0, |time| expected / time)
        };
        let best = (0..=most).max_by(|&a, &b| rate(a).total_cmp(&rate(b)).then(b.cmp(&a)));
        best.unwrap_or(0)
    }

    /// What to begin with where the first step of so many rows took `new`: where those of more rows are known, what is
    /// expected counts more than a single step.
    fn first(&self, rows: usize, new: [f64; 2]) -> [f64; 2] {
        let inside = self.curve.last().is_some_and(|(most, _)| rows <= *most);
        match self.time(rows).filter(|_| inside) {
            Some(expected) => [0, 1].map(|i| expected[i] + FIRST * (new[i].min(OUTLIER * expected[i]) - expected[i])),
            None => new,
        }
    }

    /// Steps of so many rows that keep the slowest stage busy.
    fn fill(&self, rows: usize) -> f64 {
        self.time(rows).map_or(self.stages as f64, |[slowest, sum]| (sum + self.hops()) / slowest)
    }

    /// Seconds of links in a step.
    fn hops(&self) -> f64 {
        self.hops.unwrap_or(0.0)
    }

    /// Tokens a second of so many sequences in so many groups.
    fn rate(&self, decoding: usize, groups: usize) -> f64 {
        let rows = decoding.div_ceil(groups);
        let [slowest, sum] = self.time(rows).unwrap_or_default();
        let fill = groups as f64 * slowest / (sum + self.hops()).max(1e-9);
        // Far below stages wait anyway, far above there is always a group that waits for a stage.
        let even = 1.0 - UNEVEN * (1.0 - (fill - 1.0).abs() / (SLACK - 1.0)).max(0.0);
        decoding as f64 * even / self.token_time(rows, groups).unwrap_or(f64::INFINITY)
    }

    /// Seconds from one token of a sequence to its next.
    fn token_time(&self, rows: usize, groups: usize) -> Option<f64> {
        self.time(rows).map(|[slowest, sum]| (groups as f64 * slowest).max(sum + self.hops()))
    }

    /// The slowest stage's time and the sum over stages: measured, on the line through its neighbours or, beyond what
    /// was measured, through the ends of that, or of the usual shape where there is but one.
    fn time(&self, rows: usize) -> Option<[f64; 2]> {
        let rows = rows.max(1);
        let (below, above) = self.curve.split_at(self.curve.partition_point(|(known, _)| *known <= rows));
        let (nearest, other) = match (below, above) {
            ([.., low], [high, ..]) => (low, Some(high)),
            ([rest @ .., low], []) => (low, rest.first()),
            ([], [high, rest @ ..]) => (high, rest.last()),
            ([], []) => return None,
        };
        let (known, x) = (nearest.0 as f64, rows as f64);
        let usual = (SHAPE.0 + SHAPE.1 * x) / (SHAPE.0 + SHAPE.1 * known);
        let Some((other, u)) = other else { return Some(nearest.1.map(|t| t * usual)) };
        let slope = |t: f64, u: f64| (u - t) / (*other as f64 - known);
        // Times neither fall with more rows, nor grow faster than they do; beyond what was measured they do grow.
        let least = match (below.is_empty(), above.is_empty()) {
            (true, _) => usual,
            (false, true) => 1.0 + GROWTH * (x / known - 1.0),
            (false, false) => 1.0,
        };
        let line = |t: f64, u: f64| (t + slope(t, u) * (x - known)).clamp(t * least, t * (x / known).max(1.0));
        Some([0, 1].map(|i| line(nearest.1[i], u[i])))
    }
}

/// Far more than any pipeline needs.
const STEPS_MOST: f64 = 200.0;

/// The times without what made them longer than those of more rows: only disturbances do.
fn rising(steps: &BTreeMap<usize, Known>) -> Vec<(usize, [f64; 2])> {
    let mut least = [f64::INFINITY; 2];
    let falling = steps.iter().rev().map(|(rows, known)| {
        least = [0, 1].map(|i| least[i].min(known.times[i]));
        (*rows, least)
    });
    let mut curve: Vec<_> = falling.collect();
    curve.reverse();
    curve
}

/// Exact for few rows; above, a sixteenth is not told apart.
fn bucket(rows: usize) -> usize {
    if rows <= EXACT_ROWS { rows.max(1) } else { rows.next_multiple_of((rows.next_power_of_two() / 16).max(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipeline whose stages take `base` + `row` · m ms each, with `hops` ms on links.
    fn learnt(stages: usize, base: f64, row: f64, hops: f64) -> Pace {
        let mut pace = Pace::new(stages);
        for rows in [1, 2, 4, 8, 16, 64, 256] {
            let slowest = base + row * f64::from(rows);
            let micros = |ms: f64| (ms * 1e3) as u32;
            let sum = slowest * stages as f64;
            let times = StepTimes { compute_us: micros(sum), slowest_us: micros(slowest), queued_us: 500 };
            pace.learn(rows as usize, times, Duration::from_micros(u64::from(micros(sum + hops + 0.5))));
        }
        pace
    }

    #[test]
    fn groups_fill_the_pipeline_and_no_more() {
        // Steps whose time hardly depends on their rows: one stage takes all at once, two take half each.
        assert_eq!(learnt(1, 50.0, 5.0, 0.3).groups(8, Prompts::None), 1);
        assert_eq!(learnt(2, 25.0, 2.5, 0.3).groups(8, Prompts::None), 2);
        // Links of 50 ms each way: groups of two rows take (4·20 + 200) / 20 = 14 turns, groups of one (4·15 + 200) / 15.
        let far = learnt(4, 10.0, 5.0, 200.0);
        assert!((10..=17).contains(&far.groups(32, Prompts::None)), "{}", far.groups(32, Prompts::None));
        assert_eq!(far.groups(1, Prompts::None), 1);
        assert_eq!(
            (
                Pace::new(3).groups(8, Prompts::None),
                Pace::new(3).groups(2, Prompts::None),
                Pace::new(3).groups(0, Prompts::None)
            ),
            (3, 2, 1)
        );
    }

    #[test]
    fn prompts_take_what_time_others_can_spare() {
        let steady = |mut pace: Pace, waiting: [f64; 2]| {
            pace.prompt_rows(1, 1, waiting, 256);
            (0..8).map(|_| pace.prompt_rows(1, 1, waiting, 256)).sum::<usize>()
        };
        // Two stages need 5 ms a row, and a fifth of 55.5 ms is to spare: 2.2 rows.
        let rows = steady(learnt(2, 25.0, 2.5, 0.5), [1.0, 0.0]);
        assert!((16..=18).contains(&rows), "{rows} rows in 8 steps");
        assert!(steady(learnt(2, 25.0, 2.5, 100.0), [1.0, 0.0]) > rows, "links leave time");
        assert!(steady(learnt(2, 25.0, 2.5, 0.5), [4.0, 0.0]) > 3 * rows, "four wait for one");
        assert!(steady(learnt(2, 25.0, 2.5, 0.5), [0.0, 0.1]) > 4 * rows, "a short one is over soon");
        // Of what was not used for a while, so much is kept that it is hardly felt when it is used at once.
        let mut pace = learnt(2, 25.0, 2.5, 0.5);
        let mut take = |most| pace.prompt_rows(1, 1, [1.0, 0.0], most);
        (0..9).for_each(|_| assert_eq!(take(0), 0));
        assert_eq!((take(256), take(256)), (2, 2));
        assert_eq!(Pace::new(2).prompt_rows(1, 1, [1.0, 0.0], 256), 1);
        assert_eq!(pace.chunk_rows(2048, 256), 128);
        assert_eq!((Pace::new(1).chunk_rows(2048, 256), pace.chunk_rows(3, 256)), (256, 32));
    }

    #[test]
    fn cheap_rows_do_not_keep_dear_ones_waiting() {
        let mut pace = Pace::new(1);
        for (rows, ms) in [(1, 33), (2, 36), (4, 41), (8, 63), (16, 105), (64, 350)] {
            let times = StepTimes { compute_us: ms * 1000, slowest_us: ms * 1000, queued_us: 0 };
            pace.learn(rows, times, Duration::from_millis(ms.into()));
        }
        // Three rows in the place of one cost 8 ms, and every further one 5: of a long prompt come the three, or fewer.
        assert!((1..=3).contains(&pace.prompt_rows(1, 1, [1.0, 0.0], 256)));
        // Seven short ones may take seven tokens' time.
        let rows = pace.prompt_rows(1, 1, [0.0, 7.0], 256);
        assert!((40..=52).contains(&rows), "{rows}");
    }

    #[test]
    fn idle_stages_compute_prompts() {
        assert_eq!(learnt(2, 25.0, 2.5, 0.5).between(1, 1, 256), (1, 2));
        assert_eq!(learnt(2, 25.0, 2.5, 0.5).between(1, 2, 256).0, 0);
        assert_eq!(learnt(4, 10.0, 0.0, 0.1).between(1, 1, 256), (3, 256));
        assert_eq!(Pace::new(2).between(1, 1, 256).1, 0);
    }

    #[test]
    fn a_disturbed_step_holds_up_no_prompt() {
        let rows = |pace: &mut Pace| (0..8).map(|_| pace.prompt_rows(1, 1, [4.0, 0.0], 256)).sum::<usize>();
        let mut disturbed = learnt(2, 25.0, 2.5, 0.5);
        disturbed.learn(
            3,
            StepTimes { compute_us: 900_000, slowest_us: 800_000, queued_us: 0 },
            Duration::from_secs(1),
        );
        // No more than four rows would take.
        assert_eq!(disturbed.time(3), disturbed.time(4));
        disturbed.hops = Some(0.0005);
        let wanted = rows(&mut learnt(2, 25.0, 2.5, 0.5));
        assert!(rows(&mut disturbed).abs_diff(wanted) <= 4, "{wanted} rows in 8 steps");
    }

    #[test]
    fn steps_under_way_fill_stages_and_links() {
        assert_eq!(learnt(2, 25.0, 2.5, 0.0).steps_most(1, 256), 4);
        assert_eq!(learnt(4, 10.0, 0.0, 200.0).steps_most(8, 1), 31);
        assert_eq!(Pace::new(3).steps_most(1, 1), 5);
    }

    #[test]
    fn drafts_are_as_long_as_they_pay() {
        let drafts = |pace: &Pace, decoding: usize, acceptance| {
            let groups = pace.groups(decoding, Prompts::None);
            pace.draft_rows(decoding.div_ceil(groups), groups, acceptance, 16)
        };
        // Rows that cost as much as steps: no draft pays.
        assert_eq!(drafts(&learnt(1, 0.0, 10.0, 0.0), 1, 0.9), 0);
        // Cheap rows or slow links: the likelier, the longer.
        let cheap = learnt(2, 25.0, 2.5, 0.5);
        assert!(drafts(&cheap, 1, 0.3) < drafts(&cheap, 1, 0.9));
        assert!(drafts(&cheap, 1, 0.9) < drafts(&learnt(2, 25.0, 2.5, 100.0), 1, 0.9));
        assert_eq!(drafts(&cheap, 1, 0.05), 0);
        // A full pipeline has no rows to spare.
        assert!(drafts(&learnt(2, 5.0, 5.0, 0.5), 16, 0.6) == 0);
        assert_eq!(drafts(&Pace::new(2), 1, 0.9), 0);
    }

    #[test]
    fn times_between_are_read_off() {
        let pace = learnt(2, 10.0, 1.0, 0.0);
        let slowest = |rows| pace.time(rows).unwrap()[0] * 1e3;
        assert!((slowest(3) - 13.0).abs() < 0.01 && (slowest(40) - 50.0).abs() < 0.01);
        assert!((slowest(512) - 522.0).abs() < 0.1, "on the line beyond");
        let mut known = Pace::new(1);
        known.learn(4, StepTimes { compute_us: 2200, slowest_us: 2200, queued_us: 0 }, Duration::from_millis(3));
        assert!((known.time(1).unwrap()[0] * 1e3 - 1.0).abs() < 0.01, "of the usual shape");
        assert_eq!((bucket(0), bucket(7), bucket(17), bucket(100), bucket(250)), (1, 7, 18, 104, 256));
    }
}
