//! `qmesh-bench api`: what the API adds to a token, what a grammar does, and whether silent connections keep anybody waiting. Stages
//! wait instead of computing, so that the API has the CPUs, but where a grammar's cost is compared with a step's.

mod grammar;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use qmesh_coordinator::{
    api::{self, ApiState, Listeners},
    mesh::{MeshHandle, Speculation},
    model::Model,
    plan::Workload,
    text::TextModel,
};
use serde_json::{Value, json};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep_until, timeout},
};

use self::grammar::GrammarCost;
use crate::{
    clients::RunningRequest,
    emulation::Emulation,
    http::Client,
    model::BenchModel,
    options::{PipelineOptions, positive},
    pipeline::{Layout, ReadyMesh},
    report::{Cell, Report, ReportTable},
    statistics::Samples,
};

/// Options of `api`.
#[derive(Args, Debug)]
pub struct ApiOptions {
    #[command(flatten)]
    pub(super) pipeline: PipelineOptions,
    /// Connections that say nothing.
    #[arg(long, default_value_t = 500)]
    idle: usize,
    /// Clients that have one answer after another, each on a connection that it keeps.
    #[arg(long, default_value_t = 64, value_parser = positive)]
    active: usize,
    /// For so long.
    #[arg(long, default_value_t = 10, value_parser = positive)]
    seconds: usize,
    /// Answers of one token, to tell what the API adds.
    #[arg(long, default_value_t = 200, value_parser = positive)]
    answers: usize,
    /// What a step of one row through the whole model takes, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 20)]
    step_ms: u64,
    /// Tokens of each answer under load.
    #[arg(long, default_value_t = 16, value_parser = positive)]
    tokens: usize,
    /// Tokens of each stream with a grammar and without, of which there are `--repeat` pairs.
    #[arg(long, default_value_t = 128, value_parser = positive)]
    grammar_tokens: usize,
}

pub(super) fn run(options: &ApiOptions) -> Result<Report> {
    let mut alone = ReportTable::new(
        format!("Answers of one token, one after another ({}), in milliseconds", options.answers),
        ["model", "through the API p50", "without it p50", "API adds", "API p99"],
    );
    let mut crowd = ReportTable::new(
        format!("{} silent connections, {} active for {} s", options.idle, options.active, options.seconds),
        [
            "model",
            "answers",
            "failed",
            "/health asked",
            "failed",
            "p50 ms",
            "p99 ms",
            "longest ms",
            "silent that stand",
        ],
    );
    let mut grammars = GrammarCost::table(options);
    let mut samples = Vec::new();
    for model in &options.pipeline.models.open()? {
        let served = Served::start(options, model)?;
        let Overhead { through, without } = served.overhead(options)?;
        let [p50, direct] = [through.median(), without.median()].map(|s| s * 1e3);
        let p99 = through.quantile(0.99) * 1e3;
        let mut row = vec![model.name.as_str().into()];
        row.extend([p50, direct, p50 - direct, p99].map(|ms| Cell::number(ms, 3)));
        alone.rows.push(row);
        let Crowd { answers, failed, probes, failed_probes, standing } = served.crowd(options)?;
        let mut row = vec![model.name.as_str().into()];
        row.extend([answers, failed, probes.all().len() + failed_probes, failed_probes].map(Cell::count));
        row.extend([probes.median(), probes.quantile(0.99), probes.max()].map(|s| Cell::number(s * 1e3, 2)));
        row.push(Cell::count(standing));
        crowd.rows.push(row);
        samples.extend([through.all().into(), without.all().into(), probes.all().into()]);
        served.stop()?;
        let cost = GrammarCost::measure(options, model)?;
        grammars.rows.push(cost.row(model));
        samples.extend(cost.samples());
    }
    let notes = NOTES.map(String::from).to_vec();
    Ok(Report { tables: vec![alone, grammars, crowd], notes, samples, ..Report::default() })
}

