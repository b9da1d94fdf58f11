//! Golden bytes of the frozen messages, round trips of all, and bytes that must be refused.

use super::*;
use crate::{
    aside::RelayTag,
    grant::{Grant, GrantEnd, Seeker},
    ids::{PeerId, PlanEpoch, SessionId, StageIndex, StepId},
    limits::MASK_TOKENS,
    mask::{Mask, TokenMask},
    message::*,
    sampling::{Digest, Dry, Sampling},
};

fn hello() -> Hello {
    Hello {
        protocol: 1,
        version: "0.1.0".into(),
        features: 3,
        name: "w1".into(),
        os: "linux".into(),
        numerics: "x".into(),
        memory_bytes: 0x0102_0304_0506_0708,
        threads: 8,
        secret_id: [0xaa; 8],
        proof: [0xbb; 32],
        sections: Sections::default(),
    }
}

/// The type of a `Bye`.
const BYE: u16 = 15;

/// One that may be skipped, and one that must be understood.
fn sections() -> Sections {
    let mut sections = Sections::default();
    sections.set(0x10, b"even".to_vec());
    sections.set(0x11, b"odd".to_vec());
    sections
}

/// The messages that have a field for sections, with some.
fn sectioned_messages() -> Vec<Message> {
    let fill = |mut message: Message| {
        *message.sections_mut()? = sections();
        Some(message)
    };
    every_message().into_iter().filter_map(fill).collect()
}

fn sampling() -> Sampling {
    let dry = Dry {
        multiplier: 0.8,
        base: 1.75,
        allowed_length: 2,
        window: 64,
        breakers: TokenMask::Ids(vec![1, 9]),
        breaking_sequences: vec![vec![4, 5]],
    };
    Sampling {
        seed: u64::MAX,
        logit_bias: vec![(3, -1.5)],
        digest: Digest::On,
        dry: Some(Box::new(dry)),
        ..Sampling::default()
    }
}

fn every_message() -> Vec<Message> {
    [messages_of_a_mesh(), messages_of_a_rendezvous()].concat()
}

fn messages_of_a_mesh() -> Vec<Message> {
    let (epoch, session, peer) = (PlanEpoch(7), SessionId(9), PeerId([4; 32]));
    let sampling = sampling();
    let load = LoadShard {
        epoch,
        stage: StageIndex(1),
        stages: 3,
        model_id: [1; 32],
        model_name: "tiny".into(),
        spec_json: b"{}".to_vec(),
        layers: 4..8,
        tensor_hashes: vec![[2; 32], [3; 32]],
        kv_positions: 4096,
        context: 2048,
        chunk_rows: 256,
        sections: Sections::default(),
    };
    let phase = ShardPhase::Loading;
    let status = ShardStatus {
        epoch,
        phase,
        bytes_done: 1,
        bytes_total: 2,
        text: "…".into(),
        peak_memory_bytes: 3,
        sections: Sections::default(),
    };
    let downstream = Downstream::Worker { peer, addresses: vec!["10.0.0.1:7700".into()] };
    let code = FaultCode::Gap { need: 12 };
    vec![
        Message::Hello(hello()),
        Message::Welcome(Welcome { mesh: "m".into(), assigned_name: "w1-2".into(), ..Welcome::default() }),
        Message::Reject { code: RejectCode::Secret, text: "no".into() },
        Message::Load(load),
        Message::ShardStatus(status),
        Message::Route(Route {
            epoch,
            stage: StageIndex(1),
            upstream: Upstream::Worker(peer),
            downstream,
            sections: Sections::default(),
        }),
        Message::Linked { epoch, sections: Sections::default() },
        Message::Open(OpenSession {
            epoch,
            session,
            max_positions: 100,
            sampling,
            prefix: Some(Prefix { session, positions: 64 }),
        }),
        Message::Opened { epoch, session },
        Message::Refused { epoch, session, text: "full".into() },
        Message::Close { epoch, session },
        Message::Unload { epoch },
        Message::Fault(Fault { epoch, session: Some(session), code, text: String::new() }),
        Message::StageReport(StageReport { epoch, steps: 5, ..StageReport::default() }),
        Message::Drain,
        Message::Bye { text: "later".into() },
        Message::Keep { epoch, session, positions: 64 },
        Message::Measure(Measure { spec_json: b"{}".to_vec() }),
        Message::Measured(Measured {
            points: vec![MeasuredPoint { rows: 8, layers_ps_per_kib: 5, head_ps_per_kib: 6 }],
            text: String::new(),
            sections: Sections::default(),
        }),
        Message::Mask(Mask { epoch, step: StepId(4), session, position: 11, tokens: TokenMask::Bits(vec![8, 2]) }),
        Message::Moved { sections: Sections::default() },
    ]
}

