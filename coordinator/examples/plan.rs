//! Plans a model over workers that are only described: who would hold which layers, and what memory that takes.
//!
//! cargo run -p qmesh-coordinator --example plan -- tests/golden/tiny/llama.gguf

use std::{error::Error, path::PathBuf};

use qmesh_coordinator::plan::{Capacity, PlanInput, Workload, solve};
use qmesh_models::{bytes::ByteCount, family, gguf::Gguf};

#[allow(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).ok_or("give the path of a GGUF file")?;
    let spec = family::spec(&Gguf::open(&path)?)?;
    let worker = |name: &str, memory_bytes, threads| Capacity { name: name.into(), memory_bytes, threads, speed: None };
    let workers = vec![worker("desk", 16 << 30, 8), worker("attic", 8 << 30, 4), worker("cellar", 4 << 30, 2)];
    // Two sessions of 2048 positions, prompts in chunks of 256 rows. `cut: Some(vec![5])` would cut before layer 5.
    let input = PlanInput { workload: Workload::Replies, ..PlanInput::new(&spec, workers, 4096, 2048, 256) };
    // An error says what would fit.
    let plan = solve(&input)?;
    for stage in &plan.stages {
        let name = &input.workers[stage.worker].name;
        println!("{name}: layers {:?}, {} of memory", stage.layers, ByteCount(stage.memory_bytes));
    }
    plan.notes.iter().for_each(|note| println!("{note}"));
    Ok(())
}
