//! What follows from times that are known.

use super::*;

/// One long prompt for each sequence that decodes.
const ONE_LONG: WaitingPrompts = WaitingPrompts { long: 1.0, short: 0.0 };

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
    // Links of 50 ms each way: groups of two rows take (4·20 + 200) / 20 = 14 turns, groups of one (4·15 + 200) /
    // 15.
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
    let steady = |mut pace: Pace, waiting: WaitingPrompts| {
        pace.prompt_rows(1, 1, waiting, 256);
        (0..8).map(|_| pace.prompt_rows(1, 1, waiting, 256)).sum::<usize>()
    };
    // Two stages need 5 ms a row, and a fifth of 55.5 ms is to spare: 2.2 rows.
    let rows = steady(learnt(2, 25.0, 2.5, 0.5), ONE_LONG);
    assert!((16..=18).contains(&rows), "{rows} rows in 8 steps");
    assert!(steady(learnt(2, 25.0, 2.5, 100.0), ONE_LONG) > rows, "links leave time");
    assert!(
        steady(learnt(2, 25.0, 2.5, 0.5), WaitingPrompts { long: 4.0, short: 0.0 }) > 3 * rows,
        "four wait for one"
    );
    assert!(
        steady(learnt(2, 25.0, 2.5, 0.5), WaitingPrompts { long: 0.0, short: 0.1 }) > 4 * rows,
        "a short one is over soon"
    );
    // Of what was not used for a while, so much is kept that it is hardly felt when it is used at once.
    let mut pace = learnt(2, 25.0, 2.5, 0.5);
    let mut take = |most| pace.prompt_rows(1, 1, ONE_LONG, most);
    (0..9).for_each(|_| assert_eq!(take(0), 0));
    assert_eq!((take(256), take(256)), (2, 2));
    assert_eq!(Pace::new(2).prompt_rows(1, 1, ONE_LONG, 256), 1);
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
    assert!((1..=3).contains(&pace.prompt_rows(1, 1, ONE_LONG, 256)));
    // Seven short ones may take seven tokens' time.
    let rows = pace.prompt_rows(1, 1, WaitingPrompts { long: 0.0, short: 7.0 }, 256);
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
    let rows = |pace: &mut Pace| {
        (0..8).map(|_| pace.prompt_rows(1, 1, WaitingPrompts { long: 4.0, short: 0.0 }, 256)).sum::<usize>()
    };
    let mut disturbed = learnt(2, 25.0, 2.5, 0.5);
    disturbed.learn(3, StepTimes { compute_us: 900_000, slowest_us: 800_000, queued_us: 0 }, Duration::from_secs(1));
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
        pace.drafts(decoding.div_ceil(groups), groups, acceptance, 16, 0.0).tokens
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
    let slowest = |rows| pace.time(rows).unwrap().slowest * 1e3;
    assert!((slowest(3) - 13.0).abs() < 0.01 && (slowest(40) - 50.0).abs() < 0.01);
    assert!((slowest(512) - 522.0).abs() < 0.1, "on the line beyond");
    let mut known = Pace::new(1);
    known.learn(4, StepTimes { compute_us: 2200, slowest_us: 2200, queued_us: 0 }, Duration::from_millis(3));
    assert!((known.time(1).unwrap().slowest * 1e3 - 1.0).abs() < 0.01, "of the usual shape");
    assert_eq!((bucket(0), bucket(7), bucket(17), bucket(100), bucket(250)), (1, 7, 18, 104, 256));
}
