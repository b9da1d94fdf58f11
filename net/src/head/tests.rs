//! The layout to the byte, frames that must be refused, and a seeded fuzz of the parser.

use super::*;
use crate::{section::SectionError, tests::Random};

fn hidden() -> Frame {
    let segment = |session, position, rows, wants| {
        let trail = Trail(0x0807_0605_0403_0200 + session);
        Segment { session: SessionId(session), position, rows, wants, trail }
    };
    Frame {
        kind: FrameKind::Hidden,
        epoch: PlanEpoch(0x0102_0304),
        step: StepId(5),
        width: 2,
        times: StepTimes { compute_us: 0x0a, slowest_us: 0x0b, queued_us: 0x0c },
        segments: vec![segment(6, 7, 1, Wants::Last), segment(8, 0, 2, Wants::All)],
        ids: vec![10, 11, 12],
        payload: (0..24).collect::<Vec<u8>>().into(),
        sections: Sections::default(),
    }
}

/// With sections that nobody has to understand.
fn sectioned() -> Frame {
    let mut sections = Sections::default();
    sections.set(2, vec![7; 5]);
    sections.set(0x8000, Bytes::new());
    Frame { sections, ..hidden() }
}

fn frames() -> Vec<Frame> {
    let tokens = Frame { kind: FrameKind::Tokens, width: 0, payload: Bytes::new(), ..hidden() };
    let mut sampled = Frame { kind: FrameKind::Sampled, width: 1, payload: vec![0; 2 * 32].into(), ..hidden() };
    sampled.ids.pop();
    (sampled.segments[0].rows, sampled.segments[1].rows) = (0, 2);
    vec![hidden(), tokens, sectioned(), sampled, Frame::end(PlanEpoch(1), StepId(2))]
}