fn messages_of_a_rendezvous() -> Vec<Message> {
    let (epoch, peer, tag) = (PlanEpoch(7), PeerId([4; 32]), RelayTag([6; 16]));
    let seeker = Seeker { peer, tag, address: "198.51.100.7:7700".into() };
    let ends = [vec!["198.51.100.7".into()], vec![]].map(|hosts| GrantEnd { peer, tag, hosts });
    vec![
        Message::Sought(seeker.clone()),
        Message::Introduce(seeker),
        Message::Grant(Grant { epoch, ends, bytes_per_second: 5, idle_seconds: 6 }),
        Message::Revoke { epoch },
    ]
}

#[test]
fn the_handshake_never_changes() {
    let hex = |message: &Message| data_encoding::HEXLOWER.encode(&encode(message).unwrap());
    let text =
        |text: &str| format!("{:02x}00000000000000{}", text.len(), data_encoding::HEXLOWER.encode(text.as_bytes()));
    let texts = [text("w1"), text("linux"), text("x")].concat();
    let fields = ["0000", "0100", &text("0.1.0"), "0300000000000000", &texts, "0807060504030201", "08000000"].concat();
    assert_eq!(hex(&Message::Hello(hello())), fields + &"aa".repeat(8) + &"bb".repeat(32));
    let welcome = Welcome { mesh: "m".into(), assigned_name: "w1".into(), ..Welcome::default() };
    assert_eq!(hex(&Message::Welcome(welcome)), "010001000000000000006d02000000000000007731");
    let reject = Message::Reject { code: RejectCode::Expired, text: "no".into() };
    assert_eq!(hex(&reject), "02000200000002000000000000006e6f");
}

#[test]
fn every_message_survives_and_no_part_of_it_passes() {
    let messages = every_message();
    assert_eq!(messages.len(), usize::from(TYPES));
    let kinds = (0..FIRST_OPTIONAL).chain(OPTIONAL_TYPE..);
    for (kind, message) in kinds.zip(messages) {
        let bytes = encode(&message).unwrap();
        assert_eq!(bytes[..2], kind.to_le_bytes(), "{message:?}");
        assert_eq!(decode(&bytes), Ok(message.clone()));
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "{message:?} cut to {cut}");
        }
        assert_eq!(decode(&[&bytes[..], &[0]].concat()), Err(MessageError::Trailing { kind, bytes: 1 }));
    }
}

#[test]
fn sections_follow_the_body() {
    let written = b"\x10\0\x04\0\0\0even\x11\0\x03\0\0\0odd";
    let messages = sectioned_messages();
    assert_eq!(messages.len(), 9);
    for message in messages {
        let bytes = encode(&message).unwrap();
        let (body, sections) = bytes.split_at(bytes.len() - written.len());
        assert_eq!(sections, written);
        assert_eq!(decode(&bytes), Ok(message.clone()));
        let mut without = message.clone();
        *without.sections_mut().unwrap() = Sections::default();
        assert_eq!(decode(body), Ok(without));
        let again = decode(&[&bytes[..], written].concat()).unwrap_err();
        assert!(matches!(again, MessageError::Section { source: SectionError::Order { .. }, .. }), "{again}");
    }
}

#[test]
fn messages_without_a_place_for_sections_skip_those_they_may() {
    let bye = Message::Bye { text: "later".into() };
    let bytes = encode(&bye).unwrap();
    let even = [&bytes[..], b"\x10\0\x04\0\0\0even"].concat();
    assert_eq!(decode(&even), Ok(bye));
    let odd = decode(&[&even[..], b"\x11\0\x03\0\0\0odd"].concat()).unwrap_err();
    assert_eq!(odd, MessageError::Section { kind: BYE, source: SectionError::Unknown { tag: 0x11 } });
    assert_eq!(odd.to_string(), "message of type 15: section 17 must be understood, and this version does not know it");
    let request = RangeRequest { tensor: [1; 32], offset: 2, bytes: 3 };
    let bytes = [&encode_range(&request).unwrap()[..], b"\x10\0\0\0\0\0"].concat();
    assert_eq!(decode_range(&bytes), Ok(request));
    let odd = decode_range::<RangeRequest>(&[&bytes[..], b"\x11\0\0\0\0\0"].concat()).unwrap_err();
    assert!(matches!(odd, MessageError::Section { source: SectionError::Unknown { tag: 0x11 }, .. }), "{odd}");
}

