//! JSON from clients: objects where objects are wanted, and what is wrong with them in JSON's words, not in Rust's.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value, error::Category};

use super::error::ApiError;

/// Most entries of a list that may stand for a single string.
const LIST_ENTRIES: usize = 1 << 20;
/// Most characters of a message or a path; it may quote what a client sent.
const QUOTED_CHARS: usize = 200;

/// A body, parsed once: whoever wants something of it reads the fields that are theirs.
#[derive(Debug)]
pub(crate) struct Document(Value);

impl Document {
    /// Parses a JSON object.
    ///
    /// # Errors
    /// `Invalid`: it is none, or has a field twice.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let Fields(fields) = Fields::deserialize(&mut json).map_err(|error| wrong("", &error))?;
        json.end().map_err(|error| malformed(&error))?;
        Ok(Self(fields.into()))
    }

    /// Reads the fields that `T` names; others are left alone.
    ///
    /// # Errors
    /// `Invalid` with the path of the value that is wrong.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let Object(read) = serde_path_to_error::deserialize(&self.0).map_err(|error| {
            let path = error.path().to_string();
            wrong(&path, &error.into_inner())
        })?;
        Ok(read)
    }

    /// All fields.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
    }
}

impl From<Map<String, Value>> for Document {
    fn from(fields: Map<String, Value>) -> Self {
        Self(fields.into())
    }
}

/// The fields of an object, each of which comes once.
struct Fields(Map<String, Value>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Fields, A::Error> {
        let mut read = Map::new();
        while let Some((name, value)) = fields.next_entry::<String, Value>()? {
            if read.contains_key(&name) {
                return Err(serde::de::Error::custom(format!("duplicate field `{name}`")));
            }
            read.insert(name, value);
        }
        Ok(Fields(read))
    }
}

/// What is no JSON at all.
pub(crate) fn malformed(error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    let text = match text.strip_prefix("recursion limit exceeded") {
        Some(place) => format!("the body is nested too deep{place}"),
        None => format!("the body is no valid JSON: {text}"),
    };
    ApiError::Invalid { param: None, text: shorten(&text) }
}

/// A struct that only an object can become: derived code would take a list of its fields as well.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
    }
}

