//! Anthropic's messages.

use super::{
    calls::{CALL_TEXT, is_id, prompts, templated, writes},
    thoughts::{TEXT, thinks},
    *,
};
use crate::{
    generate::GenerateError,
    mesh::status::MeshState,
    text::fake::{mesh_status, row, written},
};

const PATH: &str = "/v1/messages";

fn body(more: Value) -> Value {
    let mut body = json!({"model": "made-up", "max_tokens": 40, "messages": [{"role": "user", "content": "x"}]});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

async fn ask(bench: &Bench, more: Value) -> Answer {
    bench.post(PATH, body(more).to_string()).await
}

/// The objects of a stream, each of which has its type as its event's name.
fn typed(answer: &Answer) -> Vec<Value> {
    let names = answer.text.lines().filter_map(|line| line.strip_prefix("event: "));
    let (objects, done) = answer.events();
    assert!(!done && names.eq(objects.iter().map(|object| object["type"].as_str().expect("a type"))));
    objects
}

/// The type and the message of an error.
fn error(answer: &Answer) -> (u16, String, String) {
    let object = answer.json();
    let text = |field: &str| object["error"][field].as_str().expect("text").to_owned();
    assert_eq!(object, json!({"type": "error", "error": {"type": text("type"), "message": text("message")}}));
    (answer.status.as_u16(), text("type"), text("message"))
}

fn tool() -> Value {
    json!({"tools": [{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {}}}}]})
}

#[tokio::test]
async fn a_whole_message() {
    let bench = Bench::new(hello);
    let answer = ask(&bench, json!({"temperature": 0.5, "top_k": 3, "top_p": 0.5, "system": "s"})).await;
    let object = answer.json();
    let id = object["id"].as_str().expect("an id");
    assert!(id.starts_with("msg_"), "{object}");
    let usage = json!({
        "input_tokens": 9, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 3,
    });
    let message = json!({
        "id": id, "type": "message", "role": "assistant", "model": "made-up",
        "content": [{"type": "text", "text": "Hello world"}],
        "stop_reason": "end_turn", "stop_sequence": null, "usage": usage,
    });
    assert_eq!(object, message);
    assert_eq!(prompts(&bench), ["s:s\nu:x\n"]);
    let seen = bench.mesh.seen.lock().expect("no panic holds it");
    let sampling = &seen[0].sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p, seen[0].max_tokens), (0.5, 3, 0.5, 40));
}

#[tokio::test]
async fn a_streamed_message() {
    let answer = ask(&Bench::new(hello), json!({"stream": true})).await;
    let events = typed(&answer);
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().expect("a type")).collect();
    let expected = [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(kinds, expected);
    assert_eq!(
        (&events[0]["message"]["content"], &events[0]["message"]["usage"]["input_tokens"]),
        (&json!([]), &json!(5))
    );
    assert_eq!(events[2]["content_block"], json!({"type": "text", "text": ""}));
    assert_eq!(
        events[4],
        json!({
            "type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " world"},
        })
    );
    assert_eq!(events[6]["delta"], json!({"stop_reason": "end_turn", "stop_sequence": null}));
    assert_eq!(events[6]["usage"]["output_tokens"], 3);
}

#[tokio::test]
async fn calls_are_blocks() {
    let text = format!("I look.{CALL_TEXT}{CALL_TEXT}");
    let object = ask(&writes(&text), tool()).await.json();
    let content = &object["content"];
    assert_eq!(
        (&content[0], &object["stop_reason"]),
        (&json!({"type": "text", "text": "I look."}), &json!("tool_use"))
    );
    for number in [1, 2] {
        assert!(is_id(&content[number]["id"]));
        let call =
            json!({"type": "tool_use", "id": content[number]["id"], "name": "weather", "input": {"city": "Rome"}});
        assert_eq!(content[number], call);
    }
    let mut streamed = tool();
    streamed["stream"] = json!(true);
    let events = typed(&ask(&writes(&text), streamed).await);
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).cloned().collect::<Vec<_>>();
    let (starts, stops) = (of("content_block_start"), of("content_block_stop"));
    assert_eq!((starts.len(), stops.len()), (3, 3));
    assert_eq!((&starts[2]["index"], &starts[2]["content_block"]["input"]), (&json!(2), &json!({})));
    let pieces = of("content_block_delta").into_iter().filter(|event| event["index"] == 1);
    let json: String = pieces.map(|event| event["delta"]["partial_json"].as_str().expect("JSON").to_owned()).collect();
    assert_eq!(json, "{\"city\": \"Rome\"}");
    assert_eq!(of("message_delta")[0]["delta"]["stop_reason"], "tool_use");
    let mut single = tool();
    single["tool_choice"] = json!({"type": "auto", "disable_parallel_tool_use": true});
    assert_eq!(ask(&writes(&text), single).await.json()["content"].as_array().map(Vec::len), Some(2));
    let mut none = tool();
    none["tool_choice"] = json!({"type": "none"});
    assert_eq!(ask(&writes(CALL_TEXT), none).await.json()["content"][0]["text"], CALL_TEXT);
}

