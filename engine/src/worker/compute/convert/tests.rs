//! Frames of two or three sessions, cut and put together.

use std::sync::Arc;

use bytes::Bytes;
use qmesh_net::{LoadShard, PlanEpoch, StepId, StepTimes, Trail};

use super::*;
use crate::worker::tests::load_shard;

fn assignment(layers: std::ops::Range<u32>) -> Arc<Assignment> {
    Arc::new(Assignment::try_from(load_shard(1, layers)).unwrap())
}

fn segment(session: u64, position: u32, rows: u32, wants: Wants) -> Segment {
    Segment { session: SessionId(session), position, rows, wants, trail: Trail(session) }
}

/// Rows 1, 2 and 3 long; row i is `width` times the value i.
fn frame(kind: FrameKind, width: u32) -> Frame {
    let segments = vec![segment(7, 0, 1, Wants::None), segment(8, 5, 2, Wants::Last), segment(9, 2, 3, Wants::All)];
    let rows = (0..6).flat_map(|row| vec![row as f32; width as usize]).collect::<Vec<_>>();
    let payload = if kind == FrameKind::Hidden { wire::encode(rows) } else { Bytes::new() };
    let (epoch, step) = (PlanEpoch(1), StepId(3));
    Frame {
        kind,
        epoch,
        step,
        width,
        times: StepTimes::default(),
        segments,
        ids: (100..106).collect(),
        payload,
        sections: Sections::default(),
    }
}

#[test]
fn a_frame_of_the_wrong_kind_or_shape_is_refused() {
    let (first, last) = (assignment(0..2), assignment(2..3));
    let width = u32::try_from(last.spec.hidden).unwrap();
    assert_eq!(to_step(&first, &frame(FrameKind::Tokens, 0)).unwrap().hidden, None);
    let step = to_step(&last, &frame(FrameKind::Hidden, width)).unwrap();
    assert_eq!(step.hidden.map(|rows| rows.len()), Some(6 * width as usize));

    let text = to_step(&first, &frame(FrameKind::Hidden, width)).unwrap_err();
    assert!(text.contains("stage 0 takes Tokens"), "{text}");
    assert!(to_step(&last, &frame(FrameKind::Tokens, 0)).is_err());
    assert!(to_step(&last, &frame(FrameKind::Hidden, width / 2)).is_err());
    let short = Frame { payload: Bytes::from_static(&[0; 8]), ..frame(FrameKind::Hidden, width) };
    assert!(to_step(&last, &short).is_err());
    let fewer = Frame { ids: vec![1], ..frame(FrameKind::Hidden, width) };
    assert!(to_step(&last, &fewer).is_err());
    let small = Assignment::try_from(LoadShard { chunk_rows: 4, ..load_shard(1, 2..3) }).unwrap();
    let text = to_step(&small, &frame(FrameKind::Hidden, width)).unwrap_err();
    assert_eq!(text, "6 rows, this plan's steps have 5 at most");
}

#[test]
fn a_session_taken_out_leaves_the_rows_of_the_others() {
    let middle = assignment(1..2);
    let width = middle.spec.hidden;
    let whole = frame(FrameKind::Hidden, u32::try_from(width).unwrap());
    let mut step = to_step(&middle, &whole).unwrap();
    assert_eq!(remove(&mut step, SessionId(1), width), None);
    assert_eq!(remove(&mut step, SessionId(8), width), Some(()));
    let rows = step.hidden.clone().unwrap();
    assert_eq!(rows.iter().step_by(width).copied().collect::<Vec<_>>(), [0.0, 3.0, 4.0, 5.0]);
    let out = to_frame(&middle, &whole, step, StepOutput::Hidden(rows));
    assert_eq!(out.segments, [whole.segments[0], whole.segments[2]]);
    assert_eq!(out.ids, [100, 103, 104, 105]);
    assert_eq!((out.kind, out.step, out.epoch), (FrameKind::Hidden, StepId(3), PlanEpoch(1)));
    assert_eq!(out.payload.len(), 4 * width * 4);
}

#[test]
fn rows_that_wait_for_a_mask_are_passed_on_as_they_are_left() {
    let middle = assignment(1..2);
    let width = middle.spec.hidden;
    let mut whole = frame(FrameKind::Hidden, u32::try_from(width).unwrap());
    let mut rows = MaskedRows::default();
    [0, 2, 3, 5].into_iter().for_each(|row| rows.insert(row));
    rows.put(&mut whole.sections);
    let mut step = to_step(&middle, &whole).unwrap();
    let out = |step: Step| {
        let rows = step.hidden.clone().unwrap();
        to_frame(&middle, &whole, step, StepOutput::Hidden(rows))
    };
    assert_eq!(MaskedRows::of(&out(step.clone())), rows);
    remove(&mut step, SessionId(8), width).unwrap();
    let places = MaskedRows::places(&out(step.clone())).into_iter().map(|(session, position)| (session.0, position));
    assert_eq!(places.collect::<Vec<_>>(), [(7, 0), (9, 2), (9, 4)]);
    remove(&mut step, SessionId(7), width).unwrap();
    remove(&mut step, SessionId(9), width).unwrap();
    assert!(out(step).sections.is_empty());
}

