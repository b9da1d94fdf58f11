//! Values as bytes: the only file that knows bincode.
//!
//! Fields stand one after the other, an enum's variant as its index. It is the layout of bincode 1, little-endian and
//! of fixed width, which other implementations read too.

pub(crate) use bincode::{Decode, Encode};
use bincode::{
    config,
    de::Decoder,
    enc::Encoder,
    error::{DecodeError, EncodeError},
};

use crate::{
    ids::{PeerId, PlanEpoch, SessionId, StageIndex, StepId},
    limits::MESSAGE_BYTES,
    section::Sections,
};

/// A variant's index takes 4 bytes here and 2 on the wire.
const LAYOUT: config::Configuration<config::LittleEndian, config::Fixint, config::Limit<{ MESSAGE_BYTES + 2 }>> =
    config::legacy().with_limit();

/// The bytes of a value, or in words why it has none.
pub(crate) fn to_bytes<T: Encode>(value: &T) -> Result<Vec<u8>, String> {
    bincode::encode_to_vec(value, LAYOUT).map_err(|error| error.to_string())
}

/// The value that `bytes` begin with and the bytes after it, or in words why there is none.
pub(crate) fn from_bytes<T: Decode<()>>(bytes: &[u8]) -> Result<(T, &[u8]), String> {
    let (value, used) = bincode::decode_from_slice(bytes, LAYOUT).map_err(|error| error.to_string())?;
    Ok((value, &bytes[used..]))
}

/// Ids live in a file that does not know bincode; here is how they look in it.
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

written_as_inner!(PeerId PlanEpoch SessionId StageIndex StepId);

/// Sections have no bytes among the fields of a message: they stand behind it, where `envelope.rs` puts them.
impl Encode for Sections {
    fn encode<E: Encoder>(&self, _encoder: &mut E) -> Result<(), EncodeError> {
        Ok(())
    }
}

impl<C> Decode<C> for Sections {
    fn decode<D: Decoder<Context = C>>(_decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self::default())
    }
}

bincode::impl_borrow_decode!(Sections);
