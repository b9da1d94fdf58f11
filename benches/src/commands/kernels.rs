//! `qmesh-bench kernels`: a step of some rows through synthetic layers of one tensor type.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use qmesh_engine::{
    sample::SamplingParameters,
    shard::{PAGE_POSITIONS, Shard},
    step::{SequenceRows, Step, Wants},
};
use qmesh_models::tensor::TensorType;

use crate::{
    bandwidth::Bandwidths,
    compare::interleave,
    model::Cost,
    options::{RunOptions, positive},
    report::{Cell, Report, ReportTable},
    synthetic::{self, LayerShape, Synthetic},
};

/// Options of `kernels`.
#[derive(Args, Debug)]
pub struct KernelsOptions {
    #[command(flatten)]
    pub(super) run: RunOptions,
    /// Tensor types.
    #[arg(long, value_delimiter = ',', default_values_t = TensorType::ALL, value_parser = tensor_type)]
    types: Vec<TensorType>,
    /// Shapes KxN of a layer: gate and up take K elements to N ones, down takes them back.
    #[arg(long, value_delimiter = ',', default_value = "1536x8960,8960x1536,576x1536")]
    shapes: Vec<LayerShape>,
    /// Rows of a step: one row is shown as GB/s, more rows as GMAC/s.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 128, 512], value_parser = positive)]
    rows: Vec<usize>,
    /// As many equal layers as make up this much: what fits no cache is read from memory by each step.
    #[arg(long, value_name = "MIB", default_value_t = 1, value_parser = positive)]
    weights: usize,
}

pub(super) fn run(options: &KernelsOptions) -> Result<Report> {
    let mut bandwidths = Bandwidths::default();
    let counts = options.run.threads();
    let machine = machine(&counts, &mut bandwidths);
    let rates = options.rows.iter().map(|&rows| if rows == 1 { "GB/s @1".into() } else { format!("GMAC/s @{rows}") });
    let headings = ["type", "KxN", "threads", "MiB"].map(String::from).into_iter().chain(rates);
    let mut table = ReportTable::new(
        "Layers of one tensor type: GB/s of weights at one row, GMAC/s at more; read GB/s is this machine's bandwidth over \
         as many bytes",
        headings.chain(["read GB/s".into()]),
    );
    let mut tier = "";
    for (&dtype, &shape) in options.types.iter().flat_map(|t| options.shapes.iter().map(move |s| (t, s))) {
        for &threads in &counts {
            eprintln!("{dtype} {shape} -t {threads}");
            let Some(bench) = Bench::load(options, dtype, shape, threads)? else { continue };
            tier = bench.shard.simd();
            table.rows.push(bench.measure(options, &mut bandwidths, [dtype.to_string(), shape.to_string()])?);
        }
    }
    let notes = vec![
        format!("kernels: {tier}"),
        "a step includes norms, rotation, attention among its own rows (4 heads of 64), activation and residuals; there \
         is neither embedding nor head"
            .into(),
        "a type is left out where its blocks do not divide the shape".into(),
    ];
    Ok(Report { tables: vec![machine, table], notes, ..Report::default() })
}

/// What the machine can read, from its caches and from memory.
fn machine(threads: &[usize], bandwidths: &mut Bandwidths) -> ReportTable {
    let headings = threads.iter().map(|n| format!("-t {n}"));
    let mut table =
        ReportTable::new("Read bandwidth of this machine, GB/s", ["buffer".to_owned()].into_iter().chain(headings));
    let mut row = |name: &str, bytes: &dyn Fn(usize) -> usize| {
        let cells = threads.iter().map(|&threads| Cell::number(bandwidths.read(bytes(threads), threads), 1));
        table.rows.push([name.into()].into_iter().chain(cells).collect());
    };
    row("1 MiB a thread", &|threads| threads << 20);
    row("64 MiB", &|_| 64 << 20);
    row("512 MiB", &|_| 512 << 20);
    table
}

struct Bench {
    shard: Shard,
    cost: Cost,
    hidden: usize,
    threads: usize,
}

