//! What llama-server's own endpoints ask for beside the prompt.

use std::sync::Arc;

use axum::response::Response;
use qmesh_models::tokenizer::{ControlTokens, LeadingSpace};
use qmesh_net::Sampling;
use serde_json::{Value, json};

use super::answer::{Asked, ShownProbabilities, ShownTokens, answer};
use crate::{
    api::{
        Api,
        bias::NEVER,
        blocking,
        body::Share,
        caller::Caller,
        choices::{Choices, Job},
        error::ApiError,
        params::{Delivery, Params, TOP_LOGPROBS},
        ranges::integer,
    },
    generate::PromptRows,
    text::{TextModel, TokenDetail},
};

/// What is not among the shared parameters.
#[derive(Debug)]
pub(super) struct Wishes {
    /// How many of the likeliest come with each token.
    pub(super) n_probs: Option<i64>,
    pub(super) return_tokens: Option<bool>,
    pub(super) response_fields: Option<Vec<String>>,
}

impl Wishes {
    /// Answers prompts, whose ids `encode` makes; they came in `param`.
    ///
    /// # Errors
    /// `Invalid` with the parameter's name; whatever keeps the mesh from taking them.
    pub(super) async fn answer(
        self,
        api: &Api,
        params: Params,
        caller: Caller,
        param: &'static str,
        share: Share,
        encode: impl FnOnce(&TextModel) -> Result<Vec<Vec<u32>>, ApiError> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let delivery = match params.delivery()? {
            Delivery::Whole => Delivery::Whole,
            // Each answer ends with all that there is to say.
            Delivery::Stream | Delivery::StreamWithUsage => Delivery::Stream,
        };
        let top = integer("n_probs", self.n_probs, 0..=TOP_LOGPROBS)?.and_then(|top| u16::try_from(top).ok());
        let timings = params.timings();
        let job = Job {
            prompts: Vec::new(),
            param,
            choices: params.choices()?,
            // Editors compute a prompt ahead, and generate nothing.
            max_tokens: params.max_tokens(0)?,
            sampling: params.sampling(&api.state.text, top.unwrap_or(0))?,
            stops: params.stops()?,
            ends: params.ends(&api.state.text)?,
            detail: TokenDetail::On,
            leading_space: LeadingSpace::Keep,
            reading: None,
            grammar: None,
            prompt_rows: PromptRows::Last,
            progress: params.progress(),
            client: caller.client(params.user.as_deref()),
        };
        api.check_ready()?;
        let grammar = api.compile(params.grammar).await?;
        let text = Arc::clone(&api.state.text);
        let encoding = move || {
            let _held = share;
            let prompts = encode(&text)?;
            let spelled = prompts.iter().map(|ids| match ids.len() {
                // One that is too long is refused later; its text could be long.
                0..=SPELLED => text.tokenizer.decode(ids, ControlTokens::Show),
                _ => String::new(),
            });
            let spelled: Vec<String> = spelled.collect();
            Ok::<_, ApiError>((prompts, spelled))
        };
        let (prompts, spelled) = blocking(encoding).await??;
        let asked = Asked {
            model: api.state.text.name.clone(),
            context: api.state.text.context,
            settings: settings(&job, self.n_probs, delivery),
            fields: self.response_fields.unwrap_or_default(),
            tokens: if self.return_tokens == Some(true) { ShownTokens::Yes } else { ShownTokens::No },
            timings,
            probabilities: if top.unwrap_or(0) > 0 { ShownProbabilities::Yes } else { ShownProbabilities::No },
        };
        let each = usize::try_from(job.choices).unwrap_or(1);
        let spelled = spelled.into_iter().flat_map(|prompt| std::iter::repeat_n(prompt, each)).collect();
        answer(Choices::start(api, Job { prompts, grammar, ..job })?, spelled, asked, delivery).await
    }
}

/// Tokens of the longest prompt that an answer repeats.
const SPELLED: usize = 1 << 20;

/// How tokens are drawn, by llama-server's names; what it could do and we do not is off.
fn settings(job: &Job, n_probs: Option<i64>, delivery: Delivery) -> Value {
    let Sampling { dry, logit_bias, .. } = &job.sampling;
    let biases = logit_bias.iter().map(|&(token, bias)| {
        // JSON has no infinity.
        let bias = if bias <= NEVER { Value::Null } else { bias.into() };
        json!({"token": token, "bias": bias})
    });
    // The largest number stands for no limit.
    let limit = job.max_tokens.and_then(|tokens| i64::try_from(tokens).ok()).filter(|&tokens| tokens < i64::MAX);
    let limit = limit.unwrap_or(-1);
    json!({
        "n_predict": limit,
        "max_tokens": limit,
        "seed": job.sampling.seed,
        "temperature": job.sampling.temperature,
        "top_k": job.sampling.top_k,
        "top_p": job.sampling.top_p,
        "min_p": job.sampling.min_p,
        "typical_p": job.sampling.typical_p,
        "xtc_probability": job.sampling.xtc_probability,
        "xtc_threshold": job.sampling.xtc_threshold,
        "repeat_last_n": job.sampling.penalty_window,
        "repeat_penalty": job.sampling.repeat_penalty,
        "presence_penalty": job.sampling.presence_penalty,
        "frequency_penalty": job.sampling.frequency_penalty,
        "dry_multiplier": dry.as_ref().map_or(0.0, |dry| dry.multiplier),
        "dry_base": dry.as_ref().map_or(1.75, |dry| dry.base),
        "dry_allowed_length": dry.as_ref().map_or(2, |dry| dry.allowed_length),
        "dry_penalty_last_n": dry.as_ref().map_or(64, |dry| dry.window),
        "stop": job.stops,
        "stream": delivery == Delivery::Stream,
        "logit_bias": biases.collect::<Vec<_>>(),
        "n_probs": n_probs.unwrap_or(0),
        "samplers": ["penalties", "dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
        "top_n_sigma": -1.0,
        "dynatemp_range": 0.0,
        "mirostat": 0,
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
    })
}
