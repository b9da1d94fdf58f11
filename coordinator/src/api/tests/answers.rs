//! What answers look like.

use futures_util::StreamExt;
use qmesh_net::Sampled;

use super::*;
use crate::{
    api::bias::NEVER,
    generate::{GenerateError, PromptRows},
    text::fake::{CONTROL, byte, row},
};

#[tokio::test]
async fn a_whole_chat() {
    let bench = Bench::new(hello);
    let answer = bench.chat(json!({"seed": -2, "temperature": 0, "logit_bias": {"5": -100}})).await;
    let object = answer.json();
    assert_eq!(answer.status, StatusCode::OK, "{object}");
    assert!(answer.headers.contains_key("x-request-id"));
    assert!(object["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")) && object["created"].is_u64());
    assert_eq!((&object["object"], &object["model"]), (&json!("chat.completion"), &json!("made-up")));
    let message = json!({"role": "assistant", "content": "Hello world", "refusal": null});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(object["choices"], json!([choice]));
    // BOS and "u:x\n".
    let details = json!({"cached_tokens": 0});
    let usage = json!({
        "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": 0},
    });
    assert_eq!(object["usage"], usage);
    let seen = bench.mesh.seen.lock().expect("no panic holds it");
    let GenerateRequest { sampling, max_tokens, .. } = &seen[0];
    assert_eq!((sampling.seed, sampling.temperature, *max_tokens), (u64::MAX - 1, 0.0, 64 - 5));
    assert_eq!(sampling.logit_bias, [(5, -100.0)]);
}

#[tokio::test]
async fn an_answer_says_what_it_took_and_on_request_each_part_does() {
    let cached = |_: &GenerateRequest| {
        let tokens = generation(&[word("Hello"), word("▁world"), END]);
        [GenerateEvent::Prefilled { cached_tokens: 2 }].into_iter().chain(tokens).collect()
    };
    let bench = Bench::new(cached);
    let whole = bench.chat(json!({"verbose": true})).await.json();
    assert_eq!(whole["__verbose"], json!({"prompt": "<s>u:x\n"}));
    let numbers = |timings: &Value| ["cache_n", "prompt_n", "predicted_n"].map(|name| timings[name].as_u64());
    assert_eq!(numbers(&whole["timings"]), [Some(2), Some(3), Some(3)]);
    let streamed = async |more: Value| {
        let mut body = json!({"stream": true});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let chunks = bench.chat(body).await.events().0;
        chunks.iter().map(|chunk| chunk.get("timings").map(&numbers)).collect::<Vec<_>>()
    };
    let all = Some([Some(2), Some(3), Some(3)]);
    assert_eq!(streamed(json!({})).await, [None, None, None, all]);
    let with_usage = json!({"stream_options": {"include_usage": true}});
    assert_eq!(streamed(with_usage).await, [None, None, None, None, all]);
    let so_far = |tokens| Some([Some(2), Some(3), Some(tokens)]);
    assert_eq!(streamed(json!({"timings_per_token": true})).await, [None, so_far(1), so_far(2), all]);
    assert!(bench.chat(json!({})).await.json().get("__verbose").is_none());
    let completion = bench.complete(json!({"prompt": "a"})).await.json();
    assert_eq!(completion["timings"]["predicted_n"], 3);
}