/// A string, or a list. Unlike an untagged enum it parses in place, and names what it found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum OneOrMany<T> {
    One(String),
    Many(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

struct OneOrManyVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrManyVisitor<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(OneOrMany::One(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut many = Vec::new();
        while let Some(entry) = list.next_element()? {
            if many.len() == LIST_ENTRIES {
                return Err(serde::de::Error::custom(format!("more than {LIST_ENTRIES} entries")));
            }
            many.push(entry);
        }
        Ok(OneOrMany::Many(many))
    }
}

/// A value that is not what is wanted in its place.
fn wrong(path: &str, error: &serde_json::Error) -> ApiError {
    if error.classify() != Category::Data {
        return malformed(error);
    }
    // A place that has no name yet, as the first key of an object, is a question mark.
    let path = path.trim_end_matches(['?', '.']);
    let param = (!path.is_empty()).then(|| shorten(path));
    let what = in_words(&error.to_string());
    let text = match &param {
        Some(param) => format!("'{param}': {what}"),
        None => format!("the body: {what}"),
    };
    ApiError::Invalid { param, text: shorten(&text) }
}

/// serde's message without the names of Rust's types. The place is left out: the path says it better.
fn in_words(message: &str) -> String {
    let message = message.rfind(" at line ").map_or(message, |at| &message[..at]);
    let quoted = |prefix| message.strip_prefix(prefix).and_then(|rest: &str| rest.strip_suffix('`'));
    if let Some(field) = quoted("missing field `") {
        return format!("'{field}' is missing");
    }
    if let Some(field) = quoted("duplicate field `") {
        return format!("'{field}' comes twice");
    }
    let unexpected = ["invalid type: ", "invalid value: ", "invalid length: "];
    let unexpected = unexpected.iter().find_map(|prefix| message.strip_prefix(prefix)?.rsplit_once(", expected "));
    match unexpected {
        Some((found, wanted)) => format!("want {}, not {}", wanted_in_words(wanted), found_in_words(found)),
        None => message.to_owned(),
    }
}

fn wanted_in_words(wanted: &str) -> &str {
    match wanted {
        "i64" => "a whole number of at most 63 bits",
        "u32" => "a whole number from 0 to 4294967295",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        other => other,
    }
}

fn found_in_words(found: &str) -> &str {
    let number = ["integer `", "floating point `", "boolean `"].iter().find_map(|prefix| found.strip_prefix(prefix));
    match (number, found) {
        (Some(number), _) => number.trim_end_matches('`'),
        (None, "map") => "an object",
        (None, "sequence") => "a list",
        (None, found) => found,
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only what is wrong is looked at")]
    struct Sample {
        stop: Option<OneOrMany<String>>,
        seed: Option<i64>,
        ids: Option<Vec<u32>>,
        stream: Option<bool>,
        inner: Option<Object<Inner>>,
        bias: Option<HashMap<String, f64>>,
        extra: Option<Value>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only what is wrong is looked at")]
    struct Inner {
        role: String,
    }

    fn refusal(json: &str) -> (Option<String>, String) {
        match Document::parse(json.as_bytes()).and_then(|document| document.read::<Sample>()) {
            Err(ApiError::Invalid { param, text }) => (param, text),
            other => panic!("{json}: {other:?}"),
        }
    }

    #[test]
    fn errors_say_where_and_what_in_words_of_json() {
        for (json, param, text) in [
            (r#"{"stop": 5}"#, Some("stop"), "'stop': want a string or a list, not 5"),
            (r#"{"stop": {}}"#, Some("stop"), "'stop': want a string or a list, not an object"),
            (r#"{"seed": "a"}"#, Some("seed"), "'seed': want a whole number of at most 63 bits, not string \"a\""),
            (r#"{"seed": 1.5}"#, Some("seed"), "'seed': want a whole number of at most 63 bits, not 1.5"),
            (r#"{"ids": [1, -1]}"#, Some("ids[1]"), "'ids[1]': want a whole number from 0 to 4294967295, not -1"),
            (r#"{"stream": "yes"}"#, Some("stream"), "'stream': want true or false, not string \"yes\""),
            (r#"{"inner": ["user"]}"#, Some("inner"), "'inner': want an object, not a list"),
            (r#"{"inner": {}}"#, Some("inner"), "'inner': 'role' is missing"),
            (r#"{"bias": {"1": null}}"#, Some("bias.1"), "'bias.1': want a number, not null"),
            (r#"{"bias": []}"#, Some("bias"), "'bias': want an object, not a list"),
            ("[]", None, "the body: want an object, not a list"),
            ("7", None, "the body: want an object, not 7"),
            ("{\"seed\": 1,}", None, "the body is no valid JSON: trailing comma at line 1 column 12"),
            ("{} {}", None, "the body is no valid JSON: trailing characters at line 1 column 4"),
            ("[", None, "the body: want an object, not a list"),
            ("", None, "the body is no valid JSON: EOF while parsing a value at line 1 column 0"),
        ] {
            assert_eq!(refusal(json), (param.map(str::to_owned), text.to_owned()), "{json}");
        }
        let (_, deep) = refusal(&format!("{{\"extra\": {}", "[".repeat(1000)));
        assert!(deep.starts_with("the body is nested too deep at line 1"), "{deep}");
        let (_, twice) = refusal(r#"{"seed": 1, "seed": 2}"#);
        assert!(twice.ends_with("'seed' comes twice"), "{twice}");
    }

    #[test]
    fn what_is_quoted_stays_short() {
        let long = "x".repeat(10_000);
        for json in [format!(r#"{{"stop": [1, "{long}"]}}"#), format!(r#"{{"seed": "{long}"}}"#), {
            format!(r#"{{"bias": {{"{long}": "a"}}}}"#)
        }] {
            let (param, text) = refusal(&json);
            let chars = |text: &str| text.chars().count();
            assert!(chars(&text) <= QUOTED_CHARS + 1 && chars(&param.expect("a path")) <= QUOTED_CHARS + 1, "{text}");
        }
    }
}
