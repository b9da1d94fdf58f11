//! Every order in which the threads of a small team may run, as a model checker tries them. `scripts/check-team` runs it.

#![cfg(loom)]

use loom::{
    model::Builder,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use qmesh_team::Team;

#[test]
fn each_task_is_done_once_and_seen_when_the_region_ends() {
    let regions = check(2, None, |team| region(team, 2));
    assert!(regions > 10, "only {regions} orders");
}

#[test]
fn a_thread_that_is_late_for_one_region_does_no_harm_in_the_next() {
    check(2, Some(3), |team| {
        region(team, 2);
        region(team, 3);
    });
}

#[test]
fn three_threads_share_a_region() {
    check(3, Some(3), |team| region(team, 3));
}

#[test]
fn a_thread_that_nobody_woke_may_help_all_the_same() {
    // For two tasks one thread is woken. The other sees the region by itself, or sleeps on.
    check(3, Some(3), |team| region(team, 2));
}

#[test]
fn a_team_that_is_never_used_ends() {
    check(3, None, |_| ());
}

/// In how many orders `work` was done on a team of so many threads, each interrupted at most so often.
fn check(threads: usize, interruptions: Option<usize>, work: impl Fn(&Team) + Send + Sync + 'static) -> usize {
    let orders = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&orders);
    let mut builder = Builder::new();
    builder.preemption_bound = interruptions;
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        work(&Team::new(threads).unwrap());
    });
    orders.load(Ordering::Relaxed)
}

/// A region of so many tasks, each of which leaves a number that nothing but the end of the region makes visible.
fn region(team: &Team, tasks: usize) {
    let results: Vec<_> = (0..tasks).map(|_| Arc::new(AtomicUsize::new(0))).collect();
    team.each(results.iter().map(Arc::clone).collect(), |result: Arc<AtomicUsize>| {
        result.fetch_add(1, Ordering::Relaxed);
    });
    assert!(results.iter().all(|result| result.load(Ordering::Relaxed) == 1));
}
