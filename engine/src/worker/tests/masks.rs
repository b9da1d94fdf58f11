//! Tokens under masks, over one worker and over two.

use qmesh_net::{Mask, MaskedRows, TokenMask};

use super::*;

/// What may follow at a position: every fifth token or so.
fn mask(epoch: u32, step: u32, position: usize) -> Mask {
    let vocab = u32::try_from(MODEL.spec().vocab).unwrap();
    let position = u32::try_from(position).unwrap();
    let tokens = TokenMask::Ids((0..vocab).filter(|id| (id + position).is_multiple_of(5)).collect());
    Mask { epoch: PlanEpoch(epoch), step: StepId(step), session: SessionId(1), position, tokens }
}

/// A frame whose last row waits for a mask.
fn masked(epoch: u32, step: u32, position: usize, ids: &[u32]) -> Frame {
    let mut frame = tokens(epoch, step, &[(1, position, ids)]);
    let mut rows = MaskedRows::default();
    rows.insert(frame.rows() - 1);
    rows.put(&mut frame.sections);
    frame
}

async fn sampled(from: &mut FrameReceiver) -> Vec<Sampled> {
    let frame = timeout(Duration::from_secs(20), from.recv()).await.unwrap().unwrap().unwrap();
    Sampled::decode_rows(&frame).unwrap()
}

/// Tokens after the prompt, with their log-probabilities' bits. Masks come before their frames, and after them.
async fn generate(epoch: u32, last: &mut Played, to: &mut FrameSender, from: &mut FrameReceiver) -> Vec<(u32, u32)> {
    let (mut ids, mut sent, mut told) = (PROMPT.to_vec(), 0, Vec::new());
    for step in 0..8 {
        let (frame, mask) = (masked(epoch, step, sent, &ids), mask(epoch, step, ids.len() - 1));
        if step % 2 == 0 {
            last.tell(Message::Mask(mask.clone())).await;
            to.send(&frame).await.unwrap();
        } else {
            to.send(&frame).await.unwrap();
            last.tell(Message::Mask(mask.clone())).await;
        }
        let rows = sampled(from).await;
        assert!(rows.len() == 1 && mask.tokens.allows(rows[0].token), "{rows:?}");
        assert!(rows[0].top.iter().all(|candidate| mask.tokens.allows(candidate.id)));
        sent = ids.len();
        ids.push(rows[0].token);
        told.push((rows[0].token, rows[0].logprob.to_bits()));
    }
    told
}

#[tokio::test]
async fn one_worker_or_two_say_the_same_under_masks() {
    let stage = Stagecraft::new(31);
    let (mut hired, mut played, mut to, mut from) = alone(&stage, 1).await;
    played.open(1, 1, 32).await.unwrap();
    let expected = generate(1, &mut played, &mut to, &mut from).await;
    // A mask that lets nothing follow fails its session alone.
    played.open(1, 2, 32).await.unwrap();
    let nothing = TokenMask::Ids(Vec::new());
    let step = 8;
    played.tell(Message::Mask(Mask { tokens: nothing, ..mask(1, step, 3) })).await;
    let mut frame = tokens(1, step, &[(1, 0, &PROMPT), (2, 0, &PROMPT)]);
    let mut rows = MaskedRows::default();
    rows.insert(3);
    rows.put(&mut frame.sections);
    to.send(&frame).await.unwrap();
    let fault = played.fault().await;
    assert_eq!((fault.session, fault.code), (Some(SessionId(1)), FaultCode::Mask));
    assert_eq!(fault.text, "session 1: no token may follow position 3");
    assert_eq!(sampled(&mut from).await.len(), 1);
    hired.stop.take().unwrap().send(()).unwrap();
    played.part().await;
    assert_eq!(ended(hired.task).await, WorkerEnd::Asked);

    let (mut hired, mut cast) = (Vec::new(), Vec::new());
    for layers in [0..1, 1..LAYERS] {
        hired.push(stage.hire(|_| {}));
        let mut played = stage.admit().await;
        played.load(load_shard(2, layers)).await.unwrap();
        cast.push(played);
    }
    let mut last = cast.pop().unwrap();
    let mut first = cast.pop().unwrap();
    let (upstream, peer) = (Upstream::Worker(first.connection.peer()), last.connection.peer());
    last.route(2, 1, upstream, Downstream::Coordinator).await;
    let addresses = vec![hired[1].address.clone()];
    first.route(2, 0, Upstream::Coordinator, Downstream::Worker { peer, addresses }).await;
    let mut to = first.connection.open_frames(PlanEpoch(2)).await.unwrap();
    let mut from = last.link_from_last_stage().await;
    for played in [&mut first, &mut last] {
        played.linked().await;
        played.open(2, 1, 32).await.unwrap();
    }
    assert_eq!(generate(2, &mut last, &mut to, &mut from).await, expected);
}