#[tokio::test]
async fn a_stream_says_on_request_how_far_its_prompt_is() {
    let slow = |_: &GenerateRequest| {
        let prompt = [
            GenerateEvent::Progress { cached_tokens: 1, computed_tokens: 3 },
            GenerateEvent::Prefilled { cached_tokens: 1 },
        ];
        prompt.into_iter().chain(generation(&[word("Hello"), END])).collect()
    };
    let bench = Bench::new(slow);
    let told = |events: Vec<Value>| {
        let progress = events.iter().filter_map(|event| event.get("prompt_progress"));
        let numbers = progress.map(|told| ["total", "cache", "processed"].map(|name| told[name].as_u64()));
        numbers.collect::<Vec<_>>()
    };
    let of = |total| [1, 3, total].map(|processed| [Some(total), Some(1), Some(processed)]);
    let (chunks, done) = bench.chat(json!({"stream": true, "return_progress": true})).await.events();
    assert!(done && chunks.iter().all(|chunk| chunk["choices"][0]["delta"].is_object()), "{chunks:?}");
    assert_eq!(told(chunks), of(5));
    let body = json!({"prompt": "abc", "stream": true, "return_progress": true, "timings_per_token": true});
    let (parts, _) = bench.post("/completion", body.to_string()).await.events();
    assert_eq!((&parts[0]["timings"]["prompt_n"], &parts[1]["timings"]["prompt_n"]), (&json!(0), &json!(2)));
    assert_eq!(told(parts), of(4));
    assert_eq!(told(bench.chat(json!({"stream": true})).await.events().0), Vec::<[Option<u64>; 3]>::new());
}

#[tokio::test]
async fn the_length_of_a_chat_is_told_without_an_answer() {
    let bench = Bench::new(hello);
    for path in ["/v1/chat/completions/input_tokens", "/chat/completions/input_tokens"] {
        let answer = bench.post(path, chat_body(json!({})).to_string()).await.json();
        // BOS and "u:x\n".
        assert_eq!(answer, json!({"object": "response.input_tokens", "input_tokens": 5}));
    }
    assert!(bench.mesh.seen.lock().expect("no panic holds it").is_empty());
}

#[tokio::test]
async fn an_ignored_end_is_out_of_reach() {
    let bench = Bench::new(hello);
    for (more, biases) in [
        (json!({"ignore_eos": true}), vec![(END, NEVER)]),
        (
            json!({"ignore_eos": true, "logit_bias": [[5, -1], ["a", false]]}),
            vec![(5, -1.0), (word("a"), NEVER), (END, NEVER)],
        ),
        (json!({"ignore_eos": false}), vec![]),
    ] {
        bench.chat(more.clone()).await;
        let seen = bench.mesh.seen.lock().expect("no panic holds it");
        assert_eq!(seen.last().expect("a request").sampling.logit_bias, biases, "{more}");
    }
}

#[tokio::test]
async fn a_streamed_chat() {
    let bench = Bench::new(hello);
    let answer = bench.chat(json!({"stream": true, "stream_options": {"include_usage": true}})).await;
    for (name, value) in
        [("content-type", "text/event-stream"), ("cache-control", "no-cache"), ("x-accel-buffering", "no")]
    {
        assert_eq!(answer.headers[name], value);
    }
    let (chunks, done) = answer.events();
    assert!(
        done && chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"])
    );
    let (usage, chunks) = chunks.split_last().expect("chunks");
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(3)));
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    let deltas: Vec<_> =
        chunks.iter().map(|chunk| (&chunk["choices"][0]["delta"], &chunk["choices"][0]["finish_reason"])).collect();
    let none = Value::Null;
    let expected = [
        (&json!({"role": "assistant", "content": null}), &none),
        (&json!({"content": "Hello"}), &none),
        (&json!({"content": " world"}), &none),
        (&json!({}), &json!("stop")),
    ];
    assert_eq!(deltas, expected);
    let (chunks, _) = bench.chat(json!({"stream": true})).await.events();
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn choices_differ_by_their_sequence() {
    let by_sequence = |request: &GenerateRequest| {
        generation(&[word(["a", "b", "c"][usize::try_from(request.sampling.sequence).expect("few")])])
    };
    let bench = Bench::new(by_sequence);
    let object = bench.chat(json!({"n": 3, "max_tokens": 1})).await.json();
    let texts: Vec<_> =
        (0..3).map(|index| object["choices"][index]["message"]["content"].as_str().expect("text")).collect();
    assert_eq!((texts, &object["usage"]["completion_tokens"]), (vec!["a", "b", "c"], &json!(3)));
    assert_eq!(
        (&object["usage"]["prompt_tokens"], &object["choices"][2]["finish_reason"]),
        (&json!(5), &json!("length"))
    );
    let (chunks, done) = bench.chat(json!({"n": 2, "stream": true})).await.events();
    let of = |index: u64| {
        let mine = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(move |choice| choice["index"] == index);
        mine.filter_map(|choice| choice["delta"]["content"].as_str()).collect::<String>()
    };
    assert_eq!((of(0), of(1), done), ("a".into(), "b".into(), true));
    let seeds: Vec<_> =
        bench.mesh.seen.lock().expect("no panic holds it").iter().map(|seen| seen.sampling.seed).collect();
    assert!(seeds[0] == seeds[1] && seeds[0] != seeds[3], "{seeds:?}");
}

