//! A small model drafts for a large one: the text stays the same, and comes sooner.

use std::{
    fs::{self, File},
    path::Path,
    thread,
};

use qmesh_models::gguf::{Declared, Gguf, GgufWriter, Value};
use qmesh_tests::{golden_file, http, process};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{Serving, experts::with_words, number};

#[test]
fn a_draft_model_changes_no_text_and_is_often_right() {
    let folder = TempDir::new().unwrap();
    let (small, large) = (folder.path().join("small.gguf"), folder.path().join("large.gguf"));
    with_words(&golden_file("tiny/llama.gguf"), &small);
    deepen(&small, 120, &large);
    let (small, large) = (small.to_string_lossy(), large.to_string_lossy());
    let serve = |more: &[&str]| {
        let serving = Serving::start_with(&large, &[&["--local-workers", "2", "--threads", "1"], more].concat());
        serving.wait_ready(2);
        serving
    };
    let (without, with) = (serve(&["--no-speculation"]), serve(&["--draft-model", &small, "--draft-threads", "1"]));
    for temperature in [0.0, 0.9] {
        let texts = [&without.url, &with.url].map(|url| {
            let requests = (0..4).map(|stream| (stream, temperature));
            thread::scope(|scope| {
                let threads: Vec<_> = requests.map(|(s, t)| scope.spawn(move || complete(url, s, t))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            })
        });
        assert_eq!(texts[0], texts[1], "temperature {temperature}, four streams");
        assert_eq!(
            complete(&without.url, 9, temperature),
            complete(&with.url, 9, temperature),
            "temperature {temperature}, one"
        );
    }
    let status = &http::get(&with.path("/api/status")).body;
    assert_eq!(
        number(status, "generated_tokens"),
        2 * 5 * 120,
        "every answer is counted when its client has it: {status}"
    );
    let draft = &status["draft_model"];
    assert_eq!((&draft["state"], &draft["model"]), (&json!("ready"), &json!("small")));
    let (drafted, accepted) = (number(draft, "drafted_tokens"), number(draft, "accepted_tokens"));
    // It computes what the large one does.
    assert!(drafted > 100 && accepted * 10 > drafted * 9, "{draft}");
    let metrics = http::get(&with.path("/metrics")).body;
    let metrics = metrics.as_str().expect("a text");
    assert!(metrics.contains(&format!("qmesh_model_accepted_tokens_total {accepted}")), "{metrics}");
}

#[test]
fn a_model_with_another_vocabulary_drafts_nothing() {
    let folder = TempDir::new().unwrap();
    let (words, bare) = (folder.path().join("words.gguf"), golden_file("tiny/llama.gguf"));
    with_words(&bare, &words);
    let mut command = process::command("coordinator");
    command.arg("run").arg(&words).arg("--draft-model").arg(&bare).args(["-p", "w5 w6", "--raw"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let named = [&words, &bare].into_iter().all(|file| said.contains(&*file.to_string_lossy()));
    assert!(named && said.contains("--draft-model"), "{said}");
}

fn complete(url: &str, stream: usize, temperature: f64) -> Json {
    let prompt: String = (0..40).map(|i| format!("w{}", (i * i * 7 + stream * 11) % 100 + 10)).collect();
    let request =
        json!({ "prompt": prompt, "max_tokens": 120, "temperature": temperature, "seed": 7, "ignore_eos": true });
    let answer = http::post(&format!("{url}/v1/completions"), &request);
    assert_eq!((answer.status, number(&answer.body["usage"], "completion_tokens")), (200, 120), "{}", answer.body);
    answer.body["choices"][0]["text"].clone()
}

/// The model with more layers, which add nothing to a row: it says what it said before, and takes longer.
fn deepen(model: &Path, layers: u64, to: &Path) {
    let (gguf, bytes) = (Gguf::open(model).unwrap(), fs::read(model).unwrap());
    let family = gguf.text("general.architecture").unwrap();
    let count_key = format!("{family}.block_count");
    let given = gguf.unsigned(&count_key).unwrap();
    let mut writer = GgufWriter::new(family);
    for (key, value) in gguf.entries() {
        writer = writer.set(key, value.clone());
    }
    writer = writer.set(&count_key, Value::from(layers));
    let last = format!("blk.{}.", given - 1);
    for tensor in gguf.tensors() {
        let dtype = tensor.kind.tensor_type().unwrap();
        writer = writer.tensor(&tensor.name, &tensor.ne, dtype);
        if let Some(part) = tensor.name.strip_prefix(&last) {
            for layer in given..layers {
                writer = writer.tensor(&format!("blk.{layer}.{part}"), &tensor.ne, dtype);
            }
        }
    }
    let fill = |declared: &Declared, into: &mut [u8]| {
        let Some(tensor) = gguf.tensor(&declared.name) else {
            let part = declared.name.splitn(3, '.').nth(2).unwrap();
            if part.starts_with("attn_output") || part.starts_with("ffn_down") {
                return into.fill(0);
            }
            let start = usize::try_from(gguf.tensor(&format!("{last}{part}")).unwrap().offset).unwrap();
            return into.copy_from_slice(&bytes[start..start + into.len()]);
        };
        let start = usize::try_from(tensor.offset).unwrap();
        into.copy_from_slice(&bytes[start..start + into.len()]);
    };
    writer.write(&mut File::create(to).unwrap(), fill).unwrap();
}
