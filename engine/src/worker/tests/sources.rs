//! Workers that have tensors from each other: whom they ask, what they give, and what happens when somebody fails.

use std::{collections::BTreeMap, time::Duration};

use qmesh_net::{
    RangeServer, Stock, TensorSources, WeightAskers, WeightOrigin, WeightPeer, WeightSource, WeightSources,
};
use tokio::task::JoinSet;

use super::*;

/// All that a shard of all layers needs; equal tensors once.
fn distinct_bytes() -> u64 {
    let tensors = &MODEL.spec().tensors;
    let hashes = MODEL.hashes(tensors).unwrap();
    hashes.iter().zip(tensors).map(|(hash, tensor)| (*hash, tensor.bytes)).collect::<BTreeMap<_, _>>().values().sum()
}

fn weight_peer(name: &str, peer: PeerId, address: &str) -> WeightPeer {
    WeightPeer { peer, name: name.into(), addresses: vec![address.to_owned()] }
}

/// The plan with this peer as the source of every tensor.
fn from_peer(mut load: LoadShard, peer: WeightPeer, stock: Stock) -> LoadShard {
    let of = |tensor| TensorSources { tensor, sources: vec![WeightSource { peer: 0, stock }] };
    let tensors = (0..u32::try_from(load.tensor_hashes.len()).unwrap()).map(of).collect();
    WeightSources { peers: vec![peer], tensors }.put(&mut load.sections).unwrap();
    load
}

fn asked_by(mut load: LoadShard, peers: &[PeerId]) -> LoadShard {
    WeightAskers { peers: peers.to_vec(), first: Vec::new() }.put(&mut load.sections).unwrap();
    load
}

/// How a stage came to be ready: where its bytes came from, and what it said meanwhile.
struct Course {
    origin: WeightOrigin,
    said: Vec<String>,
}

impl Played {
    async fn load_from(&mut self, load: LoadShard) -> Course {
        self.tell(Message::Load(load)).await;
        let mut said = Vec::new();
        let origin = self
            .hear(|message| {
                let Message::ShardStatus(status) = message else { return None };
                if !status.text.is_empty() {
                    said.push(status.text);
                }
                match status.phase {
                    ShardPhase::Ready => Some(WeightOrigin::find(&status.sections).unwrap()),
                    ShardPhase::Failed => panic!("{said:?}"),
                    ShardPhase::Fetching | ShardPhase::Loading => None,
                }
            })
            .await;
        Course { origin, said }
    }
}

/// What a made-up worker does with a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Manner {
    Refuses,
    Lies,
    /// Sends half of the first range, then is gone.
    Dies,
    /// Says that it has nothing yet, then gives.
    Hesitates,
}

/// A made-up worker that answers in this manner, at this address.
fn made_up(stage: &Stagecraft, asker: PeerId, manner: Manner) -> (WeightPeer, JoinSet<()>) {
    let endpoint = stage.network.endpoint(&Identity::ephemeral(), Admission::only([asker])).unwrap();
    let peer = weight_peer("attic", endpoint.peer_id(), &endpoint.local_addr().to_string());
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Some(connection) = endpoint.accept().await {
            let mut requests = 0;
            while let Ok(Incoming::Range(server)) = connection.accept_stream().await {
                requests += 1;
                let answered = match manner {
                    Manner::Refuses => server.refuse("not here").await,
                    Manner::Lies => serve(server, true).await.map(drop),
                    Manner::Hesitates if requests % 2 == 1 => nothing_yet(server).await,
                    Manner::Hesitates => serve(server, false).await.map(drop),
                    Manner::Dies if requests == 1 => half(server).await,
                    Manner::Dies => {
                        // What was sent still arrives.
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        connection.close(qmesh_net::CloseCode::Internal, "gone");
                        // Nobody is let in again.
                        endpoint.admission().allow([]);
                        break;
                    }
                };
                answered.unwrap();
            }
        }
    });
    (peer, task)
}

async fn nothing_yet(mut server: RangeServer) -> Result<(), NetError> {
    server.accept(0).await?;
    server.finish()
}

