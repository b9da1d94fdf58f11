//! The parameters that both kinds of completion share: their ranges, and what they mean to the mesh.
//!
//! A client that is silent gets OpenAI's defaults; beyond OpenAI there are llama.cpp's `top_k`, `min_p`, `typical_p`,
//! `xtc_probability`, `xtc_threshold`, `repeat_penalty` and `repeat_last_n`, which are off (64 for the last) until asked for, and
//! DRY (`dry.rs`). `repetition_penalty`, `stop_token_ids`, `max_new_tokens` and `stop_sequences` are the words of vLLM and Hugging
//! Face's servers.

use std::sync::Arc;

use qmesh_net::{Dry, Sampling};
use serde::Deserialize;

use super::{
    bias::{AskedBiases, NEVER},
    choices::ShownProgress,
    dry::DryParams,
    error::ApiError,
    grammar::AskedGrammar,
    json::{Document, Object, OneOrMany},
    ranges::{integer, real},
};
use crate::text::TextModel;

/// Most alternatives that a client may ask for beside each token.
pub(crate) const TOP_LOGPROBS: i64 = 20;

/// Most stop strings.
const STOPS: usize = 16;
/// Most bytes of one stop string.
const STOP_BYTES: usize = 1024;
/// Most token ids that end an answer.
const STOP_IDS: usize = 128;
/// Most choices per prompt.
const CHOICES: i64 = 8;

/// The shared parameters as they were sent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Params {
    pub(crate) model: Option<String>,
    /// Whose turn the request uses up, beside the address it comes from.
    pub(crate) user: Option<String>,
    stream: Option<bool>,
    stream_options: Option<Object<StreamOptions>>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    n_predict: Option<i64>,
    max_new_tokens: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    typical_p: Option<f64>,
    xtc_probability: Option<f64>,
    xtc_threshold: Option<f64>,
    repeat_penalty: Option<f64>,
    /// The same over all of the text.
    repetition_penalty: Option<f64>,
    repeat_last_n: Option<i64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    seed: Option<i64>,
    stop: Option<OneOrMany<String>>,
    stop_sequences: Option<OneOrMany<String>>,
    stop_token_ids: Option<Vec<u32>>,
    logit_bias: Option<AskedBiases>,
    /// Whether the text goes on where it would end.
    ignore_eos: Option<bool>,
    n: Option<i64>,
    /// Whether every part of a stream says how fast it goes, as llama-server has it.
    timings_per_token: Option<bool>,
    /// Whether a stream says how far its prompt is, as llama-server has it.
    return_progress: Option<bool>,
    /// What is added to logits, which follows from `logit_bias` and `ignore_eos`.
    #[serde(skip)]
    biases: Vec<(u32, f32)>,
    /// What keeps the text from repeating itself, which is read by itself.
    #[serde(skip)]
    pub(crate) dry: Option<Dry>,
    /// What the text must look like, which is read by itself.
    #[serde(skip)]
    pub(crate) grammar: Option<AskedGrammar>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
    /// vLLM's.
    continuous_usage_stats: Option<bool>,
}

/// How the answer comes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Delivery {
    /// One JSON object.
    Whole,
    /// Server-sent events.
    Stream,
    /// Server-sent events, the usage last.
    StreamWithUsage,
}

/// Which parts of a stream say what it took.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ShownTimings {
    /// The last one.
    Last,
    /// Each, with what it took so far.
    Each,
}

impl Params {
    /// Reads of a body what is read by itself. Blocks, as parsing grammars and looking at all of a vocabulary does.
    ///
    /// # Errors
    /// `Invalid` with the path of the value that is wrong.
    pub(crate) fn read_rest(&mut self, body: &Document, text: &TextModel) -> Result<(), ApiError> {
        self.biases = self.read_biases(text)?;
        self.dry = body.read::<DryParams>()?.read(text)?;
        self.grammar = AskedGrammar::read(body)?;
        Ok(())
    }

