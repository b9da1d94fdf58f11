//! Texts under a grammar: a random model that masks keep to it.

use super::*;
use crate::{
    generate::{Finish, FinishReason},
    text::{
        TextModel,
        fake::{row, written},
    },
};

/// What a model says that knows nothing: of what may follow, something drawn from the seed; where it can it ends.
fn random_walk(request: &GenerateRequest) -> Vec<GenerateEvent> {
    let mut walk = request.grammar.as_ref().expect("a grammar was asked for").start();
    let mut random = request.sampling.seed | 1;
    let mut tokens = Vec::new();
    while tokens.last() != Some(&END) && tokens.len() < request.max_tokens {
        let mask = walk.mask().expect("something follows");
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let allowed: Vec<u32> = (0..300).filter(|id| mask.allows(*id)).collect();
        let drawn = allowed[(random >> 33) as usize % allowed.len()];
        let token = if mask.allows(END) { END } else { drawn };
        walk.advance(token).expect("it may follow");
        tokens.push(token);
    }
    generation(&tokens)
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": [1, 22]}},
        "required": ["a", "b"],
        "additionalProperties": false
    })
}

fn is_person(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let keys: Vec<_> = value.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    keys == ["a", "b"] && value["a"].is_boolean() && [json!(1), json!(22)].contains(&value["b"])
}

#[tokio::test]
async fn answers_satisfy_the_schema_whole_and_streamed() {
    let bench = Bench::new(random_walk);
    let named = json!({"name": "person", "strict": true, "schema": person()});
    for asked in [
        json!({"response_format": {"type": "json_schema", "json_schema": named}}),
        json!({"response_format": {"type": "json_object", "schema": person()}}),
        json!({"guided_json": person()}),
        json!({"guided_json": person().to_string()}),
        json!({"structured_outputs": {"json": person()}}),
        json!({"json_schema": person()}),
    ] {
        for seed in 1..6 {
            let mut body = asked.clone();
            body["seed"] = json!(seed);
            let answer = bench.chat(body.clone()).await.json();
            let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
            assert!(is_person(text), "{asked}: {answer}");
            assert_eq!(answer["choices"][0]["finish_reason"], "stop");
            body["stream"] = json!(true);
            let (events, done) = bench.chat(body.clone()).await.events();
            let deltas = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
            assert!(done && deltas.collect::<String>() == text, "the stream says something else");
            (body["stream"], body["prompt"], body["max_tokens"]) = (json!(false), json!("x"), json!(60));
            let answer = bench.complete(body).await.json();
            assert!(is_person(answer["choices"][0]["text"].as_str().unwrap_or_default()), "{answer}");
        }
    }
}

#[tokio::test]
async fn every_other_form_is_followed_too() {
    let bench = Bench::new(random_walk);
    let gbnf = "root ::= \"n: \" [0-9]{2} (\", \" [0-9]{2})? \".\"";
    for (asked, fits) in [
        (
            json!({"guided_regex": "^(ab|c{2,3})d$"}),
            (|text| ["abd", "ccd", "cccd"].contains(&text)) as fn(&str) -> bool,
        ),
        (json!({"regex": "[xy]+z"}), |text| text.ends_with('z')),
        (json!({"guided_choice": ["yes", "no", "\"ja\"\n"]}), |text| ["yes", "no", "\"ja\"\n"].contains(&text)),
        (json!({"structured_outputs": {"choice": ["yes"]}}), |text| text == "yes"),
        (json!({"grammar": gbnf}), |text| text.starts_with("n: ") && text.ends_with('.')),
        (json!({"ebnf": gbnf}), |text| [6, 10].contains(&text.len())),
        (json!({"guided_grammar": "start: \"a\" B*\nB: /b/"}), |text| text == "a"),
    ] {
        for seed in 1..4 {
            let mut body = asked.clone();
            (body["seed"], body["max_tokens"]) = (json!(seed), json!(60));
            let answer = bench.chat(body).await.json();
            let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
            // A text without an end may be cut off.
            assert!(fits(text) || answer["choices"][0]["finish_reason"] == "length", "{asked}: {answer}");
        }
    }
    let plain = Bench::new(hello);
    plain.chat(json!({"response_format": {"type": "text"}})).await;
    plain.chat(json!({"response_format": {"type": "json_object"}})).await;
    let seen = plain.mesh.seen.lock().expect("no panic holds it");
    assert_eq!(seen.iter().map(|request| request.grammar.is_some()).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn a_text_that_cannot_go_on_is_an_error_and_no_text() {
    let lost = |request: &GenerateRequest| {
        let mut walk = request.grammar.as_ref().expect("a grammar was asked for").start();
        let error = walk.advance(word("Hello")).expect_err("it may not follow");
        vec![GenerateEvent::Token(row(word("a"))), GenerateEvent::Failed(error.into())]
    };
    let bench = Bench::new(lost);
    let asked = json!({"guided_choice": ["abc"]});
    let error = (StatusCode::BAD_REQUEST, "invalid_request_error".to_owned(), Some("grammar_failed".to_owned()), None);
    assert_eq!(bench.chat(asked.clone()).await.error(), error);
    let mut streamed = asked;
    streamed["stream"] = json!(true);
    let (events, done) = bench.chat(streamed).await.events();
    assert!(!done && events.last().is_some_and(|last| last["error"]["code"] == "grammar_failed"), "{events:?}");
}

#[tokio::test]
async fn too_few_tokens_cut_a_text_off() {
    let bench = Bench::new(|request| {
        let mut events = random_walk(request);
        if let Some(GenerateEvent::Finished(Finish { reason, .. })) = events.last_mut() {
            *reason = FinishReason::Length;
        }
        events
    });
    let answer = bench.chat(json!({"guided_json": person(), "max_tokens": 3})).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_demanded_call_is_one_by_the_tools_schema() {
    let bench = Bench::with(random_walk, |state| state.text = Arc::new(TextModel { context: 4096, ..model() }));
    let named = |name| json!({"type": "function", "function": {"name": name, "parameters": person()}});
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "greet"}})] {
        for seed in 1..6 {
            let tools =
                if choice == "required" { json!([named("greet"), named("meet")]) } else { json!([named("greet")]) };
            let body = json!({"seed": seed, "tools": tools, "tool_choice": choice, "max_tokens": 400});
            let answer = bench.chat(body.clone()).await.json()["choices"][0].clone();
            let function = &answer["message"]["tool_calls"][0]["function"];
            assert!(["greet", "meet"].iter().any(|name| function["name"] == *name), "{answer}");
            assert!(is_person(function["arguments"].as_str().unwrap_or_default()), "{answer}");
            assert_eq!((&answer["finish_reason"], &answer["message"]["content"]), (&json!("tool_calls"), &Value::Null));
            let mut streamed = body;
            streamed["stream"] = json!(true);
            let (chunks, done) = bench.chat(streamed).await.events();
            let deltas = chunks
                .iter()
                .filter_map(|c| c["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str());
            assert!(done && is_person(&deltas.collect::<String>()), "{chunks:?}");
        }
    }
    // Where the model may choose, its answer is in the form that was asked for, or a call.
    let (mut answers, mut calls) = (0, 0);
    for seed in 1..20 {
        let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]});
        let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
        let body = json!({"seed": seed, "tools": [named("greet")], "response_format": format, "max_tokens": 400});
        let message = bench.chat(body).await.json()["choices"][0]["message"].clone();
        match message["content"].as_str() {
            Some(text) => {
                let answer: Value = serde_json::from_str(text).expect("JSON");
                assert!(answer["ok"].is_boolean(), "{message}");
                answers += 1;
            }
            None => {
                let arguments = &message["tool_calls"][0]["function"]["arguments"];
                assert!(is_person(arguments.as_str().unwrap_or_default()), "{message}");
                calls += 1;
            }
        }
    }
    assert!(answers > 0 && calls > 0, "{answers} answers, {calls} calls");
    let no_json = json!({"tools": [named("greet")], "guided_regex": "a+"});
    assert_eq!(bench.chat(no_json).await.error().3.as_deref(), Some("guided_regex"));
    let two_forms = json!({
        "tools": [named("greet")], "tool_choice": "required", "response_format": {"type": "json_object"},
    });
    assert_eq!(bench.chat(two_forms).await.error().3.as_deref(), Some("tool_choice"));
}