#[tokio::test]
async fn thoughts_are_blocks() {
    let object = ask(&thinks(TEXT), json!({})).await.json();
    let thinking = json!({"type": "thinking", "thinking": "One and one?", "signature": ""});
    assert_eq!(object["content"], json!([thinking, {"type": "text", "text": "Two."}]));
    let events = typed(&ask(&thinks(TEXT), json!({"stream": true})).await);
    let of = |field: &str| events.iter().filter_map(|event| event["delta"][field].as_str()).collect::<String>();
    assert_eq!((of("thinking"), of("text")), ("One and one?".to_owned(), "Two.".to_owned()));
    for hidden in [json!({"type": "disabled"}), json!({"type": "adaptive", "display": "omitted"})] {
        let object = ask(&thinks(TEXT), json!({"thinking": hidden})).await.json();
        assert_eq!(object["content"], json!([{"type": "text", "text": "Two."}]));
    }
    let begun = thinks("One and one?\n</think>\n\nTwo.");
    let enabled = json!({"thinking": {"type": "enabled", "budget_tokens": 1024}});
    assert_eq!(ask(&begun, enabled).await.json()["content"][0]["thinking"], "One and one?");
}

#[tokio::test]
async fn every_end_has_its_reason() {
    let reason = |object: &Value| (object["stop_reason"].clone(), object["stop_sequence"].clone());
    let bench = Bench::new(|_| generation(&[word("Hello"), word("▁ST"), word("OP"), word("a")]));
    for (more, expected) in [
        (json!({}), (json!("max_tokens"), Value::Null)),
        (json!({"stop_sequences": ["zzz", "STOP"]}), (json!("stop_sequence"), json!("STOP"))),
    ] {
        assert_eq!(reason(&ask(&bench, more.clone()).await.json()), expected);
        let mut streamed = more;
        streamed["stream"] = json!(true);
        let events = typed(&ask(&bench, streamed).await);
        assert_eq!(reason(&events[events.len() - 2]["delta"]), expected);
    }
    let cut = written("<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Ro");
    let object = ask(&Bench::new(move |_| generation(&cut)), tool()).await.json();
    assert_eq!((&object["content"], reason(&object).0), (&json!([]), json!("max_tokens")), "half a call is none");
    let mut stopped = tool();
    stopped["stop_sequences"] = json!(["Ro"]);
    assert_eq!(reason(&ask(&writes(CALL_TEXT), stopped).await.json()), (json!("stop_sequence"), json!("Ro")));
}

#[tokio::test]
async fn answers_are_held_to_forms() {
    let bench = Bench::new(hello);
    let format = json!({"type": "json_schema", "schema": {"type": "object"}});
    let mut forced = tool();
    forced["tool_choice"] = json!({"type": "any"});
    let mut named = tool();
    named["tool_choice"] = json!({"type": "tool", "name": "weather"});
    for more in [json!({"output_config": {"format": format}}), json!({"output_format": format}), forced.clone(), named]
    {
        assert_eq!(ask(&bench, more.clone()).await.status, StatusCode::OK, "{more}");
    }
    assert!(bench.mesh.seen.lock().expect("no panic holds it").iter().all(|seen| seen.grammar.is_some()));
    forced["output_format"] = format;
    assert!(error(&ask(&bench, forced).await).2.contains("'tool_choice'"));
    let wrong = json!({"tool_choice": {"type": "tool", "name": "other"}, "tools": tool()["tools"]});
    assert!(error(&ask(&bench, wrong).await).2.contains("'other'"));
}

