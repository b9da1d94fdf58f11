//! Workers while a plan follows another: both stand side by side, and what moves is all that moves.

use super::{
    super::{assignment::Assignment, tensors::needed_together},
    *,
};

impl Played {
    pub(super) async fn unload(&mut self, epoch: u32) {
        self.tell(Message::Unload { epoch: PlanEpoch(epoch) }).await;
    }

    /// Waits until the worker has heard all that it was told, and found nothing wrong.
    async fn settled(&mut self) {
        // A session of a plan that never was: its refusal comes after all that was said before.
        let (epoch, session, sampling) = (PlanEpoch(0), SessionId(7), Sampling::default());
        self.tell(Message::Open(OpenSession { epoch, session, max_positions: 1, sampling, prefix: None })).await;
        self.hear_in_peace(|message| matches!(message, Message::Refused { epoch: PlanEpoch(0), .. })).await;
    }

    /// Takes leave of a worker that was asked to stop and has had nothing to complain of.
    async fn part_in_peace(mut self) {
        self.hear_in_peace(|message| matches!(message, Message::Bye { .. })).await;
        self.connection.close(qmesh_net::CloseCode::Ok, "");
    }

    async fn hear_in_peace(&mut self, last: impl Fn(&Message) -> bool) {
        self.hear(|message| {
            assert!(!matches!(message, Message::Fault(_)), "{message:?}");
            last(&message).then_some(())
        })
        .await;
    }
}

fn assignment(epoch: u32, layers: Range<u32>) -> Assignment {
    Assignment::try_from(load_shard(epoch, layers)).unwrap()
}

/// A second plan for the one worker, which has all layers already.
async fn second_plan(played: &mut Played, epoch: u32) -> (FrameSender, FrameReceiver) {
    let served = played.served;
    played.load(load_shard(epoch, 0..LAYERS)).await.unwrap();
    assert_eq!(played.served, served, "all tensors are there");
    played.route(epoch, 0, Upstream::Coordinator, Downstream::Coordinator).await;
    let to = played.connection.open_frames(PlanEpoch(epoch)).await.unwrap();
    let from = played.link_from_last_stage().await;
    played.linked().await;
    (to, from)
}

#[tokio::test]
async fn two_plans_on_one_worker_compute_side_by_side() {
    let stage = Stagecraft::new(11);
    let (mut hired, mut played, mut to, mut from) = alone(&stage, 1).await;
    played.open(1, 1, 32).await.unwrap();
    let expected = generate(1, 0, &mut to, &mut from).await;
    let (mut second_to, mut second_from) = second_plan(&mut played, 2).await;
    played.open(2, 1, 32).await.unwrap();
    let both = tokio::join!(generate(1, 10, &mut to, &mut from), generate(2, 0, &mut second_to, &mut second_from));
    assert_eq!(both, (expected.clone(), expected.clone()));

    // A frame that is under way when its plan goes is nobody's fault.
    to.send(&tokens(1, 20, &[(1, 0, &PROMPT)])).await.unwrap();
    played.unload(1).await;
    assert_eq!(generate(2, 10, &mut second_to, &mut second_from).await, expected);
    to.finish(StepId(20)).await.unwrap();
    played.settled().await;
    assert!(played.open(1, 2, 32).await.unwrap_err().contains("plan 1"));
    let (mut third_to, mut third_from) = second_plan(&mut played, 3).await;
    played.open(3, 1, 32).await.unwrap();
    assert_eq!(generate(3, 0, &mut third_to, &mut third_from).await, expected);
    hired.stop.take().unwrap().send(()).unwrap();
    played.part_in_peace().await;
    assert_eq!(ended(hired.task).await, WorkerEnd::Asked);
}

