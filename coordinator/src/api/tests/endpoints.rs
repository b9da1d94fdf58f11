//! What is asked beside completions: the page, metrics, tokens, the end of a request.

use axum::http::{StatusCode, header};
use serde_json::json;

use super::*;
use crate::{
    api::NamedKeys,
    mesh::status::{MeshState, MeshStatus},
    text::fake::mesh_status,
};

fn request(path: &str, headers: &[(header::HeaderName, &str)]) -> Request<Body> {
    let builder = headers.iter().fold(Request::get(path), |builder, (name, value)| builder.header(name, *value));
    builder.body(Body::empty()).expect("a request")
}

#[tokio::test]
async fn browsers_get_the_page_without_a_key_and_learn_nothing_from_it() {
    let key = "open sesame";
    let bench = Bench::with(hello, |state| state.api_key = Some(key.parse().expect("a key")));
    let page = bench.ask(request("/", &[(header::ACCEPT, "text/html,*/*;q=0.8")])).await;
    assert_eq!((page.status, page.text.starts_with("<!doctype html>")), (StatusCode::OK, true));
    assert_eq!(page.headers[header::CONTENT_SECURITY_POLICY], "frame-ancestors 'none'");
    assert!(page.text.contains("default-src 'none'"));
    assert!(!page.text.contains("made-up"), "the model's name is the API's to tell");
    for closed in [request("/", &[]), request("/api/status", &[(header::ACCEPT, "text/html")])] {
        assert_eq!(bench.ask(closed).await.status, StatusCode::UNAUTHORIZED);
    }
    let bearer = format!("Bearer {key}");
    let index = bench.ask(request("/", &[(header::AUTHORIZATION, &bearer)])).await;
    assert!(index.text.contains("serves made-up") && index.text.contains("/metrics"), "{}", index.text);
}

