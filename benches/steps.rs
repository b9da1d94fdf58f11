//! Time of one step through a whole model: one row (decode, shown as bytes of weights a second) and 64 rows (a prompt's
//! chunk, shown as products with weights a second), per tensor type.
//!
//! `cargo bench -p qmesh-benches`, or with a model of your own: `QMESH_BENCH_MODEL=model.gguf cargo bench -p qmesh-benches`.

use std::{hint::black_box, path::PathBuf};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qmesh_benches::model::{BenchModel, Cost, prefill};

fn steps(criterion: &mut Criterion) {
    for path in models() {
        let model = BenchModel::open(&path).unwrap_or_else(|e| panic!("{e:#}"));
        let cost = Cost::of(model.spec());
        for threads in [1, 2] {
            let mut group = criterion.benchmark_group(format!("{}, {threads} threads", model.name));
            let (mut shard, _) = model.load(1, 256, threads).unwrap_or_else(|e| panic!("{e:#}"));
            for rows in [1, 64] {
                group.throughput(match rows {
                    1 => Throughput::Bytes(cost.weight_bytes),
                    _ => Throughput::Elements(cost.layer_macs * rows as u64 + cost.head_macs),
                });
                let ids = model.prompt(0, rows);
                group.bench_function(BenchmarkId::new("rows", rows), |bencher| {
                    bencher.iter(|| black_box(prefill(&mut shard, 0, 0, &ids, rows)));
                });
            }
            group.finish();
        }
    }
}

/// The model that the environment names, or the small ones of the tests, one per tensor type.
fn models() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os("QMESH_BENCH_MODEL") {
        return vec![path.into()];
    }
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny");
    let types = [
        "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
        "MXFP4", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "NVFP4", "TQ1_0", "TQ2_0", "Q1_0",
    ];
    types.map(|t| folder.join(format!("quant-{t}.gguf"))).into()
}

criterion_group!(benches, steps);
criterion_main!(benches);