#[tokio::test]
async fn a_conversation_becomes_messages() {
    let source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.reasoning_content %}\
                  ({{ m.reasoning_content }}){% endif %}\
                  {% for c in m.tool_calls or [] %}<{{ c.id }} {{ c.function.name }} {{ c.function.arguments.city }}>\
                  {% endfor %}{{ m.tool_call_id }}\n{% endfor %}{{ tools|length }}";
    let bench = Bench::with(hello, |state| state.text = Arc::new(templated(source)));
    let mut request = tool();
    request["system"] =
        json!([{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "t"}]);
    request["messages"] = json!([
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": "y"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "secret", "signature": "a"},
            {"type": "redacted_thinking", "data": "b"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
            {"type": "tool_use", "id": "t2", "name": "weather", "input": {"city": "Bonn"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
            {"type": "tool_result", "tool_use_id": "t2", "is_error": true, "content": [{"type": "text", "text": "no"}]},
            {"type": "text", "text": "And?"},
        ]},
    ]);
    let answer = ask(&bench, request.clone()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let prompt = "[system] s\nt\n[user] x\n\ny\n[assistant] I look.(secret)<t1 weather Rome><t2 weather Bonn>\n\
                  [tool] raint1\n[tool] Error: not2\n[user] And?\n1";
    assert_eq!(prompts(&bench), [prompt]);
    let counted = bench.post("/v1/messages/count_tokens", body(request.clone()).to_string()).await.json();
    let tokens = bench.mesh.seen.lock().expect("no panic holds it")[0].ids.len();
    assert_eq!(counted, json!({"input_tokens": tokens}));
    request["context_management"] =
        json!({"edits": [{"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 0}}]});
    ask(&bench, request).await;
    assert_eq!(prompts(&bench)[1], prompt.replace("(secret)", ""));
}

#[tokio::test]
async fn what_is_wrong_is_told_in_anthropics_way() {
    let bench = Bench::new(hello);
    let content = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    for (more, said) in [
        (json!({"max_tokens": null}), "'max_tokens'"),
        (json!({"max_tokens": 0}), "'max_tokens'"),
        (json!({"temperature": 1.5}), "'temperature'"),
        (json!({"messages": []}), "'messages'"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "'role'"),
        (json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}), "assistant's"),
        (content(json!([{"type": "image", "source": {}}])), "no images"),
        (content(json!([{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}])), "no images"),
        (content(json!([{"type": "tool_result"}])), "'tool_use_id'"),
        (json!({"stop_sequences": [""]}), "'stop_sequences'"),
        (json!({"tools": [{"name": "a b"}]}), "'name'"),
        (json!({"tools": [{"type": "web_search_20250305", "name": "f"}]}), "\"custom\""),
        (json!({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}), "'input_schema'"),
        (json!({"tool_choice": {"type": "some"}}), "auto, any, tool and none"),
        (json!({"thinking": {"type": "deep"}}), "enabled, disabled and adaptive"),
        (json!({"mcp_servers": [{}]}), "'mcp_servers'"),
        (json!({"output_config": {"format": {"type": "json_schema"}}}), "'output_config.format'"),
        (json!({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}), "'context_management'"),
        (json!({"n": 2}), "'n'"),
        (json!({"logprobs": true}), "'logprobs'"),
    ] {
        let answer = ask(&bench, more.clone()).await;
        let (status, kind, message) = error(&answer);
        assert_eq!((status, kind.as_str()), (400, "invalid_request_error"), "{more}");
        assert!(message.contains(said), "{more}: {message}");
    }
    let clear = json!({"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]});
    let harmless = json!({
        "context_management": clear, "service_tier": "standard_only", "metadata": {"user_id": "u"}, "mcp_servers": [],
    });
    assert_eq!(ask(&bench, harmless).await.status, StatusCode::OK);
}

#[tokio::test]
async fn errors_outside_the_body_are_anthropics_too() {
    let bench = Bench::with(hello, |state| state.api_key = Some("sesame".parse().expect("a key")));
    let (status, kind, _) = error(&ask(&bench, json!({})).await);
    assert_eq!((status, kind.as_str()), (401, "authentication_error"));
    let request = Request::post(PATH).header("x-api-key", "sesame").header("anthropic-version", "2023-06-01");
    let answer = bench.ask(request.body(body(json!({})).to_string().into()).expect("a request")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let bench = Bench::new(hello);
    assert_eq!(error(&ask(&bench, json!({"model": "claude"})).await).1, "not_found_error");
    assert_eq!(error(&bench.get(PATH).await).0, 405);
    bench.mesh.status.send_replace(Arc::new(mesh_status(MeshState::Waiting)));
    let answer = ask(&bench, json!({})).await;
    assert_eq!((error(&answer).1.as_str(), answer.headers.contains_key("retry-after")), ("overloaded_error", true));
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_an_error() {
    let lost = || GenerateEvent::Failed(GenerateError::WorkerLost { text: "worker b is gone".to_owned() });
    let bench = Bench::new(move |_| vec![GenerateEvent::Token(row(word("Hello"))), lost()]);
    let events = typed(&ask(&bench, json!({"stream": true})).await);
    let last = events.last().expect("events");
    assert!(last["error"]["message"].as_str().is_some_and(|text| text.contains("worker b is gone")), "{last}");
    assert_eq!((&last["type"], &last["error"]["type"]), (&json!("error"), &json!("overloaded_error")));
    assert!(events.iter().all(|event| event["type"] != "message_stop"));
}
