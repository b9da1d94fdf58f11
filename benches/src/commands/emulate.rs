//! `qmesh-bench emulate`: pipelines whose stages wait instead of computing, to measure all that is around them.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use qmesh_coordinator::{mesh::Speculation, plan::Workload};
use qmesh_net::memory::Faults;

use super::streams::WARM_TOKENS;
use crate::{
    clients::Load,
    compare::interleave,
    emulation::Emulation,
    ideal::{Best, PipelineBounds, StepTable, hops_s},
    model::BenchModel,
    options::{PipelineOptions, most, positive},
    pipeline::{Layout, ReadyMesh},
    record::{LATENCY_HEADINGS, LoadRecord, STEP_HEADINGS, same_tokens},
    report::{Cell, Report, ReportTable},
};

/// Options of `emulate`.
#[derive(Args, Debug)]
pub struct EmulateOptions {
    #[command(flatten)]
    pub(super) pipeline: PipelineOptions,
    /// Workers of a pipeline.
    #[arg(long, value_delimiter = ',', default_value = "4", value_parser = positive)]
    stages: Vec<usize>,
    /// Round-trip times of every link, in milliseconds.
    #[arg(long, value_name = "MS", value_delimiter = ',', default_value = "1,100")]
    rtt: Vec<u32>,
    /// Clients that decode at once.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64", value_parser = positive)]
    clients: Vec<usize>,
    /// What a step of one row through the whole model takes, in milliseconds; a stage takes its layers' share.
    #[arg(long, value_name = "MS", default_value_t = 40.0)]
    step_ms: f64,
    /// Of those, what every row takes.
    #[arg(long, value_name = "MS", default_value_t = 4.0)]
    row_ms: f64,
    /// Tokens of each client's prompt.
    #[arg(long, default_value_t = 8, value_parser = positive)]
    prompt: usize,
    /// Tokens that each client wants.
    #[arg(long, default_value_t = 64, value_parser = positive)]
    tokens: usize,
}

pub(super) fn run(options: &EmulateOptions) -> Result<Report> {
    let EmulateOptions { step_ms, row_ms, .. } = *options;
    let sound = step_ms.is_finite() && row_ms >= 0.0 && step_ms >= row_ms && step_ms > 0.0;
    ensure!(sound, "--row-ms {row_ms} must be from 0 to --step-ms {step_ms}");
    let mut measured = Vec::new();
    for model in &options.pipeline.models.open()? {
        for &stages in &options.stages {
            eprintln!("{}, {stages} emulated stages", model.name);
            measured.extend(measure(options, model, stages)?);
        }
    }
    let samples = measured.iter().map(|m| m.record.steady.all().into()).collect();
    let tables = vec![table(options, &measured)];
    let warnings = measured.iter().filter_map(|m| m.record.warning(&format!("{} ms, {} clients", m.rtt_ms, m.clients)));
    let notes = warnings.chain(NOTES.map(String::from)).collect();
    Ok(Report { tables, notes, samples, ..Report::default() })
}

const NOTES: [&str; 2] = [
    "emulated compute: stages wait for a clock; this measures scheduler, protocol and transport, and no kernel",
    "ideal: the best over all numbers of groups, with (stages + 1) · RTT / 2 on links; timers wake some 0.1 ms late, \
     which a hop pays and the ideal does not",
];

/// What was measured of so many stages over one kind of link.
#[derive(Debug)]
struct Measured {
    model: String,
    stages: usize,
    rtt_ms: u32,
    clients: usize,
    record: LoadRecord,
    best: Best,
}

