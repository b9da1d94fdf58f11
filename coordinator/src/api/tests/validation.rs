//! What is wrong with a request, and how it is told: API-01 to API-16 as tables.

use super::*;
use crate::text::TextModel;

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
async fn errors_name_no_type_of_ours() {
    let bench = Bench::new(hello);
    let bodies = [
        "[]",
        "7",
        "null",
        r#"{"messages": [{"role": "user", "content": ["hi"]}]}"#,
        r#"{"messages": [{"role": "user", "content": "a"}],}"#,
        r#"{"messages": [["user", "hi", null, null, null]], "prompt": {}}"#,
        r#"{"messages": [{"role": 5}], "prompt": [[1.5]]}"#,
        r#"{"max_tokens": 1.5}"#,
        r#"{"stop": {"a": 1}, "n": "x"}"#,
        r#"{"stream_options": [true]}"#,
        r#"{"logit_bias": {"5": "x"}}"#,
        r#"{"tools": "x"}"#,
    ];
    for path in ["/v1/chat/completions", "/v1/completions"] {
        for body in bodies {
            let answer = bench.post(path, body).await;
            let (status, kind, _, param) = answer.error();
            let text = answer.json()["error"]["message"].as_str().expect("a message").to_owned();
            assert_eq!((status, kind.as_str()), (StatusCode::BAD_REQUEST, "invalid_request_error"), "{body}: {text}");
            for inner in ["struct", "Request", "Part", "i64", "u32", "f64", "visitor", "variant", "expected", "`", "?"]
            {
                assert!(!text.contains(inner), "{path} {body}: {text}");
            }
            assert!(param.is_none_or(|param| !param.contains('?')), "{body}");
        }
    }
}

