//! Mixtures of experts that are larger than the memory of their workers.

use std::{path::Path, time::Duration};

use qmesh_coordinator::plan::Experts;
use qmesh_models::{family, gguf::Gguf, tensor::TensorType};
use qmesh_tests::{http, process};
use serde_json::json;
use tempfile::TempDir;

use super::{
    super::{
        Serving,
        memory::{state, wait_until},
    },
    Mesh, Random, Room, WORDS, least_memory, serve, write_model,
};

const ROOM: Room = Room { context: 512, parallel: 2, chunk_rows: 64 };
const LAYERS: usize = 4;

#[test]
fn experts_on_disk_change_no_token_and_stay_within_the_limit() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("mixture.gguf");
    mixture(&mut Random(1), &path);
    let (model, spec) = (path.to_string_lossy(), family::spec(&Gguf::open(&path).unwrap()).unwrap());

    let whole = serve(&model, 1, ROOM, &[]);
    let _worker = whole.join("whole", &[]);
    whole.wait_ready(1);
    let expected = text(&whole);

    let workers = 2;
    let [all, least] = [Experts::InMemory, Experts::OnDisk].map(|experts| least_memory(&spec, ROOM, workers, experts));
    let memory = (all + least) / 2;
    println!("{workers} workers of {memory} bytes; in memory {all}, with the fewest experts {least}");
    let refusing = serve(&model, workers, ROOM, &[]);
    let small: Vec<_> =
        (0..workers).map(|i| refusing.join(&format!("small-{i}"), &["--memory", &memory.to_string()])).collect();
    let refused = wait_until(Duration::from_secs(20), || state(&refusing).contains("failed"));
    assert!(refused, "it must be asked for: {}", state(&refusing));
    for worker in small {
        worker.signal("TERM");
        process::finish(worker, Duration::from_secs(20));
    }
    let serving = serve(&model, workers, ROOM, &["--experts-on-disk"]);
    let Some(mesh) = Mesh::start(serving, workers, memory) else { return };
    assert_eq!(text(&mesh.serving), expected);
    mesh.fill(ROOM, WORDS);
    mesh.check(0.5);
    assert_eq!(text(&mesh.serving), expected, "whatever was in memory before");
}

/// What follows a prompt of more than one chunk.
fn text(serving: &Serving) -> String {
    let prompt: Vec<usize> = (0..100).map(|i| 3 + (i * i) % (WORDS - 3)).collect();
    let body = json!({ "prompt": prompt, "max_tokens": 40, "temperature": 0, "logit_bias": { "2": -100 } });
    let answer = http::post(&serving.path("/v1/completions"), &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let text = answer.body["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!(text.len() > 40, "{text:?}");
    text
}

/// Writes a mixture of 32 experts a layer, of which a token goes through four: 27 MB of them, and little else.
fn mixture(random: &mut Random, to: &Path) {
    let (hidden, inner, experts, heads, head_dim) = (256, 256, 32, 4, 64);
    let counts = [
        ("context_length", 4096),
        ("embedding_length", hidden),
        ("block_count", LAYERS),
        ("feed_forward_length", inner),
        ("expert_feed_forward_length", inner),
        ("expert_count", experts),
        ("expert_used_count", 4),
        ("attention.head_count", heads),
        ("attention.head_count_kv", heads),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
    ];
    let mut tensors = vec![("token_embd".to_owned(), vec![hidden, WORDS]), ("output_norm".to_owned(), vec![hidden])];
    for layer in 0..LAYERS {
        let of_layer = [
            ("attn_norm", vec![hidden]),
            ("attn_q", vec![hidden, heads * head_dim]),
            ("attn_k", vec![hidden, heads * head_dim]),
            ("attn_v", vec![hidden, heads * head_dim]),
            ("attn_q_norm", vec![head_dim]),
            ("attn_k_norm", vec![head_dim]),
            ("attn_output", vec![heads * head_dim, hidden]),
            ("ffn_norm", vec![hidden]),
            ("ffn_gate_inp", vec![hidden, experts]),
            ("ffn_gate_exps", vec![hidden, inner, experts]),
            ("ffn_up_exps", vec![hidden, inner, experts]),
            ("ffn_down_exps", vec![inner, hidden, experts]),
        ];
        tensors.extend(of_layer.map(|(name, ne)| (format!("blk.{layer}.{name}"), ne)));
    }
    write_model(random, "qwen3moe", &counts, (tensors, TensorType::Q8_0), to);
}