const NOTES: [&str; 3] = [
    "emulated compute: stages wait for a clock; clients and server share this process and its CPUs",
    "with a grammar: drafts are off; a pair has one prompt, each stream's figure is the median between its tokens, and the median \
     of the pairs' ratios counts; so it does of the means between tokens",
    "/health is asked on a new connection each time",
];

/// A mesh and its API.
struct Served {
    pipeline: ReadyMesh,
    address: SocketAddr,
    prompt: Vec<u32>,
    end: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), api::ServeError>>,
}

/// Seconds of answers of one token, and of the same without the API.
struct Overhead {
    through: Samples,
    without: Samples,
}

/// What a crowd got.
#[derive(Default)]
struct Crowd {
    answers: usize,
    failed: usize,
    /// Seconds of answers to `/health`.
    probes: Samples,
    failed_probes: usize,
    /// Silent connections at the end.
    standing: usize,
}

impl Served {
    fn start(options: &ApiOptions, model: &BenchModel) -> Result<Self> {
        let prompt = model.prompt(1, PROMPT);
        let layout = Layout {
            model,
            stages: 2,
            threads: 1,
            context: PROMPT + options.tokens,
            sessions: options.active,
            speculation: Speculation::Off,
            drafter: None,
            workload: options.pipeline.cut.workload(Workload::Prompts),
        };
        let base_us = options.step_ms.saturating_mul(1000);
        let pipeline = ReadyMesh::emulated(&layout, Emulation { base_us, row_us: 0 })?;
        let text = TextModel::of(&Model::open(&model.path)?, layout.context)?;
        let state = ApiState::new(pipeline.handle(), Arc::new(text));
        let (end, ending) = oneshot::channel();
        let (address, ended) = pipeline.block_on(async {
            let listeners = Listeners::bind("127.0.0.1", 0).await?;
            let address = listeners.addresses()?.first().copied().context("no address")?;
            let ended = tokio::spawn(api::serve(listeners, state, async { drop(ending.await) }));
            anyhow::Ok((address, ended))
        })?;
        Ok(Self { pipeline, address, prompt, end, ended })
    }

    /// One client, answer after answer, in turns with and without the API.
    fn overhead(&self, options: &ApiOptions) -> Result<Overhead> {
        let handle = self.pipeline.handle();
        let body = self.body(1, false);
        let mut overhead = Overhead { through: Samples::default(), without: Samples::default() };
        self.pipeline.block_on(async {
            let mut client = Client::connect(self.address).await?;
            // The first ones find caches cold.
            for answer in 0..options.answers + COLD {
                let through = timed(ask(&mut client, &body)).await?;
                let without = timed(self.without(&handle)).await?;
                if answer >= COLD {
                    overhead.through.push(through);
                    overhead.without.push(without);
                }
            }
            Ok(overhead)
        })
    }

    async fn without(&self, handle: &MeshHandle) -> Result<()> {
        let running = RunningRequest::submit(handle, 1, self.prompt.clone(), 1, Arc::from([]))?;
        running.finish().await.map(drop)
    }

    /// Silent connections first, then active ones, and somebody who asks how the server is.
    fn crowd(&self, options: &ApiOptions) -> Result<Crowd> {
        let (address, body) = (self.address, self.body(options.tokens, true));
        self.pipeline.block_on(async {
            let mut silent = Vec::with_capacity(options.idle);
            for _ in 0..options.idle {
                silent.push(Client::connect(address).await?);
            }
            let until = Instant::now() + Duration::from_secs(options.seconds as u64);
            let clients = (0..options.active).map(|_| tokio::spawn(busy(address, body.clone(), until)));
            let clients: Vec<_> = clients.collect();
            let mut crowd = Crowd::default();
            while Instant::now() < until {
                let next = Instant::now() + PROBE_INTERVAL;
                match timed(probe(address)).await {
                    Ok(seconds) => crowd.probes.push(seconds),
                    Err(error) => {
                        eprintln!("/health: {error:#}");
                        crowd.failed_probes += 1;
                    }
                }
                sleep_until(next.into()).await;
            }
            for client in clients {
                let (answers, failed) = client.await?;
                crowd.answers += answers;
                crowd.failed += failed;
            }
            crowd.standing = silent.iter().filter(|client| client.stands()).count();
            Ok(crowd)
        })
    }

