//! Workers whose cache may only be so large, and those who look after it meanwhile.

use std::collections::BTreeMap;

use super::{
    super::{Selection, TensorCache, Usage},
    *,
};

/// Bytes of the tensors of some layers, equal ones counted once.
fn shard_bytes(layers: Range<usize>) -> u64 {
    let spec = MODEL.spec().shard(layers);
    let unlike: BTreeMap<_, _> =
        MODEL.hashes(&spec.tensors).unwrap().into_iter().zip(spec.tensors.iter().map(|tensor| tensor.bytes)).collect();
    unlike.values().sum()
}

#[tokio::test]
async fn a_shard_that_the_cache_may_not_hold_is_refused_by_the_flag() {
    let stage = Stagecraft::new(31);
    let hired = stage.hire(|config| config.cache_size = Some(ByteCount(1000)));
    let mut played = stage.admit().await;
    let text = played.load(load_shard(1, 0..LAYERS)).await.unwrap_err();
    let bytes = ByteCount(shard_bytes(0..LAYERS as usize));
    assert!(text.contains(&format!("this shard are {bytes}, --cache-size allows 1.00 kB")), "{text}");
    assert_eq!((played.served, TensorCache::open(hired.cache.path()).unwrap().blobs().unwrap()), (0, vec![]));
}

#[tokio::test]
async fn the_cache_stays_below_its_limit_and_keeps_what_is_loaded() {
    let stage = Stagecraft::new(32);
    // The first layer comes with the embeddings and the last with the head, so the one between is the smallest.
    let limit = shard_bytes(0..1);
    assert!(shard_bytes(1..2) <= limit);
    let hired = stage.hire(|config| config.cache_size = Some(ByteCount(limit)));
    let cache = TensorCache::open(hired.cache.path()).unwrap();
    let bytes = || cache.blobs().unwrap().iter().map(|blob| blob.bytes).sum::<u64>();
    let mut played = stage.admit().await;
    played.load(load_shard(1, 0..1)).await.unwrap();
    assert_eq!(bytes(), limit);
    let text = played.load(load_shard(2, 1..2)).await.unwrap_err();
    assert!(text.contains("loaded beside it") && text.contains("--cache-size"), "{text}");
    assert_eq!(bytes(), limit, "what is loaded stays");

    played.unload(1).await;
    played.load(load_shard(3, 1..2)).await.unwrap();
    assert!(bytes() <= limit && cache.blobs().unwrap().iter().any(|blob| blob.usage == Usage::InUse), "{}", bytes());
    let served = played.served;
    played.unload(3).await;
    played.load(load_shard(4, 1..2)).await.unwrap();
    assert_eq!(played.served, served, "the tensors of the last shard are there");
}

#[tokio::test]
async fn what_a_running_worker_uses_is_not_deleted() {
    let stage = Stagecraft::new(33);
    let mut hired = stage.hire(|_| {});
    let cache = TensorCache::open(hired.cache.path()).unwrap();
    let mut played = stage.admit().await;
    played.load(load_shard(1, 0..2)).await.unwrap();
    let removal = cache.remove(&Selection::All).unwrap();
    assert_eq!((removal.removed, removal.kept.is_empty()), (vec![], false));
    // The same tensors, taken over by the shard that remains.
    played.load(load_shard(2, 0..2)).await.unwrap();
    played.unload(1).await;
    played.load(load_shard(3, 0..1)).await.unwrap();
    let kept = cache.remove(&Selection::All).unwrap().kept;
    assert_eq!(kept.iter().map(|blob| blob.bytes).sum::<u64>(), shard_bytes(0..2));

    hired.stop.take().unwrap().send(()).unwrap();
    played.part().await;
    assert_eq!(ended(hired.task).await, WorkerEnd::Asked);
    let removal = cache.remove(&Selection::All).unwrap();
    assert_eq!((removal.kept, removal.removed.len()), (vec![], kept.len()));
}
