//! The keys that clients must send.

use std::{fmt, str::FromStr, sync::Arc};

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

/// Keys with the names of those to whom they were given.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NamedKeys(Vec<(Arc<str>, ApiKey)>);

/// Why a text lists no keys.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
#[error("line {line}: {reason}")]
pub struct KeyListError {
    /// Where, from 1.
    pub line: usize,
    /// What is wrong there, without what may be a key.
    pub reason: String,
}

impl NamedKeys {
    /// The keys of a text: a name, a colon and a key on each line; what is empty or begins with # counts for nothing.
    ///
    /// # Errors
    /// A line that is none of these, a name or a key that comes twice, or no key at all.
    pub fn parse(text: &str) -> Result<Self, KeyListError> {
        let mut keys = Self::default();
        for (line, entry) in (1..).zip(text.lines()).filter(|(_, entry)| !entry.is_empty() && !entry.starts_with('#')) {
            let wrong = |reason: &str| KeyListError { line, reason: reason.to_owned() };
            let (name, key) = entry.split_once(':').ok_or_else(|| wrong("a name, a colon and a key are needed"))?;
            let named = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
            if name.is_empty() || name.len() > NAME_BYTES || !name.chars().all(named) {
                return Err(wrong("a name has 1 to 64 letters, digits and -_.@"));
            }
            let key: ApiKey = key.parse().map_err(|error: ApiKeyError| wrong(&error.to_string()))?;
            if keys.0.iter().any(|(other, known)| **other == *name || *known == key) {
                return Err(wrong("this name or this key was there before"));
            }
            keys.0.push((name.into(), key));
        }
        let none = || KeyListError { line: 1, reason: "there is no key in it, which would let nobody in".to_owned() };
        if keys.0.is_empty() { Err(none()) } else { Ok(keys) }
    }

    /// Whether there are none.
    pub(crate) fn are_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose key a client sent, in a time that does not tell which one it was, or how much of it was right.
    pub(crate) fn name_of(&self, sent: &[u8]) -> Option<Arc<str>> {
        let keys = self.0.iter();
        keys.fold(None, |found, (name, key)| if key.matches(sent) { Some(Arc::clone(name)) } else { found })
    }
}

/// Most bytes of a name.
const NAME_BYTES: usize = 64;

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

    #[test]
    fn keys_have_names_of_their_own() {
        let keys = NamedKeys::parse("# who may ask\nanna:secret-1\n\nbuild@home:sk:with:colons\n").unwrap();
        let name = |sent: &str| keys.name_of(sent.as_bytes()).map(|name| name.to_string());
        assert_eq!(name("secret-1").as_deref(), Some("anna"));
        assert_eq!(name("sk:with:colons").as_deref(), Some("build@home"));
        assert!(name("secret").is_none() && name("anna").is_none() && name("").is_none());
        assert!(NamedKeys::default().name_of(b"").is_none());
        for (text, line) in [
            ("", 1),
            ("# nobody", 1),
            ("a:x\nsecret", 2),
            ("a:x\n\n:y", 3),
            ("a b:x", 1),
            ("a:", 1),
            ("a: x", 1),
            ("a:x\nb:x", 2),
            ("a:x\na:y", 2),
        ] {
            let error = NamedKeys::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
