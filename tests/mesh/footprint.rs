//! What the planner says that a stage takes of its worker's memory: it does, under a limit that the system enforces, and
//! it takes little less.

mod experts;
mod latent;

use std::{fs, fs::File, ops::Range, path::Path, thread, time::Duration};

use qmesh_coordinator::plan::{self, Capacity, Experts, PlanInput};
use qmesh_models::{
    family,
    gguf::{Declared, Gguf, GgufWriter, Strings, Value},
    spec::ModelSpec,
    tensor::TensorType,
};
use qmesh_tests::{
    RealModels, default_model, http,
    limit::MemoryLimit,
    process::{self, Running},
    real_models,
};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{
    MODEL, Serving,
    memory::{state, wait_until},
    number, worker_by,
};

/// What a mesh is made for.
#[derive(Clone, Copy, Debug)]
struct Room {
    context: usize,
    parallel: usize,
    chunk_rows: usize,
}

/// Model, workers, memory of each, and what for. Two small machines can just hold the second.
const REAL: [(&str, usize, u64, Room); 4] = [
    (MODEL, 2, 140_000_000, Room { context: 1024, parallel: 2, chunk_rows: 128 }),
    ("gemma3-270m", 2, 280_000_000, Room { context: 512, parallel: 1, chunk_rows: 256 }),
    ("qwen2.5-coder-0.5b", 3, 400_000_000, Room { context: 1024, parallel: 2, chunk_rows: 256 }),
    ("qwen2.5-coder-1.5b", 2, 900_000_000, Room { context: 512, parallel: 1, chunk_rows: 128 }),
];

/// Random models that are tried.
const MODELS: u64 = 4;
const WORDS: usize = 256;

#[test]
fn random_models_serve_in_exactly_the_memory_that_they_are_planned_for() {
    for seed in 0..MODELS {
        let random = &mut Random(seed);
        let folder = TempDir::new().unwrap();
        let model = folder.path().join("random.gguf");
        if seed % 2 == 1 {
            latent::random_model(random, &model)
        } else {
            random_model(random, &model)
        }
        let spec = family::spec(&Gguf::open(&model).unwrap()).unwrap();
        let room = Room {
            context: 64 * random.within(2..9),
            parallel: random.within(1..4),
            chunk_rows: random.within(8..129),
        };
        let workers = random.within(1..4).min(spec.layers.len());
        let least = least_memory(&spec, room, workers, Experts::InMemory);
        println!("seed {seed}: {workers} workers of {least} bytes, {room:?}");

        let serving = serve(&model.to_string_lossy(), workers, room, &[]);
        let less = (least - 1).to_string();
        let join = |i: usize| serving.join(&format!("less-{i}"), &["--memory", &less]);
        let small: Vec<_> = (0..workers).map(join).collect();
        let refused = wait_until(Duration::from_secs(20), || state(&serving).contains("failed"));
        assert!(refused, "one byte less must be refused: {}", state(&serving));
        for worker in small {
            worker.signal("TERM");
            process::finish(worker, Duration::from_secs(20));
        }
        let Some(mesh) = Mesh::start(serving, workers, least) else { return };
        mesh.fill(room, WORDS);
        mesh.check(0.0);
    }
}

#[test]
fn real_models_take_what_is_planned_and_little_less() {
    for (name, workers, memory, room) in REAL {
        if name != MODEL && real_models() != RealModels::All {
            continue;
        }
        let model = if name == MODEL { default_model() } else { name.to_owned() };
        println!("{name}: {workers} workers of {memory} bytes, {room:?}");
        let Some(mesh) = Mesh::start(serve(&model, workers, room, &[]), workers, memory) else { return };
        mesh.fill(room, 10_000);
        mesh.check(0.9);
    }
}

/// A pipeline of workers that have no more memory than they say.
struct Mesh {
    // Workers end before their limits do.
    workers: Vec<(String, Running)>,
    _limits: Vec<MemoryLimit>,
    serving: Serving,
}

impl Mesh {
    /// `None` where the system cannot limit memory.
    fn start(serving: Serving, count: usize, memory: u64) -> Option<Self> {
        let program = process::binaries().join("shard-worker");
        let (mut workers, mut limits) = (Vec::new(), Vec::new());
        for i in 0..count {
            let name = format!("worker-{i}");
            let limit = MemoryLimit::new(&format!("{}-{i}", serving.url.rsplit(':').next()?), memory)?;
            let more = ["--memory", &memory.to_string()];
            let worker = worker_by(limit.command(&program), &serving.ticket, &name, serving.folder.path(), &more);
            workers.push((name, worker));
            limits.push(limit);
        }
        serving.wait_ready(count);
        Some(Self { workers, _limits: limits, serving })
    }

