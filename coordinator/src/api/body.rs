//! Request bodies: read under a deadline and a memory budget, parsed with the path of what is wrong.

use std::{fmt, marker::PhantomData, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::Request,
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, SeqAccess, Visitor},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::error::ApiError;

/// Most bytes of a body; long contexts need more than axum's 2 MiB.
pub(crate) const BODY_BYTES: usize = 8 << 20;
/// Time for a whole body to arrive.
pub(crate) const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// KiB of bodies that may be in memory together.
const BUDGET_KIB: usize = 128 << 10;
/// Most entries of a list that may stand for a single string; bounds what parsing makes of a body.
const LIST_ENTRIES: usize = 1 << 20;
/// Most characters of a parser's message; it may quote what it did not like.
const MESSAGE_CHARS: usize = 200;

/// What all bodies together may hold.
#[derive(Debug)]
pub(crate) struct Budget(Semaphore);

/// A body and its share of the budget.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    pub(crate) bytes: Bytes,
    _share: SemaphorePermit<'a>,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(BUDGET_KIB))
    }

    /// Reads the body of a request, which takes its share of the budget as it arrives.
    ///
    /// # Errors
    /// `TooLarge`, `Slow`, `Busy` when the budget is spent, `Invalid` when the client stops in the middle.
    pub(crate) async fn read(&self, request: Request<Body>) -> Result<Received<'_>, ApiError> {
        let body = request.into_body();
        if usize::try_from(body.size_hint().lower()).map_or(true, |bytes| bytes > BODY_BYTES) {
            return Err(ApiError::TooLarge);
        }
        timeout(BODY_DEADLINE, self.collect(body)).await.map_err(|_| ApiError::Slow)?
    }

    async fn collect(&self, body: Body) -> Result<Received<'_>, ApiError> {
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

    fn take(&self, kib: usize) -> Result<SemaphorePermit<'_>, ApiError> {
        u32::try_from(kib).ok().and_then(|kib| self.0.try_acquire_many(kib).ok()).ok_or(ApiError::Busy)
    }
}

/// Parses JSON; fields that `T` does not name are left alone.
///
/// # Errors
/// `Invalid` with the path of the value that is wrong.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let param = (path != ".").then_some(path);
        let text = match &param {
            Some(param) => format!("'{param}': {}", error.inner()),
            None => format!("the body is not a JSON object: {}", error.inner()),
        };
        ApiError::Invalid { param, text: shorten(&text) }
    })?;
    json.end().map_err(|error| ApiError::Invalid { param: None, text: shorten(&error.to_string()) })?;
    Ok(parsed)
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(MESSAGE_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A string, or a list. Unlike an untagged enum it parses in place, and names what it found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum OneOrMany<T> {
    One(String),
    Many(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

struct OneOrManyVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrManyVisitor<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(OneOrMany::One(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut many = Vec::new();
        while let Some(entry) = list.next_element()? {
            if many.len() == LIST_ENTRIES {
                return Err(serde::de::Error::custom(format!("more than {LIST_ENTRIES} entries")));
            }
            many.push(entry);
        }
        Ok(OneOrMany::Many(many))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        #[serde(rename = "stop")]
        _stop: Option<OneOrMany<String>>,
    }

    #[test]
    fn errors_carry_their_path_and_stay_short() {
        let long = format!(r#"{{"stop": [1, "{}"]}}"#, "x".repeat(1000));
        for (json, path) in [(r#"{"stop": 5}"#, Some("stop")), (&long, Some("stop[0]")), ("[", None), ("{} {}", None)] {
            match parse::<Sample>(json.as_bytes()) {
                Err(ApiError::Invalid { param, text }) => {
                    assert_eq!(param.as_deref(), path, "{text}");
                    assert!(text.chars().count() <= MESSAGE_CHARS + 1, "{text}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

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
        for _ in 0..BUDGET_KIB * 1024 / BODY_BYTES {
            held.push(budget.read(sized(BODY_BYTES)).await.expect("within the budget"));
        }
        assert!(matches!(budget.read(sized(BODY_BYTES)).await, Err(ApiError::Busy)));
        drop(held);
        assert_eq!(budget.read(sized(3)).await.expect("free again").bytes.len(), 3);
    }
}