    fn body(&self, tokens: usize, stream: bool) -> Value {
        json!({"prompt": self.prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "stream": stream})
    }

    fn stop(self) -> Result<()> {
        // Whoever does not listen any more has ended already.
        let _ended = self.end.send(());
        self.pipeline.block_on(async { timeout(ENDING, self.ended).await })???;
        self.pipeline.stop();
        Ok(())
    }
}

/// Answers and failures of one client, which asks on with a new connection after a failure.
async fn busy(address: SocketAddr, body: Value, until: Instant) -> (usize, usize) {
    let (mut answers, mut failed) = (0, 0);
    let mut client = None;
    while Instant::now() < until {
        let asked = async {
            let mut kept = match client.take() {
                Some(kept) => kept,
                None => Client::connect(address).await?,
            };
            ask(&mut kept, &body).await?;
            anyhow::Ok(kept)
        };
        match asked.await {
            Ok(kept) => {
                answers += 1;
                client = Some(kept);
            }
            Err(error) => {
                eprintln!("answer: {error:#}");
                failed += 1;
            }
        }
    }
    (answers, failed)
}

async fn ask(client: &mut Client, body: &Value) -> Result<()> {
    let answer = client.post("/v1/completions", body).await?;
    // A stream that fails ends with an error in place of its last word.
    let whole = body["stream"] == false || answer.body.contains("[DONE]");
    ensure!(answer.status == 200 && whole, "{}: {}", answer.status, answer.body);
    Ok(())
}

async fn probe(address: SocketAddr) -> Result<()> {
    let answer = Client::connect(address).await?.get("/health").await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
    Ok(())
}

async fn timed(work: impl Future<Output = Result<()>>) -> Result<f64> {
    let started = Instant::now();
    work.await?;
    Ok(started.elapsed().as_secs_f64())
}

/// Tokens of a prompt.
const PROMPT: usize = 8;
/// Answers that are not counted.
const COLD: usize = 5;
/// How often `/health` is asked.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// The server drains for less than that.
const ENDING: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::commands::synth::{self, SynthOptions};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: ApiOptions,
    }

    #[derive(Parser)]
    struct Synthetic {
        #[command(flatten)]
        options: SynthOptions,
    }

    #[test]
    fn a_crowd_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let path = path.to_str().unwrap();
        let shape = "synth llama --layers 2 --hidden 64 --heads 1 --kv-heads 1 --inner 64 --vocab 512 --out";
        synth::run(&Synthetic::parse_from(shape.split(' ').chain([path])).options).unwrap();
        let arguments = ["api", "-m", path, "--idle", "20", "--active", "4", "--seconds", "1", "--answers", "3"];
        let short = ["--step-ms", "2", "--repeat", "1", "--grammar-tokens", "8"];
        let report = run(&Cli::parse_from(arguments.into_iter().chain(short)).options).unwrap();
        let [alone, grammars, crowd] = &report.tables[..] else { panic!("three tables") };
        assert_eq!(grammars.rows[0].len(), grammars.columns.len());
        assert!(alone.rows[0].len() == alone.columns.len() && crowd.rows[0].len() == crowd.columns.len());
        let Cell::Number(answers, _) = crowd.rows[0][1] else { panic!("no answers") };
        let Cell::Number(failed, _) = crowd.rows[0][2] else { panic!("no failures") };
        assert!(answers >= 4.0 && failed == 0.0, "{answers} answers, {failed} failed");
    }
}
