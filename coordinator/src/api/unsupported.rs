//! Parameters that we know and do not honour: refused unless their value changes nothing, never silently ignored.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

use super::{body::parse, error::ApiError};

/// A parameter, which of its values change nothing, and what to do instead of sending another.
struct Known {
    name: &'static str,
    neutral: fn(&Value) -> bool,
    hint: &'static str,
}

const LEAVE_OUT: &str = "leave it out";

const KNOWN: [Known; 23] = [
    Known { name: "audio", neutral: never, hint: "only text is generated" },
    Known { name: "best_of", neutral: |value| value == 1, hint: "use 'n' and choose among the choices" },
    Known { name: "function_call", neutral: |value| value == "auto" || value == "none", hint: "use 'tools'" },
    Known { name: "functions", neutral: empty, hint: "use 'tools'" },
    Known { name: "grammar", neutral: empty, hint: LEAVE_OUT },
    Known { name: "guided_json", neutral: never, hint: LEAVE_OUT },
    Known { name: "guided_regex", neutral: never, hint: LEAVE_OUT },
    Known { name: "ignore_eos", neutral: |value| value == false, hint: "use 'logit_bias' on the end token" },
    Known { name: "json_schema", neutral: never, hint: LEAVE_OUT },
    Known { name: "min_tokens", neutral: |value| value == 0, hint: LEAVE_OUT },
    Known { name: "mirostat", neutral: |value| value == 0, hint: "use 'temperature', 'top_p' or 'min_p'" },
    Known {
        name: "modalities",
        neutral: |value| *value == serde_json::json!(["text"]),
        hint: "only text is generated",
    },
    Known { name: "parallel_tool_calls", neutral: |value| value == true, hint: LEAVE_OUT },
    Known { name: "prediction", neutral: never, hint: LEAVE_OUT },
    Known { name: "reasoning_effort", neutral: never, hint: LEAVE_OUT },
    Known { name: "response_format", neutral: |value| value["type"] == "text", hint: "only {\"type\": \"text\"} is" },
    Known { name: "service_tier", neutral: |value| value == "auto" || value == "default", hint: LEAVE_OUT },
    Known { name: "store", neutral: |value| value == false, hint: "nothing is stored" },
    Known {
        name: "suffix",
        neutral: |value| value == "",
        hint: "put the model's fill-in-the-middle tokens in 'prompt'",
    },
    Known {
        name: "tool_choice",
        neutral: |value| value == "auto" || value == "none",
        hint: "only \"auto\" and \"none\" are",
    },
    Known { name: "typical_p", neutral: |value| value == 1.0, hint: "use 'top_p' or 'min_p'" },
    Known { name: "verbosity", neutral: never, hint: "ask for it in the prompt" },
    Known { name: "web_search_options", neutral: never, hint: LEAVE_OUT },
];

/// Refuses a body that asks for something we would have to ignore.
///
/// # Errors
/// `Unsupported` with the parameter's name, `Invalid` when the body is not a JSON object.
pub(crate) fn refuse_unsupported(body: &[u8]) -> Result<(), ApiError> {
    match parse::<Asked>(body)?.0 {
        Some(Known { name, hint, .. }) => Err(ApiError::Unsupported { param: name, hint }),
        None => Ok(()),
    }
}

/// The first parameter in a body that is refused.
struct Asked(Option<&'static Known>);

impl<'de> Deserialize<'de> for Asked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AskedVisitor)
    }
}

struct AskedVisitor;

impl<'de> Visitor<'de> for AskedVisitor {
    type Value = Asked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Asked, A::Error> {
        let mut refused = None;
        while let Some(name) = fields.next_key::<String>()? {
            match KNOWN.iter().find(|known| known.name == name) {
                Some(known) => {
                    let value: Value = fields.next_value()?;
                    if !value.is_null() && !(known.neutral)(&value) {
                        refused.get_or_insert(known);
                    }
                }
                None => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Asked(refused))
    }
}

fn never(_: &Value) -> bool {
    false
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_would_change_the_answer_is_refused() {
        let refused = |json: &str| match refuse_unsupported(json.as_bytes()) {
            Err(ApiError::Unsupported { param, .. }) => Some(param),
            Err(error) => panic!("{error}"),
            Ok(()) => None,
        };
        let neutral = r#"{"suffix": null, "best_of": 1, "store": false, "tool_choice": "auto", "what_is_this": [{}],
            "response_format": {"type": "text"}, "modalities": ["text"], "functions": []}"#;
        assert_eq!(refused(neutral), None);
        assert_eq!(refused(r#"{"response_format": {"type": "json_object"}}"#), Some("response_format"));
        assert_eq!(refused(r#"{"response_format": 3}"#), Some("response_format"));
        assert_eq!(refused(r#"{"tool_choice": {"type": "function"}}"#), Some("tool_choice"));
        assert_eq!(refused(r#"{"suffix": "}", "best_of": 2}"#), Some("suffix"));
        assert!(KNOWN.is_sorted_by_key(|known| known.name));
    }
}
