//! A mixture of experts over two machines: each holds the experts of its own layers, as the plan said.

use std::{
    fs::{self, File},
    path::Path,
    process::Stdio,
};

use qmesh_models::gguf::{Gguf, GgufWriter, Strings, Value};
use qmesh_tests::{golden_file, http, process};
use serde_json::Value as Json;
use tempfile::TempDir;

use super::{Serving, number};

#[test]
fn experts_land_where_the_plan_said() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("mixtral-with-words.gguf");
    with_words(&golden_file("tiny/mixtral.gguf"), &model);
    let model = model.to_string_lossy();
    let plan = planned(&model);
    let expert_bytes = 3 * 4 * 128 * 64 * 4;
    let layers = |stage: &Json| number(stage, "end_layer") - number(stage, "first_layer");
    for stage in &plan {
        assert!(number(stage, "weight_bytes") > layers(stage) * expert_bytes, "experts count: {stage}");
    }

    let serving = Serving::start_with(&model, &["--min-workers", "2"]);
    let _workers = [serving.join("left", &[]), serving.join("right", &[])];
    serving.wait_ready(2);
    let stages = serving.stages();
    assert_eq!((plan.len(), stages.len()), (2, 2));
    for (planned, stage) in plan.iter().zip(&stages) {
        let worker = stage["worker"].as_str().unwrap();
        assert_eq!(number(planned, "weight_bytes"), number(stage, "weight_bytes"), "{stage}");
        let stored: u64 = serving.blobs(worker).values().sum();
        assert_eq!(number(planned, "weight_bytes"), stored, "{worker} stored");
    }
    let request =
        serde_json::json!({ "model": "mixtral-with-words", "prompt": "w5 w6", "max_tokens": 4, "temperature": 0 });
    let answer = http::post(&serving.path("/v1/completions"), &request);
    assert_eq!((answer.status, number(&answer.body["usage"], "completion_tokens")), (200, 4), "{}", answer.body);
}

/// The model with a vocabulary, which a server needs.
pub(super) fn with_words(model: &Path, to: &Path) {
    let (gguf, bytes) = (Gguf::open(model).unwrap(), fs::read(model).unwrap());
    let mut writer = GgufWriter::new(gguf.text("general.architecture").unwrap());
    for (key, value) in gguf.entries().filter(|(key, _)| !key.starts_with("tokenizer.")) {
        writer = writer.set(key, value.clone());
    }
    let words: Strings = (0..128).map(|i| if i < 3 { format!("<{i}>") } else { format!("w{i}") }).collect();
    let (scores, kinds) = (vec![0.0_f32; 128], [2_i32, 3, 3].into_iter().chain([1; 125]).collect::<Vec<_>>());
    writer = writer.set("tokenizer.ggml.model", "llama").set("tokenizer.ggml.tokens", Value::from(words));
    writer = writer.set("tokenizer.ggml.scores", &scores[..]).set("tokenizer.ggml.token_type", &kinds[..]);
    for tensor in gguf.tensors() {
        writer = writer.tensor(&tensor.name, &tensor.ne, tensor.kind.tensor_type().unwrap());
    }
    let fill = |declared: &qmesh_models::gguf::Declared, into: &mut [u8]| {
        let start = usize::try_from(gguf.tensor(&declared.name).unwrap().offset).unwrap();
        into.copy_from_slice(&bytes[start..start + into.len()]);
    };
    writer.write(&mut File::create(to).unwrap(), fill).unwrap();
}

/// The stages of `coordinator plan` for two workers.
fn planned(model: &str) -> Vec<Json> {
    let mut command = process::command("coordinator");
    command.args(["plan", model, "--workers", "2", "--threads", "1", "--ctx-size", "1024", "--no-measure", "--json"]);
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    let plan: Json = serde_json::from_slice(&output.stdout).unwrap();
    plan["stages"].as_array().unwrap().clone()
}