#[tokio::test]
async fn a_seed_of_minus_one_is_none() {
    let bench = Bench::new(hello);
    for seed in [json!(-1), json!(-1), json!(null), json!(7), json!(7)] {
        assert_eq!(bench.chat(json!({"seed": seed})).await.status, StatusCode::OK);
    }
    let seeds: Vec<_> =
        bench.mesh.seen.lock().expect("no panic holds it").iter().map(|seen| seen.sampling.seed).collect();
    assert!(seeds[0] != seeds[1] && seeds[1] != seeds[2] && !seeds[..3].contains(&u64::MAX), "{seeds:?}");
    assert_eq!(seeds[3..], [7, 7]);
}

#[tokio::test]
async fn log_probabilities_of_a_chat() {
    let bench = Bench::new(hello);
    let object = bench.chat(json!({"logprobs": true, "top_logprobs": 2})).await.json();
    let content = object["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone();
    assert_eq!(content.len(), 2, "the end token is no content");
    let world = json!({"token": " world", "logprob": -0.5, "bytes": b" world"});
    let a = json!({"token": "a", "logprob": -2.0, "bytes": b"a"});
    let mut expected = world.clone();
    expected["top_logprobs"] = json!([world, a]);
    assert_eq!(content[1], expected);
    assert_eq!(bench.mesh.seen.lock().expect("no panic holds it")[0].sampling.top, 2);
    let (chunks, _) = bench.chat(json!({"logprobs": true, "stream": true})).await.events();
    assert_eq!(chunks[1]["choices"][0]["logprobs"]["content"][0]["token"], "Hello");
}

#[tokio::test]
async fn completions_of_many_prompts() {
    let echo_last = |request: &GenerateRequest| generation(&[*request.ids.last().expect("ids"), END]);
    let bench = Bench::new(echo_last);
    for (prompt, texts) in [
        (json!("a"), vec!["a"]),
        (json!(["a", "b"]), vec!["a", "b"]),
        (json!([word("c"), word("b")]), vec!["b"]),
        (json!([[word("c")], [word("b")]]), vec!["c", "b"]),
        (json!("  "), vec![" "]),
        (json!(""), vec![""]),
    ] {
        let object = bench.complete(json!({"prompt": prompt})).await.json();
        let found: Vec<_> =
            object["choices"].as_array().expect("choices").iter().map(|choice| choice["text"].clone()).collect();
        assert_eq!(
            (found, &object["object"]),
            (texts.into_iter().map(Value::from).collect(), &json!("text_completion"))
        );
    }
    assert!(bench.mesh.seen.lock().expect("no panic holds it").iter().all(|seen| seen.max_tokens == 16));
    let echoed = bench.complete(json!({"prompt": ["a", "b"], "echo": true, "n": 2, "stream": true})).await;
    let (chunks, done) = echoed.events();
    let of = |index: u64| {
        let mine = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(move |choice| choice["index"] == index);
        mine.map(|choice| choice["text"].as_str().expect("text")).collect::<String>()
    };
    assert_eq!((of(0), of(1), of(2), of(3), done), ("aa".into(), "aa".into(), "bb".into(), "bb".into(), true));
}

#[tokio::test]
async fn prompts_can_be_scored() {
    let score = |request: &GenerateRequest| {
        assert_eq!((request.prompt_rows, request.max_tokens), (PromptRows::All, 1));
        let rows: Vec<Sampled> = request.ids.iter().map(|_| row(word("b"))).collect();
        [vec![GenerateEvent::Prompt(rows)], generation(&[word("c")])].concat()
    };
    let bench = Bench::new(score);
    let ask = json!({"prompt": "é", "echo": true, "logprobs": 1, "max_tokens": 1});
    let object = bench.complete(ask.clone()).await.json();
    assert_eq!(object["choices"][0]["text"], "éc");
    let logprobs = object["choices"][0]["logprobs"].clone();
    assert_eq!(logprobs["tokens"], json!(["<s>", "\u{FFFD}", "\u{FFFD}", "c"]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -1.5, -1.5, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 0, 0, 1]));
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][3], json!({"c": -0.5, "a": -2.0}));
    let mut streamed = ask;
    streamed["stream"] = json!(true);
    let (chunks, _) = bench.complete(streamed).await.events();
    assert_eq!(chunks[0]["choices"][0]["text"], "é");
    assert_eq!(chunks[0]["choices"][0]["logprobs"]["token_logprobs"], json!([null, -1.5, -1.5]));
    assert_eq!(chunks[1]["choices"][0]["logprobs"]["text_offset"], json!([1]));
}

