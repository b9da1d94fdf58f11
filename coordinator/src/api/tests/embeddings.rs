//! Texts as vectors, in OpenAI's way and in Ollama's.

use super::*;
use crate::{
    generate::{GenerateError, Pooling, PromptRows},
    mesh::status::MeshState,
    text::fake::{CONTEXT, mesh_status, written},
};

/// A vector whose first value is the first id of the prompt, whose second one is its length.
fn pooled(request: &GenerateRequest) -> Vec<GenerateEvent> {
    let vector = vec![request.ids[0] as f32, request.ids.len() as f32, 0.0, -0.5];
    [GenerateEvent::Pooled(vector)].into_iter().chain(generation(&[])).collect()
}

async fn embed(bench: &Bench, more: Value) -> Answer {
    let mut body = json!({"model": "made-up", "input": "a"});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    bench.post("/v1/embeddings", body.to_string()).await
}

#[tokio::test]
async fn every_form_of_input_becomes_vectors_in_order() {
    let bench = Bench::new(pooled);
    let (b, c) = (written("b")[0], written("c")[0]);
    for (input, lengths) in [
        (json!("b"), vec![2]),
        (json!(["b", "bc", ""]), vec![2, 3, 1]),
        (json!([b, c, c]), vec![3]),
        (json!([[b, c], [c]]), vec![2, 1]),
    ] {
        let answer = embed(&bench, json!({"input": input})).await.json();
        let objects = answer["data"].as_array().expect("a list");
        let found: Vec<_> =
            objects.iter().map(|one| one["embedding"][1].as_f64().expect("a number") as usize).collect();
        assert_eq!(found, lengths, "{input}");
        let places: Vec<_> = objects.iter().map(|one| one["index"].as_u64().expect("a place")).collect();
        assert_eq!(places, (0..lengths.len() as u64).collect::<Vec<_>>());
        let tokens = lengths.iter().sum::<usize>();
        assert_eq!(answer["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
        assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("made-up")));
        assert_eq!(objects[0]["object"], "embedding");
    }
    let seen = bench.mesh.seen.lock().expect("no panic holds it").clone();
    assert!(seen.iter().all(|asked| (asked.prompt_rows, asked.max_tokens) == (PromptRows::Pooled(Pooling::Mean), 0)));
    let metrics = bench.get("/metrics").await.text;
    assert!(metrics.lines().any(|line| line == "qmesh_embeddings_total 7"), "{metrics}");
}

#[tokio::test]
async fn llama_servers_clients_get_a_list_for_each_text() {
    let bench = Bench::new(pooled);
    let post = async |body: Value| bench.post("/embedding", body.to_string()).await;
    let vector = |length: f32| json!([[1.0, length, 0.0, -0.5]]);
    assert_eq!(post(json!({"content": "b"})).await.json(), json!([{"index": 0, "embedding": vector(2.0)}]));
    let two = post(json!({"input": ["b", "bc"]})).await.json();
    assert_eq!(two, json!([{"index": 0, "embedding": vector(2.0)}, {"index": 1, "embedding": vector(3.0)}]));
    assert_eq!(post(json!({})).await.error().3.as_deref(), Some("content"));
    assert_eq!(post(json!({"content": "b", "embd_normalize": -1})).await.error().3.as_deref(), Some("embd_normalize"));
}

#[tokio::test]
async fn numbers_come_as_they_are_asked_for() {
    let bench =
        Bench::new(|_| [GenerateEvent::Pooled(vec![0.6, 0.0, 0.8, 0.1])].into_iter().chain(generation(&[])).collect());
    let embedding = async |more| embed(&bench, more).await.json()["data"][0]["embedding"].clone();
    assert_eq!(embedding(json!({"encoding_format": "float"})).await.to_string(), "[0.6,0.0,0.8,0.1]");
    let bytes: Vec<u8> = [0.6_f32, 0.0, 0.8, 0.1].into_iter().flat_map(f32::to_le_bytes).collect();
    assert_eq!(embedding(json!({"encoding_format": "base64"})).await, data_encoding::BASE64.encode(&bytes));
    // What is left has length 1 again.
    assert_eq!(embedding(json!({"dimensions": 2})).await.to_string(), "[1.0,0.0]");
    assert_eq!(embedding(json!({"dimensions": 3})).await.to_string(), "[0.6,0.0,0.8]");
    let unversioned = bench.post("/embeddings", json!({"input": "a"}).to_string()).await;
    assert_eq!(unversioned.json()["data"][0]["embedding"], json!([0.6, 0.0, 0.8, 0.1]));
}