impl Bench {
    fn load(options: &KernelsOptions, dtype: TensorType, shape: LayerShape, threads: usize) -> Result<Option<Self>> {
        let Some(one) = synthetic::spec(dtype, shape, 1) else { return Ok(None) };
        let wanted = (options.weights as u64) << 20;
        let layers = usize::try_from(wanted.div_ceil(Cost::of(&one).weight_bytes))?.max(1);
        let Some(spec) = synthetic::spec(dtype, shape, layers) else { return Ok(None) };
        let positions = options.rows.iter().copied().max().unwrap_or(1).next_multiple_of(PAGE_POSITIONS);
        let shard = Shard::load(&spec, 1..layers + 1, positions, threads, &Synthetic, &mut |_| {});
        let mut shard = shard.with_context(|| spec.name.clone())?;
        shard.open(0, positions, SamplingParameters::default())?;
        Ok(Some(Self { shard, cost: Cost::of(&spec), hidden: shape.hidden, threads }))
    }

    fn measure(
        mut self,
        options: &KernelsOptions,
        bandwidths: &mut Bandwidths,
        names: [String; 2],
    ) -> Result<Vec<Cell>> {
        let steps: Vec<Step> = options.rows.iter().map(|&rows| step(rows, self.hidden)).collect();
        let measured = interleave(steps.len(), options.run.repeat, |lane| self.seconds(&steps[lane]))?;
        let bytes = self.cost.weight_bytes as f64;
        let mut cells = names.map(Cell::Text).to_vec();
        cells.extend([Cell::count(self.threads), Cell::number(bytes / 1_048_576.0, 1)]);
        cells.extend(options.rows.iter().zip(&measured).map(|(&rows, samples)| {
            let work = if rows == 1 { bytes } else { (self.cost.layer_macs * rows as u64) as f64 };
            Cell::number(work / samples.median() / 1e9, 1)
        }));
        cells.push(Cell::number(bandwidths.read(usize::try_from(self.cost.weight_bytes)?, self.threads), 1));
        Ok(cells)
    }

    /// Seconds of one step, the mean of as many as take a while; one before warms up.
    fn seconds(&mut self, step: &Step) -> Result<f64> {
        black_box(self.shard.step(step)?);
        let started = Instant::now();
        let mut steps = 0;
        while steps == 0 || started.elapsed() < WHILE {
            black_box(self.shard.step(step)?);
            steps += 1;
        }
        Ok(started.elapsed().as_secs_f64() / f64::from(steps))
    }
}

/// Long against the clock and the threads' waking up.
const WHILE: Duration = Duration::from_millis(20);

/// A step of `rows` rows from position 0 on, its activation between -1 and 1.
fn step(rows: usize, hidden: usize) -> Step {
    let activation = (0..rows * hidden).map(|i| (i * 7919 % 2001) as f32 / 1000.0 - 1.0).collect();
    let sequences = vec![SequenceRows { session: 0, position: 0, rows, wants: Wants::None }];
    Step { sequences, ids: vec![0; rows], hidden: Some(activation), ..Step::default() }
}

/// The type that is displayed as `text`.
fn tensor_type(text: &str) -> Result<TensorType, String> {
    let found = TensorType::ALL.into_iter().find(|t| t.to_string().eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("give one of {}", TensorType::ALL.map(|t| t.to_string()).join(", ")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: KernelsOptions,
    }

    #[test]
    fn every_type_runs() {
        let arguments = ["kernels", "--shapes", "256x512", "--rows", "1,3", "--repeat", "1", "-t", "1"];
        let options = Cli::parse_from(arguments).options;
        let mut bandwidths = Bandwidths::default();
        for dtype in TensorType::ALL {
            let bench = Bench::load(&options, dtype, options.shapes[0], 1).unwrap().unwrap();
            let cells = bench.measure(&options, &mut bandwidths, ["a".into(), "b".into()]).unwrap();
            assert_eq!(cells.len(), 7, "{dtype}");
            assert!(cells.iter().all(|cell| !matches!(cell, Cell::Number(value, _) if !value.is_finite())), "{dtype}");
        }
    }
}
