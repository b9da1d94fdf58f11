//! A manifest as bytes: the only file here that knows bincode. The layout is bincode 1's, as on the wire.

use bincode::config;
pub(crate) use bincode::{Decode, Encode};

use crate::manifest::{MANIFEST_BYTES, ManifestError};

const LAYOUT: config::Configuration<config::LittleEndian, config::Fixint, config::Limit<MANIFEST_BYTES>> =
    config::legacy().with_limit();

/// The bytes of a value.
///
/// # Errors
/// It has more than [`MANIFEST_BYTES`].
pub(crate) fn to_bytes<T: Encode>(value: &T) -> Result<Vec<u8>, ManifestError> {
    bincode::encode_to_vec(value, LAYOUT).map_err(|error| ManifestError::Malformed { text: error.to_string() })
}

/// The value that `bytes` hold exactly.
///
/// # Errors
/// They hold another thing, or something more.
pub(crate) fn from_bytes<T: Decode<()>>(bytes: &[u8]) -> Result<T, ManifestError> {
    let malformed = |text| Err(ManifestError::Malformed { text });
    match bincode::decode_from_slice(bytes, LAYOUT) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => malformed(format!("{} bytes are left over", bytes.len() - used)),
        Err(error) => malformed(error.to_string()),
    }
}
