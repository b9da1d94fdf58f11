//! `POST /infill`: the middle of a text, as editors ask llama-server for it.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde::Deserialize;

use super::wishes::Wishes;
use crate::{
    api::{Api, caller::Caller, error::ApiError, json::Object, unsupported::Kind},
    text::{Gap, GapFile, TextModel},
};

/// Where prompts come in.
const PREFIX: &str = "input_prefix";
/// Most other files.
const FILES: usize = 1024;

#[derive(Debug, Deserialize)]
struct InfillRequest {
    input_prefix: Option<String>,
    input_suffix: Option<String>,
    input_extra: Option<Vec<Object<Extra>>>,
    /// What the middle begins with.
    prompt: Option<String>,
    n_probs: Option<i64>,
    return_tokens: Option<bool>,
    response_fields: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Extra {
    text: Option<String>,
    filename: Option<String>,
}

impl Kind for InfillRequest {
    // The order of samplers is ours, and how deep a text is indented or how long it may take are the wishes of editors, which
    // would do without an answer otherwise.
    const HONOURED: &'static [&'static str] = &[
        "input_extra",
        "input_prefix",
        "input_suffix",
        "n_indent",
        "n_keep",
        "n_probs",
        "response_fields",
        "return_progress",
        "return_tokens",
        "samplers",
        "t_max_predict_ms",
        "timings_per_token",
    ];
}

/// Fills in the middle of a text.
pub(crate) async fn infill(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&request);
    let (params, asked, share) = api.read::<InfillRequest>(request).await?;
    let (wishes, gap) = asked.parted()?;
    let encode = move |text: &TextModel| match text.infill_prompt(&gap) {
        Ok(ids) => Ok(vec![ids]),
        Err(error) => Err(ApiError::text(PREFIX, &error)),
    };
    wishes.answer(&api, params, caller, PREFIX, share, encode).await
}

impl InfillRequest {
    fn parted(self) -> Result<(Wishes, Gap), ApiError> {
        let Self { n_probs, return_tokens, response_fields, .. } = self;
        let wishes = Wishes { n_probs, return_tokens, response_fields };
        let missing = |name: &str| ApiError::invalid(name, format!("'{name}' is missing"));
        let extra = self.input_extra.unwrap_or_default();
        if extra.len() > FILES {
            return Err(ApiError::invalid("input_extra", format!("'input_extra' takes at most {FILES} files")));
        }
        let file = |(at, Object(extra)): (usize, Object<Extra>)| {
            let name = format!("input_extra[{at}].text");
            let text = extra.text.ok_or_else(|| missing(&name))?;
            Ok::<_, ApiError>(GapFile { name: extra.filename.unwrap_or_else(|| "tmp".to_owned()), text })
        };
        let gap = Gap {
            before: self.input_prefix.ok_or_else(|| missing("input_prefix"))?,
            begun: self.prompt.unwrap_or_default(),
            after: self.input_suffix.ok_or_else(|| missing("input_suffix"))?,
            files: extra.into_iter().enumerate().map(file).collect::<Result<_, _>>()?,
        };
        Ok((wishes, gap))
    }
}