#[tokio::test]
async fn shared_parameters() {
    let bench = Bench::new(hello);
    let table = [
        (json!({"max_tokens": 0}), bad("max_tokens")),
        (json!({"max_tokens": -1}), good()),
        (json!({"max_tokens": -2}), bad("max_tokens")),
        (json!({"max_tokens": 1.5}), bad("max_tokens")),
        (json!({"max_tokens": "5"}), bad("max_tokens")),
        (json!({"max_completion_tokens": 0}), bad("max_completion_tokens")),
        (json!({"max_completion_tokens": -1}), good()),
        (json!({"n_predict": 5}), good()),
        (json!({"n_predict": -3}), bad("n_predict")),
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
        (json!({"logit_bias": {"Hello": 1}}), good()),
        (json!({"logit_bias": {"5": 200}}), bad("logit_bias")),
        (json!({"logit_bias": {"5": 100}}), good()),
        (json!({"logit_bias": [[5, 100], ["Hello", false]]}), good()),
        (json!({"logit_bias": [[5, 1], [5]]}), bad("logit_bias[1]")),
        (json!({"ignore_eos": 1}), bad("ignore_eos")),
        (json!({"stop": vec!["x"; 17]}), bad("stop")),
        (json!({"stop": [""]}), bad("stop")),
        (json!({"stop": [1]}), bad("stop[0]")),
        (json!({"stop": null}), good()),
        (json!({"stream_options": {"include_usage": true}}), bad("stream_options")),
        (json!({"stream": "yes"}), bad("stream")),
        (json!({"stream": true, "stream_options": [true]}), bad("stream_options")),
        (
            json!({"stream": true, "stream_options": {"continuous_usage_stats": true}}),
            refused("stream_options.continuous_usage_stats"),
        ),
        (json!({"repetition_penalty": 1.0, "verbosity": "medium", "add_special_tokens": true}), good()),
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
async fn parameters_of_samplers() {
    let bench = Bench::new(hello);
    for (more, expected) in [
        (json!({"typical_p": 1.1}), bad("typical_p")),
        (json!({"typical_p": 0.5}), good()),
        (json!({"xtc_probability": -0.1}), bad("xtc_probability")),
        (json!({"xtc_threshold": 2}), bad("xtc_threshold")),
        (json!({"xtc_probability": 0.5, "xtc_threshold": 0.1}), good()),
        (json!({"dry_multiplier": -1}), bad("dry_multiplier")),
        (json!({"dry_multiplier": "much"}), bad("dry_multiplier")),
        (json!({"dry_base": 0.5}), bad("dry_base")),
        (json!({"dry_allowed_length": -1}), bad("dry_allowed_length")),
        (json!({"dry_penalty_last_n": -2}), bad("dry_penalty_last_n")),
        (json!({"dry_sequence_breakers": []}), bad("dry_sequence_breakers")),
        (json!({"dry_sequence_breakers": [""]}), bad("dry_sequence_breakers")),
        (json!({"dry_sequence_breakers": ["x".repeat(41)]}), bad("dry_sequence_breakers")),
        (json!({"dry_sequence_breakers": [3]}), bad("dry_sequence_breakers[0]")),
        (json!({"dry_multiplier": 0.8, "dry_penalty_last_n": -1, "dry_sequence_breakers": ["a", "STOP"]}), good()),
    ] {
        assert_eq!(outcome(&bench.chat(more.clone()).await), expected, "{more}");
    }
}

#[tokio::test]
async fn parameters_of_other_servers() {
    let bench = Bench::new(hello);
    for (more, expected) in [
        (json!({"repetition_penalty": 0}), bad("repetition_penalty")),
        (json!({"repetition_penalty": 1.5, "repeat_penalty": 1.25}), bad("repetition_penalty")),
        (json!({"repetition_penalty": 1.5, "repeat_penalty": 1.5}), good()),
        (json!({"stop_token_ids": [5, 1_000_000]}), bad("stop_token_ids[1]")),
        (json!({"stop_token_ids": vec![5; 129]}), bad("stop_token_ids")),
        (json!({"stop_token_ids": [-1]}), bad("stop_token_ids[0]")),
        (json!({"stop_sequences": [""]}), bad("stop_sequences")),
        (json!({"max_new_tokens": 0}), bad("max_new_tokens")),
        (json!({"guided_whitespace_pattern": "[ ]?"}), refused("guided_whitespace_pattern")),
    ] {
        assert_eq!(outcome(&bench.chat(more.clone()).await), expected, "{more}");
        let mut body = more.clone();
        body["prompt"] = json!("a");
        assert_eq!(outcome(&bench.complete(body).await), expected, "{more}");
    }
}

#[tokio::test]
async fn words_of_other_servers_are_obeyed() {
    let long = TextModel { context: 4096, ..model() };
    let bench = Bench::with(hello, |state| state.text = Arc::new(long));
    for (more, stopped) in [
        (json!({"repetition_penalty": 1.5, "max_new_tokens": 9}), "Hello world"),
        (json!({"repetition_penalty": 1.5, "repeat_last_n": 8, "max_tokens": 7, "max_new_tokens": 9}), "Hello world"),
        (json!({"repeat_penalty": 1.25, "repetition_penalty": 1, "stop_token_ids": [word("b")]}), "Hello world"),
        (json!({"stop_sequences": ["wor"], "stop": "rld"}), "Hello "),
    ] {
        let text = bench.chat(more.clone()).await.json()["choices"][0]["message"]["content"].clone();
        assert_eq!(text, stopped, "{more}");
    }
    let seen = bench.mesh.seen.lock().expect("no panic holds it").clone();
    let penalties: Vec<_> =
        seen.iter().map(|asked| (asked.sampling.repeat_penalty, asked.sampling.penalty_window)).collect();
    assert_eq!(penalties, [(1.5, 4096), (1.5, 8), (1.25, 64), (1.0, 64)]);
    assert_eq!((seen[0].max_tokens, seen[1].max_tokens), (9, 7));
    assert_eq!((&*seen[2].ends, &*seen[3].ends), (&[END, word("b")][..], &[END][..]));
}

#[tokio::test]
async fn samplers_reach_the_mesh() {
    let bench = Bench::new(hello);
    let more = json!({
        "typical_p": 0.5, "xtc_probability": 0.25, "xtc_threshold": 0.125, "dry_multiplier": 0.75, "dry_base": 1.5,
        "dry_allowed_length": 3, "dry_penalty_last_n": -1, "dry_sequence_breakers": ["a"],
    });
    bench.chat(more.clone()).await;
    let mut completion = more.clone();
    completion["prompt"] = json!("a");
    bench.complete(completion).await;
    let chat = chat_body(json!({"options": more, "stream": false}));
    assert_eq!(bench.post("/api/chat", chat.to_string()).await.status, StatusCode::OK);
    bench.chat(json!({"dry_multiplier": 0, "dry_base": 2})).await;
    let seen = bench.mesh.seen.lock().expect("no panic holds it").clone();
    let (last, asked) = seen.split_last().expect("four requests");
    assert_eq!((last.sampling.dry.as_ref(), last.sampling.typical_p, asked.len()), (None, 1.0, 3));
    for request in asked {
        let sampling = &request.sampling;
        assert_eq!((sampling.typical_p, sampling.xtc_probability, sampling.xtc_threshold), (0.5, 0.25, 0.125));
        let dry = sampling.dry.as_ref().expect("it is on");
        assert_eq!((dry.multiplier, dry.base, dry.allowed_length, dry.window), (0.75, 1.5, 3, 64));
        assert!(dry.breakers.allows(word("a")) && !dry.breakers.allows(word("b")) && dry.breaking_sequences.is_empty());
    }
}

#[tokio::test]
async fn grammars() {
    let bench = Bench::new(hello);
    let table = [
        (json!({"response_format": {"type": "text"}}), good()),
        (json!({"response_format": 3}), bad("response_format")),
        (json!({"response_format": {"type": "yaml"}}), bad("response_format.type")),
        (json!({"response_format": {"type": "json_schema"}}), bad("response_format.json_schema")),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": true}}}),
            bad("response_format.json_schema.schema"),
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "what"}}}}),
            bad("response_format.json_schema.schema"),
        ),
        (json!({"response_format": {"type": "json_object", "schema": [1]}}), bad("response_format.schema")),
        (json!({"guided_json": "{"}), bad("guided_json")),
        (json!({"guided_json": null, "guided_regex": "", "grammar": " ", "guided_choice": []}), good()),
        (json!({"guided_regex": "(a"}), bad("guided_regex")),
        (json!({"guided_choice": [1]}), bad("guided_choice[0]")),
        (json!({"guided_grammar": "start: b"}), bad("guided_grammar")),
        (json!({"grammar": "root ::= item"}), bad("grammar")),
        (json!({"ebnf": "root ::= [a"}), bad("ebnf")),
        (json!({"json_schema": "x"}), bad("json_schema")),
        (json!({"regex": "a", "guided_choice": ["a"]}), bad("regex")),
        (json!({"response_format": {"type": "json_object"}, "json_schema": {}}), bad("json_schema")),
        (json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), bad("structured_outputs.choice")),
        (json!({"structured_outputs": {"json": {"type": 5}}}), bad("structured_outputs.json")),
        (json!({"structured_outputs": {"structural_tag": {}}}), refused("structured_outputs.structural_tag")),
        (json!({"guided_regex": "x".repeat(300_000)}), bad("guided_regex")),
    ];
    for (more, expected) in table {
        assert_eq!(outcome(&bench.chat(more.clone()).await), expected, "chat {more:.200}");
        let mut body = more.clone();
        body["prompt"] = json!("a");
        assert_eq!(outcome(&bench.complete(body).await), expected, "completion {more:.200}");
    }
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
        (user(json!(["hi"])), bad("messages[0].content[0]")),
        (user(json!([["text", "hi"]])), bad("messages[0].content[0]")),
        (json!({"messages": [["user", "hi", null, null, null]]}), bad("messages[0]")),
        (json!({"messages": [{"content": "x"}]}), bad("messages[0].role")),
        (json!({"messages": {"role": "user"}}), bad("messages")),
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
        (json!({"tools": [tool("f"), tool("f")]}), bad("tools[1].function.name")),
        (json!({"tools": [tool("f")], "tool_choice": "none"}), good()),
        (json!({"tools": [], "tool_choice": "auto", "parallel_tool_calls": false}), good()),
        (json!({"tool_choice": {"type": "function"}}), bad("tool_choice")),
        (json!({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}), bad("tools[0].type")),
        (json!({"tools": "x"}), bad("tools")),
        (json!({"tools": [tool("f")], "parallel_tool_calls": "no"}), bad("parallel_tool_calls")),
        (json!({"store": true, "reasoning_effort": "high", "enable_thinking": false}), good()),
        (json!({"reasoning_effort": "huge"}), bad("reasoning_effort")),
        (json!({"reasoning_effort": 3}), bad("reasoning_effort")),
        (json!({"reasoning_format": "xml"}), bad("reasoning_format")),
        (json!({"enable_thinking": "no"}), bad("enable_thinking")),
        (json!({"echo": true}), refused("echo")),
        (json!({"functions": [{"name": "f"}]}), good()),
        (json!({"functions": [{"name": "f g"}]}), bad("functions[0].name")),
    ];
    for (more, expected) in table {
        assert_eq!(outcome(&bench.chat(more.clone()).await), expected, "{more}");
    }
    let (answer, text) = (bench.chat(user(json!("x".repeat(64)))).await, "length is 64 tokens, the prompt has 68");
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
        (json!({"prompt": [-1]}), bad("prompt[0]")),
        (json!({"prompt": [5_000_000_000_u64]}), bad("prompt[0]")),
        (json!({"prompt": [100_000]}), bad("prompt")),
        (json!({"prompt": vec!["a"; 65]}), bad("prompt")),
        (json!({"prompt": vec!["a"; 64], "n": 3}), bad("prompt")),
        (
            json!({"prompt": "x".repeat(64)}),
            (400, Some("context_length_exceeded".to_owned()), Some("prompt".to_owned())),
        ),
        (json!({"prompt": "a", "suffix": "b"}), bad("suffix")),
        (json!({"prompt": "a", "logprobs": 21}), bad("logprobs")),
        (json!({"prompt": "a", "logprobs": true}), bad("logprobs")),
        (json!({"prompt": "a", "logprobs": 0}), good()),
        (json!({"prompt": "a", "echo": true, "max_tokens": 0}), good()),
        (json!({"prompt": "a", "best_of": 1, "suffix": null}), good()),
        (json!({"prompt": "a", "add_special_tokens": false}), refused("add_special_tokens")),
        (json!({"prompt": "a", "tools": [{"type": "function"}]}), refused("tools")),
        (json!({"prompt": "a", "reasoning_effort": "high"}), refused("reasoning_effort")),
        (json!({"prompt": "a", "store": true}), good()),
    ];
    for (body, expected) in table {
        assert_eq!(outcome(&bench.complete(body.clone()).await), expected, "{body:.80}");
    }
}

