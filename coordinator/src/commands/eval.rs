//! `eval`: log-probabilities of prompts and their continuation, as JSON.

use std::{fs, sync::Arc};

use futures_util::{StreamExt, TryStreamExt, stream};
use qmesh_models::tokenizer::{ControlTokens, Detokenizer, LeadingSpace};
use qmesh_net::{Candidate, Digest, Sampled, Sampling};
use serde::Serialize;

use super::{
    block_on,
    local_mesh::LocalMesh,
    opened::Opened,
    prompts::{self, Prompt},
    rows::{Rows, rows},
};
use crate::{
    cli::{EvalArgs, Failure},
    generate::{ClientId, GenerateRequest, PromptRows},
    model::Model,
    render::{count, note, output, progress::CountProgress},
};

#[derive(Serialize)]
struct Results {
    prompts: Vec<PromptResult>,
}

/// What the model says about one prompt.
#[derive(Serialize)]
struct PromptResult {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    special: Option<bool>,
    tokens: Vec<u32>,
    /// Of token i + 1 given those before it.
    token_logprobs: Vec<f32>,
    mean_nll: f64,
    last_top20: Vec<TopToken>,
    greedy: Vec<u32>,
    /// Top-1 minus top-2 logit at each step.
    greedy_margin: Vec<f32>,
    greedy_text: String,
    ended: bool,
    /// Of the logits of every row, the prompt's first, as hexadecimal.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    digests: Vec<String>,
}

#[derive(Serialize)]
struct TopToken {
    id: u32,
    logit: f32,
    logprob: f32,
}

pub(super) fn eval(args: &EvalArgs) -> Result<(), Failure> {
    let prompts = prompts::read(&args.prompts)?;
    let opened = Opened::open(&args.model, args.tokenizer.choice(), args.split.room, args.parallel)?;
    let opened = opened.with_drafter(&args.split.pipeline.draft)?;
    let model = &opened.model;
    let requests = requests(args, model, &prompts)?;
    block_on(async {
        let local = LocalMesh::start(&opened, &args.split).await?;
        let handle = local.handle();
        let mut progress = CountProgress::new("scoring prompts", requests.len());
        let rows: Vec<Rows> = stream::iter(requests.iter().zip(&prompts))
            .map(|(request, prompt)| rows(&handle, request, &prompt.id))
            .buffered(args.parallel)
            .inspect_ok(|_| progress.one_more())
            .try_collect()
            .await?;
        drop(progress);
        local.stop().await;
        let results = prompts.into_iter().zip(requests).zip(rows);
        let results = results.map(|((prompt, request), rows)| result(model, prompt, request.ids, rows, args));
        let results = Results { prompts: results.collect() };
        note(results.summary());
        write(args, &results)
    })
}

fn requests(args: &EvalArgs, model: &Model, prompts: &[Prompt]) -> Result<Vec<GenerateRequest>, Failure> {
    let digest = if args.digests { Digest::On } else { Digest::Off };
    let sampling = Sampling { top: TOP, digest, ..args.sampling.sampling(0.0, 0) };
    let request = |prompt: &Prompt| {
        Ok(GenerateRequest {
            ids: prompt.tokens(model.tokenizer.as_deref())?,
            max_tokens: args.greedy,
            sampling: sampling.clone(),
            ends: model.ends(),
            grammar: None,
            prompt_rows: PromptRows::All,
            client: ClientId(0),
            key: None,
        })
    };
    prompts.iter().map(request).collect()
}

impl Results {
    /// One line: how surprised the model was.
    fn summary(&self) -> String {
        let scored = || self.prompts.iter().flat_map(|prompt| &prompt.token_logprobs);
        let sum: f64 = scored().copied().map(f64::from).sum();
        let mean_nll = if scored().next().is_none() { 0.0 } else { -sum / scored().count() as f64 };
        format!(
            "{}, {} scored, mean NLL {mean_nll:.4}",
            count(self.prompts.len(), "prompt"),
            count(scored().count(), "token")
        )
    }
}

fn result(model: &Model, prompt: Prompt, tokens: Vec<u32>, rows: Rows, args: &EvalArgs) -> PromptResult {
    let token_logprobs: Vec<f32> =
        rows.prompt.iter().take(tokens.len().saturating_sub(1)).map(|row| row.target_logprob).collect();
    let sum: f64 = token_logprobs.iter().copied().map(f64::from).sum();
    let top = |c: &Candidate| TopToken { id: c.id, logit: c.logit, logprob: c.logprob };
    // The first generated token was sampled from the prompt's last row, which has its digest already.
    let all = rows.prompt.iter().chain(rows.generated.iter().skip(1));
    let greedy: Vec<u32> = rows.generated.iter().map(|row| row.token).collect();
    PromptResult {
        id: prompt.id,
        text: prompt.text,
        special: prompt.special,
        mean_nll: if token_logprobs.is_empty() { 0.0 } else { -sum / token_logprobs.len() as f64 },
        token_logprobs,
        last_top20: rows.prompt.last().map(|row| row.top.iter().map(top).collect()).unwrap_or_default(),
        greedy_margin: rows.generated.iter().map(margin).collect(),
        greedy_text: text(model, &greedy, rows.ended),
        greedy,
        ended: rows.ended,
        digests: if args.digests { all.map(|row| format!("{:016x}", row.digest)).collect() } else { Vec::new() },
        tokens,
    }
}

fn margin(row: &Sampled) -> f32 {
    match &row.top[..] {
        [first, second, ..] => first.logit - second.logit,
        [] | [_] => 0.0,
    }
}

/// The continuation's text, without the token that ended it.
fn text(model: &Model, ids: &[u32], ended: bool) -> String {
    let Some(tokenizer) = &model.tokenizer else { return String::new() };
    let shown = ids.len() - usize::from(ended);
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), LeadingSpace::Keep, ControlTokens::Hide);
    let mut text: String = ids[..shown].iter().map(|&id| detokenizer.push(id)).collect();
    text.push_str(&detokenizer.finish());
    text
}

fn write(args: &EvalArgs, results: &Results) -> Result<(), Failure> {
    let json = serde_json::to_string(results).map_err(anyhow::Error::from)?;
    match &args.output {
        Some(path) => {
            fs::write(path, json + "\n").map_err(|e| Failure::failed(format!("cannot write {}: {e}", path.display())))
        }
        None => Ok(output::json(&json)?),
    }
}

/// As many as the golden files have.
const TOP: u16 = 20;
