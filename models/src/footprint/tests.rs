//! The account, against what can be counted by hand, and what must hold for every model.

use std::path::Path;

use super::*;
use crate::{
    gguf::Gguf,
    spec::{LayerSpec, LayerTensor, Mixer},
    tensor::TensorType,
};

/// The tiny model of that name.
fn tiny(name: &str) -> ModelSpec {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny").join(name);
    crate::family::spec(&Gguf::open(path).unwrap()).unwrap()
}

fn demand(layers: Range<usize>) -> ShardDemand {
    ShardDemand { layers, kv_positions: 256, context: 128, chunk_rows: 16, threads: 1, experts_in_memory: None }
}

#[test]
fn weights_are_packed_by_sixteen_rows_and_vectors_are_floats() {
    let tensor = |rows: usize, cols: usize, dtype: TensorType| TensorSpec {
        role: TensorRole::OutputNorm,
        name: "t".into(),
        rows,
        cols,
        dtype,
        part: 0,
        offset: 0,
        bytes: (rows * dtype.row_bytes(cols).unwrap()) as u64,
    };
    let bytes = |tensor: &TensorSpec| {
        let TensorFootprint { bytes, padding, packing } = TensorFootprint::of(tensor);
        assert_eq!(bytes, tensor.bytes);
        (bytes + padding, packing)
    };
    assert_eq!(bytes(&tensor(17, 64, TensorType::Q4_0)), (32 * 36, 0));
    assert_eq!(bytes(&tensor(16, 32, TensorType::Q5_0)), (384, 0), "352 bytes, and the rest of a line");
    assert_eq!(bytes(&tensor(1, 48, TensorType::F32)), (192, 16 * 192));
    assert_eq!(bytes(&tensor(1, 48, TensorType::F16)), (192, 16 * 96));
}

#[test]
fn the_cache_counts_in_whole_pages_of_every_layer() {
    let spec = tiny("llama.gguf");
    let footprints = Footprints::new(&spec);
    let page: usize = spec.layers[1..3]
        .iter()
        .filter_map(LayerSpec::attention)
        .map(|attention| 2 * 64 * attention.kv_heads * (attention.head_dim + attention.head_dim.next_multiple_of(16)))
        .sum();
    for (positions, pages) in [(1, 1), (64, 1), (65, 2), (256, 4)] {
        let demand = ShardDemand { kv_positions: positions, ..demand(1..3) };
        assert_eq!(footprints.shard(&demand).kv_bytes, pages * (page as u64 + 64), "{positions} positions");
    }
}

#[test]
fn states_count_by_the_sessions_that_there_is_room_for() {
    let spec = tiny("qwen35.gguf");
    let footprints = Footprints::new(&spec);
    // 4 heads of 16 by 16, and the last 3 + 16 rows of 128 channels and 4 α and β.
    let layer = 4 * (4 * 16 * 16 + (3 + 16) * (128 + 8));
    assert_eq!((footprints.session_bytes(&(0..3)), footprints.session_bytes(&(3..4))), (3 * layer, 0));
    for (kv_positions, context, sessions) in [(64, 128, 1), (128, 128, 1), (384, 128, 3), (400, 128, 3), (64, 0, 1)] {
        let demand = ShardDemand { kv_positions, context, ..demand(1..4) };
        let footprint = footprints.shard(&demand);
        assert_eq!(footprint.state_bytes, sessions * 2 * layer, "{kv_positions} positions, {context} a session");
    }
    let hybrid = tiny("granitehybrid.gguf");
    // 4 heads of 16 by 16, and the last rows of 64 + 2 · 2 · 16 channels and 4 time steps.
    let layer = 4 * (4 * 16 * 16 + (3 + 16) * (128 + 4));
    assert_eq!(Footprints::new(&hybrid).session_bytes(&(0..4)), 3 * layer);
    let cached = |layers| footprints.shard(&demand(layers)).kv_bytes;
    assert_eq!(cached(0..4), cached(3..4), "layers with a state have no keys");
}

#[test]
fn latents_are_kept_once_and_heads_share_them() {
    let spec = tiny("deepseek2.gguf");
    let footprints = Footprints::new(&spec);
    // 32 elements of the latent and 8 of the rotated key, in three vectors, for each of two layers.
    let page = 2 * 64 * 48 * 2 + 64;
    assert_eq!(footprints.shard(&demand(1..3)).kv_bytes, 4 * page);
    assert_eq!(spec.kv_bytes_per_position(&(1..3)), 2 * 2 * 40);
    // Four heads are one group: with two threads, one row's pages are cut into runs, and two rows' are not.
    assert_eq!([head_groups(4, 8), head_groups(16, 2), head_groups(16, 8), head_groups(20, 100)], [1, 2, 4, 4]);
    let buffers = |context| footprints.shard(&ShardDemand { context, threads: 2, ..demand(1..3) }).buffer_bytes;
    assert_eq!(buffers(128) - buffers(64), 4 * 4 * (32 + 2 * 16), "a page's part for each head");
}

#[test]
fn shared_keys_count_once_and_rows_are_as_wide_as_they_travel() {
    let spec = tiny("gemma4-e2b.gguf");
    let footprints = Footprints::new(&spec);
    let kv_bytes = |layers| footprints.shard(&demand(layers)).kv_bytes;
    // Heads of 16 and 32 elements; the last three layers keep none of their own.
    let page = |heads: u64, dim: u64| 2 * 64 * heads * 2 * dim;
    assert_eq!(kv_bytes(2..7), 4 * (page(2, 16) + page(1, 32) + 64));
    let without = ModelSpec { layer_inputs: None, ..spec.clone() };
    let more = |layers: Range<usize>| {
        let buffers = |spec: &ModelSpec| Footprints::new(spec).shard(&demand(layers.clone())).buffer_bytes;
        buffers(&spec) - buffers(&without)
    };
    // Five layers' rows of 16 travel before the third: in frames, as their values, and once more behind the hidden states.
    assert!(more(2..7) >= 17 * 4 * 5 * 16 * (3 + 5) as u64, "{}", more(2..7));
}

