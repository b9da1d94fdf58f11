//! A team does each task once, whatever happens in it.

#![cfg(not(loom))]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use qmesh_team::Team;

/// Twice as long as a thread spins before it parks.
const LONGER_THAN_ANY_SPIN: Duration = Duration::from_micros(100);

#[test]
fn every_item_is_done_once_and_results_keep_their_order() {
    for threads in [1, 2, 3, 8] {
        let team = Team::new(threads).unwrap();
        assert_eq!(team.threads(), threads.max(1));
        for count in [0, 1, 2, 7, 1000] {
            let mut out = vec![0_u32; count];
            team.each(out.iter_mut().enumerate().collect(), |(i, x): (usize, &mut u32)| *x += i as u32 + 1);
            assert!(out.iter().enumerate().all(|(i, x)| *x == i as u32 + 1));
            let squares = team.map((0..count).collect(), |i| i * i);
            assert!(squares.iter().enumerate().all(|(i, x)| *x == i * i) && squares.len() == count);
        }
    }
}

#[test]
fn thousands_of_regions_with_pauses_lose_nothing() {
    let team = Team::new(3).unwrap();
    let total = AtomicU32::new(0);
    for region in 0..5000 {
        team.each((0..4).collect(), |i: u32| {
            total.fetch_add(i, Ordering::Relaxed);
        });
        if region % 500 == 0 {
            thread::sleep(LONGER_THAN_ANY_SPIN);
        }
    }
    assert_eq!(total.into_inner(), 5000 * 6);
}

#[test]
fn a_panic_in_a_task_reaches_the_caller_and_the_team_goes_on() {
    let team = Team::new(3).unwrap();
    for _ in 0..20 {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            team.each((0..50).collect(), |i: u32| assert_ne!(i, 7, "seven"));
        }));
        assert!(caught.is_err());
        let sum = AtomicU32::new(0);
        team.each((0..50).collect(), |i: u32| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 1225);
    }
}