/// What a model says that calls a tool by itself, and knows nothing of its arguments.
fn calls_freely(request: &GenerateRequest) -> Vec<GenerateEvent> {
    let mut tokens = written("Hm. <tool_call>\n{\"name\": \"greet\", \"arguments\": ");
    if let Some(grammar) = &request.grammar {
        let (mut walk, mut random) = (grammar.start(), request.sampling.seed | 1);
        for token in &tokens {
            walk.advance(*token).expect("it may follow");
        }
        while !walk.is_free() && tokens.len() < request.max_tokens {
            let mask = walk.mask().expect("something follows");
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let allowed: Vec<u32> = (0..300).filter(|id| mask.allows(*id)).collect();
            let token = allowed[(random >> 33) as usize % allowed.len()];
            walk.advance(token).expect("it may follow");
            tokens.push(token);
        }
    } else {
        tokens.extend(written("{\"c\": 3}"));
    }
    generation(&[tokens, written("}\n</tool_call>"), vec![END]].concat())
}

#[tokio::test]
async fn a_strict_tool_is_called_by_its_schema_though_nobody_demands_a_call() {
    let bench = Bench::with(calls_freely, |state| state.text = Arc::new(TextModel { context: 4096, ..model() }));
    let tool = |strict: bool| json!({"name": "greet", "parameters": person(), "strict": strict});
    let arguments = async |strict: bool, seed: u64| {
        let tools = json!([{"type": "function", "function": tool(strict)}]);
        let body = json!({"seed": seed, "tools": tools, "max_tokens": 400});
        let message = bench.chat(body).await.json()["choices"][0]["message"].clone();
        assert_eq!(message["content"], "Hm.", "{message}");
        message["tool_calls"][0]["function"]["arguments"].as_str().expect("JSON").to_owned()
    };
    assert_eq!(arguments(false, 1).await, "{\"c\": 3}");
    for seed in 1..6 {
        let arguments = arguments(true, seed).await;
        assert!(is_person(&arguments), "{arguments}");
    }
    let mut flat = tool(true);
    flat["type"] = json!("function");
    let asked = json!({"input": "x", "tools": [flat], "max_output_tokens": 400}).to_string();
    let output = bench.post("/v1/responses", asked).await.json()["output"].clone();
    assert!(output[1]["arguments"].as_str().is_some_and(is_person), "{output}");
    let named = json!({"name": "greet", "input_schema": person(), "strict": true});
    let asked = json!({"messages": [{"role": "user", "content": "x"}], "tools": [named], "max_tokens": 400});
    let content = bench.post("/v1/messages", asked.to_string()).await.json()["content"].clone();
    assert!(is_person(&content[1]["input"].to_string()), "{content}");
    let seen = bench.mesh.seen.lock().expect("no panic holds it").clone();
    assert!(seen.iter().skip(1).all(|asked| asked.grammar.is_some()) && seen[0].grammar.is_none());
}