#[tokio::test]
async fn a_failure_is_never_an_end() {
    let lost =
        || GenerateEvent::Failed(GenerateError::WorkerLost { text: "worker b with layers 5..9 is gone".to_owned() });
    let bench = Bench::new(move |_| vec![GenerateEvent::Token(row(word("Hello"))), lost()]);
    let (chunks, done) = bench.chat(json!({"stream": true})).await.events();
    let last = chunks.last().expect("chunks");
    assert_eq!(
        (&last["error"]["code"], &last["error"]["type"], done),
        (&json!("worker_lost"), &json!("unavailable_error"), false)
    );
    assert!(chunks.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    let (chunks, done) = bench.chat(json!({"stream": true, "n": 2})).await.events();
    assert!(!done && chunks.last().is_some_and(|last| last.get("error").is_some()));
    let answer = bench.chat(json!({})).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let bench = Bench::new(move |_| vec![lost()]);
    let answer = bench.chat(json!({"stream": true})).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "nothing was sent yet");
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn stop_strings_end_with_stop() {
    let tokens = [word("Hello"), word("▁ST"), word("OP"), byte(b'x')];
    let bench = Bench::new(move |_| generation(&tokens));
    let object = bench.chat(json!({"stop": ["STOP", "zzz"]})).await.json();
    let choice = &object["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("Hello "), &json!("stop")));
    assert_eq!(object["usage"]["completion_tokens"], 3);
    let bench = Bench::new(|_| generation(&[word("Hello"), CONTROL, word("a")]));
    for body in [json!({"stop": "<|tool|>"}), json!({"stop": ["<|tool|>a"], "logprobs": true})] {
        let choice = bench.chat(body).await.json()["choices"][0].clone();
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("Hello"), &json!("stop")));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_bridged() {
    let bench = Bench::new(|_| vec![]);
    let request =
        Request::post("/v1/chat/completions").body(Body::from(chat_body(json!({"stream": true})).to_string()));
    let response = bench.router.clone().oneshot(request.expect("a request")).await.expect("routes do not fail");
    let mut pieces = response.into_body().into_data_stream();
    let mut text = String::new();
    while text.matches(": ping\n\n").count() < 2 {
        text += str::from_utf8(&pieces.next().await.expect("it goes on").expect("bytes")).expect("text");
    }
    assert!(text.starts_with("data: {") && text.contains(r#""role":"assistant""#), "{text}");
}