#[tokio::test]
async fn what_cannot_become_a_vector_is_refused_by_name() {
    let bench = Bench::new(pooled);
    for (more, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [4, ["a"]]}), "input"),
        (json!({"input": [1_000_000]}), "input"),
        (json!({"input": [[]]}), "input"),
        (json!({"input": vec!["a"; 2049]}), "input"),
        (json!({"input": {"text": "a"}}), "input"),
        (json!({"dimensions": 0}), "dimensions"),
        (json!({"dimensions": 5}), "dimensions"),
        (json!({"encoding_format": "int8"}), "encoding_format"),
        (json!({"truncate_prompt_tokens": 3}), "truncate_prompt_tokens"),
        (json!({"input_type": "query"}), "input_type"),
        (json!({"embd_normalize": -1}), "embd_normalize"),
    ] {
        let (status, _, _, found) = embed(&bench, more.clone()).await.error();
        assert_eq!((status, found.as_deref()), (StatusCode::BAD_REQUEST, Some(param)), "{more}");
    }
    let (status, _, code, _) = embed(&bench, json!({"model": "other"})).await.error();
    assert_eq!((status, code.as_deref()), (StatusCode::NOT_FOUND, Some("model_not_found")));
    let fits = embed(&bench, json!({"input": vec![1; CONTEXT]})).await;
    assert_eq!(fits.status, StatusCode::OK);
    for long in [json!(vec![1; CONTEXT + 1]), json!("a".repeat(10_000))] {
        let answer = embed(&bench, json!({"input": long})).await;
        let (_, _, code, found) = answer.error();
        assert_eq!((code.as_deref(), found.as_deref()), (Some("context_length_exceeded"), Some("input")));
        let message = answer.json()["error"]["message"].as_str().expect("text").to_owned();
        assert!(message.starts_with("This model's maximum context length is 64 tokens"), "{message}");
    }
}

#[tokio::test]
async fn a_failure_is_the_answer() {
    let lost = GenerateError::WorkerLost { text: "w1 is gone".to_owned() };
    let bench = Bench::new(move |_| vec![GenerateEvent::Failed(lost.clone())]);
    let (status, _, code, _) = embed(&bench, json!({})).await.error();
    assert_eq!((status, code.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("worker_lost")));
    bench.mesh.status.send_replace(Arc::new(mesh_status(MeshState::Waiting)));
    assert_eq!(embed(&bench, json!({})).await.error().2.as_deref(), Some("no_pipeline"));
}

#[tokio::test]
async fn whoever_goes_away_cancels() {
    let mut bench = Bench::new(|_| vec![GenerateEvent::Prefilled { cached_tokens: 0 }]);
    {
        let asked = embed(&bench, json!({}));
        tokio::pin!(asked);
        let waited = tokio::time::timeout(std::time::Duration::from_millis(50), asked.as_mut()).await;
        assert!(waited.is_err(), "nothing comes");
    }
    bench.mesh.cancelled().await;
}

#[tokio::test]
async fn ollama_has_two_ways() {
    let bench = Bench::new(pooled);
    let post = async |path, body: Value| bench.post(path, body.to_string()).await;
    let answer = post("/api/embed", json!({"model": "made-up:latest", "input": ["b", "bc"], "truncate": true})).await;
    let answer = answer.json();
    assert_eq!((&answer["model"], &answer["prompt_eval_count"]), (&json!("made-up:latest"), &json!(5)));
    let lengths: Vec<_> = answer["embeddings"].as_array().expect("a list").iter().map(|one| one[1].clone()).collect();
    assert_eq!(lengths, [2.0, 3.0]);
    let one =
        post("/api/embed", json!({"model": "made-up", "input": "b", "dimensions": 1, "options": {"num_ctx": 9}})).await;
    assert_eq!(one.json()["embeddings"], json!([[1.0]]));
    assert_eq!(post("/api/embed", json!({"input": ""})).await.json()["embeddings"], json!([]));
    let before = post("/api/embeddings", json!({"model": "made-up", "prompt": "bc"})).await.json();
    assert_eq!(before["embedding"][1], 3.0);
    assert_eq!(post("/api/embeddings", json!({"prompt": ""})).await.json(), json!({"embedding": []}));
    let long = post("/api/embed", json!({"input": "a ".repeat(200)})).await;
    let error = long.json()["error"].as_str().expect("text alone").to_owned();
    assert_eq!((long.status, error.contains("maximum context length")), (StatusCode::BAD_REQUEST, true), "{error}");
}
