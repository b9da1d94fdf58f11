//! `qmesh-bench predict`: what plans promise, beside what comes of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use qmesh_coordinator::{
    mesh::Speculation,
    plan::{Workload, prediction::Prediction},
};
use qmesh_net::memory::Faults;

use super::streams::WARM_TOKENS;
use crate::{
    clients::{Load, steady_s},
    model::BenchModel,
    options::{PipelineOptions, positive},
    pipeline::{Layout, LoadRun, ReadyMesh},
    report::{Cell, Report, ReportTable},
    statistics::Samples,
};

/// Workers of every pipeline here.
pub(super) const STAGES: [usize; 1] = [2];

/// Options of `predict`.
#[derive(Args, Debug)]
pub struct PredictOptions {
    #[command(flatten)]
    pub(super) pipeline: PipelineOptions,
    /// For how much of the time each worker computes, as 1:0.3; several are measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1:1,1:0.3", value_parser = shares)]
    shares: Vec<[f64; 2]>,
    /// Round-trip times of every link, in milliseconds.
    #[arg(long, value_name = "MS", value_delimiter = ',', default_value = "0,1,50")]
    rtt: Vec<u32>,
    /// Tokens of the prompt that the time to the first token is measured with.
    #[arg(long, default_value_t = 512, value_parser = positive)]
    prompt: usize,
    /// Tokens that each client wants.
    #[arg(long, default_value_t = 64, value_parser = positive)]
    tokens: usize,
}

/// One pipeline, as the planner wants it or cut in the middle.
#[derive(Clone)]
struct Trial<'a> {
    model: &'a BenchModel,
    threads: usize,
    shares: [f64; 2],
    rtt_ms: u32,
    cut: Option<Vec<usize>>,
}

/// What a trial came to.
struct Outcome {
    layers: String,
    expected: Prediction,
    one: Samples,
    all: Samples,
    first_ms: Samples,
}

pub(super) fn run(options: &PredictOptions) -> Result<Report> {
    let columns =
        ["model", "threads", "shares", "RTT ms", "layers", "what", "expected", "measured", "measured/expected"];
    let mut table = ReportTable::new(title(options), columns);
    for model in &options.pipeline.models.open()? {
        for threads in options.pipeline.run.threads_each() {
            for &shares in &options.shares {
                for &rtt_ms in &options.rtt {
                    eprintln!("{} -t {threads} a worker, shares {shares:?}, RTT {rtt_ms} ms", model.name);
                    let trial = Trial { model, threads, shares, rtt_ms, cut: None };
                    let planned = trial.measure(options)?;
                    trial.rows(options.prompt, &planned, &mut table);
                    if shares[0] != shares[1] {
                        let middle = Some(vec![model.spec().layers.len() / 2]);
                        let equal = Trial { cut: middle, ..trial.clone() }.measure(options)?;
                        table.rows.extend(trial.compared(&planned, &equal));
                    }
                }
            }
        }
    }
    Ok(Report { tables: vec![table], notes: NOTES.map(String::from).to_vec(), ..Report::default() })
}

const NOTES: [&str; 2] = [
    "coordinator and workers are tasks of one process on a network in memory; a worker with a share rests after every step, \
     also while it finds out how fast it is",
    "planned / equal: the rate of the planner's cut over that of a cut in the middle, both as expected and as measured",
];