    /// How the answer shall come.
    pub(crate) fn delivery(&self) -> Result<Delivery, ApiError> {
        let options = self.stream_options.as_ref().map(|Object(options)| options);
        if options.is_some_and(|options| options.continuous_usage_stats == Some(true)) {
            let hint = "'include_usage' sends it once, at the end";
            return Err(ApiError::Unsupported { param: "stream_options.continuous_usage_stats", hint });
        }
        match (self.stream.unwrap_or(false), options) {
            (false, None) => Ok(Delivery::Whole),
            (false, Some(_)) => Err(ApiError::invalid("stream_options", "'stream_options' needs 'stream': true")),
            (true, Some(StreamOptions { include_usage: Some(true), .. })) => Ok(Delivery::StreamWithUsage),
            (true, _) => Ok(Delivery::Stream),
        }
    }

    /// Which parts of a stream say what it took.
    pub(crate) fn timings(&self) -> ShownTimings {
        if self.timings_per_token == Some(true) { ShownTimings::Each } else { ShownTimings::Last }
    }

    /// Whether a stream says how far its prompt is.
    pub(crate) fn progress(&self) -> ShownProgress {
        if self.return_progress == Some(true) { ShownProgress::Yes } else { ShownProgress::No }
    }

    /// Choices per prompt.
    pub(crate) fn choices(&self) -> Result<u64, ApiError> {
        Ok(integer("n", self.n, 1..=CHOICES)?.unwrap_or(1).unsigned_abs())
    }

