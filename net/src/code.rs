//! The code of an asking: what two people compare, who see a worker's and its coordinator's screens.

use std::fmt;

use data_encoding::BASE32_NOPAD;

use crate::ids::PeerId;

/// A short text that the two ends of one connection compute alike, and that two connections do not share. Who stands between
/// a worker and its coordinator has a connection to each of them, and would have to find keys by which both give the same: it
/// takes 2⁶⁰ tries while a handshake waits.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct JoinCode([u8; CHARS]);

/// Letters and digits: 60 bits.
const CHARS: usize = 12;
/// Characters between two dashes.
const GROUP: usize = 4;

impl JoinCode {
    /// Of both keys, and of what only the ends of this connection know (its TLS `exporter`).
    pub fn of(exporter: &[u8; 32], worker: PeerId, coordinator: PeerId) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("qmesh join code v1");
        hasher.update(exporter).update(&worker.0).update(&coordinator.0);
        let text = BASE32_NOPAD.encode(hasher.finalize().as_bytes()).to_ascii_lowercase();
        let mut code = [0; CHARS];
        code.copy_from_slice(&text.as_bytes()[..CHARS]);
        Self(code)
    }

    /// The code that somebody has typed: dashes, spaces and capital letters do not matter. `None` if it is none.
    pub fn parse(typed: &str) -> Option<Self> {
        let typed = typed.bytes().filter(|byte| !matches!(byte, b'-' | b' ')).map(|byte| byte.to_ascii_lowercase());
        let code: Vec<u8> = typed.take(CHARS + 1).collect();
        let is_char = |byte: &u8| matches!(byte, b'a'..=b'z' | b'2'..=b'7');
        code.iter().all(is_char).then(|| code.try_into().ok().map(Self)).flatten()
    }
}

impl fmt::Display for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if i > 0 && i % GROUP == 0 {
                f.write_str("-")?;
            }
            write!(f, "{}", char::from(*byte))?;
        }
        Ok(())
    }
}

impl fmt::Debug for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinCode({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_that_of_both_keys_and_of_one_connection() {
        let [worker, coordinator, between] = [1, 2, 3].map(|byte| PeerId([byte; 32]));
        let code = JoinCode::of(&[7; 32], worker, coordinator);
        assert_eq!(code, JoinCode::of(&[7; 32], worker, coordinator));
        for other in [
            JoinCode::of(&[8; 32], worker, coordinator),
            JoinCode::of(&[7; 32], between, coordinator),
            JoinCode::of(&[7; 32], worker, between),
            JoinCode::of(&[7; 32], coordinator, worker),
        ] {
            assert_ne!(code, other);
        }
    }

    #[test]
    fn how_it_was_typed_does_not_matter() {
        let code = JoinCode::of(&[7; 32], PeerId([1; 32]), PeerId([2; 32]));
        let text = code.to_string();
        assert_eq!((text.len(), text.matches('-').count()), (14, 2));
        for typed in [text.clone(), text.to_uppercase(), text.replace('-', ""), text.replace('-', " ")] {
            assert_eq!(JoinCode::parse(&typed), Some(code), "{typed}");
        }
        for wrong in ["", &text[1..], &format!("{text}a"), &text.replace('-', "1"), &text.replace('-', "é")] {
            assert_eq!(JoinCode::parse(wrong), None, "{wrong}");
        }
    }
}
