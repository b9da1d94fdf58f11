//! Request bodies: read under a deadline and a memory budget, worked on under another.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::Request,
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    effort::Effort,
    error::ApiError,
    json::Document,
    limits::{BODY_BYTES, BODY_DEADLINE, MOST_BYTES},
};

/// KiB of bodies that may be in memory together.
const BODIES_KIB: usize = 128 << 10;
/// KiB that may be taken together to make prompts of them: by one of the heaviest, or by many.
const WORK_KIB: usize = MOST_BYTES >> 10;
/// Time that a request waits for others to be worked on.
const WORK_DEADLINE: Duration = Duration::from_secs(10);

/// What all requests together may take before they are prompts.
#[derive(Debug)]
pub(crate) struct Budget {
    bodies: Arc<Semaphore>,
    work: Arc<Semaphore>,
}

/// A body and its share of the budget.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

impl Received {
    /// What it takes to parse it.
    pub(crate) fn effort(&self) -> Effort {
        Effort::of_bytes(self.bytes.len())
    }

    /// What it says; its bytes are needed no more.
    ///
    /// # Errors
    /// `Invalid`: it is no JSON object.
    pub(crate) fn parsed(self) -> Result<Document, ApiError> {
        Document::parse(&self.bytes)
    }
}

/// A request's share of what may be taken to make prompts; to be held as long as that lasts, whoever has gone
/// meanwhile.
#[derive(Debug)]
pub(crate) struct Share {
    _held: OwnedSemaphorePermit,
    /// What it takes to split the request's texts into tokens.
    pub(crate) effort: Effort,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { bodies: Arc::new(Semaphore::new(BODIES_KIB)), work: Arc::new(Semaphore::new(WORK_KIB)) }
    }

    /// Reads the body of a request, which takes its share of the budget as it arrives.
    ///
    /// # Errors
    /// `TooLarge`, `Slow`, `Busy` when the budget is spent, `Invalid` when the client stops in the middle.
    pub(crate) async fn read(&self, request: Request<Body>) -> Result<Received, ApiError> {
        let body = request.into_body();
        if usize::try_from(body.size_hint().lower()).map_or(true, |bytes| bytes > BODY_BYTES) {
            return Err(ApiError::TooLarge);
        }
        timeout(BODY_DEADLINE, self.collect(body)).await.map_err(|_| ApiError::Slow)?
    }

    /// Waits until so many bytes may be taken for a body that takes this effort; no request can have more than `MOST_BYTES`.
    ///
    /// # Errors
    /// `Busy` when others take them for too long.
    pub(crate) async fn share(&self, bytes: usize, effort: Effort) -> Result<Share, ApiError> {
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        let share = timeout(WORK_DEADLINE, Arc::clone(&self.work).acquire_many_owned(kib)).await;
        let share = share.ok().and_then(Result::ok).map(|held| Share { _held: held, effort });
        share.ok_or(ApiError::Busy)
    }

    async fn collect(&self, body: Body) -> Result<Received, ApiError> {
        let mut pieces = body.into_data_stream();
        let mut bytes = BytesMut::new();
        let mut share = self.take(0)?;
        while let Some(piece) = pieces.next().await {
            let cut = |error| ApiError::Invalid { param: None, text: format!("the body ended in the middle: {error}") };
            let piece = piece.map_err(cut)?;
            let total = bytes.len() + piece.len();
            if total > BODY_BYTES {
                return Err(ApiError::TooLarge);
            }
            share.merge(self.take(total.div_ceil(1 << 10) - share.num_permits())?);
            bytes.extend_from_slice(&piece);
        }
        Ok(Received { bytes: bytes.freeze(), _share: share })
    }

    fn take(&self, kib: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let take = |kib| Arc::clone(&self.bodies).try_acquire_many_owned(kib).ok();
        u32::try_from(kib).ok().and_then(take).ok_or(ApiError::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bodies_are_bounded_in_bytes_time_and_number() {
        let budget = Budget::new();
        let sized = |bytes: usize| Request::new(Body::from(vec![b' '; bytes]));
        assert!(matches!(budget.read(sized(BODY_BYTES + 1)).await, Err(ApiError::TooLarge)));
        let endless =
            futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 1 << 16])));
        assert!(matches!(budget.read(Request::new(Body::from_stream(endless))).await, Err(ApiError::TooLarge)));
        let silent = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        assert!(matches!(budget.read(Request::new(Body::from_stream(silent))).await, Err(ApiError::Slow)));
        let mut held = Vec::new();
        for _ in 0..BODIES_KIB * 1024 / BODY_BYTES {
            held.push(budget.read(sized(BODY_BYTES)).await.expect("within the budget"));
        }
        assert!(matches!(budget.read(sized(BODY_BYTES)).await, Err(ApiError::Busy)));
        drop(held);
        assert_eq!(budget.read(sized(3)).await.expect("free again").bytes.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_heaviest_are_worked_on_one_at_a_time() {
        let budget = Budget::new();
        let held = budget.share(MOST_BYTES, Effort::Large).await.expect("all of it is free");
        assert!(matches!(budget.share(1, Effort::Large).await, Err(ApiError::Busy)));
        let later = budget.share(MOST_BYTES, Effort::Large);
        let ends = async {
            tokio::time::sleep(WORK_DEADLINE / 2).await;
            drop(held);
        };
        let (waited, ()) = tokio::join!(later, ends);
        drop(waited.expect("free in time"));
        let few =
            [budget.share(MOST_BYTES / 2, Effort::Large).await, budget.share(MOST_BYTES / 2, Effort::Large).await];
        assert!(few.iter().all(Result::is_ok));
    }
}