#[test]
fn sections_have_a_limit_of_their_own() {
    let mut welcome = Welcome::default();
    welcome.sections.set(2, vec![0; MESSAGE_SECTIONS_BYTES]);
    let refused = encode(&Message::Welcome(welcome)).unwrap_err();
    let most = MESSAGE_SECTIONS_BYTES;
    assert_eq!(refused, MessageError::Section { kind: 1, source: SectionError::TooLong { bytes: most + 6, most } });
    let bytes = [&encode(&Message::Welcome(Welcome::default())).unwrap()[..], &vec![0; most + 1]].concat();
    let refused = decode(&bytes).unwrap_err();
    assert_eq!(refused, MessageError::Section { kind: 1, source: SectionError::TooLong { bytes: most + 1, most } });
}

#[test]
fn a_mask_comes_in_the_shorter_of_two_forms() {
    let mask = |tokens| Mask { epoch: PlanEpoch(7), step: StepId(4), session: SessionId(9), position: 11, tokens };
    let hex = |mask| data_encoding::HEXLOWER.encode(&encode(&Message::Mask(mask)).unwrap());
    let place = "1300070000000400000009000000000000000b000000";
    assert_eq!(hex(mask(TokenMask::Bits(vec![8, 2]))), [place, "00000000", "0200000000000000", "0802"].concat());
    let ids = [place, "01000000", "0100000000000000", "70110100"].concat();
    assert_eq!(hex(mask(TokenMask::Ids(vec![70_000]))), ids);
    for tokens in [TokenMask::Ids(vec![4, 3]), TokenMask::Bits(vec![0; MASK_TOKENS / 8 + 1])] {
        let bytes = encode(&Message::Mask(mask(tokens))).unwrap();
        assert!(matches!(decode(&bytes), Err(MessageError::Malformed { kind: 19, .. })));
    }
    let most = Message::Mask(mask(TokenMask::Bits(vec![0xff; MASK_TOKENS / 8])));
    assert_eq!(decode(&encode(&most).unwrap()), Ok(most));
}

#[test]
fn unknown_types_are_refused_unless_optional() {
    // The first one that is optional, under the number that it would have if it were not.
    for kind in [FIRST_OPTIONAL, TYPES, 0x7fff] {
        let error = decode(&kind.to_le_bytes()).unwrap_err();
        assert_eq!((error.is_optional(), error), (false, MessageError::UnknownType { kind }));
    }
    for kind in [OPTIONAL_TYPE | (TYPES - FIRST_OPTIONAL), u16::MAX] {
        let error = decode(&kind.to_le_bytes()).unwrap_err();
        assert_eq!((error.is_optional(), error), (true, MessageError::UnknownType { kind }));
    }
    assert_eq!(encode(&Message::Moved { sections: Sections::default() }).unwrap(), [0, 0x80]);
    assert_eq!(encode(&Message::Revoke { epoch: PlanEpoch(7) }).unwrap(), [4, 0x80, 7, 0, 0, 0]);
}

#[test]
fn sizes_are_checked_before_memory_is_taken() {
    let long = Message::Bye { text: "x".repeat(MESSAGE_BYTES) };
    assert!(matches!(encode(&long), Err(MessageError::TooLong { .. })));
    let long = [&BYE.to_le_bytes()[..], &vec![0; MESSAGE_BYTES]].concat();
    assert_eq!(decode(&long), Err(MessageError::TooLong { bytes: MESSAGE_BYTES + 2 }));
    // A text that claims 2^63 bytes, and one that is not UTF-8.
    for text in [&(1u64 << 63).to_le_bytes()[..], &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]] {
        let bytes = [&BYE.to_le_bytes()[..], text].concat();
        assert!(matches!(decode(&bytes), Err(MessageError::Malformed { kind: BYE, .. })));
    }
}

#[test]
fn mutated_messages_never_panic() {
    let mut random = crate::tests::Random(1);
    let messages = every_message().into_iter().chain(sectioned_messages());
    let messages: Vec<_> = messages.map(|message| encode(&message).unwrap()).collect();
    for _ in 0..20_000 {
        let mut bytes = messages[random.below(messages.len())].clone();
        random.mutate(&mut bytes);
        if let Ok(message) = decode(&bytes) {
            assert_eq!(encode(&message).unwrap(), bytes);
        }
    }
}