#[test]
fn samples_come_back_for_the_rows_that_were_wanted() {
    let last = assignment(2..3);
    let whole = frame(FrameKind::Hidden, u32::try_from(last.spec.hidden).unwrap());
    let row =
        |token| SampledRow { token, logprob: -1.0, target_logprob: f32::NAN, digest: 0, top: vec![(token, 2.0, -1.0)] };
    let step = to_step(&last, &whole).unwrap();
    let out = to_frame(
        &last,
        &whole,
        step.clone(),
        StepOutput::Sampled((0..4).map(|n| Ok(row(n))).collect::<Vec<_>>().into()),
    );
    let places: Vec<_> = out.segments.iter().map(|s| (s.session.0, s.position, s.rows)).collect();
    assert_eq!(places, [(7, 1, 0), (8, 6, 1), (9, 2, 3)]);
    assert_eq!((out.ids.as_slice(), out.width), ([102, 103, 104, 105].as_slice(), 1));
    let rows = Sampled::decode_rows(&out).unwrap();
    assert_eq!(rows.iter().map(|row| row.token).collect::<Vec<_>>(), [0, 1, 2, 3]);

    let mut rest = step;
    remove(&mut rest, SessionId(9), last.spec.hidden).unwrap();
    let out = to_frame(&last, &whole, rest, StepOutput::Sampled(vec![Ok(row(4))].into()));
    let places: Vec<_> = out.segments.iter().map(|s| (s.session.0, s.position, s.rows)).collect();
    assert_eq!(places, [(7, 1, 0), (8, 6, 1), (9, 5, 0)]);
    assert_eq!(out.ids, [102]);
}

#[test]
fn a_session_that_nothing_can_be_sampled_of_takes_no_other_with_it() {
    let last = assignment(2..3);
    let whole = frame(FrameKind::Hidden, u32::try_from(last.spec.hidden).unwrap());
    let row = |token| SampledRow { token, logprob: -1.0, target_logprob: -2.0, digest: 0, top: Vec::new() };
    let failed = |position| Err(EngineError::NonFinite { session: 9, position });
    let mut step = to_step(&last, &whole).unwrap();
    // A row of session 8, and three of session 9.
    let rows = StepOutput::Sampled(vec![Ok(row(4)), Ok(row(5)), failed(3), failed(4)].into());
    let (output, errors) = remove_failed(&mut step, rows);
    assert_eq!(errors, [EngineError::NonFinite { session: 9, position: 3 }]);
    assert_eq!(output, StepOutput::Sampled(vec![Ok(row(4))].into()));
    let out = to_frame(&last, &whole, step, output);
    let rows: Vec<_> = out.segments.iter().map(|s| (s.session.0, s.rows)).collect();
    assert_eq!((rows, &out.ids[..]), (vec![(7, 0), (8, 1), (9, 0)], [102].as_slice()));
}

#[test]
fn sums_follow_the_samples_of_those_that_are_left() {
    let last = assignment(2..3);
    let mut whole = frame(FrameKind::Hidden, u32::try_from(last.spec.hidden).unwrap());
    (whole.segments[0].wants, whole.segments[2].wants) = (Wants::SumLast, Wants::Sum);
    let row = |token| SampledRow { token, logprob: -1.0, target_logprob: -2.0, digest: 0, top: Vec::new() };
    let sum = |first| step::RowSum(vec![first, -2]);
    let step = to_step(&last, &whole).unwrap();
    let samples = |first| Samples { rows: vec![Ok(row(4))], sums: vec![first, Ok(sum(9))] };
    let out = to_frame(&last, &whole, step.clone(), StepOutput::Sampled(samples(Ok(sum(7)))));
    let places: Vec<_> = out.segments.iter().map(|s| (s.session.0, s.position, s.rows, s.wants)).collect();
    assert_eq!(places, [(7, 1, 0, Wants::SumLast), (8, 6, 1, Wants::Last), (9, 5, 0, Wants::Sum)]);
    assert_eq!(Sampled::decode_rows(&out).unwrap().len(), 1);
    assert_eq!(RowSum::decode_all(&out).unwrap(), [RowSum(vec![7, -2]), RowSum(vec![9, -2])]);
    assert!(out.head_bytes().is_ok());

    let mut rest = step;
    let broken = EngineError::NonFinite { session: 7, position: 0 };
    let (output, errors) = remove_failed(&mut rest, StepOutput::Sampled(samples(Err(broken.clone()))));
    assert_eq!(errors, [broken]);
    let out = to_frame(&last, &whole, rest, output);
    assert_eq!(out.segments.iter().map(|s| s.wants).collect::<Vec<_>>(), [Wants::None, Wants::Last, Wants::Sum]);
    assert_eq!(RowSum::decode_all(&out).unwrap(), [RowSum(vec![9, -2])]);
    assert!(out.head_bytes().is_ok());
}

#[test]
fn a_step_has_only_so_many_sums() {
    let first = assignment(0..2);
    let rows = u32::try_from(SUMMED_SEQUENCES).unwrap() + 1;
    let segments: Vec<_> = (0..u64::from(rows)).map(|session| segment(session, 0, 1, Wants::Sum)).collect();
    let many = Frame { segments, ids: vec![1; rows as usize], ..frame(FrameKind::Tokens, 0) };
    assert_eq!(to_step(&first, &many).unwrap_err(), "17 sums of rows, a step has 16 at most");
}

#[test]
fn only_the_session_at_fault_is_blamed() {
    let gap = EngineError::Gap { session: 4, need: 9 };
    assert_eq!(blame(&gap), (Some(SessionId(4)), FaultCode::Gap { need: 9 }));
    let twice = EngineError::Step { what: "session 4 appears twice".into() };
    assert_eq!(blame(&twice), (None, FaultCode::Frame));
}