    /// Prompts that fill every session, all at once; then one that is scored, so that every row has logits.
    fn fill(&self, room: Room, ids: usize) {
        const ANSWER: usize = 16;
        let ids = |seed: usize| -> Vec<usize> {
            (0..room.context - ANSWER).map(|i| 3 + (i * i + seed) % (ids - 3)).collect()
        };
        let url = self.serving.path("/v1/completions");
        let complete = &|body: Json| {
            let answer = http::post(&url, &body);
            assert_eq!(answer.status, 200, "{}", answer.body);
        };
        thread::scope(|scope| {
            for seed in 0..room.parallel {
                let body = json!({ "prompt": ids(seed), "max_tokens": ANSWER, "temperature": 0.8, "top_p": 0.99,
                    "frequency_penalty": 0.5, "seed": seed });
                scope.spawn(move || complete(body));
            }
        });
        complete(json!({ "prompt": ids(99), "max_tokens": 0, "echo": true, "logprobs": 1 }));
    }

    /// Every worker stayed below its figure, by no more than `least` of it.
    fn check(&self, least: f64) {
        for stage in self.serving.stages() {
            let name = stage["worker"].as_str().unwrap();
            let (_, worker) = self.workers.iter().find(|(worker, _)| worker == name).unwrap();
            let (peak, planned) = (peak_bytes(worker.pid()), number(&stage, "planned_bytes"));
            let share = peak as f64 / planned as f64;
            eprintln!("  {name}: {peak} of {planned} bytes planned, {share:.3}");
            assert!(peak <= planned, "{name} has taken {peak} bytes, planned were {planned}");
            assert!(share >= least, "{name} has taken {peak} bytes only, planned were {planned}");
        }
    }
}

/// A coordinator that waits for so many workers.
fn serve(model: &str, workers: usize, room: Room, more: &[&str]) -> Serving {
    let [workers, parallel, chunk_rows] = [workers, room.parallel, room.chunk_rows].map(|n| n.to_string());
    let all = ["--min-workers", &workers, "--parallel", &parallel, "--chunk-rows", &chunk_rows];
    Serving::start_for(model, room.context, &[&all, more].concat())
}

/// The least memory with which so many equal workers are planned for.
fn least_memory(spec: &ModelSpec, room: Room, workers: usize, experts: Experts) -> u64 {
    let fits = |memory_bytes: u64| {
        let worker = |i| Capacity { name: format!("worker-{i}"), memory_bytes, threads: 1, speed: None };
        let workers = (0..workers).map(worker).collect();
        let kv_positions = room.context * room.parallel;
        plan::fits(&PlanInput { experts, ..PlanInput::new(spec, workers, kv_positions, room.context, room.chunk_rows) })
    };
    let (mut refused, mut accepted) = (0, 1 << 40);
    while accepted - refused > 1 {
        let middle = (refused + accepted) / 2;
        *if fits(middle) { &mut accepted } else { &mut refused } = middle;
    }
    accepted
}

/// What the process had resident at most.
fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
}