#[tokio::test]
async fn what_would_take_gigabytes_is_refused_before_it_does() {
    let bench = Bench::new(hello);
    let lists = format!("[{}[]]", "[],".repeat(2_600_000));
    let deep = format!("{}1{}", r#"{"a":["#.repeat(50), "]}".repeat(50));
    let objects = format!("[{}{deep}]", format!("{deep},").repeat(19_000));
    for nested in [lists, objects] {
        for body in [
            format!(r#"{{"messages":[{{"role":"user","content":"x"}}],"chat_template_kwargs":{{"a":{nested}}}}}"#),
            format!(r#"{{"messages":[{{"role":"assistant","content":"x","tool_calls":{nested}}}]}}"#),
            format!(r#"{{"prompt":"x","what":{nested}}}"#),
        ] {
            assert!(body.len() < 8 << 20, "its bytes alone are not what is wrong");
            for path in ["/v1/chat/completions", "/v1/completions"] {
                let answer = bench.post(path, body.clone()).await;
                let error = (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large".to_owned(), None, None);
                assert_eq!(answer.error(), error);
                assert!(answer.text.contains("512 MiB of memory"), "{}", answer.text);
            }
        }
    }
    let few = json!({"chat_template_kwargs": {"a": vec![json!({"b": [1, 2, {"c": null}]}); 1000]}});
    assert_eq!(bench.chat(few).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_text_far_too_long_is_told_before_it_is_split() {
    let bench = Bench::new(hello);
    let word = "x".repeat(7_900_000);
    let message = json!({"messages": [{"role": "user", "content": word}]});
    let over = |param: &str| (400, Some("context_length_exceeded".to_owned()), Some(param.to_owned()));
    for (answer, param) in [
        (bench.chat(message).await, "messages"),
        (bench.complete(json!({"prompt": word})).await, "prompt"),
        (bench.complete(json!({"prompt": ["a", word]})).await, "prompt"),
    ] {
        assert_eq!(outcome(&answer), over(param));
        assert!(
            answer.text.contains("maximum context length is 64 tokens, the prompt has at least 9875"),
            "{}",
            answer.text
        );
    }
}
