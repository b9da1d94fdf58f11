//! Identifiers that cross the wire, each its own type so that no two can be confused.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use thiserror::Error;

macro_rules! number_id {
    ($($(#[$doc:meta])* $name:ident($number:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

number_id! {
    /// A sequence's place on every worker, chosen by the coordinator.
    SessionId(u64);
    /// One micro-batch on its way through all stages; grows by one a step within an epoch.
    StepId(u32);
    /// The generation of the plan; frames of an older one are dropped.
    PlanEpoch(u32);
    /// A stage's place in the pipeline; 0 embeds, the last one samples.
    StageIndex(u16);
}

/// DER prefix of an Ed25519 SubjectPublicKeyInfo; the 32 key bytes follow it.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A machine's Ed25519 public key, which is its name on the mesh.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerId(pub [u8; 32]);

/// A text that is not a peer id.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("not a peer id: want 52 letters a-z and digits 2-7")]
pub struct PeerIdError;

impl PeerId {
    /// The first 8 characters, enough to tell peers apart in a log line.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }

    /// The key inside a raw-public-key "certificate"; `None` when it is not Ed25519.
    pub(crate) fn from_spki(spki: &[u8]) -> Option<Self> {
        spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok().map(Self)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.short())
    }
}

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<Self, PeerIdError> {
        let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).map_err(|_| PeerIdError)?;
        bytes.try_into().map(Self).map_err(|_| PeerIdError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_survives_its_text() {
        let peer = PeerId(std::array::from_fn(|i| i as u8 * 7));
        let text = peer.to_string();
        assert_eq!((text.len(), text.parse(), peer.short().as_str()), (52, Ok(peer), &text[..8]));
        for bad in ["", "abc", &text[1..], &format!("{text}a"), &text.replace(&text[..1], "1")] {
            assert_eq!(bad.parse::<PeerId>(), Err(PeerIdError), "{bad}");
        }
    }

    #[test]
    fn only_ed25519_keys_are_peers() {
        let spki = [&SPKI_PREFIX[..], &[9; 32]].concat();
        assert_eq!(PeerId::from_spki(&spki), Some(PeerId([9; 32])));
        assert_eq!(PeerId::from_spki(&spki[..43]), None);
        assert_eq!(PeerId::from_spki(&spki[1..]), None);
    }
}
