//! What else could be done: not split at all, or have one more worker.

use serde::Serialize;

use super::{
    Plan, PlanInput,
    prediction::{Prediction, predict},
    solve,
};

/// What other sets of workers would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Alternatives {
    /// The fastest worker that holds the whole model alone, if there is one.
    pub alone: Option<Alternative>,
    /// One more worker, like the fastest of the plan's.
    pub one_more: Option<Alternative>,
}

/// What another set of workers would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alternative {
    /// The worker that makes the difference.
    pub worker: String,
    /// Of one stream alone.
    pub tokens_per_s: f64,
    /// Of all streams together.
    pub streams_tokens_per_s: f64,
}

/// What else could be done than `plan`, with so many streams.
pub fn alternatives(input: &PlanInput<'_>, plan: &Plan, streams: usize) -> Alternatives {
    let alone = (0..input.workers.len()).filter_map(|worker| {
        let alone = PlanInput {
            workers: vec![input.workers[worker].clone()],
            links: input.links.of(&[worker]),
            cut: None,
            pins: Default::default(),
            stages_least: 0,
            ..input.clone()
        };
        Some(alternative(&input.workers[worker].name, &outcome(&alone, streams)?))
    });
    let alone = alone.max_by(|a, b| a.tokens_per_s.total_cmp(&b.tokens_per_s));
    Alternatives { alone, one_more: one_more(input, plan, streams) }
}

impl Alternatives {
    /// Whether one worker alone does better than the plan that splits the model, in one line.
    pub fn verdict(&self, plan: &Plan, prediction: &Prediction) -> Option<String> {
        let Alternative { worker, tokens_per_s, streams_tokens_per_s } =
            self.alone.as_ref().filter(|_| plan.stages.len() > 1)?;
        let (one, all) = (prediction.tokens_per_s, prediction.streams_tokens_per_s);
        let streams = prediction.streams;
        let figures = format!(
            "one stream gets {tokens_per_s:.1} tok/s instead of {one:.1}, {streams} together {streams_tokens_per_s:.1} \
             instead of {all:.1}"
        );
        if *tokens_per_s > one && *streams_tokens_per_s >= all {
            return Some(format!("do not split: {worker} alone is faster; {figures}"));
        }
        (*tokens_per_s > one)
            .then(|| format!("{worker} alone is faster for one stream, and slower for {streams}: {figures}"))
    }
}

fn one_more(input: &PlanInput<'_>, plan: &Plan, streams: usize) -> Option<Alternative> {
    let speed = |worker: usize| input.workers[worker].speed.as_ref().map_or(f64::INFINITY, |speed| speed.layers(1.0));
    let used = plan.stages.iter().map(|stage| stage.worker);
    let fastest = used.min_by(|&a, &b| speed(a).total_cmp(&speed(b)))?;
    let mut more = PlanInput { cut: None, stages_least: 0, ..input.clone() };
    more.workers.push(input.workers[fastest].clone());
    if let Some(link) = input.links.own(fastest) {
        more.links.set_own(input.workers.len(), link);
    }
    Some(alternative(&input.workers[fastest].name, &outcome(&more, streams)?))
}

fn outcome(input: &PlanInput<'_>, streams: usize) -> Option<Prediction> {
    predict(input, &solve(input).ok()?, streams)
}

fn alternative(worker: &str, prediction: &Prediction) -> Alternative {
    let Prediction { tokens_per_s, streams_tokens_per_s, .. } = *prediction;
    Alternative { worker: worker.to_owned(), tokens_per_s, streams_tokens_per_s }
}
