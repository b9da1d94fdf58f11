//! The key that clients must send.

use std::{fmt, str::FromStr};

use subtle::ConstantTimeEq;
use thiserror::Error;

/// A key that HTTP can carry. It shows itself to nobody who prints it.
#[derive(Clone, Eq, PartialEq)]
pub struct ApiKey(String);

/// Why no client could ever send a key.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
pub enum ApiKeyError {
    /// It has no characters.
    #[error("an empty key would lock everybody out: give it characters, or leave it out")]
    Empty,
    /// HTTP does not carry all of its characters.
    #[error("a key may hold printable ASCII characters only, and no space at its ends")]
    Characters,
}

impl ApiKey {
    /// The key, to be sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a client sent it, in a time that does not tell how much of it was right.
    pub(crate) fn matches(&self, sent: &[u8]) -> bool {
        bool::from(sent.ct_eq(self.0.as_bytes()))
    }
}

impl FromStr for ApiKey {
    type Err = ApiKeyError;

    fn from_str(text: &str) -> Result<Self, ApiKeyError> {
        if text.is_empty() {
            return Err(ApiKeyError::Empty);
        }
        let printable = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        if printable && text.trim() == text { Ok(Self(text.to_owned())) } else { Err(ApiKeyError::Characters) }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_that_clients_can_send() {
        assert_eq!("".parse::<ApiKey>(), Err(ApiKeyError::Empty));
        for unsendable in [" ", " a", "a\n", "a\tb", "schlüssel"] {
            assert_eq!(unsendable.parse::<ApiKey>(), Err(ApiKeyError::Characters), "{unsendable:?}");
        }
        let key: ApiKey = "sk-open sesame!".parse().unwrap();
        assert!(key.matches(b"sk-open sesame!") && !key.matches(b"sk-open") && !key.matches(b""));
        assert_eq!(format!("{key:?}"), "ApiKey");
    }
}
