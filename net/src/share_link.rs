//! The link to a shared model: one string that says which model, that its holder may read it, and where somebody has it.
//!
//! `qmesh:`, then base32 of the manifest's hash (52 characters, the same whoever shares the model), then the pasted form of
//! `sharer's key 32 | secret 16 | addresses`, whose checksum covers the hash too.

use std::{fmt, str::FromStr};

use bytes::Buf;
use data_encoding::BASE32_NOPAD;
use thiserror::Error;

use crate::{
    ids::PeerId,
    pasted::{self, PastedError, strip_prefix},
    secret::ReadSecret,
};

/// What every link begins with.
const PREFIX: &str = "qmesh:";
/// Characters of the manifest's hash.
pub(crate) const HASH_CHARS: usize = 52;
/// Characters at the beginning of a link that give no right.
pub(crate) const SHOWN_CHARS: usize = PREFIX.len() + HASH_CHARS;
const VERSION: u8 = 1;

/// What a machine needs to get a model that another one shares.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ShareLink {
    /// BLAKE3 of the manifest, which says what the model's bytes are.
    pub manifest: [u8; 32],
    /// The key of the machine that printed the link.
    pub sharer: PeerId,
    /// The right to read, which is not the right to join a mesh.
    pub secret: ReadSecret,
    /// Where the sharer was, each as `host:port`; hints only, since the key decides who answers.
    pub addresses: Vec<String>,
}

/// A text that is not a usable link. It is never repeated in messages: whoever has it may read.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ShareLinkError {
    /// It does not start as links do.
    #[error("not a link to a shared model: links start with qmesh:")]
    NotALink,
    /// A link of another version.
    #[error("the link is of a version that this program does not know: update it")]
    Version,
    /// A character that no link has.
    #[error("the link has a character it cannot have: copy it again")]
    Character,
    /// The end is missing.
    #[error("the link is cut short: copy it again, to its end")]
    Truncated,
    /// The parts are there but wrong.
    #[error("the link's checksum is wrong: copy it again")]
    Checksum,
}

impl ShareLink {
    /// Reads a link. White space (as in a wrapped line), quotes around it and capital letters do not matter.
    pub fn parse(text: &str) -> Result<Self, ShareLinkError> {
        let text = pasted::unwrapped(text);
        let rest = strip_prefix(&text, PREFIX).ok_or(ShareLinkError::NotALink)?;
        let (hash, rest) = rest.split_at_checked(HASH_CHARS).ok_or(ShareLinkError::Truncated)?;
        let manifest = BASE32_NOPAD.decode(hash.to_ascii_uppercase().as_bytes());
        let manifest = manifest.ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let manifest = manifest.ok_or(ShareLinkError::Character)?;
        let (_, body) = pasted::read(rest, VERSION, 0, &manifest)?;
        // The checksum holds, so a body that does not fit was written so.
        Self::from_body(manifest, &body).ok_or(ShareLinkError::Checksum)
    }

    /// The characters that stand for a manifest's hash in links.
    pub fn hash_text(manifest: &[u8; 32]) -> String {
        BASE32_NOPAD.encode(manifest).to_ascii_lowercase()
    }

    /// What tells the model from others on a local network, where it means nothing to who does not have a link to it.
    pub fn mark(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("qmesh share lan 1");
        hasher.update(&self.manifest).update(&self.secret.0);
        data_encoding::HEXLOWER.encode(&hasher.finalize().as_bytes()[..8])
    }

    fn from_body(manifest: [u8; 32], mut body: &[u8]) -> Option<Self> {
        let (mut sharer, mut secret) = ([0; 32], [0; 16]);
        body.try_copy_to_slice(&mut sharer).ok()?;
        body.try_copy_to_slice(&mut secret).ok()?;
        let addresses = pasted::take_addresses(&mut body)?;
        body.is_empty().then_some(())?;
        Some(Self { manifest, sharer: PeerId(sharer), secret: ReadSecret(secret), addresses })
    }
}

impl From<PastedError> for ShareLinkError {
    fn from(error: PastedError) -> Self {
        match error {
            PastedError::Version => Self::Version,
            PastedError::Character => Self::Character,
            PastedError::Truncated => Self::Truncated,
            PastedError::Checksum => Self::Checksum,
        }
    }
}

impl fmt::Display for ShareLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = [&self.sharer.0[..], &self.secret.0].concat();
        pasted::put_addresses(&self.addresses, &mut body);
        let hash = Self::hash_text(&self.manifest);
        write!(f, "{PREFIX}{hash}{}", pasted::write(VERSION, 0, &body, &self.manifest))
    }
}

impl FromStr for ShareLink {
    type Err = ShareLinkError;

    fn from_str(text: &str) -> Result<Self, ShareLinkError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> ShareLink {
        ShareLink {
            manifest: std::array::from_fn(|i| i as u8 * 3),
            sharer: PeerId([7; 32]),
            secret: ReadSecret([0xa5; 16]),
            addresses: vec!["192.168.1.20:4434".into()],
        }
    }

    #[test]
    fn a_link_survives_its_text_however_it_is_pasted() {
        for link in [link(), ShareLink { addresses: vec![], ..link() }] {
            let text = link.to_string();
            let pasted = [text.clone(), text.to_uppercase(), format!(" '{}\n{}'", &text[..40], &text[40..])];
            assert!(pasted.iter().all(|text| ShareLink::parse(text).as_ref() == Ok(&link)), "{text}");
        }
        assert!(!format!("{:?}", link()).contains("165"), "Debug must not print the secret");
    }

    #[test]
    fn no_character_can_change_or_be_missing() {
        let text = link().to_string();
        for i in 0..text.len() {
            for other in ['a', 'z', '2', '7', '1', 'é'].into_iter().filter(|c| !text[i..].starts_with(*c)) {
                let changed = format!("{}{other}{}", &text[..i], &text[i + 1..]);
                assert!(ShareLink::parse(&changed).is_err(), "{changed}");
            }
            let expected = if i < PREFIX.len() { ShareLinkError::NotALink } else { ShareLinkError::Truncated };
            assert_eq!(ShareLink::parse(&text[..i]), Err(expected), "{i}");
        }
        let later = format!("{}{}", &text[..PREFIX.len() + HASH_CHARS], pasted::write(2, 0, &[], &link().manifest));
        assert_eq!(ShareLink::parse(&later), Err(ShareLinkError::Version));
    }
}
