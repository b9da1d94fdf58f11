//! `POST /infill`: the middle of a text, as editors ask llama-server for it.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Api,
    caller::Caller,
    chat::Drawing,
    error::ApiError,
    json::Object,
    params::Delivery,
    ranges::integer,
    relay::{Block, Framing, Line, Writer, relay},
    unsupported::Kind,
};
use crate::text::{Gap, GapFile, Part, TextEnd, TextEndReason};

/// Most other files.
const FILES: usize = 1024;

#[derive(Debug, Deserialize)]
struct InfillRequest {
    input_prefix: Option<String>,
    input_suffix: Option<String>,
    input_extra: Option<Vec<Object<Extra>>>,
    /// What the middle begins with.
    prompt: Option<String>,
    n_predict: Option<i64>,
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
        "n_predict",
        "response_fields",
        "samplers",
        "t_max_predict_ms",
    ];
}

/// Fills in the middle of a text.
pub(crate) async fn infill(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&request);
    let (params, asked, share) = api.read::<InfillRequest>(request).await?;
    let delivery = match params.delivery()? {
        Delivery::Whole => Delivery::Whole,
        Delivery::Stream | Delivery::StreamWithUsage => Delivery::Stream,
    };
    let max_tokens = match asked.n_predict {
        // Until it ends.
        None | Some(-1) => params.max_tokens(1)?,
        some => integer("n_predict", some, 1..=i64::MAX)?.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
    };
    let writer = InfillWriter { model: api.state.text.name.clone(), fields: asked.response_fields.clone() };
    let gap = asked.gap()?;
    let drawing = Drawing::single(&api, params, max_tokens, caller)?;
    let choices = drawing.go_on(&api, "input_prefix", share, move |text| text.infill_prompt(&gap)).await?;
    relay(choices, writer, delivery).await
}

impl InfillRequest {
    fn gap(self) -> Result<Gap, ApiError> {
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
        Ok(Gap {
            before: self.input_prefix.ok_or_else(|| missing("input_prefix"))?,
            begun: self.prompt.unwrap_or_default(),
            after: self.input_suffix.ok_or_else(|| missing("input_suffix"))?,
            files: extra.into_iter().enumerate().map(file).collect::<Result<_, _>>()?,
        })
    }
}

/// Writes an answer as llama-server does.
struct InfillWriter {
    model: String,
    /// What the client wants of the last object; all of it where it does not say.
    fields: Option<Vec<String>>,
}

impl InfillWriter {
    fn ended(&self, text: &str, end: &TextEnd) -> Value {
        let stop_type = match end.reason {
            TextEndReason::EndToken | TextEndReason::Calls => "eos",
            TextEndReason::StopString => "word",
            TextEndReason::Length => "limit",
        };
        let (prompt_ms, predicted_ms) = (end.prefill.as_secs_f64() * 1e3, end.decode.as_secs_f64() * 1e3);
        let object = json!({
            "index": 0,
            "content": text,
            "stop": true,
            "stop_type": stop_type,
            "stopping_word": end.stop.clone().unwrap_or_default(),
            "model": self.model,
            "tokens_predicted": end.generated_tokens,
            "tokens_evaluated": end.prompt_tokens,
            "tokens_cached": end.cached_tokens,
            "truncated": false,
            "timings": {
                "prompt_n": end.prompt_tokens,
                "prompt_ms": prompt_ms,
                "prompt_per_second": per_second(end.prompt_tokens, prompt_ms),
                "predicted_n": end.generated_tokens,
                "predicted_ms": predicted_ms,
                "predicted_per_second": per_second(end.generated_tokens, predicted_ms),
            },
        });
        let Some(fields) = self.fields.as_ref().filter(|fields| !fields.is_empty()) else { return object };
        // A name may be a path: `timings/prompt_n`.
        let wanted = |field: &String| Some((field.clone(), object.pointer(&format!("/{field}"))?.clone()));
        fields.iter().filter_map(wanted).collect::<Map<_, _>>().into()
    }
}

impl Writer for InfillWriter {
    const FRAMING: Framing = Framing::Events;

    fn open(&mut self, _: usize) -> Vec<Line> {
        Vec::new()
    }

    fn part(&mut self, part: &Part) -> Vec<Line> {
        match part {
            Part::Content(text) => vec![Line::plain(json!({"index": 0, "content": text, "stop": false}))],
            // Nothing tells these from the text.
            Part::Thought(_) | Part::Call(_) => Vec::new(),
        }
    }

    fn close(&mut self, end: &TextEnd) -> Vec<Line> {
        vec![Line::plain(self.ended("", end))]
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Line> {
        vec![Line::plain(error.body())]
    }

    fn whole(self, blocks: Vec<Block>, end: &TextEnd) -> Value {
        let texts = blocks.iter().map(|block| match block {
            Block::Text(text) => text.as_str(),
            Block::Thought(_) | Block::Call(_) => "",
        });
        self.ended(&texts.collect::<String>(), end)
    }
}

fn per_second(tokens: usize, ms: f64) -> f64 {
    if ms > 0.0 { tokens as f64 * 1e3 / ms } else { 0.0 }
}
