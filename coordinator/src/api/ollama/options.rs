//! The `options` of Ollama's requests: our parameters by the same names, but for the length.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api::{
    Api, blocking,
    caller::Caller,
    chat::Drawing,
    error::ApiError,
    grammar::AskedGrammar,
    json::Document,
    params::Params,
    ranges::integer,
    unsupported::{Kind, refuse_unsupported},
};

/// What is not among our parameters.
#[derive(Debug, Deserialize)]
struct Options {
    num_predict: Option<i64>,
    num_ctx: Option<i64>,
}

impl Kind for Options {
    // The context is as long as it is served: a prompt that does not fit is refused and never shortened, so what shall
    // be kept of it is nothing to us either.
    const HONOURED: &'static [&'static str] = &["num_ctx", "num_keep", "num_predict"];
}

/// Ollama's own defaults.
const DEFAULTS: [(&str, f64); 3] = [("temperature", 0.8), ("top_k", 40.0), ("top_p", 0.9)];

/// How the answer is drawn.
///
/// # Errors
/// `Invalid` and `Unsupported` with the option's name.
pub(super) async fn drawing(
    api: &Api,
    mut options: Map<String, Value>,
    grammar: Option<AskedGrammar>,
    caller: Caller,
) -> Result<Drawing, ApiError> {
    for (name, default) in DEFAULTS {
        options.entry(name).or_insert_with(|| if name == "top_k" { json!(40) } else { json!(default) });
    }
    let options = Document::from(options);
    let text = Arc::clone(&api.state.text);
    let parsing = move || {
        let (mut params, own): (Params, Options) = (options.read()?, options.read()?);
        refuse_unsupported::<Options>(&options)?;
        params.read_rest(&options, &text)?;
        Ok::<_, ApiError>((params, own))
    };
    let (mut params, own) = blocking(parsing).await??;
    params.grammar = grammar.or(params.grammar);
    integer("num_ctx", own.num_ctx, 1..=i64::MAX)?;
    let max_tokens = match own.num_predict {
        // Without end, and until the context is full: the same thing here.
        None | Some(-1 | -2) => params.max_tokens(1)?,
        some => integer("num_predict", some, 1..=i64::MAX)?.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
    };
    Drawing::single(api, params, max_tokens, caller)
}
