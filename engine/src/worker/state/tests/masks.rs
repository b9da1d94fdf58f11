//! Masks and frames in either order, and masks that nobody waits for.

use qmesh_net::{Mask, MaskedRows, Segment, TokenMask, Trail, Wants, limits::MASKS_UNDER_WAY};

use super::*;

/// The only stage of plan 4, ready for frames.
fn last_stage() -> Rig {
    let mut rig = Rig::new();
    assert_eq!(rig.message(Message::Load(load_shard(4, 0..3))), ["fetch for 1"]);
    rig.come_up(1);
    rig.link(4, 1);
    rig
}

/// Two rows of session 5 from position 10 on, of which these wait for a mask.
fn masked(step: u32, waiting: &[usize]) -> Event {
    let (session, wants, trail) = (SessionId(5), Wants::All, Trail(0));
    let segments = vec![Segment { session, position: 10, rows: 2, wants, trail }];
    let mut frame = Frame { segments, ids: vec![1, 2], ..frame(4, step) };
    let mut rows = MaskedRows::default();
    waiting.iter().for_each(|row| rows.insert(*row));
    rows.put(&mut frame.sections);
    Event::Frame { link: LinkId(1), frame }
}

fn mask(step: u32, session: u64, position: u32) -> Event {
    let (epoch, step, session, tokens) = (PlanEpoch(4), StepId(step), SessionId(session), TokenMask::Ids(vec![3]));
    Event::Message(Message::Mask(Mask { epoch, step, session, position, tokens }))
}

#[test]
fn a_step_is_computed_when_all_of_its_masks_are_there() {
    let mut rig = last_stage();
    assert!(rig.on(mask(1, 5, 10)).is_empty());
    assert!(rig.on(mask(1, 5, 11)).is_empty());
    assert_eq!(rig.on(masked(1, &[0, 1])), ["compute 1"]);
    assert_eq!(rig.done(stepped(4, 1, 1)), ["send 1"]);

    assert!(rig.on(masked(2, &[0, 1])).is_empty());
    // What comes behind it waits too: positions build on each other.
    assert!(rig.on(masked(3, &[])).is_empty());
    assert!(rig.message(Message::Close { epoch: PlanEpoch(4), session: SessionId(5) }).is_empty());
    assert!(rig.on(mask(2, 5, 11)).is_empty());
    assert!(rig.on(mask(4, 5, 10)).is_empty(), "of a step to come");
    assert_eq!(rig.on(mask(2, 5, 10)), ["compute 2", "compute 3", "close 5"]);
    assert_eq!(rig.on(masked(4, &[0])), Vec::<String>::new(), "two steps are computed already");
    assert_eq!(rig.done(stepped(4, 1, 2)), ["send 2", "compute 4"]);
}

#[test]
fn masks_that_no_row_waits_for_fail_their_session() {
    let mut rig = last_stage();
    let fault = ["tell Fault Mask Some(5)"];
    assert!(rig.on(mask(1, 5, 10)).is_empty());
    assert_eq!(rig.on(mask(1, 5, 10)), fault, "twice before its frame");
    assert!(rig.on(masked(1, &[0, 1])).is_empty());
    assert_eq!(rig.on(mask(1, 5, 10)), fault, "twice behind its frame");
    assert_eq!(rig.on(mask(1, 5, 12)), fault, "no such row");
    assert_eq!(rig.on(mask(0, 5, 10)), fault, "a step that is over");
    assert_eq!(rig.on(mask(1, 5, 11)), ["compute 1"]);
    assert_eq!(rig.on(mask(1, 5, 11)), fault, "a step that is computed");

    assert!(rig.on(mask(2, 5, 10)).is_empty());
    assert!(rig.on(mask(2, 9, 0)).is_empty());
    // Session 9 was taken out on the way; session 5 would be sampled as if nothing had been said.
    assert_eq!(rig.on(masked(2, &[1])), fault);
    assert_eq!(rig.on(mask(2, 5, 11)), ["compute 2"]);
}

#[test]
fn masks_of_frames_that_never_come_are_let_go() {
    let mut rig = last_stage();
    for position in 0..MASKS_UNDER_WAY as u32 {
        assert!(rig.on(mask(7, 5, position)).is_empty());
    }
    assert_eq!(rig.on(mask(8, 5, 0)), ["tell Fault Mask None"], "a coordinator that sends too many");
    assert_eq!(rig.on(masked(9, &[])), ["compute 9"]);
    assert!(rig.on(mask(10, 5, 10)).is_empty(), "there is room again");

    let mut rig = last_stage();
    assert!(rig.on(masked(1, &[0])).is_empty());
    assert_eq!(rig.message(Message::Unload { epoch: PlanEpoch(4) }), ["unload 1", "unlink 1"]);
    assert!(rig.on(mask(1, 5, 10)).is_empty(), "of a plan that is no more");
    assert!(rig.on(Event::Lost).is_empty());

    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.link(4, 1);
    assert_eq!(rig.on(mask(1, 5, 10)), ["tell Fault Mask Some(5)"], "this stage samples nothing");
    assert_eq!(rig.on(masked(1, &[0])), ["compute 1"], "and waits for nothing");
}
