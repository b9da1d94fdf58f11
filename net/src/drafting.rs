//! What a coordinator and the process that drafts for it say to each other, over a pipe between them.
//!
//! Either way goes `u32 length | body`, little-endian, where the length counts the body. Both ends are of one version, for one
//! starts the other.

use thiserror::Error;

use crate::{
    codec::{self, Decode, Encode},
    ids::SessionId,
    limits::MESSAGE_BYTES,
    sampling::Sampling,
};

/// What the coordinator wants.
#[derive(Clone, Debug, Decode, Encode, PartialEq)]
pub enum DraftOrder {
    /// A session begins, whose tokens are drawn like this.
    Open {
        /// Which.
        session: SessionId,
        /// How.
        sampling: Sampling,
    },
    /// A session has these ids from a position on, and what may follow is wanted.
    Draft {
        /// Which.
        session: SessionId,
        /// How many ids were told before: these follow them.
        from: u32,
        /// The ids.
        ids: Vec<u32>,
        /// How many tokens to draft behind them; with 0 there is no answer.
        most: u32,
    },
    /// A session is over.
    Close {
        /// Which.
        session: SessionId,
    },
}

/// What the process answers.
#[derive(Clone, Debug, Decode, Encode, PartialEq)]
pub enum DraftAnswer {
    /// Its model is loaded.
    Ready,
    /// What may follow the first `at` ids of a session; as many as were wanted, or fewer where there is no room.
    Drafted {
        /// Whose.
        session: SessionId,
        /// Ids before the first drafted one.
        at: u32,
        /// The drafted ones.
        ids: Vec<u32>,
        /// Microseconds from one of them to the next; 0 where there is but one.
        token_us: u32,
    },
    /// Nothing more is drafted for this session.
    Failed {
        /// Whose.
        session: SessionId,
        /// Why.
        text: String,
    },
}

/// What a pipe cannot carry, or did not.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum PipeError {
    /// Longer than messages are.
    #[error("{bytes} bytes, the limit is {MESSAGE_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It does not decode, or has bytes behind it.
    #[error("malformed: {text}")]
    Malformed {
        /// What is wrong with it.
        text: String,
    },
}

/// Something that goes over the pipe.
pub trait Piped: Sized {
    /// Its bytes, the length before them.
    ///
    /// # Errors
    /// It is too long.
    fn to_pipe(&self) -> Result<Vec<u8>, PipeError>;

    /// What a body is.
    ///
    /// # Errors
    /// It is nothing of this kind.
    fn from_body(body: &[u8]) -> Result<Self, PipeError>;
}

/// The length of a body by the bytes before it.
///
/// # Errors
/// It is longer than a body may be.
pub fn body_bytes(length: [u8; 4]) -> Result<usize, PipeError> {
    let bytes = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if bytes > MESSAGE_BYTES { Err(PipeError::TooLong { bytes }) } else { Ok(bytes) }
}

/// Ids of one order at most: who has more tells them in several.
pub const ORDER_IDS: usize = 1 << 16;
const _: () = assert!(ORDER_IDS * 4 + 64 < MESSAGE_BYTES);

impl Piped for DraftOrder {
    fn to_pipe(&self) -> Result<Vec<u8>, PipeError> {
        with_length(self)
    }

    fn from_body(body: &[u8]) -> Result<Self, PipeError> {
        whole(body)
    }
}

impl Piped for DraftAnswer {
    fn to_pipe(&self) -> Result<Vec<u8>, PipeError> {
        with_length(self)
    }

    fn from_body(body: &[u8]) -> Result<Self, PipeError> {
        whole(body)
    }
}

fn with_length<T: Encode>(value: &T) -> Result<Vec<u8>, PipeError> {
    let body = codec::to_bytes(value).map_err(|text| PipeError::Malformed { text })?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MESSAGE_BYTES);
    let length = length.ok_or(PipeError::TooLong { bytes: body.len() })?;
    Ok([&length.to_le_bytes()[..], &body].concat())
}

fn whole<T: Decode<()>>(body: &[u8]) -> Result<T, PipeError> {
    let (value, rest) = codec::from_bytes(body).map_err(|text| PipeError::Malformed { text })?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(PipeError::Malformed { text: format!("{} bytes too many", rest.len()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let session = SessionId(7);
        let orders = [
            DraftOrder::Open { session, sampling: Sampling { seed: 3, temperature: 0.5, ..Sampling::default() } },
            DraftOrder::Draft { session, from: 2, ids: vec![1, 9, 4], most: 5 },
            DraftOrder::Close { session },
        ];
        for order in orders {
            let bytes = order.to_pipe().unwrap();
            let (length, body) = bytes.split_first_chunk::<4>().unwrap();
            assert_eq!(body_bytes(*length), Ok(body.len()));
            assert_eq!(DraftOrder::from_body(body), Ok(order));
            assert!(DraftOrder::from_body(&body[..body.len() - 1]).is_err());
            assert!(DraftOrder::from_body(&[body, &[0]].concat()).is_err());
        }
        let answer = DraftAnswer::Drafted { session, at: 5, ids: vec![2, 3], token_us: 9 };
        assert_eq!(DraftAnswer::from_body(&answer.to_pipe().unwrap()[4..]), Ok(answer));
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_read() {
        assert_eq!(body_bytes(u32::MAX.to_le_bytes()), Err(PipeError::TooLong { bytes: u32::MAX as usize }));
        let session = SessionId(1);
        assert!(DraftOrder::Draft { session, from: 0, ids: vec![0; ORDER_IDS], most: 1 }.to_pipe().is_ok());
        assert!(DraftOrder::Draft { session, from: 0, ids: vec![0; MESSAGE_BYTES / 4], most: 1 }.to_pipe().is_err());
    }
}