fn measure(options: &EmulateOptions, model: &BenchModel, stages: usize) -> Result<Vec<Measured>> {
    let (context, sessions) = (options.prompt + options.tokens, most(&options.clients));
    // Emulated stages wait for their layers alone, as if for prompts.
    let (speculation, workload) = (Speculation::Off, options.pipeline.cut.workload(Workload::Prompts));
    let layout = Layout { model, stages, threads: 1, context, sessions, speculation, drafter: None, workload };
    let pipeline = ReadyMesh::emulated(&layout, emulation(options))?;
    let load = |clients, tokens| Load { clients, prompt: options.prompt, tokens };
    let lanes = options.rtt.iter().flat_map(|&rtt| options.clients.iter().map(move |&clients| (rtt, clients)));
    let lanes: Vec<(u32, usize)> = lanes.collect();
    let mut records = vec![LoadRecord::default(); lanes.len()];
    interleave(lanes.len(), options.pipeline.run.repeat, |lane| {
        let (rtt_ms, clients) = lanes[lane];
        pipeline.faults(Faults { delay: Duration::from_millis(rtt_ms.into()) / 2, ..Faults::default() });
        // QUIC and the coordinator learn the new times first.
        pipeline.load(model, load(clients, options.tokens.min(WARM_TOKENS)))?;
        records[lane].push(&pipeline.load(model, load(clients, options.tokens))?)
    })?;
    for &clients in &options.clients {
        let same = lanes.iter().zip(&records).filter(|((_, c), _)| *c == clients).map(|(_, record)| record);
        same_tokens(&format!("{clients} clients"), same)?;
    }
    let shares = layer_shares(&pipeline, model);
    let measured = lanes.into_iter().zip(records).map(|((rtt_ms, clients), record)| {
        let steps = steps(emulation(options), sessions);
        let hops_s = hops_s(stages, f64::from(rtt_ms) / 1e3);
        let best = PipelineBounds { steps, shares: shares.clone(), hops_s, row_wire_s: 0.0 }.best(clients);
        Measured { model: model.name.clone(), stages, rtt_ms, clients, record, best }
    });
    let measured = measured.collect();
    pipeline.stop();
    Ok(measured)
}

/// Emulated stages wait by layers, not by weights.
fn layer_shares(pipeline: &ReadyMesh, model: &BenchModel) -> Vec<f64> {
    let layers = model.spec().layers.len() as f64;
    let status = pipeline.handle().status();
    status.stages.iter().map(|s| (s.end_layer - s.first_layer) as f64 / layers).collect()
}

fn emulation(options: &EmulateOptions) -> Emulation {
    // Both are within reason and not negative.
    let micros = |ms: f64| Duration::from_secs_f64((ms / 1e3).clamp(0.0, 3600.0)).as_micros() as u64;
    Emulation { base_us: micros(options.step_ms - options.row_ms), row_us: micros(options.row_ms) }
}

fn steps(emulation: Emulation, rows: usize) -> StepTable {
    let Emulation { base_us, row_us } = emulation;
    StepTable::new([1, rows.max(2)].map(|rows| (rows, (base_us + row_us * rows as u64) as f64 / 1e6)))
}

fn table(options: &EmulateOptions, measured: &[Measured]) -> ReportTable {
    let title = format!(
        "Emulated compute: streams of {} tokens, a step of {} ms of which {} ms a row; medians of {}",
        options.tokens, options.step_ms, options.row_ms, options.pipeline.run.repeat
    );
    let starts = ["model", "stages", "RTT ms", "clients", "tok/s", "ideal", "groups", "of ideal"];
    let mut table = ReportTable::new(title, starts.into_iter().chain(LATENCY_HEADINGS).chain(STEP_HEADINGS));
    for m in measured {
        let rate = m.record.rate();
        let mut row = vec![m.model.as_str().into(), Cell::count(m.stages), Cell::number(m.rtt_ms.into(), 0)];
        row.extend([Cell::count(m.clients), Cell::number(rate, 2), Cell::number(m.best.tokens_per_s, 2)]);
        row.extend([Cell::count(m.best.groups), Cell::number(rate / m.best.tokens_per_s, 2)]);
        row.extend(m.record.latency_cells());
        row.extend(m.record.step_cells());
        table.rows.push(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: EmulateOptions,
    }

    #[test]
    fn emulated_stages_come_near_their_ideal() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama.gguf");
        let arguments = ["emulate", "-m", path, "--stages", "3", "--rtt", "4", "--clients", "2", "--repeat", "1"];
        let more = ["--step-ms", "30", "--row-ms", "3", "--tokens", "8"];
        let report = run(&Cli::parse_from(arguments.into_iter().chain(more)).options).unwrap();
        let table = &report.tables[0];
        assert!(table.title.contains("Emulated compute") && table.rows[0].len() == table.columns.len());
        let at = table.columns.iter().position(|column| column == "of ideal").unwrap();
        let Cell::Number(fraction, _) = table.rows[0][at] else { panic!("no fraction") };
        assert!((0.3..1.05).contains(&fraction), "{fraction}");
    }
}
