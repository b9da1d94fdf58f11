//! Arguments that are written as keys and values between tags, made into JSON.

use serde_json::Value;

use super::tools::Tools;
use crate::grammar::wants_text;
pub(super) use crate::grammar::{Lines, Pairs, Types};

/// Reads the pairs of one call.
#[derive(Clone, Debug)]
pub(super) struct PairReader {
    pairs: &'static Pairs,
    tool: String,
    /// How many came.
    count: usize,
    /// Bytes that were searched for the end of the value which is under way.
    searched: usize,
}

/// What came of a text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Taken {
    /// This many bytes, and more must come.
    Open(usize),
    /// This many bytes, which end the arguments.
    Ended(usize),
    /// This many bytes; what follows is not part of any arguments.
    Broken(usize),
}

impl PairReader {
    pub(super) fn new(pairs: &'static Pairs, tool: &str) -> Self {
        Self { pairs, tool: tool.to_owned(), count: 0, searched: 0 }
    }

    /// Takes whole pairs from the front, and adds them to `json`.
    pub(super) fn take(&mut self, text: &str, tools: &Tools, json: &mut String) -> Taken {
        let mut at = 0;
        loop {
            let rest = text[at..].trim_start();
            let start = text.len() - rest.len();
            if rest.starts_with(self.pairs.end) {
                self.close(json);
                return Taken::Ended(start + self.pairs.end.len());
            }
            match self.pair(rest) {
                Pair::Whole { key, value, length } => {
                    self.add(key, value, tools, json);
                    self.searched = 0;
                    at = start + length;
                }
                Pair::Wait if rest.is_empty() => return Taken::Open(text.len()),
                Pair::Wait => return Taken::Open(at),
                Pair::None if self.pairs.end.starts_with(rest) => return Taken::Open(at),
                Pair::None => {
                    self.close(json);
                    return Taken::Broken(at);
                }
            }
        }
    }

    /// Ends the object.
    pub(super) fn close(&self, json: &mut String) {
        json.push_str(if self.count == 0 { "{}" } else { "}" });
    }

    fn pair<'t>(&mut self, rest: &'t str) -> Pair<'t> {
        let Pairs { key: (before_key, after_key), value: (before, after), .. } = *self.pairs;
        if rest.len() < before_key.len() && before_key.starts_with(rest) {
            return Pair::Wait;
        }
        let Some(from_key) = rest.strip_prefix(before_key) else { return Pair::None };
        let Some((key, behind)) = from_key.split_once(after_key) else { return Pair::Wait };
        let opened = if before.is_empty() { behind } else { behind.trim_start() };
        if opened.len() < before.len() && before.starts_with(opened) {
            return Pair::Wait;
        }
        let Some(inside) = opened.strip_prefix(before) else { return Pair::None };
        let from = floor(inside, self.searched);
        match inside[from..].find(after) {
            Some(place) => {
                let end = from + place;
                Pair::Whole { key, value: &inside[..end], length: rest.len() - inside.len() + end + after.len() }
            }
            None => {
                self.searched = inside.len().saturating_sub(after.len());
                Pair::Wait
            }
        }
    }

    fn add(&mut self, key: &str, value: &str, tools: &Tools, json: &mut String) {
        let value = match self.pairs.lines {
            Lines::Own => {
                let value = value.strip_prefix('\n').unwrap_or(value);
                value.strip_suffix('\n').unwrap_or(value)
            }
            Lines::Shared => value,
        };
        let is_text = match self.pairs.types {
            Types::BySchema => None,
            Types::BehindKey { text, json } => {
                let (of_text, of_json) = (key.strip_suffix(text), key.strip_suffix(json));
                of_text.map(|key| (key, true)).or(of_json.map(|key| (key, false)))
            }
        };
        let key = is_text.map_or(key, |(key, _)| key).trim();
        json.push_str(if self.count == 0 { "{" } else { ", " });
        json.push_str(&Value::from(key).to_string());
        json.push_str(": ");
        let value = match is_text {
            Some((_, true)) => Value::from(value),
            Some((_, false)) => typed(value, None),
            None => typed(value, tools.argument(&self.tool, key)),
        };
        json.push_str(&value.to_string());
        self.count += 1;
    }
}

/// What stands at the front of a text.
enum Pair<'t> {
    Whole { key: &'t str, value: &'t str, length: usize },
    Wait,
    None,
}

/// The value that a text means, where its schema says what is wanted: such formats write strings without quotes.
fn typed(text: &str, schema: Option<&Value>) -> Value {
    let string = || Value::from(text);
    if schema.is_some_and(wants_text) {
        return string();
    }
    serde_json::from_str(text.trim()).unwrap_or_else(|_| string())
}

/// The last boundary of characters at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_become_what_their_schema_wants() {
        let text = json!({"type": "string"});
        let both = json!({"type": ["string", "null"]});
        let words = json!({"enum": ["1", "2"]});
        let number = json!({"type": "integer"});
        for (value, schema, wanted) in [
            ("12", Some(&text), json!("12")),
            ("true", Some(&both), json!("true")),
            ("1", Some(&words), json!("1")),
            ("12", Some(&number), json!(12)),
            ("twelve", Some(&number), json!("twelve")),
            ("[1, {\"a\": null}]", None, json!([1, {"a": null}])),
            ("é \"x\"", None, json!("é \"x\"")),
        ] {
            assert_eq!(typed(value, schema), wanted, "{value} {schema:?}");
        }
    }
}