#[test]
fn matrices_that_are_turned_count_beside_the_file_s() {
    let [joined, apart] = ["deepseek2-lite-joined.gguf", "deepseek2-lite.gguf"].map(tiny);
    let buffers = |spec: &ModelSpec| Footprints::new(spec).shard(&demand(1..3)).buffer_bytes;
    assert_eq!(buffers(&joined) - buffers(&apart), 2 * 4 * 32 * 16 * 4, "of two layers and four heads, in F32");
}

#[test]
fn a_shard_s_own_spec_gives_the_same_account_as_the_whole_model_s() {
    for name in [
        "llama.gguf",
        "mistral-tied.gguf",
        "gemma3.gguf",
        "qwen2moe.gguf",
        "gpt-oss.gguf",
        "starcoder2.gguf",
        "qwen35moe.gguf",
        "deepseek2.gguf",
        "deepseek32.gguf",
        "granitehybrid.gguf",
        "kimi-linear.gguf",
        "minimax-m3.gguf",
        "step35.gguf",
        "gemma4-e2b.gguf",
    ] {
        let spec = tiny(name);
        let whole = Footprints::new(&spec);
        for start in 0..spec.layers.len() {
            for end in start + 1..=spec.layers.len() {
                let demand = demand(start..end);
                let part = spec.shard(start..end);
                assert_eq!(Footprints::new(&part).shard(&demand), whole.shard(&demand), "{name} {start}..{end}");
            }
        }
    }
}

#[test]
fn more_of_anything_takes_no_less() {
    for name in [
        "llama.gguf",
        "mistral-tied.gguf",
        "gemma3.gguf",
        "qwen2moe.gguf",
        "olmo2.gguf",
        "qwen3next.gguf",
        "deepseek2-lite.gguf",
        "mistral4.gguf",
        "glm-dsa.gguf",
        "kimi-linear.gguf",
        "nemotron_h_moe-latent.gguf",
    ] {
        let spec = tiny(name);
        let footprints = Footprints::new(&spec);
        let total = |demand: &ShardDemand| footprints.shard(demand).total_bytes();
        for start in 0..spec.layers.len() {
            let ends = start + 1..=spec.layers.len();
            let totals: Vec<_> = ends.map(|end| total(&demand(start..end))).collect();
            assert!(totals.is_sorted_by(|a, b| a < b), "{name}: longer shards from {start} on take {totals:?}");
        }
        let all = demand(0..spec.layers.len());
        for more in [
            ShardDemand { kv_positions: 512, ..all.clone() },
            ShardDemand { chunk_rows: 32, ..all.clone() },
            ShardDemand { threads: 2, ..all.clone() },
        ] {
            assert!(total(&more) > total(&all), "{name}: {more:?}");
        }
    }
}

#[test]
fn tensors_that_shards_share_count_once() {
    let spec = tiny("mistral-tied.gguf");
    let last = spec.layers.len();
    let footprints = Footprints::new(&spec);
    let (first, second) = (demand(0..2), demand(1..last));
    let [a, b, both, all] = [
        footprints.shard(&first),
        footprints.shard(&second),
        footprints.shards(&[first.clone(), second]),
        footprints.shard(&demand(0..last)),
    ];
    assert_eq!(both.weight_bytes, all.weight_bytes, "the embedding and layer 1 are held once");
    assert_eq!((both.kv_bytes, both.process_bytes), (a.kv_bytes + b.kv_bytes, a.process_bytes));
    assert!(both.buffer_bytes <= a.buffer_bytes + b.buffer_bytes);
    assert!(both.buffer_bytes > a.buffer_bytes.max(b.buffer_bytes));
    let twice = footprints.shards(&[first.clone(), first]);
    assert_eq!((twice.weight_bytes, twice.kv_bytes), (a.weight_bytes, 2 * a.kv_bytes));
}

#[test]
fn numbers_from_outside_do_not_overflow() {
    let mut spec = tiny("llama.gguf");
    spec.hidden = usize::MAX;
    spec.vocab = usize::MAX;
    for attention in spec.layers.iter_mut().filter_map(LayerSpec::attention_mut) {
        (attention.heads, attention.kv_heads, attention.head_dim) = (usize::MAX, 0, usize::MAX / 2);
    }
    let mut latent = tiny("deepseek2.gguf").layers.remove(0);
    if let Mixer::Latent(latent) = &mut latent.mixer {
        (latent.heads, latent.latent_dim, latent.rope_dim) = (usize::MAX, usize::MAX, usize::MAX);
    }
    spec.layers.push(latent);
    for tensor in &mut spec.tensors {
        (tensor.rows, tensor.bytes) = (usize::MAX - 32, u64::MAX);
    }
    spec.tensors[0].role = TensorRole::Layer(crate::spec::LayerIndex(usize::MAX), LayerTensor::Q);
    let last = spec.layers.len() - 1;
    for layers in [0..1, last..last + 1] {
        let most =
            ShardDemand { kv_positions: usize::MAX, context: usize::MAX, chunk_rows: usize::MAX, ..demand(layers) };
        assert_eq!(Footprints::new(&spec).shard(&most).total_bytes(), u64::MAX);
    }
}