#[test]
fn the_layout_is_this() {
    let head = hidden().head_bytes().unwrap();
    let mut expected = vec![0x4d, 0x51, 1, 0, 0, 0, 2, 0, 5, 0, 0, 0, 4, 3, 2, 1, 2, 0, 0, 0, 3, 0, 0, 0, 24, 0, 0, 0];
    expected.extend(&head[28..32]);
    expected.extend([0x0a, 0, 0, 0, 0x0b, 0, 0, 0, 0x0c, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend([6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 6, 2, 3, 4, 5, 6, 7, 8]);
    expected.extend([8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend([8, 2, 3, 4, 5, 6, 7, 8]);
    expected.extend([10, 0, 0, 0, 11, 0, 0, 0, 12, 0, 0, 0]);
    expected.resize(128, 0);
    assert_eq!(head, expected);
    let mut zeroed = expected.clone();
    zeroed[28..32].fill(0);
    assert_eq!(head[28..32], crc32c::crc32c(&zeroed).to_le_bytes());
}

#[test]
fn every_kind_survives() {
    for frame in frames() {
        let head = frame.head_bytes().unwrap();
        let parsed = FrameHead::parse(&head).unwrap();
        assert_eq!((parsed.payload_bytes(), head.len() % 32), (frame.payload.len(), 0));
        assert_eq!(parsed.fixed.frame_bytes(), head.len() + frame.payload.len());
        assert_eq!(frame.wire_bytes(), parsed.fixed.frame_bytes());
        assert_eq!(parsed.into_frame(frame.payload.clone()).unwrap(), frame);
    }
}

#[test]
fn sections_follow_the_ids() {
    let head = sectioned().head_bytes().unwrap();
    assert_eq!(head[44..48], [17, 0, 0, 0]);
    assert_eq!(head[124..141], [2, 0, 5, 0, 0, 0, 7, 7, 7, 7, 7, 0, 0x80, 0, 0, 0, 0]);
    assert_eq!((head.len(), head[141..].iter().all(|byte| *byte == 0)), (160, true));
}

#[test]
fn rows_that_wait_for_a_mask_are_a_bit_each() {
    let mut frame = hidden();
    frame.sections.set(MaskedRows::TAG, vec![0b101]);
    let head = frame.head_bytes().unwrap();
    assert_eq!((&head[44..46], &head[124..131]), (&[7, 0][..], &[7, 0, 1, 0, 0, 0, 5][..]));
    assert_eq!(FrameHead::parse(&head).unwrap().into_frame(frame.payload.clone()), Ok(frame.clone()));
    frame.sections.set(MaskedRows::TAG, vec![0b1000]);
    let beyond = FrameError::Limit { what: "masked row", found: 3, least: 0, most: 2 };
    assert_eq!(frame.head_bytes(), Err(beyond));
}

#[test]
fn sections_that_must_be_understood_are_refused_by_their_tag() {
    let mut frame = sectioned();
    frame.sections.set(9, Bytes::new());
    let refused = FrameHead::parse(&frame.head_bytes().unwrap());
    assert_eq!(refused, Err(FrameError::Section(SectionError::Unknown { tag: 9 })));
    frame.sections.set(2, vec![0; FRAME_SECTIONS_BYTES]);
    assert!(matches!(frame.head_bytes(), Err(FrameError::Section(SectionError::TooLong { .. }))));
}

#[test]
fn frames_that_break_a_rule_are_not_sent() {
    type Breakage = fn(&mut Frame);
    let broken: [(&str, Breakage); 7] = [
        ("rows", |frame| frame.segments[0].rows = 2),
        ("rows of a segment", |frame| (frame.segments[0].rows, frame.segments[1].rows) = (0, 3)),
        ("bytes of the payload", |frame| frame.payload = frame.payload.slice(1..)),
        ("width", |frame| frame.width = 0),
        ("segments", |frame| frame.segments = vec![frame.segments[0]; FRAME_SEGMENTS + 1]),
        ("rows", |frame| frame.ids = vec![0; FRAME_ROWS + 1]),
        ("end of a segment", |frame| frame.segments[0].position = u32::MAX),
    ];
    for (what, breakage) in broken {
        let mut frame = hidden();
        breakage(&mut frame);
        let error = frame.head_bytes().unwrap_err();
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
}

/// Changes a field and makes the checksum right again, as a malicious peer would.
fn forged(offset: usize, bytes: &[u8]) -> FrameError {
    let mut head = hidden().head_bytes().unwrap().to_vec();
    head[offset..offset + bytes.len()].copy_from_slice(bytes);
    let crc = checksum(&head);
    head[28..32].copy_from_slice(&crc.to_le_bytes());
    FrameHead::parse(&head).unwrap_err()
}

#[test]
fn forged_heads_are_refused_by_name() {
    for (offset, bytes, what) in [
        (0, &[0u8, 0][..], "not a frame"),
        (2, &[3], "frame kind 3"),
        (3, &[2], "wire type 2"),
        (4, &[2], "frame flags 2"),
        (6, &[0, 0], "segments of 0"),
        (6, &[1, 1], "segments of 257"),
        (16, &[0xff; 4], "width of"),
        (20, &[0xff; 4], "rows of"),
        (24, &[0xff; 4], "bytes of the payload"),
        (44, &[1], "1 bytes follow the last section"),
        (44, &[0xff; 2], "bytes of the sections of"),
        (44, &[200], "head of"),
        (46, &[1], "reserved"),
        (60, &[2], "rows"),
        (56, &[0xff; 4], "end of a segment"),
        (64, &[5], "segment flags 5"),
        (64, &[32], "segment flags 32"),
        (68, &[1], "reserved"),
        (126, &[1], "padding"),
    ] {
        let error = forged(offset, bytes).to_string();
        assert!(error.contains(what), "{offset}: {error}");
    }
}

#[test]
fn optional_flags_are_ignored() {
    let mut head = hidden().head_bytes().unwrap().to_vec();
    (head[5], head[67]) = (0x80, 0x80);
    let crc = checksum(&head);
    head[28..32].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(FrameHead::parse(&head).unwrap().into_frame(hidden().payload), Ok(hidden()));
}

#[test]
fn mutated_heads_never_panic_and_never_lie() {
    let mut random = Random(2);
    let heads: Vec<_> = frames().iter().map(|frame| frame.head_bytes().unwrap()).collect();
    let mut accepted = 0;
    for round in 0..150_000 {
        let mut bytes = heads[random.below(heads.len())].to_vec();
        random.mutate(&mut bytes);
        // Half of them with a right checksum, else little behind it would ever be reached.
        if round % 2 == 0 && bytes.len() >= 32 {
            let crc = checksum(&bytes);
            bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        }
        let Ok(head) = FrameHead::parse(&bytes) else { continue };
        accepted += 1;
        assert!(head.payload_bytes() <= FRAME_PAYLOAD_BYTES && head.ids.len() <= FRAME_ROWS);
        assert_eq!(head.segments.iter().map(|segment| segment.rows as usize).sum::<usize>(), head.ids.len());
    }
    assert!(accepted > 1000, "{accepted} of the mutations pass: the fuzz reaches too little");
}