async fn half(mut server: RangeServer) -> Result<(), NetError> {
    let request = server.request();
    let tensors = &MODEL.spec().tensors;
    let hashes = MODEL.hashes(tensors).unwrap();
    let tensor = &tensors[hashes.iter().position(|hash| *hash == request.tensor).unwrap()];
    let mut bytes = vec![0; usize::try_from(request.bytes).unwrap()];
    MODEL.read_range(tensor.part, tensor.offset + request.offset, &mut bytes).unwrap();
    bytes.truncate(bytes.len() / 2);
    server.accept(bytes.len() as u64).await?;
    server.write(Bytes::from(bytes)).await?;
    server.finish()
}

#[tokio::test]
async fn three_that_lack_the_same_bytes_have_them_sent_once() {
    let stage = Stagecraft::new(31);
    let hired = [stage.hire(|_| {}), stage.hire(|_| {}), stage.hire(|_| {})];
    let mut cast = Vec::new();
    for _ in &hired {
        cast.push(stage.admit().await);
    }
    // In the order in which they came.
    let peers: Vec<WeightPeer> = cast
        .iter()
        .map(|played| {
            let hired = hired.iter().find(|hired| hired.peer == played.connection.peer()).unwrap();
            weight_peer("other", hired.peer, &hired.address)
        })
        .collect();
    let keys: Vec<PeerId> = peers.iter().map(|peer| peer.peer).collect();
    let load = |own: u16| {
        let mut load = load_shard(1, 0..LAYERS);
        // Every third tensor is this worker's to get first.
        let first = |tensor: u32| u16::try_from(tensor % 3).unwrap();
        let all = 0..u32::try_from(load.tensor_hashes.len()).unwrap();
        let (mine, theirs): (Vec<u32>, Vec<u32>) = all.partition(|&tensor| first(tensor) == own);
        let of = |tensor| TensorSources {
            tensor,
            sources: vec![WeightSource { peer: first(tensor), stock: Stock::Coming }],
        };
        let tensors = theirs.into_iter().map(of).collect();
        WeightSources { peers: peers.clone(), tensors }.put(&mut load.sections).unwrap();
        let others = keys.iter().copied().filter(|&key| key != keys[usize::from(own)]).collect();
        WeightAskers { peers: others, first: mine }.put(&mut load.sections).unwrap();
        load
    };
    let (loads, mut cast) = ([load(0), load(1), load(2)], cast.into_iter());
    let mut next = || cast.next().unwrap();
    let (mut a, mut b, mut c) = (next(), next(), next());
    let [first, second, third] = loads;
    let courses = tokio::join!(a.load_from(first), b.load_from(second), c.load_from(third));
    let served = a.served + b.served + c.served;
    let most = distinct_bytes() + distinct_bytes() / 10;
    assert!((distinct_bytes()..=most).contains(&served), "{served} bytes sent of {}", distinct_bytes());
    let from_peers: u64 = [&courses.0, &courses.1, &courses.2].map(|course| course.origin.peer_bytes).iter().sum();
    assert!(from_peers >= 2 * distinct_bytes() - distinct_bytes() / 10, "{from_peers}");
    assert!(a.served > 0 && b.served > 0 && c.served > 0, "each has a part of the work");
}

#[tokio::test]
async fn what_changes_hands_goes_from_worker_to_worker_and_what_is_there_does_not_move() {
    let stage = Stagecraft::new(32);
    let old = stage.hire(|_| {});
    let mut old_played = stage.admit().await;
    old_played.load(load_shard(1, 0..LAYERS)).await.unwrap();
    let new = stage.hire(|_| {});
    let mut new_played = stage.admit().await;
    let before = old_played.served;

    let giver = weight_peer("old", old.peer, &old.address);
    let given = from_peer(load_shard(2, 1..LAYERS), giver.clone(), Stock::Held);
    let kept = asked_by(load_shard(2, 0..1), &[new.peer]);
    let (course, _) = tokio::join!(new_played.load_from(given), old_played.load_from(kept));
    assert_eq!((old_played.served, new_played.served), (before, 0), "the coordinator sends nothing");
    assert_eq!(course.origin.coordinator_bytes, 0);
    assert!(course.origin.peer_bytes > 0, "{:?}", course.said);

    // Another plan that gives it the same: nothing moves. It may not even ask any more.
    let again = from_peer(load_shard(3, 1..LAYERS), giver, Stock::Held);
    let (course, _) = tokio::join!(new_played.load_from(again), old_played.load_from(load_shard(3, 0..1)));
    assert_eq!(course.origin, WeightOrigin::default());
    assert_eq!((old_played.served, new_played.served), (before, 0));
}

