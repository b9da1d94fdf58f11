//! Parameters that we know and do not honour: refused unless their value changes nothing, never silently ignored.
//!
//! They are those of OpenAI, vLLM, SGLang, llama.cpp, Ollama, TGI, LM Studio, Mistral, OpenRouter, KoboldCpp and
//! text-generation-webui. What only says how another server shall work, and not what the answer shall be, is left alone
//! as every unknown field is.

use serde::de::DeserializeOwned;
use serde_json::Value;

use self::table::KNOWN;
use super::{error::ApiError, json::Document};

mod table;

/// One kind of completion request.
pub(crate) trait Kind: DeserializeOwned + Send + 'static {
    /// What it honours of the parameters that are refused otherwise.
    const HONOURED: &'static [&'static str];
}

/// A parameter, which of its values change nothing, and what to do instead of sending another.
struct Known {
    name: &'static str,
    neutral: Neutral,
    hint: &'static str,
}

/// Values that change nothing. Null is always one of them.
enum Neutral {
    /// No value: only null.
    Absent,
    /// A list, an object or a string without anything in it.
    Empty,
    Is(bool),
    Number(f64),
    /// What switches the parameter off.
    AtMost(f64),
    OneOf(&'static [&'static str]),
    /// `["text"]`.
    TextOnly,
}

/// Parameters that the word "none" in another one makes void.
const VOID: [(&str, &str); 2] = [("tools", "tool_choice"), ("functions", "function_call")];

/// Refuses a body that asks for something we would have to ignore.
///
/// # Errors
/// `Unsupported` with the parameter's name.
pub(crate) fn refuse_unsupported<T: Kind>(body: &Document) -> Result<(), ApiError> {
    let known = |name: &str| KNOWN.binary_search_by(|known| known.name.cmp(name)).ok().map(|place| &KNOWN[place]);
    let asked = || body.fields().filter_map(|(name, value)| Some((known(name)?, value)));
    let declined = |choice: &str| asked().any(|(known, value)| known.name == choice && value == "none");
    let void = |name: &str| VOID.iter().any(|(what, choice)| *what == name && declined(choice));
    let ignored = |(known, value): &(&Known, &Value)| {
        !known.neutral.covers(value) && !T::HONOURED.contains(&known.name) && !void(known.name)
    };
    match asked().find(ignored) {
        Some((Known { name, hint, .. }, _)) => Err(ApiError::Unsupported { param: name, hint }),
        None => Ok(()),
    }
}

impl Neutral {
    fn covers(&self, value: &Value) -> bool {
        value.is_null()
            || match self {
                Self::Absent => false,
                Self::Empty => is_empty(value),
                Self::Is(neutral) => value == neutral,
                Self::Number(neutral) => value == neutral,
                Self::AtMost(off) => value.as_f64().is_some_and(|value| value <= *off),
                Self::OneOf(words) => value.as_str().is_some_and(|value| words.contains(&value)),
                Self::TextOnly => value.as_array().is_some_and(|list| list.iter().all(|one| one == "text")),
            }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Anything {}

    impl Kind for Anything {
        const HONOURED: &'static [&'static str] = &["echo"];
    }

    fn refused(json: &str) -> Option<&'static str> {
        match refuse_unsupported::<Anything>(&Document::parse(json.as_bytes()).expect("an object")) {
            Err(ApiError::Unsupported { param, .. }) => Some(param),
            Err(error) => panic!("{error}"),
            Ok(()) => None,
        }
    }

    #[test]
    fn only_what_would_change_the_answer_is_refused() {
        let neutral = r#"{"suffix": null, "best_of": 1, "store": false, "tool_choice": "auto", "what_is_this": [{}],
            "response_format": {"type": "text"}, "modalities": ["text"], "functions": []}"#;
        assert_eq!(refused(neutral), None);
        assert_eq!(refused(r#"{"modalities": ["text", "audio"]}"#), Some("modalities"));
        assert_eq!(refused(r#"{"grammar_lazy": true}"#), Some("grammar_lazy"));
        assert_eq!(
            refused(r#"{"guided_choice": ["a"], "response_format": {"type": "json_object"}}"#),
            None,
            "honoured"
        );
        assert_eq!(refused(r#"{"tool_choice": {"type": "function"}}"#), Some("tool_choice"));
        assert_eq!(refused(r#"{"suffix": "}", "best_of": 2}"#), Some("suffix"));
        assert!(KNOWN.is_sorted_by(|one, next| one.name < next.name), "found by halving, and named once");
    }

    #[test]
    fn defaults_of_other_servers_change_nothing() {
        for neutral in [
            r#"{"tools": [], "tool_choice": "none", "parallel_tool_calls": false}"#,
            r#"{"verbosity": "medium", "reasoning_effort": "medium", "service_tier": "auto"}"#,
            r#"{"length_penalty": 1.0, "typical_p": 1, "mirostat": 0, "dry_multiplier": 0.0}"#,
            r#"{"n_predict": -1, "id_slot": 3, "xtc_probability": 0, "xtc_threshold": 0.1, "mirostat_tau": 5}"#,
            r#"{"add_generation_prompt": true, "continue_final_message": false, "skip_special_tokens": true}"#,
            r#"{"bad_words": [], "guided_json": null, "ban_eos_token": false, "min_tokens": 0}"#,
            r#"{"keep_alive": "5m", "cache_prompt": true, "metadata": {"a": "b"}, "safety_identifier": "x"}"#,
            r#"{"echo": true}"#,
            r#"{"store": true, "parallel_tool_calls": true}"#,
            r#"{"tool_choice": "none", "tools": [{"type": "function"}]}"#,
            r#"{"functions": [{"name": "f"}], "function_call": "none"}"#,
        ] {
            assert_eq!(refused(neutral), None, "{neutral}");
        }
    }

    #[test]
    fn what_other_servers_would_do_is_refused_by_name() {
        for (name, value) in [
            ("add_generation_prompt", "false"),
            ("allowed_token_ids", "[5]"),
            ("bad_words", r#"["1"]"#),
            ("chat_template", r#""{{1}}""#),
            ("continue_final_message", "true"),
            ("format", r#""json""#),
            ("grammar_string", r#""root ::= \"a\"""#),
            ("guided_whitespace_pattern", r#""[ ]""#),
            ("include_stop_str_in_output", "true"),
            ("num_predict", "2"),
            ("options", r#"{"num_ctx": 8192}"#),
            ("prompt_logprobs", "1"),
            ("random_seed", "1"),
            ("reasoning_effort", r#""high""#),
            ("structural_tag", r#"{"triggers": ["<f"]}"#),
            ("think", "false"),
            ("tools", r#"[{"type": "function", "function": {"name": "f"}}]"#),
            ("truncate_prompt_tokens", "2"),
            ("use_beam_search", "true"),
            ("top_n_sigma", "1.5"),
        ] {
            assert_eq!(refused(&format!(r#"{{"{name}": {value}}}"#)), Some(name));
        }
    }
}
