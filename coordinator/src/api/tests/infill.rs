//! The middle of a text: llama-server's way, OpenAI's `suffix` and Ollama's; and what runs, as llama-server lists it.

use super::*;
use crate::text::fake::infilling;

fn fills() -> Bench {
    Bench::with(hello, |state| state.text = Arc::new(infilling()))
}

/// The ids of what was asked last.
fn asked(bench: &Bench) -> Vec<u32> {
    bench.mesh.seen.lock().expect("no panic holds it").last().expect("a request").ids.clone()
}

/// Token ids by the texts of their tokens.
fn ids(texts: &[&str]) -> Vec<u32> {
    let tokenizer = infilling().tokenizer;
    texts.iter().map(|text| tokenizer.find(text).unwrap_or_else(|| panic!("no token {text}"))).collect()
}

#[tokio::test]
async fn editors_get_the_middle() {
    let bench = fills();
    let post = async |body: Value| bench.post("/infill", body.to_string()).await;
    let body = json!({"input_prefix": "a", "prompt": "b", "input_suffix": "c", "n_predict": 9, "samplers": ["top_k"]});
    let answer = post(body.clone()).await.json();
    assert_eq!(asked(&bench), ids(&["<s>", "<PRE>", "a", "b", "<SUF>", "c", "<MID>"]));
    for (field, value) in [
        ("content", json!("Hello world")),
        ("stop", json!(true)),
        ("stop_type", json!("eos")),
        ("tokens_predicted", json!(3)),
        ("tokens_evaluated", json!(7)),
    ] {
        assert_eq!(answer[field], value, "{field}");
    }
    assert_eq!(bench.mesh.seen.lock().expect("no panic holds it")[0].max_tokens, 9);
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let (events, done) = post(streamed).await.events();
    let text: String = events.iter().map(|event| event["content"].as_str().expect("text")).collect();
    assert_eq!((text.as_str(), done, &events[0]["stop"]), ("Hello world", false, &json!(false)));
    assert_eq!(events.last().expect("an end")["stop"], true);
    let mut few = body;
    few["response_fields"] = json!(["content", "timings/predicted_n", "no/such"]);
    assert_eq!(post(few).await.json(), json!({"content": "Hello world", "timings/predicted_n": 3}));
}

#[tokio::test]
async fn a_prompt_is_computed_ahead_where_nothing_shall_be_generated() {
    let infilling = Bench::with(|_| generation(&[]), |state| state.text = Arc::new(infilling()));
    for (path, body) in [
        ("/infill", json!({"input_prefix": "a", "input_suffix": "c", "n_predict": 0})),
        ("/completion", json!({"prompt": "a", "n_predict": 0, "stream": true})),
        // As many tokens as there are places: nothing would follow anyway.
        ("/completion", json!({"prompt": vec![5; 64], "n_predict": 0})),
    ] {
        let answer = infilling.post(path, body.to_string()).await;
        assert_eq!(answer.status, StatusCode::OK, "{path} {body}: {}", answer.text);
        let whole = if body["stream"] == true { answer.events().0.remove(0) } else { answer.json() };
        assert_eq!(
            (&whole["content"], &whole["stop_type"], &whole["tokens_predicted"]),
            (&json!(""), &json!("limit"), &json!(0))
        );
    }
    assert!(infilling.mesh.seen.lock().expect("no panic holds it").iter().all(|seen| seen.max_tokens == 0));
}

#[tokio::test]
async fn other_files_come_first() {
    let bench = fills();
    let files = json!([{"text": "b", "filename": "x.rs"}]);
    let body = json!({"input_prefix": "a", "input_suffix": "", "input_extra": files});
    assert_eq!(bench.post("/infill", body.to_string()).await.status, StatusCode::OK);
    // This model has no token for files.
    let asked = asked(&bench);
    assert!(asked.len() > 20 && asked.starts_with(&ids(&["<s>"])), "{asked:?}");
    assert!(asked.ends_with(&ids(&["b", "<PRE>", "a", "<SUF>", "<MID>"])), "{asked:?}");
}

#[tokio::test]
async fn a_suffix_is_one_more_way_to_ask() {
    let bench = fills();
    let whole = ids(&["<s>", "<PRE>", "a", "<SUF>", "c", "<MID>"]);
    let answer = bench.complete(json!({"prompt": "a", "suffix": "c"})).await.json();
    assert_eq!((asked(&bench), &answer["choices"][0]["text"]), (whole.clone(), &json!("Hello world")));
    let generate = json!({"model": "made-up", "prompt": "a", "suffix": "c", "stream": false}).to_string();
    assert_eq!(bench.post("/api/generate", generate).await.json()["response"], "Hello world");
    assert_eq!(asked(&bench), whole);
    bench.complete(json!({"prompt": "a", "suffix": ""})).await;
    assert_eq!(asked(&bench), ids(&["<s>", "a"]));
}

#[tokio::test]
async fn what_has_no_middle_is_refused_by_name() {
    let bench = fills();
    for (path, body, param) in [
        ("/infill", json!({"input_suffix": "c"}), "input_prefix"),
        ("/infill", json!({"input_prefix": "a"}), "input_suffix"),
        ("/infill", json!({"input_prefix": "a", "input_suffix": "b", "input_extra": [{}]}), "input_extra[0].text"),
        ("/infill", json!({"input_prefix": "a", "input_suffix": "b", "n_predict": -3}), "n_predict"),
        ("/infill", json!({"input_prefix": "a".repeat(90), "input_suffix": "b"}), "input_prefix"),
        ("/v1/completions", json!({"prompt": "a", "suffix": "c", "echo": true}), "suffix"),
        ("/v1/completions", json!({"prompt": [5], "suffix": "c"}), "suffix"),
        ("/v1/completions", json!({"prompt": "a", "suffix": 3}), "suffix"),
    ] {
        let (status, _, _, found) = bench.post(path, body.to_string()).await.error();
        assert_eq!((status, found.as_deref()), (StatusCode::BAD_REQUEST, Some(param)), "{path} {body}");
    }
    let plain = Bench::new(hello);
    let (status, _, _, param) = plain.complete(json!({"prompt": "a", "suffix": "c"})).await.error();
    assert_eq!((status, param.as_deref()), (StatusCode::BAD_REQUEST, Some("suffix")));
}

#[tokio::test]
async fn slots_show_what_runs_and_nothing_of_what_is_said() {
    let bench = Bench::new(hello);
    let slots = bench.get("/slots").await.json();
    let slots = slots.as_array().expect("a list");
    // Room for four sessions of 64 positions; one of two sequences runs.
    assert_eq!(slots.len(), 4);
    assert_eq!(
        (&slots[0]["id"], &slots[0]["is_processing"], &slots[0]["id_task"]),
        (&json!(0), &json!(true), &json!(7))
    );
    assert_eq!((&slots[0]["n_prompt_tokens"], &slots[0]["n_prompt_tokens_cache"]), (&json!(10), &json!(4)));
    assert_eq!(slots[0]["n_prompt_tokens_processed"], 6);
    assert_eq!(slots[0]["next_token"], json!([{"has_next_token": true, "n_remain": 3, "n_decoded": 2}]));
    assert!(slots[0].get("prompt").is_none());
    assert_eq!(
        (&slots[3]["id"], &slots[3]["is_processing"], &slots[3]["n_ctx"]),
        (&json!(3), &json!(false), &json!(64))
    );
    assert_eq!(bench.get("/slots?fail_on_no_slot=1").await.status, StatusCode::OK);
}
