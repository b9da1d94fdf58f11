//! What is wrong with a request, and how it is told: API-01 to API-16 as tables.

use super::*;

/// Status, code and parameter of the answer.
type Outcome = (u16, Option<String>, Option<String>);

fn bad(param: &str) -> Outcome {
    (400, None, Some(param.to_owned()))
}

fn good() -> Outcome {
    (200, None, None)
}

fn refused(param: &str) -> Outcome {
    (400, Some("unsupported_parameter".to_owned()), Some(param.to_owned()))
}

fn outcome(answer: &Answer) -> Outcome {
    if answer.status == StatusCode::OK {
        return good();
    }
    let (status, _, code, param) = answer.error();
    (status.as_u16(), code, param)
}

#[tokio::test]
async fn bodies_that_are_no_request() {
    let bench = Bench::new(hello);
    let deep = format!(r#"{{"messages": [{{"role": "user", "content": "x", "tool_calls": {}"#, "[".repeat(10_000));
    let ignored = format!(
        r#"{{"what": {}{}, "messages": [{{"role": "user", "content": "x"}}]}}"#,
        "[".repeat(120),
        "]".repeat(120)
    );
    for path in ["/v1/chat/completions", "/v1/completions"] {
        for body in [
            "",
            "{",
            "nonsense",
            "[]",
            "5",
            "\u{FEFF}{}",
            "{\"model\": \"made\0up\"}",
            r#"{"temperature": NaN}"#,
            "{} {}",
            &deep,
        ] {
            let answer = bench.post(path, body.to_owned()).await;
            assert_eq!(
                (answer.status, answer.error().1.as_str()),
                (StatusCode::BAD_REQUEST, "invalid_request_error"),
                "{body:.40}"
            );
        }
    }
    assert_eq!(bench.post("/v1/chat/completions", ignored).await.status, StatusCode::OK);
    let twice = r#"{"seed": 1, "seed": 2, "messages": [{"role": "user", "content": "x"}]}"#;
    assert_eq!(bench.post("/v1/chat/completions", twice).await.status, StatusCode::BAD_REQUEST);
    let large = bench.post("/v1/chat/completions", vec![b' '; (8 << 20) + 1]).await;
    assert_eq!((large.status, large.error().1.as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"));
    // Whatever the content type says: curl's default is that of a form.
    let form = Request::post("/v1/chat/completions").header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(
        bench.ask(form.body(chat_body(json!({})).to_string().into()).expect("a request")).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn shared_parameters() {
    let bench = Bench::new(hello);
    let table = [
        (json!({"max_tokens": 0}), bad("max_tokens")),
        (json!({"max_tokens": -1}), bad("max_tokens")),
        (json!({"max_tokens": 1.5}), bad("max_tokens")),
        (json!({"max_tokens": "5"}), bad("max_tokens")),
        (json!({"max_completion_tokens": 0}), bad("max_completion_tokens")),
        (json!({"max_tokens": null}), good()),
        (json!({"max_tokens": 1_000_000_000_000_u64}), good()),
        (json!({"temperature": -1}), bad("temperature")),
        (json!({"temperature": 2.1}), bad("temperature")),
        (json!({"temperature": 1e308}), bad("temperature")),
        (json!({"temperature": "NaN"}), bad("temperature")),
        (json!({"temperature": 0}), good()),
        (json!({"top_p": 2}), bad("top_p")),
        (json!({"top_p": -0.1}), bad("top_p")),
        (json!({"top_p": 0}), good()),
        (json!({"top_k": -2}), bad("top_k")),
        (json!({"top_k": -1}), good()),
        (json!({"min_p": 1.5}), bad("min_p")),
        (json!({"repeat_penalty": 0}), bad("repeat_penalty")),
        (json!({"frequency_penalty": 100}), bad("frequency_penalty")),
        (json!({"presence_penalty": -100}), bad("presence_penalty")),
        (json!({"n": 0}), bad("n")),
        (json!({"n": 128}), bad("n")),
        (json!({"n": 1_000_000}), bad("n")),
        (json!({"seed": -5}), good()),
        (json!({"seed": 9_223_372_036_854_775_808_u64}), bad("seed")),
        (json!({"seed": 1.5}), bad("seed")),
        (json!({"logit_bias": {"9999": 1}}), bad("logit_bias")),
        (json!({"logit_bias": {"Hello": 1}}), bad("logit_bias")),
        (json!({"logit_bias": {"5": 200}}), bad("logit_bias")),
        (json!({"logit_bias": {"5": 100}}), good()),
        (json!({"stop": vec!["x"; 17]}), bad("stop")),
        (json!({"stop": [""]}), bad("stop")),
        (json!({"stop": [1]}), bad("stop[0]")),
        (json!({"stop": null}), good()),
        (json!({"stream_options": {"include_usage": true}}), bad("stream_options")),
        (json!({"stream": "yes"}), bad("stream")),
        (json!({"response_format": {"type": "json_schema"}}), refused("response_format")),
        (json!({"best_of": 2}), refused("best_of")),
        (json!({"some_new_field": {"a": [1, 2]}}), good()),
    ];
    for (more, expected) in table {
        assert_eq!(outcome(&bench.chat(more.clone()).await), expected, "chat {more}");
        let mut body = more.clone();
        body["prompt"] = json!("a");
        assert_eq!(outcome(&bench.complete(body).await), expected, "completion {more}");
    }
    let biases: serde_json::Map<_, _> = (0..100_000).map(|id| (id.to_string(), json!(0))).collect();
    assert_eq!(outcome(&bench.chat(json!({"logit_bias": biases})).await), bad("logit_bias"));
    bench.chat(json!({"max_tokens": 3, "max_completion_tokens": 7})).await;
    assert_eq!(bench.mesh.seen.lock().expect("no panic holds it").last().map(|seen| seen.max_tokens), Some(7));
}

#[tokio::test]
async fn chats() {
    let bench = Bench::new(hello);
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "description": "\u{1b}[31m\"'}}"}});
    let overflow = (400, Some("context_length_exceeded".to_owned()), Some("messages".to_owned()));
    let table = [
        (json!({"messages": []}), bad("messages")),
        (json!({"messages": null}), bad("messages")),
        (json!({"messages": "x"}), bad("messages")),
        (json!({"messages": [{"role": "king", "content": "x"}]}), bad("messages[0].role")),
        (json!({"messages": [{"role": "user"}]}), bad("messages[0].content")),
        (json!({"messages": [{"role": "developer", "content": "x"}]}), good()),
        (json!({"messages": [{"role": "tool", "content": "y", "tool_call_id": "1"}]}), good()),
        (json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [{}]}]}), good()),
        (user(json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])), good()),
        (
            user(json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}])),
            bad("messages[0].content[1].type"),
        ),
        (user(json!([{"type": "text"}])), bad("messages[0].content[0].text")),
        (user(json!(5)), bad("messages[0].content")),
        (user(json!("")), good()),
        (user(json!("clown")), bad("messages")),
        (json!({"chat_template_kwargs": {"mood": "x".repeat(64)}}), overflow.clone()),
        (json!({"chat_template_kwargs": []}), bad("chat_template_kwargs")),
        (user(json!("x".repeat(64))), overflow),
        (json!({"logprobs": true, "top_logprobs": 0}), good()),
        (json!({"logprobs": true, "top_logprobs": 20}), good()),
        (json!({"logprobs": true, "top_logprobs": 21}), bad("top_logprobs")),
        (json!({"top_logprobs": 1}), bad("top_logprobs")),
        (json!({"logprobs": 5}), bad("logprobs")),
        (json!({"tools": [tool("f")]}), good()),
        (json!({"tools": [tool("f")], "tool_choice": "none"}), good()),
        (json!({"tools": [tool("f")], "tool_choice": "required"}), refused("tool_choice")),
        (json!({"tools": [tool("f")], "tool_choice": {"type": "function"}}), refused("tool_choice")),
        (json!({"tools": [{"type": "function", "function": {}}]}), bad("tools[0].function.name")),
        (json!({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}), bad("tools[0].type")),
        (json!({"tools": [{"type": "function"}]}), bad("tools[0]")),
        (json!({"tools": vec![tool("f"); 1000]}), bad("tools")),
        (json!({"functions": [{"name": "f"}]}), refused("functions")),
    ];
    for (more, expected) in table {
        assert_eq!(outcome(&bench.chat(more.clone()).await), expected, "{more}");
    }
    let (answer, text) = (bench.chat(user(json!("x".repeat(64)))).await, "holds 64 tokens, the prompt has 68");
    assert!(answer.text.contains(text), "{}", answer.text);
}

