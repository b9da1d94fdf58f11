//! Time of one step through a whole model: one row (decode) and 64 rows (a prompt's chunk), per tensor type.
//!
//! `cargo bench -p qmesh-benches`, or with a model of your own: `QMESH_BENCH_MODEL=model.gguf cargo bench -p qmesh-benches`.

use std::{hint::black_box, path::PathBuf};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qmesh_benches::{step, whole_model};

fn steps(criterion: &mut Criterion) {
    for (name, path) in models() {
        for threads in [1, 2] {
            let mut group = criterion.benchmark_group(format!("{name}, {threads} threads"));
            let mut shard = whole_model(&path, 256, threads);
            for rows in [1, 64] {
                group.throughput(Throughput::Elements(rows as u64));
                group.bench_function(BenchmarkId::new("rows", rows), |bencher| {
                    bencher.iter(|| black_box(shard.step(&step(0, rows))));
                });
            }
            group.finish();
        }
    }
}

/// The model that the environment names, or the small ones of the tests, one per tensor type.
fn models() -> Vec<(String, PathBuf)> {
    if let Some(path) = std::env::var_os("QMESH_BENCH_MODEL").map(PathBuf::from) {
        return vec![(path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path)];
    }
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny");
    let types = ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"];
    types.map(|t| (t.to_owned(), folder.join(format!("quant-{t}.gguf")))).into()
}

criterion_group!(benches, steps);
criterion_main!(benches);
