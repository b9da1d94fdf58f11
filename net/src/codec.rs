//! The bytes of control messages: the only file that knows bincode.
//!
//! On a stream a message is `u32 length | u16 type | body`, little-endian, where the length counts type and body, and
//! the type is the variant's index in [`Message`]. A receiver skips unknown types with the high bit; others are an error.

pub(crate) use bincode::{Decode, Encode};
use bincode::{
    config,
    de::Decoder,
    enc::Encoder,
    error::{DecodeError, EncodeError},
};
use thiserror::Error;

use crate::{
    frame::WireType,
    ids::{PeerId, PlanEpoch, SessionId, StageIndex},
    limits::MESSAGE_BYTES,
    message::Message,
};

/// Types with this bit may be ignored by a receiver that does not know them.
const OPTIONAL_TYPE: u16 = 0x8000;
/// One after the last variant of [`Message`].
const TYPES: u16 = 19;
/// The type under which errors speak of range requests and replies, which have none.
const RANGE: u16 = u16::MAX;

/// The layout of bincode 1, little-endian and fixed-width, which other implementations read too.
const LAYOUT: config::Configuration<config::LittleEndian, config::Fixint, config::Limit<{ MESSAGE_BYTES + 2 }>> =
    config::legacy().with_limit();

/// Bytes that are not a message, or a message that has no bytes.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum MessageError {
    /// More than [`MESSAGE_BYTES`].
    #[error("message of {bytes} bytes, the limit is {MESSAGE_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A type this version does not know.
    #[error("unknown message type {kind}")]
    UnknownType {
        /// The type.
        kind: u16,
    },
    /// The body does not decode.
    #[error("malformed message of type {kind}: {text}")]
    Malformed {
        /// The type.
        kind: u16,
        /// What the decoder says.
        text: String,
    },
    /// The body has bytes after its end.
    #[error("{bytes} bytes too many after a message of type {kind}")]
    Trailing {
        /// The type.
        kind: u16,
        /// How many.
        bytes: usize,
    },
}

impl MessageError {
    /// Whether a receiver should skip the message instead of closing the connection.
    pub(crate) fn is_optional(&self) -> bool {
        matches!(self, Self::UnknownType { kind } if kind & OPTIONAL_TYPE != 0)
    }
}

/// The bytes of a message: its type (u16), then its body.
pub fn encode(message: &Message) -> Result<Vec<u8>, MessageError> {
    let mut bytes = encode_body(message, 0)?;
    // bincode writes the variant as u32; the wire has u16, so the upper half, always zero, goes.
    bytes.drain(2..4);
    Ok(bytes)
}

/// The message of these bytes, which must hold it exactly.
pub fn decode(bytes: &[u8]) -> Result<Message, MessageError> {
    let Some((kind, body)) = bytes.split_first_chunk() else {
        return Err(MessageError::Malformed { kind: 0, text: "shorter than its type".into() });
    };
    let kind = u16::from_le_bytes(*kind);
    if kind >= TYPES {
        return Err(MessageError::UnknownType { kind });
    }
    if bytes.len() > MESSAGE_BYTES {
        return Err(MessageError::TooLong { bytes: bytes.len() });
    }
    decode_body(&[&u32::from(kind).to_le_bytes(), body].concat(), kind)
}

/// The bytes of a range request or reply, which have a stream of their own and so no type.
pub(crate) fn encode_range<T: Encode>(value: &T) -> Result<Vec<u8>, MessageError> {
    encode_body(value, RANGE)
}

/// The reverse of [`encode_range`].
pub(crate) fn decode_range<T: Decode<()>>(bytes: &[u8]) -> Result<T, MessageError> {
    decode_body(bytes, RANGE)
}

fn encode_body<T: Encode>(value: &T, kind: u16) -> Result<Vec<u8>, MessageError> {
    let bytes = bincode::encode_to_vec(value, LAYOUT)
        .map_err(|error| MessageError::Malformed { kind, text: error.to_string() })?;
    if bytes.len() > MESSAGE_BYTES {
        return Err(MessageError::TooLong { bytes: bytes.len() });
    }
    Ok(bytes)
}

fn decode_body<T: Decode<()>>(bytes: &[u8], kind: u16) -> Result<T, MessageError> {
    let (value, used) = bincode::decode_from_slice(bytes, LAYOUT)
        .map_err(|error| MessageError::Malformed { kind, text: error.to_string() })?;
    if used < bytes.len() {
        return Err(MessageError::Trailing { kind, bytes: bytes.len() - used });
    }
    Ok(value)
}

/// Ids and codes live in files that do not know bincode; here is how they look in it.
macro_rules! written_as_inner {
    ($($name:ident)*) => {$(
        impl Encode for $name {
            fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                self.0.encode(encoder)
            }
        }

        impl<C> Decode<C> for $name {
            fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
                Decode::decode(decoder).map(Self)
            }
        }

        bincode::impl_borrow_decode!($name);
    )*};
}

written_as_inner!(PeerId PlanEpoch SessionId StageIndex);

impl Encode for WireType {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.code().encode(encoder)
    }
}

impl<C> Decode<C> for WireType {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::from_code(Decode::decode(decoder)?).ok_or(DecodeError::Other("unknown wire type"))
    }
}

bincode::impl_borrow_decode!(WireType);

#[cfg(test)]
mod tests;
