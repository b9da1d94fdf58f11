//! What a body will take once it is parsed and made into a prompt, known before any of that is spent.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::error::Category;

use super::{error::ApiError, json::malformed, limits::MOST_BYTES};

/// Memory for each value, over all the forms that it takes on its way through a template.
const VALUE_BYTES: usize = 720;
/// The same for each key of an object: a map makes room for four entries at once, in each of these forms.
const KEY_BYTES: usize = 2880;
/// Copies of a text on its way into a prompt.
const TEXT_COPIES: usize = 14;
/// Memory for each byte of a text that is being split into tokens.
const SPLITTING_BYTES: usize = 100;

/// What is in a body.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Weight {
    values: usize,
    keys: usize,
    text_bytes: usize,
}

impl Weight {
    /// Looks at a body without keeping any of it.
    ///
    /// # Errors
    /// `Invalid` where it is no JSON, `TooHeavy` as soon as it is over the limit.
    pub(crate) fn of(body: &[u8]) -> Result<Self, ApiError> {
        let mut weight = Self::default();
        let mut json = serde_json::Deserializer::from_slice(body);
        match Scale(&mut weight, Role::Value).deserialize(&mut json).and_then(|()| json.end()) {
            Ok(()) => Ok(weight),
            Err(error) if error.classify() == Category::Data => Err(ApiError::TooHeavy),
            Err(error) => Err(malformed(&error)),
        }
    }

    /// Memory that it takes to make prompts of it, where one longer than `prompt_bytes` is not split into tokens.
    ///
    /// # Errors
    /// `TooHeavy` when that is more than one request may have.
    pub(crate) fn bytes(self, prompt_bytes: usize) -> Result<usize, ApiError> {
        let splitting = self.text_bytes.min(prompt_bytes).saturating_mul(SPLITTING_BYTES);
        let bytes = self.parsed_bytes().saturating_add(splitting);
        if bytes > MOST_BYTES { Err(ApiError::TooHeavy) } else { Ok(bytes) }
    }

    fn parsed_bytes(self) -> usize {
        // A body has eight megabytes: this is far from overflowing.
        self.values * VALUE_BYTES + self.keys * KEY_BYTES + self.text_bytes * TEXT_COPIES
    }
}

/// Adds up what it visits, however deep: serde_json bounds that.
struct Scale<'w>(&'w mut Weight, Role);

/// What is visited.
#[derive(Clone, Copy)]
enum Role {
    Key,
    Value,
}

impl Scale<'_> {
    fn add<E: Error>(self, text_bytes: usize) -> Result<(), E> {
        match self.1 {
            Role::Key => self.0.keys += 1,
            Role::Value => self.0.values += 1,
        }
        self.0.text_bytes += text_bytes;
        if self.0.parsed_bytes() > MOST_BYTES { Err(E::custom("too heavy")) } else { Ok(()) }
    }
}

impl<'de> DeserializeSeed<'de> for Scale<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scale<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.add(0)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.add(0)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.add(0)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.add(0)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.add(0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.add(text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Scale(self.0, Role::Value))?.is_some() {}
        self.add(0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while fields.next_key_seed(Scale(self.0, Role::Key))?.is_some() {
            fields.next_value_seed(Scale(self.0, Role::Value))?;
        }
        self.add(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_in_a_body_weighs() {
        let weight = |json: &str| Weight::of(json.as_bytes()).unwrap();
        let of = |values, keys, text_bytes| Weight { values, keys, text_bytes };
        assert_eq!(weight(r#"{"a": ["bc", 1, -1, 1.5, null, true], "d": {}}"#), of(9, 2, 4));
        assert_eq!(weight("[]"), of(1, 0, 0));
        for malformed in ["[1", "{\"a\": 1,}", "{} {}", ""] {
            assert!(matches!(Weight::of(malformed.as_bytes()), Err(ApiError::Invalid { .. })), "{malformed}");
        }
    }

    #[test]
    fn what_takes_gigabytes_is_refused() {
        let lists = format!("[{}[]]", "[],".repeat(MOST_BYTES / VALUE_BYTES));
        let objects = format!("[{}{{}}]", r#"{"a":{"b":[]}},"#.repeat(MOST_BYTES / KEY_BYTES / 2));
        for heavy in [lists, objects] {
            assert!(matches!(Weight::of(heavy.as_bytes()), Err(ApiError::TooHeavy)));
        }
        // A text is as heavy as it is long, and splitting it costs only as much as a prompt may have of it.
        let text = Weight { values: 10, keys: 0, text_bytes: 8 << 20 };
        assert!(matches!(text.bytes(usize::MAX), Err(ApiError::TooHeavy)));
        assert_eq!(text.bytes(1 << 20).unwrap(), 10 * VALUE_BYTES + (8 << 20) * TEXT_COPIES + (100 << 20));
    }
}
