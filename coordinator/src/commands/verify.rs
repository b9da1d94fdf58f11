//! `verify`: whether a split computes the very bits that one worker does.

use qmesh_net::{Digest, Sampling};
use serde::Serialize;

use super::{
    block_on,
    local_mesh::LocalMesh,
    opened::Opened,
    prompts::{self, Prompt},
    rows::{Rows, rows},
};
use crate::{
    cli::{Failure, SplitArgs, VerifyArgs},
    generate::{ClientId, GenerateRequest, PromptRows},
    model::Model,
    render::{count, note, output, progress::CountProgress},
};

/// What was found.
#[derive(Debug, Serialize)]
struct Verdict {
    model: String,
    prompts: usize,
    rows: usize,
    tokens: usize,
    /// Layers at which the model was cut.
    cut: Vec<usize>,
    difference: Option<Difference>,
}

/// The first row that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Difference {
    prompt: String,
    /// From the prompt's first id on, 0.
    row: usize,
    /// The first boundary that makes it differ, alone: the layer that the stage after it begins with.
    boundary: Option<usize>,
}

/// A named request.
type Named = (String, GenerateRequest);

pub(super) fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let split = SplitArgs { workers: Some(workers(&args.split)?), ..args.split.clone() };
    let opened =
        Opened::open(&args.model, args.tokenizer.choice(), split.room, 1)?.with_drafter(&split.pipeline.draft)?;
    let requests = requests(args, &opened)?;
    block_on(async {
        let one = SplitArgs { workers: Some(1), cut: None, ..split.clone() };
        let (whole, _) = compute(&opened, &one, &requests, "prompts on one worker").await?;
        let (parts, cut) = compute(&opened, &split, &requests, "prompts on several").await?;
        let mut difference = first_difference(&requests, &whole, &parts);
        if let Some(difference) = &mut difference {
            note(format_args!("{} differs: looking for the boundary that does it", difference.text()));
            let only: Vec<Named> = requests.iter().filter(|(id, _)| *id == difference.prompt).cloned().collect();
            let place = requests.iter().position(|(id, _)| *id == difference.prompt).unwrap_or(0);
            for &boundary in &cut {
                let two = SplitArgs { workers: Some(2), cut: Some(vec![boundary]), ..split.clone() };
                let (parts, _) = compute(&opened, &two, &only, "prompts on two").await?;
                if first_difference(&only, &whole[place..=place], &parts).is_some() {
                    difference.boundary = Some(boundary);
                    break;
                }
            }
        }
        let rows = whole.iter().map(|rows| rows.prompt.len()).sum();
        let tokens = whole.iter().map(|rows| rows.generated.len()).sum();
        let model = opened.model.name.clone();
        say(args, &Verdict { model, prompts: requests.len(), rows, tokens, cut, difference })
    })
}

/// Workers of the split: as asked for, or two.
fn workers(split: &SplitArgs) -> Result<usize, Failure> {
    let count = if split.workers.is_none() && split.cut.is_none() { 2 } else { split.worker_count() };
    if count < 2 {
        return Err(Failure::usage("verify compares one worker with several".to_owned())
            .with_advice("--workers 2 or more, or --cut"));
    }
    Ok(count)
}

/// Every prompt's rows over these workers, and the cut.
async fn compute(
    opened: &Opened,
    split: &SplitArgs,
    requests: &[Named],
    what: &'static str,
) -> Result<(Vec<Rows>, Vec<usize>), Failure> {
    let local = LocalMesh::start(opened, split).await?;
    let handle = local.handle();
    let cut = handle.status().stages.iter().skip(1).map(|stage| stage.first_layer).collect();
    let mut progress = CountProgress::new(what, requests.len());
    let mut found = Vec::with_capacity(requests.len());
    for (id, request) in requests {
        found.push(rows(&handle, request, id).await?);
        progress.one_more();
    }
    drop(progress);
    local.stop().await;
    Ok((found, cut))
}

fn requests(args: &VerifyArgs, opened: &Opened) -> Result<Vec<Named>, Failure> {
    let model = &opened.model;
    let prompts: Vec<(String, Vec<u32>)> = match &args.prompts {
        Some(path) => {
            let tokens = |prompt: &Prompt| Ok((prompt.id.clone(), prompt.tokens(model.tokenizer.as_deref())?));
            prompts::read(path)?.iter().map(tokens).collect::<Result<_, Failure>>()?
        }
        None => own_prompts(model, opened.room.context.saturating_sub(args.greedy)),
    };
    let sampling = Sampling { digest: Digest::On, ..Sampling::default() };
    let request = |(id, ids): (String, Vec<u32>)| {
        let (max_tokens, sampling) = (args.greedy, sampling.clone());
        let (ends, grammar, prompt_rows, client) = (model.ends(), None, PromptRows::All, ClientId(0));
        (id, GenerateRequest { ids, max_tokens, sampling, ends, grammar, prompt_rows, client, key: None })
    };
    Ok(prompts.into_iter().map(request).collect())
}

