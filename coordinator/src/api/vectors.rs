//! Texts on their way to vectors, whatever dialect asks for them.

use std::{sync::Arc, time::Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use qmesh_models::footprint::SUMMED_SEQUENCES;
use qmesh_net::Sampling;

use super::{
    Api, blocking,
    body::Share,
    caller::Client,
    error::{ApiError, PromptTokens},
    metrics::ChoiceTimes,
    prompts::Prompt,
    ranges::integer,
    server::Phase,
};
use crate::generate::{GenerateError, GenerateEvent, GenerateRequest, PromptRows};

/// What shall become vectors.
#[derive(Debug)]
pub(crate) struct VectorJob {
    /// The parameter that the texts came in.
    pub(crate) param: &'static str,
    pub(crate) prompts: Vec<Prompt>,
    /// How many of its first values each vector keeps; all of them where that is not said.
    pub(crate) dimensions: Option<i64>,
    pub(crate) client: Client,
}

/// The vectors of texts, in their order.
#[derive(Debug)]
pub(crate) struct Vectors {
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) prompt_tokens: usize,
    pub(crate) started: Instant,
}

impl VectorJob {
    /// Computes them, several at a time.
    ///
    /// # Errors
    /// A text that is no prompt or does not fit, before anything is computed; whatever keeps the mesh from computing one.
    pub(crate) async fn run(self, api: &Api, share: Share) -> Result<Vectors, ApiError> {
        let Self { param, prompts, dimensions, client } = self;
        let (text, started) = (Arc::clone(&api.state.text), Instant::now());
        let width = i64::try_from(text.hidden).unwrap_or(i64::MAX);
        let dimensions = integer("dimensions", dimensions, 1..=width)?.and_then(|kept| usize::try_from(kept).ok());
        api.check_ready()?;
        let context = text.context;
        let encode = move || {
            let _held = share;
            prompts.iter().map(|prompt| prompt.ids(param, &text)).collect::<Result<Vec<_>, _>>()
        };
        let prompts = blocking(encode).await??;
        if let Some(long) = prompts.iter().find(|ids| ids.len() > context) {
            let prompt_tokens = PromptTokens::Exactly(long.len());
            return Err(ApiError::ContextExceeded { param, prompt_tokens, context });
        }
        let prompt_tokens = prompts.iter().map(Vec::len).sum();
        let vectors = stream::iter(prompts).map(|ids| vector(api, ids, &client)).buffered(SUMMED_SEQUENCES);
        let mut vectors: Vec<Vec<f32>> = vectors.try_collect().await?;
        if let Some(kept) = dimensions {
            vectors.iter_mut().for_each(|vector| shorten(vector, kept));
        }
        Ok(Vectors { vectors, prompt_tokens, started })
    }
}

/// One text's vector; whoever goes away cancels it.
async fn vector(api: &Api, ids: Vec<u32>, client: &Client) -> Result<Vec<f32>, ApiError> {
    let (times, tokens, mut phase) = (ChoiceTimes::start(), ids.len(), api.phase.clone());
    let mut generation = api.state.mesh.submit(GenerateRequest {
        ids,
        max_tokens: 0,
        sampling: Sampling::default(),
        ends: Arc::new([]),
        grammar: None,
        prompt_rows: PromptRows::Pooled(api.state.text.pooling),
        client: client.id,
        key: client.key.clone(),
    })?;
    let mut vector = None;
    loop {
        let event = tokio::select! {
            event = generation.next() => event,
            () = Phase::Closing.reached(&mut phase) => return Err(GenerateError::ShuttingDown.into()),
        };
        match event {
            Some(GenerateEvent::Pooled(pooled)) => vector = Some(pooled),
            Some(
                GenerateEvent::Prompt(_)
                | GenerateEvent::Progress { .. }
                | GenerateEvent::Prefilled { .. }
                | GenerateEvent::Token(_),
            ) => {}
            Some(GenerateEvent::Finished(_)) => break,
            Some(GenerateEvent::Failed(error)) => {
                api.metrics.failed();
                return Err(error.into());
            }
            None => break,
        }
    }
    let cut_off = || GenerateError::Fault { text: "the text did not become a vector: the mesh went down".to_owned() };
    let vector = vector.ok_or_else(cut_off)?;
    api.metrics.pooled(times, tokens);
    Ok(vector)
}

/// Leaves a vector its first values, and its length of 1.
fn shorten(vector: &mut Vec<f32>, kept: usize) {
    vector.truncate(kept);
    let length = vector.iter().fold(0.0, |squares, &value| squares + f64::from(value) * f64::from(value)).sqrt();
    if length > 0.0 {
        #[expect(clippy::cast_possible_truncation, reason = "at most 1, only precision is lost")]
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}