#[tokio::test]
async fn the_model_has_all_its_names_and_answers_to_others_where_it_shall() {
    let bench = Bench::new(hello);
    let ids =
        |list: &Value| list["data"].as_array().map(|all| all.iter().map(|one| one["id"].clone()).collect::<Vec<_>>());
    assert_eq!(ids(&bench.get("/v1/models").await.json()), Some(vec![json!("made-up"), json!("alias")]));
    assert_eq!(bench.chat(json!({"model": "gpt-4o"})).await.status, StatusCode::NOT_FOUND);
    let open = Bench::with(hello, |state| state.any_name = true);
    assert_eq!(open.chat(json!({"model": "gpt-4o"})).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_key_is_shown_in_either_way() {
    let bench = Bench::with(hello, |state| state.api_key = Some("sesame".parse().expect("a key")));
    let name = header::HeaderName::from_static("x-api-key");
    let status = async |key| bench.ask(request("/v1/models", &[(name.clone(), key)])).await.status;
    assert_eq!((status("sesame").await, status("wrong").await), (StatusCode::OK, StatusCode::UNAUTHORIZED));
}

#[tokio::test]
async fn a_key_with_a_name_tells_who_asks() {
    let keys = "anna:sesame-1\nbuild:sesame-2";
    let bench = Bench::with(hello, |state| {
        state.api_key = Some("sesame".parse().expect("a key"));
        state.named_keys = NamedKeys::parse(keys).expect("two keys");
    });
    let ask = async |key: &str, user: &str| {
        let body = chat_body(json!({"user": user})).to_string();
        let bearer = format!("Bearer {key}");
        let request = Request::post("/v1/chat/completions").header(header::AUTHORIZATION, bearer);
        bench.ask(request.body(body.into()).expect("a request")).await.status
    };
    for (key, user) in [("sesame-1", "a"), ("sesame-2", "a"), ("sesame", "a"), ("sesame-1", "a"), ("sesame-1", "b")] {
        assert_eq!(ask(key, user).await, StatusCode::OK, "{key}");
    }
    for wrong in ["sesame-3", "anna", "anna:sesame-1", ""] {
        assert_eq!(ask(wrong, "a").await, StatusCode::UNAUTHORIZED, "{wrong}");
    }
    let seen = bench.mesh.seen.lock().expect("no panic holds it").clone();
    let names: Vec<_> = seen.iter().map(|asked| asked.key.as_deref()).collect();
    assert_eq!(names, [Some("anna"), Some("build"), None, Some("anna"), Some("anna")]);
    let clients: Vec<_> = seen.iter().map(|asked| asked.client).collect();
    assert!(
        clients[0] == clients[3] && clients[0] != clients[1] && clients[0] != clients[4] && clients[1] != clients[2]
    );
}

#[tokio::test]
async fn keys_with_names_alone_are_wanted_too() {
    let bench = Bench::with(hello, |state| state.named_keys = NamedKeys::parse("anna:sesame").expect("a key"));
    let name = header::HeaderName::from_static("x-api-key");
    let status = async |key| bench.ask(request("/v1/models", &[(name.clone(), key)])).await.status;
    assert_eq!((status("sesame").await, status("wrong").await), (StatusCode::OK, StatusCode::UNAUTHORIZED));
    assert_eq!(bench.get("/v1/models").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_request_is_cancelled_by_its_number() {
    let bench = Bench::new(hello);
    let cancelled = bench.post("/api/requests/1/cancel", "").await;
    assert_eq!((cancelled.status, cancelled.json()), (StatusCode::OK, json!({"request": 1, "cancelled": true})));
    for unknown in ["/api/requests/2/cancel", "/api/requests/x/cancel", "/api/requests/-1/cancel"] {
        assert_eq!(bench.post(unknown, "").await.error().0, StatusCode::NOT_FOUND, "{unknown}");
    }
}

#[tokio::test]
async fn metrics_count_what_was_answered_under_both_names() {
    let bench = Bench::new(hello);
    bench.chat(json!({})).await;
    bench.chat(json!({"stream": true})).await;
    let metrics = bench.ask(request("/metrics", &[(header::ACCEPT, "application/openmetrics-text")])).await;
    assert!(metrics.headers[header::CONTENT_TYPE].to_str().expect("text").contains("openmetrics"));
    assert!(metrics.headers.contains_key("process-start-time-unix"));
    for line in [
        "qmesh_ready 1.0",
        "qmesh_time_to_first_token_seconds_count 2",
        "vllm:time_to_first_token_seconds_count{model_name=\"made-up\"} 2",
        "qmesh_requests_ended_total{finished_reason=\"stop\"} 2",
        "vllm:request_success_total{model_name=\"made-up\",finished_reason=\"stop\"} 2",
        "vllm:num_requests_running{model_name=\"made-up\"} 0.0",
        "vllm:request_prefill_time_seconds_count{model_name=\"made-up\"} 2",
        "vllm:request_decode_time_seconds_count{model_name=\"made-up\"} 2",
        "qmesh_request_decode_seconds_sum 0.004",
        "# TYPE vllm:inter_token_latency_seconds histogram",
        "qmesh_prompt_tokens_total 0",
        "# TYPE llamacpp:tokens_predicted counter",
        "llamacpp:tokens_predicted_total 6",
        "llamacpp:prompt_tokens_total 10",
        "# EOF",
    ] {
        assert!(metrics.text.lines().any(|said| said == line), "{line} is not in\n{}", metrics.text);
    }
    // Two answers of three tokens, of which each took 2 ms after the first.
    let line =
        metrics.text.lines().find(|line| line.starts_with("llamacpp:predicted_tokens_seconds ")).expect("a line");
    let rate: f64 = line.rsplit(' ').next().and_then(|rate| rate.parse().ok()).expect("a number");
    assert!((rate - 1000.0).abs() < 1.0, "{line}");
    let older = bench.get("/metrics").await;
    assert!(older.headers[header::CONTENT_TYPE].to_str().expect("text").starts_with("text/plain"));
    assert!(older.text.contains("# TYPE llamacpp:tokens_predicted_total counter\n") && !older.text.contains("# EOF"));
}

#[tokio::test]
async fn metrics_tell_waiting_from_reading_and_from_the_time_between_tokens() {
    let script = |request: &GenerateRequest| {
        [GenerateEvent::Prefilled { cached_tokens: 0 }].into_iter().chain(hello(request)).collect()
    };
    let bench = Bench::new(script);
    bench.chat(json!({})).await;
    let metrics = bench.get("/metrics").await.text;
    for (own, vllm) in [
        ("request_queue", "request_queue_time"),
        ("request_prefill", "request_prefill_time"),
        ("request_decode", "request_decode_time"),
        ("inter_token", "inter_token_latency"),
    ] {
        for line in
            [format!("qmesh_{own}_seconds_count 1"), format!("vllm:{vllm}_seconds_count{{model_name=\"made-up\"}} 1")]
        {
            assert!(metrics.lines().any(|said| said == line), "{line} is not in\n{metrics}");
        }
    }
    assert!(metrics.lines().any(|line| line == "qmesh_request_prefill_seconds_sum 0.001"), "{metrics}");
}

#[tokio::test]
async fn metrics_have_a_stages_kv_cache_and_its_times_once_it_has_any() {
    let bench = Bench::new(hello);
    let stage = |number: usize, recent: Value| {
        let stage = json!({
            "stage": number, "worker": format!("w{number}"), "first_layer": number, "end_layer": number + 1,
            "weight_bytes": 1, "planned_bytes": 2, "kv_bytes": 2048, "kv_bytes_used": 512 * number, "peak_bytes": 3, "phase": "ready", "bytes_done": 1, "bytes_total": 1,
            "steps": 4, "compute_ms": 2.0, "recent": recent, "hop_ms": 0.5
        });
        serde_json::from_value(stage).expect("a stage")
    };
    let measured = stage(0, json!({"count": 4, "p50_ms": 1.5, "p95_ms": 6.0}));
    let stages = vec![measured, stage(1, Value::Null)];
    bench.mesh.status.send_replace(Arc::new(MeshStatus { stages, ..mesh_status(MeshState::Ready) }));
    let metrics = bench.get("/metrics").await;
    let lines: Vec<_> = metrics.text.lines().filter(|line| line.starts_with("qmesh_stage_compute_")).collect();
    let labels = |number: usize| format!("{{stage=\"{number}\",worker=\"w{number}\"}}");
    let expected = [("mean", 0, "0.002"), ("mean", 1, "0.002"), ("p50", 0, "0.0015"), ("p95", 0, "0.006")];
    let expected = expected.map(|(name, stage, s)| format!("qmesh_stage_compute_{name}_seconds{} {s}", labels(stage)));
    assert_eq!(lines, expected);
    let lines: Vec<_> = metrics.text.lines().filter(|line| line.starts_with("qmesh_stage_kv_")).collect();
    let expected =
        [("bytes", 0, "2048.0"), ("bytes", 1, "2048.0"), ("used_bytes", 0, "0.0"), ("used_bytes", 1, "512.0")];
    assert_eq!(lines, expected.map(|(name, stage, bytes)| format!("qmesh_stage_kv_{name}{} {bytes}", labels(stage))));
    let status = bench.get("/api/status").await.json();
    assert_eq!(status["stages"][1]["kv_bytes_used"], 512);
    assert_eq!(status["stages"][0]["recent"], json!({"count": 4, "p50_ms": 1.5, "p95_ms": 6.0}));
}

#[tokio::test]
async fn texts_become_tokens_and_back() {
    let bench = Bench::new(hello);
    let post = async |path, body: Value| bench.post(path, body.to_string()).await;
    let tokens = post("/tokenize", json!({"content": "Hello world"})).await.json()["tokens"].clone();
    assert!(tokens.as_array().is_some_and(|tokens| !tokens.is_empty()), "{tokens}");
    assert_eq!(post("/tokenize", json!({"prompt": "Hello world", "model": "alias"})).await.json()["tokens"], tokens);
    let text = post("/detokenize", json!({"tokens": tokens})).await.json()["content"].clone();
    assert_eq!(text.as_str().map(str::trim_start), Some("Hello world"));
    let pieces = post("/tokenize", json!({"content": "Hello world", "with_pieces": true})).await.json();
    assert_eq!(pieces["tokens"][0]["id"], tokens[0]);
    for (path, body, param) in [
        ("/tokenize", json!({}), "content"),
        ("/tokenize", json!({"content": 1}), "content"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [0, 1_000_000]}), "tokens[1]"),
        ("/tokenize", json!({"content": "x", "model": "other"}), "model"),
    ] {
        let (_, _, _, found) = post(path, body.clone()).await.error();
        assert_eq!(found.as_deref(), Some(param), "{path} {body}");
    }
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "f"}}]});
    let counted = post("/tokenize", chat.clone()).await.json();
    assert_eq!(bench.chat(chat).await.status, StatusCode::OK);
    let asked = bench.mesh.seen.lock().expect("no panic holds it")[0].ids.clone();
    assert_eq!((&counted["tokens"], &counted["count"]), (&json!(asked), &json!(asked.len())));
    assert_eq!(
        post("/tokenize", json!({"messages": [{"role": "king"}]})).await.error().3.as_deref(),
        Some("messages[0].role")
    );
    let props = bench.get("/props").await.json();
    assert_eq!((&props["model_path"], &props["modalities"]["vision"]), (&json!("made-up"), &json!(false)));
    assert!(props["chat_template"].as_str().is_some_and(|template| template.contains("messages")), "{props}");
    assert!(props["build_info"].as_str().is_some_and(|build| build.starts_with("b0.")), "{props}");
    assert_eq!(bench.get("/version").await.json(), json!({"version": env!("CARGO_PKG_VERSION")}));
    assert!(props["default_generation_settings"]["n_ctx"].as_u64().is_some_and(|context| context > 0), "{props}");
}