/// Prompts of ids that any model has, of one row, of a few, and of more than a step computes at once.
fn own_prompts(model: &Model, most: usize) -> Vec<(String, Vec<u32>)> {
    let vocab = u32::try_from(model.spec.vocab).unwrap_or(u32::MAX).max(1);
    let prompt = |length: usize| {
        let ids = (0..length as u32).map(|i| i.wrapping_mul(7919).wrapping_add(17) % vocab).collect();
        (format!("ids-{length}"), ids)
    };
    let mut lengths = [1, 7, 40, 300].map(|length: usize| length.min(most.max(1))).to_vec();
    lengths.dedup();
    lengths.into_iter().map(prompt).collect()
}

/// The first row of which the bits differ.
fn first_difference(requests: &[Named], whole: &[Rows], parts: &[Rows]) -> Option<Difference> {
    requests.iter().zip(whole.iter().zip(parts)).find_map(|((id, _), (whole, parts))| {
        let digests = |rows: &Rows| -> Vec<(u64, u32)> {
            rows.prompt.iter().chain(&rows.generated).map(|row| (row.digest, row.token)).collect()
        };
        let (whole, parts) = (digests(whole), digests(parts));
        let row = (0..whole.len().max(parts.len())).find(|&row| whole.get(row) != parts.get(row))?;
        Some(Difference { prompt: id.clone(), row, boundary: None })
    })
}

impl Difference {
    fn text(&self) -> String {
        format!("prompt `{}`, row {}", self.prompt, self.row)
    }
}

fn say(args: &VerifyArgs, verdict: &Verdict) -> Result<(), Failure> {
    let Verdict { model, prompts, rows, tokens, cut, difference } = verdict;
    if args.json {
        output::json(&serde_json::to_string_pretty(verdict).map_err(anyhow::Error::from)?)?;
    }
    let stages = count(cut.len() + 1, "worker");
    match difference {
        None if args.json => Ok(()),
        None => Ok(output::text(format_args!(
            "{model}: the same bits on 1 worker and on {stages} (cut before {}): {}, {}, {} generated",
            cut.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            count(*prompts, "prompt"),
            count(*rows, "row"),
            count(*tokens, "token"),
        ))?),
        Some(difference) => {
            let place = match difference.boundary {
                Some(layer) => format!("the boundary before layer {layer} is the first that does it"),
                None => "no boundary does it alone".to_owned(),
            };
            Err(Failure::failed(format!("{model} on {stages}: {} differs; {place}", difference.text())))
        }
    }
}

#[cfg(test)]
mod tests {
    use qmesh_net::Sampled;

    use super::*;

    fn rows(digests: &[u64]) -> Rows {
        let row = |&digest: &u64| Sampled { digest, ..Sampled::default() };
        Rows { prompt: digests.iter().map(row).collect(), ..Rows::default() }
    }

    #[test]
    fn the_first_row_that_differs_is_named() {
        let request = |id: &str| {
            let (sampling, ends) = (Sampling::default(), [].into());
            let (grammar, prompt_rows, client) = (None, PromptRows::All, ClientId(0));
            let (ids, max_tokens) = (vec![1], 0);
            (
                id.to_owned(),
                GenerateRequest { ids, max_tokens, sampling, ends, grammar, prompt_rows, client, key: None },
            )
        };
        let requests = [request("a"), request("b")];
        let whole = [rows(&[1, 2]), rows(&[3, 4, 5])];
        assert_eq!(first_difference(&requests, &whole, &whole), None);
        let other = [rows(&[1, 2]), rows(&[3, 9, 5])];
        let expected = Difference { prompt: "b".to_owned(), row: 1, boundary: None };
        assert_eq!(first_difference(&requests, &whole, &other), Some(expected));
        // A row too few is a difference as well.
        let short = [rows(&[1]), rows(&[3, 4, 5])];
        assert_eq!(first_difference(&requests, &whole, &short).map(|d| (d.prompt, d.row)), Some(("a".to_owned(), 1)));
    }
}
