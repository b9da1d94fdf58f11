//! A message on the wire: its type, its body, its sections.
//!
//! On a stream a message is `u32 length | u16 type | body | sections`, little-endian, where the length counts all that
//! follows it, and the type is the variant's index in [`Message`], or for the last ones, which a receiver may ignore, the high
//! bit and how many of these come before. A receiver skips a message of an unknown type that
//! has the high bit, and refuses any other. Range requests and replies are the same without a type.

use thiserror::Error;

use crate::{
    codec::{self, Decode, Encode},
    limits::{MESSAGE_BYTES, MESSAGE_SECTIONS_BYTES},
    mask::TokenMask,
    message::Message,
    section::{SectionError, Sections},
};

/// Types with this bit may be ignored by a receiver that does not know them.
const OPTIONAL_TYPE: u16 = 0x8000;
/// One after the last variant of [`Message`].
const TYPES: u16 = 25;
/// The first variant that may be ignored: its type, and those of the variants after it, are counted from [`OPTIONAL_TYPE`].
const FIRST_OPTIONAL: u16 = 20;
/// The type under which errors speak of range requests and replies, which have none.
const RANGE: u16 = u16::MAX;

/// Bytes that are not a message, or a message that has no bytes.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
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
    /// After its body, or its last section, the message has bytes that are no section.
    #[error("{bytes} bytes too many after a message of type {kind}")]
    Trailing {
        /// The type.
        kind: u16,
        /// How many.
        bytes: usize,
    },
    /// Its sections cannot be taken, or sent.
    #[error("message of type {kind}: {source}")]
    Section {
        /// The type.
        kind: u16,
        /// What is wrong with them.
        source: SectionError,
    },
}

impl MessageError {
    /// Whether a receiver should skip the message instead of closing the connection.
    pub(crate) fn is_optional(&self) -> bool {
        matches!(self, Self::UnknownType { kind } if kind & OPTIONAL_TYPE != 0)
    }
}

/// The bytes of a message: its type (u16), its body, its sections.
pub fn encode(message: &Message) -> Result<Vec<u8>, MessageError> {
    let mut bytes = encode_body(message, 0)?;
    let variant = u16::from_le_bytes([bytes[0], bytes[1]]);
    let kind = if variant < FIRST_OPTIONAL { variant } else { OPTIONAL_TYPE | (variant - FIRST_OPTIONAL) };
    // The codec writes the variant as u32; the wire has u16.
    bytes.splice(..4, kind.to_le_bytes());
    if let Some(sections) = message.sections() {
        sections.check(MESSAGE_SECTIONS_BYTES).map_err(|source| MessageError::Section { kind, source })?;
        sections.write(&mut bytes);
    }
    if bytes.len() > MESSAGE_BYTES { Err(MessageError::TooLong { bytes: bytes.len() }) } else { Ok(bytes) }
}

/// The message of these bytes, which must hold it exactly.
///
/// The sections of a message that has a field for them are for its reader to judge, by [`Sections::understood`]. Those
/// of any other message are judged here: none of them is known.
pub fn decode(bytes: &[u8]) -> Result<Message, MessageError> {
    let Some((kind, body)) = bytes.split_first_chunk() else {
        return Err(MessageError::Malformed { kind: 0, text: "shorter than its type".into() });
    };
    let kind = u16::from_le_bytes(*kind);
    let variant = if kind & OPTIONAL_TYPE == 0 { kind } else { (kind & !OPTIONAL_TYPE) + FIRST_OPTIONAL };
    if variant >= TYPES || (variant < FIRST_OPTIONAL) != (kind & OPTIONAL_TYPE == 0) {
        return Err(MessageError::UnknownType { kind });
    }
    if bytes.len() > MESSAGE_BYTES {
        return Err(MessageError::TooLong { bytes: bytes.len() });
    }
    let bytes = [&u32::from(variant).to_le_bytes(), body].concat();
    let (mut message, sections) = decode_body::<Message>(&bytes, kind)?;
    if let Some(text) = tokens_of(&message).and_then(TokenMask::wrong) {
        return Err(MessageError::Malformed { kind, text });
    }
    match message.sections_mut() {
        Some(place) => *place = sections,
        None => ignore(&sections, kind)?,
    }
    Ok(message)
}

/// The bytes of a range request or reply, which have a stream of their own and so no type.
pub(crate) fn encode_range<T: Encode>(value: &T) -> Result<Vec<u8>, MessageError> {
    encode_body(value, RANGE)
}

/// The reverse of [`encode_range`].
pub(crate) fn decode_range<T: Decode<()>>(bytes: &[u8]) -> Result<T, MessageError> {
    let (value, sections) = decode_body(bytes, RANGE)?;
    ignore(&sections, RANGE)?;
    Ok(value)
}

fn encode_body<T: Encode>(value: &T, kind: u16) -> Result<Vec<u8>, MessageError> {
    let bytes = codec::to_bytes(value).map_err(|text| MessageError::Malformed { kind, text })?;
    if bytes.len() > MESSAGE_BYTES { Err(MessageError::TooLong { bytes: bytes.len() }) } else { Ok(bytes) }
}

fn decode_body<T: Decode<()>>(bytes: &[u8], kind: u16) -> Result<(T, Sections), MessageError> {
    let (value, rest) = codec::from_bytes(bytes).map_err(|text| MessageError::Malformed { kind, text })?;
    let sections = Sections::parse(rest, MESSAGE_SECTIONS_BYTES).map_err(|source| {
        if let SectionError::Trailing { bytes } = source {
            MessageError::Trailing { kind, bytes }
        } else {
            MessageError::Section { kind, source }
        }
    })?;
    Ok((value, sections))
}

/// Passes over sections of which none is known here, where that is allowed.
fn ignore(sections: &Sections, kind: u16) -> Result<(), MessageError> {
    sections.understood(&[]).map_err(|source| MessageError::Section { kind, source })
}

/// The set of tokens in a message that has one.
fn tokens_of(message: &Message) -> Option<&TokenMask> {
    if let Message::Mask(mask) = message {
        Some(&mask.tokens)
    } else if let Message::Open(open) = message {
        open.sampling.dry.as_ref().map(|dry| &dry.breakers)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