impl Trial<'_> {
    fn measure(&self, options: &PredictOptions) -> Result<Outcome> {
        let (context, sessions) = (options.prompt + options.tokens, CLIENTS - 1);
        let (speculation, workload) = (Speculation::Off, options.pipeline.cut.workload(Workload::Replies));
        let Self { model, threads, .. } = *self;
        let layout =
            Layout { model, stages: STAGES[0], threads, context, sessions, speculation, drafter: None, workload };
        let faults = Faults { delay: Duration::from_millis(u64::from(self.rtt_ms)) / 2, ..Faults::default() };
        let pipeline = ReadyMesh::measured(&layout, &self.shares, self.cut.clone(), faults)?;
        let status = pipeline.handle().status();
        let expected = status.prediction.clone().context("the workers did not say how fast they are")?;
        ensure!(expected.streams == CLIENTS, "expected for {} streams", expected.streams);
        let layers: Vec<String> = status.stages.iter().map(|s| (s.end_layer - s.first_layer).to_string()).collect();
        let [mut one, mut all, mut first_ms] = [(); 3].map(|()| Samples::default());
        let short = |clients| Load { clients, prompt: SHORT_PROMPT, tokens: options.tokens };
        pipeline.load(model, Load { tokens: options.tokens.min(WARM_TOKENS), ..short(CLIENTS) })?;
        for _ in 0..options.pipeline.run.repeat {
            one.push(rate(&pipeline.load(model, short(1))?)?);
            all.push(rate(&pipeline.load(model, short(CLIENTS))?)?);
            let prompt = pipeline.load(model, Load { clients: 1, prompt: options.prompt, tokens: 1 })?;
            first_ms.push(prompt.streams[0].first_s() * 1e3);
        }
        pipeline.stop();
        Ok(Outcome { layers: layers.join(" + "), expected, one, all, first_ms })
    }

    fn rows(&self, prompt: usize, outcome: &Outcome, table: &mut ReportTable) {
        let Outcome { layers, expected, one, all, first_ms } = outcome;
        let figures = [
            ("1 stream, tok/s", expected.tokens_per_s, one),
            ("8 streams, tok/s", expected.streams_tokens_per_s, all),
            ("first token, ms", expected.ttft_ms(prompt), first_ms),
        ];
        for (what, expected, measured) in figures {
            table.rows.push(self.row(layers, what, expected, measured.median()));
        }
    }

    /// The planner's cut beside one in the middle.
    fn compared(&self, planned: &Outcome, equal: &Outcome) -> [Vec<Cell>; 2] {
        let layers = format!("{} / {}", planned.layers, equal.layers);
        let expected = |of: fn(&Prediction) -> f64| of(&planned.expected) / of(&equal.expected);
        [
            ("planned / equal, 1 stream", expected(|e| e.tokens_per_s), planned.one.median() / equal.one.median()),
            (
                "planned / equal, 8 streams",
                expected(|e| e.streams_tokens_per_s),
                planned.all.median() / equal.all.median(),
            ),
        ]
        .map(|(what, expected, measured)| self.row(&layers, what, expected, measured))
    }

    fn row(&self, layers: &str, what: &str, expected: f64, measured: f64) -> Vec<Cell> {
        let [first, second] = self.shares;
        let mut row: Vec<Cell> = vec![self.model.name.as_str().into(), Cell::count(self.threads)];
        row.extend([format!("{first}:{second}").as_str().into(), Cell::number(self.rtt_ms.into(), 0)]);
        row.extend([layers.into(), what.into(), Cell::number(expected, 2), Cell::number(measured, 2)]);
        row.push(Cell::number(measured / expected, 2));
        row
    }
}

/// Tokens a second of all streams together while all decode.
fn rate(run: &LoadRun) -> Result<f64> {
    steady_s(&run.streams).map(|seconds| 1.0 / seconds).context("the streams never decode together")
}

fn title(options: &PredictOptions) -> String {
    let PredictOptions { prompt, tokens, pipeline, .. } = options;
    format!(
        "What plans promise and what comes of it: two workers, streams of {tokens} tokens, a prompt of {prompt}; medians of {}",
        pipeline.run.repeat
    )
}

/// `1:0.3`.
fn shares(text: &str) -> Result<[f64; 2], String> {
    let share = |text: &str| text.parse::<f64>().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    let parsed = text.split_once(':').and_then(|(first, second)| Some([share(first)?, share(second)?]));
    parsed.ok_or_else(|| "give two shares above 0 and at most 1, as 1:0.3".into())
}

/// Clients that decode at once.
const CLIENTS: usize = 8;
/// Tokens of their prompts.
const SHORT_PROMPT: usize = 32;