#[tokio::test]
async fn a_worker_that_joins_takes_layers_over_while_the_old_plan_serves() {
    let stage = Stagecraft::new(12);
    let (mut hired, mut played, mut to, mut from) = alone(&stage, 1).await;
    played.open(1, 1, 32).await.unwrap();
    let expected = generate(1, 0, &mut to, &mut from).await;
    let served = played.served;

    let mut joined = stage.hire(|_| {});
    let mut second = stage.admit().await;
    played.load(load_shard(2, 0..1)).await.unwrap();
    second.load(load_shard(2, 1..LAYERS)).await.unwrap();
    assert_eq!(played.served, served, "who stays fetches nothing");
    assert_eq!(second.served, MODEL.spec().shard_bytes(&(1..LAYERS as usize)));
    second.route(2, 1, Upstream::Worker(hired.peer), Downstream::Coordinator).await;
    let downstream = Downstream::Worker { peer: joined.peer, addresses: vec![joined.address.clone()] };
    played.route(2, 0, Upstream::Coordinator, downstream).await;
    let mut second_to = played.connection.open_frames(PlanEpoch(2)).await.unwrap();
    let mut second_from = second.link_from_last_stage().await;
    played.linked().await;
    second.linked().await;
    played.open(2, 1, 32).await.unwrap();
    second.open(2, 1, 32).await.unwrap();
    let both = tokio::join!(generate(1, 10, &mut to, &mut from), generate(2, 0, &mut second_to, &mut second_from));
    assert_eq!(both, (expected.clone(), expected.clone()));
    played.unload(1).await;
    assert_eq!(generate(2, 10, &mut second_to, &mut second_from).await, expected);

    // Whichever end hears first that the plan is over: neither finds the link between them broken.
    second.unload(2).await;
    second.settled().await;
    played.unload(2).await;
    played.settled().await;
    for (mut hired, played) in [(hired.stop.take(), played), (joined.stop.take(), second)] {
        hired.take().unwrap().send(()).unwrap();
        played.part_in_peace().await;
    }
}

#[tokio::test]
async fn plans_that_do_not_fit_together_are_refused_and_the_first_serves_on() {
    let (first, second) = (assignment(1, 0..LAYERS), assignment(2, 0..LAYERS));
    let together = needed_together(&second, [&first].into_iter(), 1);
    assert!(first.needed_bytes(1) < together && together.0 < 2 * first.needed_bytes(1).0);
    for (stage, budget) in [(Stagecraft::new(13), together.0 - 1), (Stagecraft::new(14), together.0)] {
        let _hired = stage.hire(|config| config.memory = Some(ByteCount(budget)));
        let mut played = stage.admit().await;
        played.load(load_shard(1, 0..LAYERS)).await.unwrap();
        let outcome = played.load(load_shard(2, 0..LAYERS)).await;
        let text = match outcome {
            Ok(()) => {
                assert_eq!(budget, together.0);
                continue;
            }
            Err(text) => text,
        };
        assert_eq!(budget, together.0 - 1, "{text}");
        let figures = format!("needs {together} for layers 0-2 beside layers 0-2 of plan 1, this worker has");
        assert!(text.starts_with(&figures) && text.contains("--memory"), "{text}");
        assert!(played.open(2, 1, 32).await.is_err());
        played.open(1, 1, 32).await.unwrap();
    }
}

#[tokio::test]
async fn all_damage_is_found_and_mended_at_once() {
    let stage = Stagecraft::new(15);
    let hired = stage.hire(|_| {});
    let mut played = stage.admit().await;
    played.load(load_shard(1, 0..2)).await.unwrap();
    played.unload(1).await;
    let (served, spec) = (played.served, MODEL.spec().shard(0..1));
    let hashes = MODEL.hashes(&spec.tensors).unwrap();
    for hash in &hashes {
        let hash = blake3::Hash::from_bytes(*hash).to_hex();
        let blob = hired.cache.path().join("blobs").join(&hash[..2]).join(hash.as_str());
        let mut damaged = std::fs::read(&blob).unwrap();
        damaged[1] ^= 1;
        std::fs::write(&blob, damaged).unwrap();
    }
    played.load(load_shard(2, 0..2)).await.unwrap();
    let unlike: std::collections::BTreeMap<_, _> = hashes.iter().zip(spec.tensors.iter().map(|t| t.bytes)).collect();
    assert_eq!(played.served, served + unlike.values().sum::<u64>(), "what was damaged, and nothing else");
}

#[tokio::test]
async fn a_plan_that_says_more_than_is_known_is_loaded_or_refused_by_its_section() {
    let stage = Stagecraft::new(21);
    let _hired = stage.hire(|_| {});
    let mut played = stage.admit().await;
    let mut load = load_shard(1, 0..1);
    load.sections.set(0xff00, Bytes::from_static(b"may be skipped"));
    played.load(load).await.unwrap();
    let mut load = load_shard(2, 1..2);
    load.sections.set(0xff01, Bytes::from_static(b"must be understood"));
    let text = played.load(load).await.unwrap_err();
    assert!(text.contains("section 65281 must be understood, and this version does not know it"), "{text}");
    // The worker goes on.
    played.load(load_shard(3, 1..2)).await.unwrap();
}
