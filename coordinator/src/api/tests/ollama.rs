//! Ollama's API.

use super::{
    calls::{CALL_TEXT, is_id, prompts, templated, writes},
    thoughts::{TEXT, thinks},
    *,
};
use crate::{
    generate::GenerateError,
    mesh::status::MeshState,
    text::{
        ModelFacts, TextModel,
        fake::{infilling, mesh_status, row, written},
    },
};

async fn chat(bench: &Bench, more: Value) -> Answer {
    bench.post("/api/chat", chat_body(more).to_string()).await
}

async fn generate(bench: &Bench, more: Value) -> Answer {
    let mut body = json!({"model": "made-up:latest", "prompt": "x"});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    bench.post("/api/generate", body.to_string()).await
}

/// The objects of a stream, of which the last one alone is done.
fn lines(answer: &Answer) -> Vec<Value> {
    let lines: Vec<Value> =
        answer.text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
    let done: Vec<_> = lines.iter().map(|line| line["done"] == true).collect();
    assert_eq!(done.iter().position(|done| *done), Some(lines.len() - 1));
    lines
}

fn tool() -> Value {
    let function = json!({"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}});
    json!({"tools": [{"type": "function", "function": function}]})
}

#[tokio::test]
async fn a_chat_is_streamed_unless_it_shall_not_be() {
    let bench = Bench::new(hello);
    let answer = chat(&bench, json!({})).await;
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let lines = lines(&answer);
    let messages: Vec<_> = lines.iter().map(|line| line["message"]["content"].as_str().expect("text")).collect();
    assert_eq!(messages, ["Hello", " world", ""]);
    assert!(lines[0]["created_at"].as_str().is_some_and(|stamp| stamp.starts_with("20") && stamp.ends_with('Z')));
    let last = lines.last().expect("lines");
    for (field, value) in [
        ("model", json!("made-up")),
        ("done_reason", json!("stop")),
        ("prompt_eval_count", json!(5)),
        ("eval_count", json!(3)),
        ("prompt_eval_duration", json!(1_000_000)),
        ("eval_duration", json!(2_000_000)),
    ] {
        assert_eq!(last[field], value, "{field}");
    }
    assert!(last["total_duration"].is_u64());
    let whole = chat(&bench, json!({"stream": false})).await.json();
    assert_eq!(
        (&whole["message"], &whole["done"]),
        (&json!({"role": "assistant", "content": "Hello world"}), &json!(true))
    );
}

#[tokio::test]
async fn a_prompt_is_answered_or_goes_on() {
    let bench = Bench::new(hello);
    let whole = generate(&bench, json!({"stream": false, "system": "s"})).await.json();
    assert_eq!((&whole["response"], &whole["model"]), (&json!("Hello world"), &json!("made-up:latest")));
    let raw = lines(&generate(&bench, json!({"raw": true})).await);
    assert_eq!(raw.iter().filter_map(|line| line["response"].as_str()).collect::<String>(), "Hello world");
    assert_eq!(prompts(&bench), ["s:s\nu:x\n", "x"]);
    for (answer, field) in [
        (generate(&bench, json!({"prompt": "", "keep_alive": 0})).await, "response"),
        (chat(&bench, json!({"messages": []})).await, "message"),
    ] {
        let loaded = answer.json();
        assert_eq!((&loaded["done"], &loaded["done_reason"]), (&json!(true), &json!("load")));
        assert!(loaded.get(field).is_some());
    }
}

#[tokio::test]
async fn options_are_parameters() {
    let bench = Bench::new(hello);
    let all = json!({
        "temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125, "seed": 7, "num_predict": 9, "stop": ["b"],
        "repeat_penalty": 1.5, "repeat_last_n": 8, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "num_ctx": 32, "num_keep": 4, "num_gpu": 1,
    });
    for options in [all, json!({}), json!({"num_predict": -1, "num_ctx": 1_000_000})] {
        assert_eq!(chat(&bench, json!({"options": options, "keep_alive": "5m"})).await.status, StatusCode::OK);
    }
    let seen = bench.mesh.seen.lock().expect("no panic holds it");
    let sampling = &seen[0].sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p), (0.5, 3, 0.25, 0.125));
    assert_eq!((sampling.seed, sampling.repeat_penalty, sampling.penalty_window), (7, 1.5, 8));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty, seen[0].max_tokens), (0.5, 0.25, 9));
    let sampling = &seen[1].sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (0.8, 40, 0.9), "Ollama's defaults");
    assert_eq!(seen[2].max_tokens, 64 - 5);
}