/// Writes a model of a random shape with random weights, and as many words as a server needs.
fn random_model(random: &mut Random, to: &Path) {
    let (head_dim, kv_heads) = (32 * random.within(1..4), random.within(1..3));
    let (heads, hidden) = (kv_heads * random.within(1..4), 32 * random.within(2..9));
    let (inner, layers) = (32 * random.within(2..13), random.within(2..7));
    let dtype = [TensorType::F32, TensorType::F16, TensorType::Q8_0, TensorType::Q4_0][random.within(0..4)];
    let count = |n: usize| Value::from(n as u64);
    let mut writer = with_words(GgufWriter::new("llama"))
        .set("llama.context_length", count(4096))
        .set("llama.embedding_length", count(hidden))
        .set("llama.block_count", count(layers))
        .set("llama.feed_forward_length", count(inner))
        .set("llama.attention.head_count", count(heads))
        .set("llama.attention.head_count_kv", count(kv_heads))
        .set("llama.attention.key_length", count(head_dim))
        .set("llama.attention.value_length", count(head_dim))
        .set("llama.rope.dimension_count", count(head_dim))
        .set("llama.attention.layer_norm_rms_epsilon", 1e-5_f32);
    let mut tensor = |name: &str, rows: usize, cols: usize, dtype: TensorType| {
        let ne = if rows == 1 { vec![cols as u64] } else { vec![cols as u64, rows as u64] };
        writer = writer.clone().tensor(name, &ne, dtype);
    };
    tensor("token_embd.weight", WORDS, hidden, dtype);
    tensor("output_norm.weight", 1, hidden, TensorType::F32);
    if random.within(0..2) == 1 {
        tensor("output.weight", WORDS, hidden, dtype);
    }
    for layer in 0..layers {
        for (name, rows, cols) in [
            ("attn_q", heads * head_dim, hidden),
            ("attn_k", kv_heads * head_dim, hidden),
            ("attn_v", kv_heads * head_dim, hidden),
            ("attn_output", hidden, heads * head_dim),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ] {
            tensor(&format!("blk.{layer}.{name}.weight"), rows, cols, dtype);
        }
        for name in ["attn_norm", "ffn_norm"] {
            tensor(&format!("blk.{layer}.{name}.weight"), 1, hidden, TensorType::F32);
        }
    }
    writer.write(&mut File::create(to).unwrap(), |tensor, into| fill(random, tensor, into)).unwrap();
}

/// Writes a model of these counts and tensors, by their names and sizes: matrices are of this type, but for routers.
fn write_model(
    random: &mut Random,
    family: &str,
    counts: &[(&str, usize)],
    (tensors, dtype): (Vec<(String, Vec<usize>)>, TensorType),
    to: &Path,
) {
    let mut writer = with_words(GgufWriter::new(family));
    for (key, count) in counts {
        writer = writer.set(&format!("{family}.{key}"), Value::from(*count as u64));
    }
    writer = writer.set(&format!("{family}.attention.layer_norm_rms_epsilon"), 1e-5_f32);
    for (name, ne) in tensors {
        let ne: Vec<u64> = ne.into_iter().map(|n| n as u64).collect();
        let plain = ne.len() == 1 || name.ends_with("ffn_gate_inp");
        writer = writer.tensor(&format!("{name}.weight"), &ne, if plain { TensorType::F32 } else { dtype });
    }
    writer.write(&mut File::create(to).unwrap(), |tensor, into| fill(random, tensor, into)).unwrap();
}

/// As many words as a server needs.
fn with_words(writer: GgufWriter) -> GgufWriter {
    let words: Strings = (0..WORDS).map(|i| if i < 3 { format!("<{i}>") } else { format!("w{i}") }).collect();
    let (scores, kinds) = (vec![0.0_f32; WORDS], [2_i32, 3, 3].into_iter().chain([1; WORDS - 3]).collect::<Vec<_>>());
    writer
        .set("tokenizer.ggml.model", "llama")
        .set("tokenizer.ggml.tokens", Value::from(words))
        .set("tokenizer.ggml.scores", &scores[..])
        .set("tokenizer.ggml.token_type", &kinds[..])
}

/// Small random weights.
fn fill(random: &mut Random, tensor: &Declared, into: &mut [u8]) {
    // 2⁻⁷ as f16: what a step of a quantised weight, or a float one, is.
    let scale = 0x2000_u16.to_le_bytes();
    let mut byte = || random.within(0..256) as u8;
    match (tensor.dtype, tensor.ne.len()) {
        (TensorType::F32, 1) => into.chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&1.0_f32.to_le_bytes())),
        (TensorType::F32, _) => into.chunks_exact_mut(4).for_each(|x| {
            x.copy_from_slice(&(f32::from(byte()) / 1024.0 - 0.125).to_le_bytes());
        }),
        (TensorType::F16, _) => {
            into.chunks_exact_mut(2).for_each(|x| x.copy_from_slice(&[byte(), 0x20 | (byte() & 0x88)]))
        }
        _ => into.chunks_exact_mut(tensor.dtype.block_bytes()).for_each(|block| {
            block[..2].copy_from_slice(&scale);
            block[2..].iter_mut().for_each(|x| *x = byte());
        }),
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn within(&mut self, range: Range<usize>) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start + ((z ^ (z >> 31)) % range.len() as u64) as usize
    }
}