#[tokio::test]
async fn a_stranger_gets_nothing() {
    let stage = Stagecraft::new(33);
    let old = stage.hire(|_| {});
    let mut old_played = stage.admit().await;
    let stranger = stage.network.endpoint(&Identity::ephemeral(), Admission::only([])).unwrap();
    let upstream = stage.network.endpoint(&Identity::ephemeral(), Admission::only([])).unwrap();
    // The one is a neighbour in the pipeline, and may connect; neither may ask.
    old_played.load(asked_by(load_shard(1, 1..LAYERS), &[PeerId([9; 32])])).await.unwrap();
    old_played.route(1, 1, Upstream::Worker(upstream.peer_id()), Downstream::Coordinator).await;
    let _link = old_played.link_from_last_stage().await;
    let request = qmesh_net::RangeRequest { tensor: load_shard(1, 1..LAYERS).tensor_hashes[0], offset: 0, bytes: 1 };
    let connection = upstream.dial(std::slice::from_ref(&old.address), old.peer).await.unwrap();
    let refused = connection.fetch_range(request).await.unwrap_err();
    assert!(matches!(&refused, NetError::RangeRefused { text, .. } if text.contains("no plan names")), "{refused}");
    let shut_out = match stranger.dial(std::slice::from_ref(&old.address), old.peer).await {
        Ok(connection) => connection.fetch_range(request).await.err(),
        Err(error) => Some(error),
    };
    assert!(shut_out.is_some_and(|error| !matches!(error, NetError::RangeRefused { .. })));
    // The coordinator does not ask either: it has everything.
    let refused = old_played.connection.fetch_range(request).await.unwrap_err();
    assert!(matches!(refused, NetError::RangeRefused { .. }), "{refused}");
}

/// A worker that is told to get all from a made-up one; what became of it, and what the coordinator sent.
async fn loads_from(seed: u64, manner: Manner, stock: Stock) -> (Course, u64) {
    let stage = Stagecraft::new(seed);
    let hired = stage.hire(|_| {});
    let mut played = stage.admit().await;
    let (peer, _task) = made_up(&stage, hired.peer, manner);
    let course = played.load_from(from_peer(load_shard(1, 0..LAYERS), peer, stock)).await;
    (course, played.served)
}

#[tokio::test]
async fn where_a_peer_refuses_the_coordinator_sends() {
    let (course, served) = loads_from(34, Manner::Refuses, Stock::Held).await;
    assert_eq!((served, course.origin.peer_bytes), (distinct_bytes(), 0));
    assert_eq!(course.said, [""; 0], "it has nothing, and that is no fault");
}

#[tokio::test]
async fn a_peer_that_has_nothing_yet_is_asked_again() {
    let (course, served) = loads_from(35, Manner::Hesitates, Stock::Coming).await;
    assert_eq!((served, course.origin.peer_bytes), (0, distinct_bytes()));
}

#[tokio::test]
async fn wrong_bytes_are_thrown_away_and_their_sender_is_named() {
    let (course, served) = loads_from(36, Manner::Lies, Stock::Held).await;
    assert_eq!(served, distinct_bytes(), "the coordinator sends all of it");
    assert!(course.origin.peer_bytes > 0);
    let blamed = |text: &&String| text.starts_with("attic sent wrong bytes of ") && text.contains("thrown away");
    assert!(course.said.iter().find(blamed).is_some(), "{:?}", course.said);
}

#[tokio::test]
async fn when_a_peer_dies_half_way_the_next_goes_on_from_there() {
    let (course, served) = loads_from(37, Manner::Dies, Stock::Held).await;
    assert!(course.origin.peer_bytes > 0, "{:?}", course.said);
    assert_eq!(served, distinct_bytes() - course.origin.peer_bytes, "no byte came twice");
    assert!(course.said.iter().any(|text| text.starts_with("attic gives no tensors any more")), "{:?}", course.said);
}