#[tokio::test]
async fn calls_have_objects_for_arguments() {
    let text = format!("I look.{CALL_TEXT}{CALL_TEXT}");
    let mut whole = tool();
    whole["stream"] = json!(false);
    let object = chat(&writes(&text), whole).await.json();
    let calls = &object["message"]["tool_calls"];
    assert_eq!((&object["message"]["content"], calls.as_array().map(Vec::len)), (&json!("I look."), Some(2)));
    assert!(is_id(&calls[0]["id"]));
    assert_eq!(calls[0]["function"], json!({"name": "weather", "arguments": {"city": "Rome"}}));
    assert_eq!(object["done_reason"], "stop");
    let lines = lines(&chat(&writes(&text), tool()).await);
    let called: Vec<_> = lines.iter().filter(|line| line["message"].get("tool_calls").is_some()).collect();
    assert_eq!(called.len(), 2);
    assert_eq!(called[1]["message"]["tool_calls"][0]["function"]["arguments"], json!({"city": "Rome"}));
    let cut = written("<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Ro");
    let mut whole = tool();
    whole["stream"] = json!(false);
    let object = chat(&Bench::new(move |_| generation(&cut)), whole).await.json();
    assert_eq!((object["message"].get("tool_calls"), &object["done_reason"]), (None, &json!("length")));
}

#[tokio::test]
async fn thoughts_come_apart() {
    let whole = chat(&thinks(TEXT), json!({"stream": false})).await.json();
    assert_eq!(whole["message"], json!({"role": "assistant", "content": "Two.", "thinking": "One and one?"}));
    let lines = lines(&chat(&thinks(TEXT), json!({"think": true})).await);
    assert!(lines.iter().any(|line| line["message"].get("thinking").is_some()));
    let whole = chat(&thinks(TEXT), json!({"stream": false, "think": false})).await.json();
    assert_eq!(whole["message"], json!({"role": "assistant", "content": "Two."}));
    let whole = generate(&thinks(TEXT), json!({"stream": false})).await.json();
    assert_eq!((&whole["response"], &whole["thinking"]), (&json!("Two."), &json!("One and one?")));
    let begun = thinks("One and one?\n</think>\n\nTwo.");
    let whole = chat(&begun, json!({"stream": false, "think": "low"})).await.json();
    assert_eq!(whole["message"]["thinking"], "One and one?");
    assert!(prompts(&begun)[0].starts_with("xlow"));
}

#[tokio::test]
async fn answers_are_held_to_forms() {
    let bench = Bench::new(hello);
    for format in [json!("json"), json!({"type": "object", "properties": {"a": {"type": "string"}}})] {
        assert_eq!(chat(&bench, json!({"format": format})).await.status, StatusCode::OK, "{format}");
        assert_eq!(generate(&bench, json!({"format": format})).await.status, StatusCode::OK, "{format}");
        assert_eq!(generate(&bench, json!({"format": format, "raw": true})).await.status, StatusCode::OK, "{format}");
    }
    assert_eq!(chat(&bench, json!({"guided_choice": ["a", "b"]})).await.status, StatusCode::OK);
    assert!(bench.mesh.seen.lock().expect("no panic holds it").iter().all(|seen| seen.grammar.is_some()));
    assert_eq!(chat(&bench, json!({"format": ""})).await.status, StatusCode::OK);
    assert!(bench.mesh.seen.lock().expect("no panic holds it").last().is_some_and(|seen| seen.grammar.is_none()));
}

#[tokio::test]
async fn a_conversation_becomes_messages() {
    let source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.reasoning_content %}\
                  ({{ m.reasoning_content }}){% endif %}{% for c in m.tool_calls or [] %}\
                  <{{ c.id }} {{ c.function.name }} {{ c.function.arguments.city }}>{% endfor %}\
                  {{ m.tool_call_id }}\n{% endfor %}{{ tools|length }}";
    let bench = Bench::with(hello, |state| state.text = Arc::new(templated(source)));
    let call = |city: &str| json!({"function": {"name": "weather", "arguments": {"city": city}}});
    let mut request = tool();
    request["messages"] = json!([
        {"role": "system", "content": "s"},
        {"role": "user", "content": "x", "images": []},
        {"role": "assistant", "content": "I look.", "thinking": "hm", "tool_calls": [call("Rome"), call("Bonn")]},
        {"role": "tool", "content": "rain", "tool_name": "weather"},
        {"role": "tool", "content": "sun"},
    ]);
    let answer = chat(&bench, request).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let prompt = "[system] s\n[user] x\n[assistant] I look.(hm)<call_0 weather Rome><call_1 weather Bonn>\n\
                  [tool] raincall_0\n[tool] suncall_1\n1";
    assert_eq!(prompts(&bench), [prompt]);
}

