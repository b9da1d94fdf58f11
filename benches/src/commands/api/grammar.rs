//! What a grammar costs: one stream, plain and by a JSON schema, in pairs.

use std::sync::Arc;

use anyhow::{Result, ensure};
use qmesh_coordinator::{
    grammar::{CompiledGrammar, Grammar},
    mesh::Speculation,
    model::Model,
    plan::Workload,
    text::TextModel,
};
use serde_json::{Value, json};

use super::ApiOptions;
use crate::{
    clients::RunningRequest,
    model::BenchModel,
    pipeline::{Layout, ReadyMesh},
    report::{Cell, ReportTable},
    statistics::Samples,
};

/// What streams took, those of a pair one after the other.
#[derive(Debug, Default)]
pub(super) struct GrammarCost {
    /// Medians of seconds between the tokens of a stream.
    plain: Samples,
    /// The same with a grammar.
    held: Samples,
    /// Of each pair, the second over the first.
    ratios: Samples,
    /// Of each pair, the same of the means.
    mean_ratios: Samples,
}

/// Seconds between the tokens of one stream.
#[derive(Clone, Copy, Debug)]
struct Gap {
    median: f64,
    mean: f64,
}

impl GrammarCost {
    /// On one stage that computes, a thread of this process.
    pub(super) fn measure(options: &ApiOptions, model: &BenchModel) -> Result<Self> {
        let layout = Layout {
            model,
            stages: 1,
            threads: 1,
            context: PROMPT + options.grammar_tokens,
            sessions: 1,
            // A drafted token would take no step of its own.
            speculation: Speculation::Off,
            drafter: None,
            workload: options.pipeline.cut.workload(Workload::Replies),
        };
        let text = TextModel::of(&Model::open(&model.path)?, layout.context)?;
        let grammar = text.compile(&Grammar::json_schema(&schema())?)?;
        let pipeline = ReadyMesh::tasks(&layout)?;
        let mut cost = Self::default();
        for pair in 0..options.pipeline.run.repeat + COLD {
            let prompt = model.prompt(pair as u64, PROMPT);
            let stream = |grammar| gap(&pipeline, &prompt, options.grammar_tokens, grammar);
            // Whoever comes first finds what the other one finds, over two pairs.
            let (plain, held) = if pair % 2 == 0 {
                let plain = stream(None)?;
                (plain, stream(Some(Arc::clone(&grammar)))?)
            } else {
                let held = stream(Some(Arc::clone(&grammar)))?;
                (stream(None)?, held)
            };
            if pair >= COLD {
                cost.plain.push(plain.median);
                cost.held.push(held.median);
                cost.ratios.push(held.median / plain.median);
                cost.mean_ratios.push(held.mean / plain.mean);
            }
        }
        pipeline.stop();
        Ok(cost)
    }

    /// An empty table for such costs.
    pub(super) fn table(options: &ApiOptions) -> ReportTable {
        let (pairs, tokens) = (options.pipeline.run.repeat, options.grammar_tokens);
        ReportTable::new(
            format!(
                "One stream of {tokens} tokens, plain and by a JSON schema, {pairs} pairs on one stage that computes"
            ),
            ["model", "plain ITL p50 ms", "by a schema p50 ms", "a grammar adds %", "to the mean %"],
        )
    }

    pub(super) fn row(&self, model: &BenchModel) -> Vec<Cell> {
        let [plain, held] = [&self.plain, &self.held].map(|seconds| Cell::number(seconds.median() * 1e3, 3));
        let [adds, to_mean] =
            [&self.ratios, &self.mean_ratios].map(|ratios| Cell::number((ratios.median() - 1.0) * 100.0, 2));
        vec![model.name.as_str().into(), plain, held, adds, to_mean]
    }

    pub(super) fn samples(&self) -> [Value; 2] {
        [self.plain.all().into(), self.held.all().into()]
    }
}

/// One stream, to its last token.
fn gap(pipeline: &ReadyMesh, prompt: &[u32], tokens: usize, grammar: Option<Arc<CompiledGrammar>>) -> Result<Gap> {
    let handle = pipeline.handle();
    let stream = pipeline.block_on(async {
        RunningRequest::submit_held(&handle, 0, prompt.to_vec(), tokens, Arc::from([]), grammar)?.finish().await
    })?;
    ensure!(stream.ids.len() == tokens, "a stream ended short of {tokens} tokens");
    let gaps: Samples = stream.gaps_s(|_| true).collect();
    let mean = gaps.all().iter().sum::<f64>() / gaps.all().len() as f64;
    Ok(Gap { median: gaps.median(), mean })
}

/// What an answer of a program's looks like, for longer than any stream goes on.
fn schema() -> Value {
    let line = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "count": {"type": "integer", "minimum": 0, "maximum": 999},
            "paid": {"type": "boolean"},
            "kind": {"enum": ["book", "record", "film"]},
        },
        "required": ["name", "count", "paid", "kind"],
        "additionalProperties": false,
    });
    json!({
        "type": "object",
        "properties": {"lines": {"type": "array", "minItems": LINES, "items": line}},
        "required": ["lines"],
        "additionalProperties": false,
    })
}

/// Tokens of a prompt.
const PROMPT: usize = 32;
/// Pairs that are not counted.
const COLD: usize = 1;
/// Each takes more tokens than one.
const LINES: usize = 1000;