#[tokio::test]
async fn completions() {
    let bench = Bench::new(hello);
    let table = [
        (json!({}), bad("prompt")),
        (json!({"prompt": null}), bad("prompt")),
        (json!({"prompt": []}), bad("prompt")),
        (json!({"prompt": [[]]}), bad("prompt")),
        (json!({"prompt": {}}), bad("prompt")),
        (json!({"prompt": [1, "a"]}), bad("prompt")),
        (json!({"prompt": [-1]}), bad("prompt[0]")),
        (json!({"prompt": [5_000_000_000_u64]}), bad("prompt[0]")),
        (json!({"prompt": [100_000]}), bad("prompt")),
        (json!({"prompt": vec!["a"; 65]}), bad("prompt")),
        (json!({"prompt": vec!["a"; 64], "n": 3}), bad("prompt")),
        (
            json!({"prompt": "x".repeat(64)}),
            (400, Some("context_length_exceeded".to_owned()), Some("prompt".to_owned())),
        ),
        (json!({"prompt": "a", "suffix": "b"}), refused("suffix")),
        (json!({"prompt": "a", "logprobs": 21}), bad("logprobs")),
        (json!({"prompt": "a", "logprobs": true}), bad("logprobs")),
        (json!({"prompt": "a", "logprobs": 0}), good()),
        (json!({"prompt": "a", "echo": true, "max_tokens": 0}), good()),
        (json!({"prompt": "a", "best_of": 1, "suffix": null}), good()),
    ];
    for (body, expected) in table {
        assert_eq!(outcome(&bench.complete(body.clone()).await), expected, "{body:.80}");
    }
}