    /// The most tokens to generate, at least `least` or -1 for no limit, if the client says; the newer of OpenAI's two
    /// names wins, and those of other servers come last.
    pub(crate) fn max_tokens(&self, least: i64) -> Result<Option<usize>, ApiError> {
        let read = |name, sent| match sent {
            // llama-server's word for as many as there is room for.
            Some(-1) => Ok(Some(i64::MAX)),
            sent => integer(name, sent, least..=i64::MAX),
        };
        let older = read("max_tokens", self.max_tokens)?;
        let newer = read("max_completion_tokens", self.max_completion_tokens)?;
        let other = read("n_predict", self.n_predict)?;
        let another = read("max_new_tokens", self.max_new_tokens)?;
        Ok(newer.or(older).or(other).or(another).map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)))
    }

    /// The stop strings.
    pub(crate) fn stops(&self) -> Result<Vec<String>, ApiError> {
        let mut stops = stop_strings("stop", self.stop.as_ref())?;
        stops.extend(stop_strings("stop_sequences", self.stop_sequences.as_ref())?);
        Ok(stops)
    }

    /// The token ids that end an answer: the model's own, and those that the client names beside them.
    ///
    /// # Errors
    /// `Invalid` for an id that is none, and for too many of them.
    pub(crate) fn ends(&self, text: &TextModel) -> Result<Arc<[u32]>, ApiError> {
        const NAME: &str = "stop_token_ids";
        let more = self.stop_token_ids.as_deref().unwrap_or_default();
        if more.is_empty() {
            return Ok(Arc::clone(&text.ends));
        }
        if more.len() > STOP_IDS {
            return Err(ApiError::invalid(NAME, format!("'{NAME}' takes at most {STOP_IDS} ids, not {}", more.len())));
        }
        let vocabulary = text.tokenizer.vocab_len();
        if let Some(at) = more.iter().position(|&id| id as usize >= vocabulary) {
            return Err(ApiError::invalid(format!("{NAME}[{at}]"), format!("every token must be below {vocabulary}")));
        }
        Ok(text.ends.iter().chain(more).copied().collect())
    }

    /// How tokens are drawn, with `top` candidates reported. Without a seed it is random.
    pub(crate) fn sampling(&self, text: &TextModel, top: u16) -> Result<Sampling, ApiError> {
        let off = Sampling::default();
        let context = u32::try_from(text.context).unwrap_or(u32::MAX);
        let top_k = integer("top_k", self.top_k, -1..=i64::from(u32::MAX))?;
        let (repeat_penalty, penalty_window) = self.repeating(context)?;
        Ok(Sampling {
            temperature: real("temperature", self.temperature, 0.0..=2.0, 1.0)?,
            top_k: top_k.and_then(|k| u32::try_from(k).ok()).unwrap_or(off.top_k),
            top_p: real("top_p", self.top_p, 0.0..=1.0, off.top_p)?.max(f32::MIN_POSITIVE),
            min_p: real("min_p", self.min_p, 0.0..=1.0, off.min_p)?,
            typical_p: real("typical_p", self.typical_p, 0.0..=1.0, off.typical_p)?.max(f32::MIN_POSITIVE),
            xtc_probability: real("xtc_probability", self.xtc_probability, 0.0..=1.0, off.xtc_probability)?,
            xtc_threshold: real("xtc_threshold", self.xtc_threshold, 0.0..=1.0, off.xtc_threshold)?,
            dry: self.dry.clone().map(Box::new),
            repeat_penalty,
            frequency_penalty: real("frequency_penalty", self.frequency_penalty, -2.0..=2.0, off.frequency_penalty)?,
            presence_penalty: real("presence_penalty", self.presence_penalty, -2.0..=2.0, off.presence_penalty)?,
            penalty_window,
            // Clients that cannot leave the seed out send -1 for none.
            seed: self.seed.filter(|&seed| seed != -1).map_or_else(random, i64::cast_unsigned),
            logit_bias: self.biases.clone(),
            top,
            ..off
        })
    }

    /// The penalty on what was said, and how many tokens back it looks. By the name that says so, it looks at all of them.
    fn repeating(&self, context: u32) -> Result<(f32, u32), ApiError> {
        const WHOLE: &str = "repetition_penalty";
        let off = Sampling::default();
        let read = |name, sent| real(name, sent, 0.01..=10.0, off.repeat_penalty);
        let (recent, whole) = (read("repeat_penalty", self.repeat_penalty)?, read(WHOLE, self.repetition_penalty)?);
        let is_off = |penalty: f32| penalty == off.repeat_penalty;
        if !is_off(recent) && !is_off(whole) && recent != whole {
            let text = format!("'{WHOLE}' is 'repeat_penalty' over all of the text: send one of them");
            return Err(ApiError::invalid(WHOLE, text));
        }
        let window = integer("repeat_last_n", self.repeat_last_n, -1..=i64::from(u32::MAX))?;
        let default = if is_off(whole) { off.penalty_window } else { context };
        let window = window.map_or(default, |last| u32::try_from(last).unwrap_or(context));
        Ok((if is_off(whole) { recent } else { whole }, window.min(context)))
    }

    /// What is added to logits. An end that is ignored comes all the same where a grammar lets nothing else follow.
    fn read_biases(&self, text: &TextModel) -> Result<Vec<(u32, f32)>, ApiError> {
        let mut biases = self.logit_bias.as_ref().map_or_else(|| Ok(Vec::new()), |asked| asked.read(text))?;
        if self.ignore_eos == Some(true) {
            biases.extend(text.ends.iter().map(|&id| (id, NEVER)));
        }
        Ok(biases)
    }
}

/// A number that nobody can guess.
pub(crate) fn random() -> u64 {
    getrandom::u64().expect("the system's random source, without which no TLS works either")
}

/// Strings that end an answer, as the parameter of this name has them.
fn stop_strings(name: &str, sent: Option<&OneOrMany<String>>) -> Result<Vec<String>, ApiError> {
    let stops = match sent {
        None => Vec::new(),
        Some(OneOrMany::One(stop)) => vec![stop.clone()],
        Some(OneOrMany::Many(stops)) => stops.clone(),
    };
    if stops.len() > STOPS {
        return Err(ApiError::invalid(name, format!("'{name}' takes at most {STOPS} strings, not {}", stops.len())));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > STOP_BYTES) {
        return Err(ApiError::invalid(name, format!("every '{name}' must have 1 to {STOP_BYTES} bytes")));
    }
    Ok(stops)
}
