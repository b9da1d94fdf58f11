//! Strings that people copy from one screen and paste on another: bytes in base32 that say their own length and checksum.
//!
//! The bytes are `version u8 | flags u8 | length u16 of all | body | first 4 bytes of BLAKE3 of a context and all before`,
//! little-endian. The context stands elsewhere in the string, and is covered as well.

use bytes::{Buf, BufMut};
use data_encoding::BASE32_NOPAD;

use crate::limits::TICKET_ADDRESSES;

/// Quotes that a text may have been pasted with.
const QUOTES: [char; 8] = ['"', '\'', '`', '“', '”', '„', '‘', '’'];
const CHECKSUM_BYTES: usize = 4;

/// Why a pasted text is not what it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PastedError {
    /// It is of another version, or has flags that are not known.
    Version,
    /// It has a character that none has.
    Character,
    /// Its end is missing.
    Truncated,
    /// Its parts are there but wrong.
    Checksum,
}

/// The text without white space (as in a wrapped line) and without quotes around it.
pub(crate) fn unwrapped(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    text.trim_matches(QUOTES).to_owned()
}

/// What follows the prefix, in whatever case of letters.
pub(crate) fn strip_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// The text of a body.
pub(crate) fn write(version: u8, flags: u8, body: &[u8], context: &[u8]) -> String {
    let length = (4 + body.len() + CHECKSUM_BYTES) as u16;
    let mut bytes = vec![version, flags];
    bytes.put_u16_le(length);
    bytes.put_slice(body);
    let sum = checksum(context, &bytes);
    bytes.put_slice(&sum);
    BASE32_NOPAD.encode(&bytes).to_ascii_lowercase()
}

/// The flags and the body of a text of that version; flags that are not among the known ones are refused.
pub(crate) fn read(text: &str, version: u8, known_flags: u8, context: &[u8]) -> Result<(u8, Vec<u8>), PastedError> {
    let bytes = decode_base32(text)?;
    let (head, _) = bytes.split_first_chunk::<4>().ok_or(PastedError::Truncated)?;
    let [its_version, flags, length @ ..] = *head;
    if its_version != version || flags & !known_flags != 0 {
        return Err(PastedError::Version);
    }
    let length = usize::from(u16::from_le_bytes(length));
    if bytes.len() < length {
        return Err(PastedError::Truncated);
    }
    let (all, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(PastedError::Truncated)?;
    if bytes.len() != length || checksum(context, all) != *sum {
        return Err(PastedError::Checksum);
    }
    Ok((flags, all[4..].to_vec()))
}

/// Appends addresses as `count u8 | (length u8 | address) each`. They are hints: those that have no room are left out.
pub(crate) fn put_addresses(addresses: &[String], out: &mut Vec<u8>) {
    let fitting = addresses.iter().filter_map(|address| Some((u8::try_from(address.len()).ok()?, address)));
    let fitting: Vec<_> = fitting.take(TICKET_ADDRESSES).collect();
    out.put_u8(fitting.len() as u8);
    for (bytes, address) in fitting {
        out.put_u8(bytes);
        out.put_slice(address.as_bytes());
    }
}

/// The addresses that stand at the beginning of what is left of a body.
pub(crate) fn take_addresses(body: &mut &[u8]) -> Option<Vec<String>> {
    let count = usize::from(body.try_get_u8().ok()?);
    let mut addresses = Vec::new();
    for _ in 0..count.min(TICKET_ADDRESSES) {
        let bytes = usize::from(body.try_get_u8().ok()?);
        let (address, rest) = body.split_at_checked(bytes)?;
        addresses.push(String::from_utf8(address.to_vec()).ok()?);
        *body = rest;
    }
    (addresses.len() == count).then_some(addresses)
}

/// Decodes as far as whole groups go, so that a cut text fails for being short, not for how it ends.
fn decode_base32(text: &str) -> Result<Vec<u8>, PastedError> {
    let text = text.to_ascii_uppercase();
    match BASE32_NOPAD.decode(text.as_bytes()) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind == data_encoding::DecodeKind::Symbol => Err(PastedError::Character),
        Err(_) => {
            let whole = text.len() / 8 * 8;
            let groups = text.as_bytes().get(..whole).unwrap_or_default();
            BASE32_NOPAD.decode(groups).map_err(|_| PastedError::Character)
        }
    }
}

fn checksum(context: &[u8], bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::hash(&[context, bytes].concat());
    *hash.as_bytes().first_chunk().expect("32 bytes hold 4")
}
