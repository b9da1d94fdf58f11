//! `logit_bias`: an object of token ids, as OpenAI has it, or of texts, or a list of pairs, as llama-server has them.

use std::{collections::HashMap, fmt};

use qmesh_models::tokenizer::{Affixes, Specials};
use serde::{
    Deserialize, Deserializer,
    de::{
        MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use serde_json::Value;

use super::{error::ApiError, ranges::real};
use crate::text::TextModel;

/// What is added to the logit of a token that shall never come while any other may. Workers take no infinities.
pub(crate) const NEVER: f32 = -1e30;

/// Most tokens that have a bias.
const TOKENS: usize = 1024;

/// The biases as they were sent.
#[derive(Debug)]
pub(crate) enum AskedBiases {
    /// Of token ids, which are strings in an object, or of texts.
    ByKey(HashMap<String, f64>),
    /// Pairs of a token id or a text, and a number or `false`.
    Pairs(Vec<Value>),
}

impl<'de> Deserialize<'de> for AskedBiases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BiasesVisitor)
    }
}

struct BiasesVisitor;

impl<'de> Visitor<'de> for BiasesVisitor {
    type Value = AskedBiases;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<AskedBiases, A::Error> {
        HashMap::deserialize(MapAccessDeserializer::new(fields)).map(AskedBiases::ByKey)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<AskedBiases, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(AskedBiases::Pairs)
    }
}

impl AskedBiases {
    /// The biases by token id, in order. Blocks where texts must be split.
    ///
    /// # Errors
    /// `Invalid` with the parameter's name.
    pub(crate) fn read(&self, text: &TextModel) -> Result<Vec<(u32, f32)>, ApiError> {
        let mut biases = match self {
            Self::ByKey(sent) => {
                few(sent.len())?;
                let read = sent.iter().map(|(key, bias)| by_key(key, *bias, text));
                read.collect::<Result<Vec<_>, _>>()?.concat()
            }
            Self::Pairs(sent) => {
                few(sent.len())?;
                let read = sent.iter().enumerate().map(|(at, pair)| pair_of(at, pair, text));
                read.collect::<Result<Vec<_>, _>>()?.concat()
            }
        };
        few(biases.len())?;
        // The order of a hash map differs from run to run; what goes over the wire should not.
        biases.sort_by_key(|&(id, _)| id);
        Ok(biases)
    }
}

fn few(tokens: usize) -> Result<(), ApiError> {
    match tokens {
        0..=TOKENS => Ok(()),
        _ => Err(ApiError::invalid("logit_bias", format!("'logit_bias' takes at most {TOKENS} tokens"))),
    }
}

/// The tokens of a key, each with its bias. What is a number is an id.
fn by_key(key: &str, bias: f64, text: &TextModel) -> Result<Vec<(u32, f32)>, ApiError> {
    const PLACE: &str = "logit_bias";
    let bias = within(PLACE, bias)?;
    let ids = match (key.parse::<i64>(), key.parse().ok().filter(|&id| is_token(id, text))) {
        (_, Some(id)) => vec![id],
        (Ok(_), None) => return Err(no_token(PLACE, text)),
        (Err(_), None) => spelled_with(PLACE, key, text)?,
    };
    Ok(ids.into_iter().map(|id| (id, bias)).collect())
}

/// The tokens of a text, each once: one that it has twice is no reason for twice the bias.
fn spelled_with(place: &str, spelled: &str, text: &TextModel) -> Result<Vec<u32>, ApiError> {
    if text.tokenizer.fewest_tokens(spelled, Specials::Plain) > TOKENS {
        return Err(ApiError::invalid(place, format!("'{place}' has a text of more than {TOKENS} tokens")));
    }
    let split = text.tokenizer.encode(spelled, Specials::Plain, Affixes::None);
    let mut ids = split.map_err(|error| ApiError::invalid(place, error.to_string()))?;
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The tokens of a pair, each with its bias.
fn pair_of(at: usize, pair: &Value, text: &TextModel) -> Result<Vec<(u32, f32)>, ApiError> {
    let place = format!("logit_bias[{at}]");
    let wrong = |what: &str| ApiError::invalid(place.clone(), format!("'{place}' is a pair of {what}"));
    let Some([whose, bias]) = pair.as_array().map(Vec::as_slice) else {
        return Err(wrong("a token id or a text, and a number"));
    };
    let bias = match (bias, bias.as_f64()) {
        (Value::Bool(false), _) => NEVER,
        (_, Some(bias)) => within(&place, bias)?,
        (_, None) => return Err(wrong("a token id or a text, and a number from -100 to 100 or false")),
    };
    let ids = match (whose.as_str(), whose.as_u64().and_then(|id| u32::try_from(id).ok())) {
        (Some(spelled), _) => spelled_with(&place, spelled, text)?,
        (None, Some(id)) if is_token(id, text) => vec![id],
        (None, _) => return Err(no_token(&place, text)),
    };
    Ok(ids.into_iter().map(|id| (id, bias)).collect())
}

fn within(place: &str, bias: f64) -> Result<f32, ApiError> {
    real(place, Some(bias), -100.0..=100.0, 0.0)
}

fn is_token(id: u32, text: &TextModel) -> bool {
    usize::try_from(id).is_ok_and(|id| id < text.tokenizer.vocab_len())
}

fn no_token(place: &str, text: &TextModel) -> ApiError {
    let vocabulary = text.tokenizer.vocab_len();
    ApiError::invalid(place, format!("every token of '{place}' must be an id below {vocabulary}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::fake::{model, word, written};

    fn read(json: &str) -> Result<Vec<(u32, f32)>, String> {
        let asked: AskedBiases = serde_json::from_str(json).map_err(|error| error.to_string())?;
        asked.read(&model()).map_err(|error| error.to_string())
    }

    #[test]
    fn biases_come_by_id_or_in_pairs() {
        assert_eq!(read(r#"{"7": -1.5, "5": 100}"#), Ok(vec![(5, 100.0), (7, -1.5)]));
        assert_eq!(read(r#"[[7, -1.5], [5, false]]"#), Ok(vec![(5, NEVER), (7, -1.5)]));
        assert_eq!(read(r#"[["a", 2]]"#), Ok(vec![(word("a"), 2.0)]));
        assert_eq!(read(r#"{"a": 2, "5": 1}"#), Ok(vec![(5, 1.0), (word("a"), 2.0)]));
        assert_eq!(read(r#"[["xyx", -3]]"#), Ok(written("xy").into_iter().map(|id| (id, -3.0)).collect()));
        assert_eq!(read("[]"), Ok(vec![]));
    }

    #[test]
    fn other_biases_are_refused_by_their_place() {
        let long = format!(r#"[["{}", 1]]"#, "q".repeat(20_000));
        for (json, place) in [
            (r#"{"-1": 1}"#, "'logit_bias'"),
            (r#"{"99999": 1}"#, "'logit_bias'"),
            (r#"{"Hello": 101}"#, "'logit_bias'"),
            (r#"[[5]]"#, "'logit_bias[0]'"),
            (r#"[[5, 1], [5, true]]"#, "'logit_bias[1]'"),
            (r#"[[5, 101]]"#, "'logit_bias[0]'"),
            (r#"[[-1, 1]]"#, "'logit_bias[0]'"),
            (r#"[[99999, 1]]"#, "'logit_bias[0]'"),
            (r#"[{"id": 5, "bias": 1}]"#, "'logit_bias[0]'"),
            (long.as_str(), "'logit_bias"),
        ] {
            let said = read(json).expect_err(json);
            assert!(said.contains(place), "{json}: {said}");
        }
    }
}