#[tokio::test]
async fn what_is_wrong_is_told_in_ollamas_way() {
    let bench = Bench::new(hello);
    let message = |message: Value| json!({"messages": [message]});
    for (more, said) in [
        (json!({"format": "xml"}), "'format'"),
        (json!({"format": "json", "guided_regex": "a"}), "'format'"),
        (json!({"logprobs": true}), "'logprobs'"),
        (json!({"temperature": 0}), "'options'"),
        (json!({"max_tokens": 3}), "'num_predict' in 'options'"),
        (json!({"suffix": "b"}), "'suffix'"),
        (json!({"tool_choice": "all"}), "'tool_choice'"),
        (json!({"think": "deep"}), "'think'"),
        (json!({"options": {"temperature": 5}}), "'temperature'"),
        (json!({"options": {"num_predict": 0}}), "'num_predict'"),
        (json!({"options": {"num_ctx": 0}}), "'num_ctx'"),
        (json!({"options": {"mirostat": 1}}), "'mirostat'"),
        (json!({"options": {"stop": [""]}}), "'stop'"),
        (json!({"options": {"seed": "a"}}), "'seed'"),
        (json!({"options": []}), "'options'"),
        (message(json!({"role": "user", "content": "x", "images": ["aGk="]})), "'images'"),
        (message(json!({"role": "king", "content": "x"})), "'role'"),
        (message(json!({"role": "assistant", "content": ""})), "assistant's"),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "'name'"),
    ] {
        let answer = chat(&bench, more.clone()).await;
        let text = answer.json()["error"].as_str().expect("a text").to_owned();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{more}: {text}");
        assert!(text.contains(said), "{more}: {text}");
    }
    for (name, value) in [
        ("suffix", json!("b")),
        ("template", json!("{{ .Prompt }}")),
        ("images", json!(["aGk="])),
        ("context", json!([1, 2])),
    ] {
        let answer = generate(&bench, json!({name: value})).await;
        assert!(answer.json()["error"].as_str().is_some_and(|text| text.contains(name)), "{}", answer.text);
    }
    assert_eq!(generate(&bench, json!({"raw": true, "system": "s"})).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(chat(&bench, json!({"model": "other"})).await.status, StatusCode::NOT_FOUND);
    assert!(bench.post("/api/pull", "{}").await.json()["error"].is_string());
    let lost = || GenerateEvent::Failed(GenerateError::WorkerLost { text: "worker b is gone".to_owned() });
    let failing = Bench::new(move |_| vec![GenerateEvent::Token(row(word("Hello"))), lost()]);
    let answer = chat(&failing, json!({})).await;
    let last = answer.text.lines().last().expect("lines");
    assert!(last.starts_with("{\"error\":") && last.contains("worker b is gone"), "{last}");
}

#[tokio::test]
async fn the_model_is_told_of() {
    let bench = Bench::new(hello);
    let names = |object: &Value| {
        let models = object["models"].as_array().expect("a list").iter();
        models.map(|model| model["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&bench.get("/api/tags").await.json()), ["made-up:latest", "alias:latest"]);
    assert_eq!(bench.get("/api/ps").await.json()["models"][0]["context_length"], 64);
    for path in ["/api/tags", "/api/ps"] {
        let listed = bench.get(path).await.json()["models"][0].clone();
        assert_eq!(listed["digest"], "5a".repeat(32), "{path}");
        let details = json!({
            "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
            "parameter_size": "134.52M", "quantization_level": "Q8_0",
        });
        assert_eq!(listed["details"], details, "{path}");
    }
    bench.mesh.status.send_replace(Arc::new(mesh_status(MeshState::Loading)));
    assert_eq!(bench.get("/api/ps").await.json(), json!({"models": []}));
    assert!(bench.get("/api/version").await.json()["version"].is_string());
    for body in [json!({"model": "made-up:latest"}), json!({"name": "alias", "verbose": true})] {
        let shown = bench.post("/api/show", body.to_string()).await.json();
        assert_eq!(shown["model_info"]["general.architecture"], "llama");
        assert_eq!(shown["model_info"]["llama.context_length"], 64);
        assert_eq!(shown["model_info"]["llama.embedding_length"], 4);
        assert_eq!(shown["model_info"]["general.parameter_count"], 134_515_008);
        assert_eq!(
            (&shown["capabilities"], &shown["details"]["family"]),
            (&json!(["completion", "tools"]), &json!("llama"))
        );
    }
    let shown = thinks("x").post("/api/show", json!({"model": "made-up"}).to_string()).await.json();
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
    let model = infilling();
    let facts = Arc::new(ModelFacts { for_vectors: true, ..ModelFacts::clone(&model.facts) });
    let fills = Bench::with(hello, |state| state.text = Arc::new(TextModel { facts, ..model }));
    let shown = fills.post("/api/show", json!({"model": "made-up"}).to_string()).await.json();
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "insert", "embedding"]));
    assert_eq!(bench.post("/api/show", json!({"model": "other"}).to_string()).await.status, StatusCode::NOT_FOUND);
}
