//! OpenAI's responses, and its other endpoints by their older paths.

use super::{
    calls::{CALL_TEXT, is_id, prompts, templated, writes},
    thoughts::{TEXT, thinks},
    *,
};
use crate::{
    generate::GenerateError,
    text::fake::{row, written},
};

async fn ask(bench: &Bench, more: Value) -> Answer {
    let mut body = json!({"model": "made-up", "input": "x"});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    bench.post("/v1/responses", body.to_string()).await
}

/// The objects of a stream, which are numbered and named.
fn typed(answer: &Answer) -> Vec<Value> {
    let names = answer.text.lines().filter_map(|line| line.strip_prefix("event: "));
    let (objects, _) = answer.events();
    assert!(names.eq(objects.iter().map(|object| object["type"].as_str().expect("a type"))));
    assert!(answer.text.split_terminator("\n\n").all(|event| event.starts_with("event: ")), "{}", answer.text);
    assert!(
        (0..objects.len())
            .eq(objects.iter().map(|object| object["sequence_number"].as_u64().expect("a number") as usize))
    );
    objects
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().expect("a type")).collect()
}

/// An item without its id, which every item has.
fn item(mut item: Value) -> Value {
    let id = item.as_object_mut().and_then(|fields| fields.shift_remove("id"));
    assert!(id.is_some_and(|id| id.is_string()), "{item}");
    item
}

fn message(text: &str) -> Value {
    let part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
    json!({"type": "message", "role": "assistant", "content": [part], "status": "completed"})
}

fn tool() -> Value {
    json!({"tools": [{
        "type": "function", "name": "weather", "strict": true,
        "parameters": {"type": "object", "properties": {"city": {}}},
    }]})
}

#[tokio::test]
async fn a_whole_response() {
    let bench = Bench::new(hello);
    let more = json!({"instructions": "s", "temperature": 0.5, "max_output_tokens": 20, "store": true});
    let object = ask(&bench, more).await.json();
    assert!(object["id"].as_str().is_some_and(|id| id.starts_with("resp_")), "{object}");
    assert_eq!(
        (&object["object"], &object["status"], &object["error"]),
        (&json!("response"), &json!("completed"), &Value::Null)
    );
    assert_eq!(object["output"].as_array().map(Vec::len), Some(1));
    assert_eq!(item(object["output"][0].clone()), message("Hello world"));
    let usage = json!({
        "input_tokens": 9, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 12,
    });
    assert_eq!((&object["usage"], &object["instructions"], &object["temperature"]), (&usage, &json!("s"), &json!(0.5)));
    assert_eq!(prompts(&bench), ["s:s\nu:x\n"]);
    for path in ["/v1/responses/input_tokens", "/responses/input_tokens"] {
        let counted = bench.post(path, json!({"input": "x", "instructions": "s"}).to_string()).await.json();
        assert_eq!(counted, json!({"object": "response.input_tokens", "input_tokens": 9}));
    }
    assert_eq!(bench.mesh.seen.lock().expect("no panic holds it")[0].max_tokens, 20);
}

#[tokio::test]
async fn a_streamed_response() {
    let events = typed(&ask(&Bench::new(hello), json!({"stream": true})).await);
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(kinds(&events), expected);
    let id = &events[2]["item"]["id"];
    assert!(events[3..8].iter().all(|event| event["item_id"] == *id && event["content_index"] == 0));
    assert_eq!((&events[5]["delta"], &events[6]["text"]), (&json!(" world"), &json!("Hello world")));
    let response = &events[9]["response"];
    assert_eq!((&response["output"][0], &response["output"][0]["id"]), (&events[8]["item"], id));
    assert_eq!((&response["status"], &response["usage"]["output_tokens"]), (&json!("completed"), &json!(3)));
    assert_eq!(events[0]["response"]["status"], "in_progress");
}

#[tokio::test]
async fn calls_are_items() {
    let text = format!("I look.{CALL_TEXT}{CALL_TEXT}");
    let output = ask(&writes(&text), tool()).await.json()["output"].clone();
    assert_eq!(output.as_array().map(Vec::len), Some(3));
    assert_eq!(item(output[0].clone()), message("I look."));
    assert!(is_id(&output[1]["call_id"]));
    let call = json!({
        "type": "function_call", "call_id": output[1]["call_id"], "name": "weather",
        "arguments": "{\"city\": \"Rome\"}", "status": "completed",
    });
    assert_eq!(item(output[1].clone()), call);
    let mut streamed = tool();
    streamed["stream"] = json!(true);
    let events = typed(&ask(&writes(&text), streamed).await);
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).cloned().collect::<Vec<_>>();
    let deltas = of("response.function_call_arguments.delta").into_iter().filter(|event| event["output_index"] == 1);
    let json: String = deltas.map(|event| event["delta"].as_str().expect("JSON").to_owned()).collect();
    assert_eq!(json, "{\"city\": \"Rome\"}");
    assert_eq!(of("response.function_call_arguments.done").len(), 2);
    assert_eq!(of("response.output_item.added")[2]["item"]["status"], "in_progress");
    assert_eq!(of("response.completed")[0]["response"]["output"].as_array().map(Vec::len), Some(3));
    let mut single = tool();
    single["parallel_tool_calls"] = json!(false);
    assert_eq!(ask(&writes(&text), single).await.json()["output"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn thoughts_are_items() {
    let object = ask(&thinks(TEXT), json!({"reasoning": {"effort": "low", "summary": "auto"}})).await.json();
    let thoughts = json!({
        "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "One and one?"}],
        "status": "completed",
    });
    assert_eq!(item(object["output"][0].clone()), thoughts);
    assert_eq!(item(object["output"][1].clone()), message("Two."));
    assert_eq!(object["reasoning"]["effort"], "low");
    let tokens = object["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().expect("a number");
    assert!((1..="One and one?".len() as u64 + 2).contains(&tokens), "{tokens}");
    let events = typed(&ask(&thinks(TEXT), json!({"stream": true})).await);
    let kinds = kinds(&events);
    for kind in ["response.reasoning_text.delta", "response.reasoning_text.done", "response.output_text.done"] {
        assert!(kinds.contains(&kind), "{kind}");
    }
}

#[tokio::test]
async fn what_is_cut_off_says_so() {
    let bench = Bench::new(|_| generation(&[word("Hello")]));
    let object = ask(&bench, json!({})).await.json();
    assert_eq!(
        (&object["status"], &object["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    let events = typed(&ask(&bench, json!({"stream": true})).await);
    assert_eq!(kinds(&events).last(), Some(&"response.incomplete"));
    let cut = written("<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Ro");
    let object = ask(&Bench::new(move |_| generation(&cut)), tool()).await.json();
    assert_eq!(
        (&object["output"][0]["status"], &object["output"][0]["arguments"]),
        (&json!("incomplete"), &json!("{\"city\": \"Ro"))
    );
    let lost = || GenerateEvent::Failed(GenerateError::WorkerLost { text: "worker b is gone".to_owned() });
    let failing = Bench::new(move |_| vec![GenerateEvent::Token(row(word("Hello"))), lost()]);
    let events = typed(&ask(&failing, json!({"stream": true})).await);
    let last = events.last().expect("events");
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert!(last["response"]["error"]["message"].as_str().is_some_and(|text| text.contains("worker b is gone")));
}

#[tokio::test]
async fn answers_are_held_to_forms() {
    let bench = Bench::new(hello);
    let format = json!({"type": "json_schema", "name": "a", "strict": true, "schema": {"type": "object"}});
    let mut named = tool();
    named["tool_choice"] = json!({"type": "function", "name": "weather"});
    let mut required = tool();
    required["tool_choice"] = json!("required");
    for more in
        [json!({"text": {"format": format}}), json!({"text": {"format": {"type": "json_object"}}}), named, required]
    {
        assert_eq!(ask(&bench, more.clone()).await.status, StatusCode::OK, "{more}");
    }
    assert!(bench.mesh.seen.lock().expect("no panic holds it").iter().all(|seen| seen.grammar.is_some()));
    assert_eq!(ask(&bench, json!({"text": {"format": format}})).await.json()["text"]["format"], format);
}

#[tokio::test]
async fn a_conversation_becomes_messages() {
    let source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.reasoning_content %}\
                  ({{ m.reasoning_content }}){% endif %}\
                  {% for c in m.tool_calls or [] %}<{{ c.id }} {{ c.function.name }} {{ c.function.arguments.city }}>\
                  {% endfor %}{{ m.tool_call_id }}\n{% endfor %}{{ tools|length }}";
    let bench = Bench::with(hello, |state| state.text = Arc::new(templated(source)));
    let mut request = tool();
    request["instructions"] = json!("s");
    request["input"] = json!([
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "a"},
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "I look.", "annotations": []},
        ]},
        {"type": "reasoning", "id": "rs_3", "summary": [{"type": "summary_text", "text": "Two."}], "content": null},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{\"city\": \"Rome\"}"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{\"city\": \"Bonn\"}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
    ]);
    let answer = ask(&bench, request).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let prompt = "[system] s\n\nd\n[user] x\n[assistant] I look.(Hm.\n\nTwo.)<c1 weather Rome><c2 weather Bonn>\n\
                  [tool] rainc1\n[tool] sunc2\n1";
    assert_eq!(prompts(&bench), [prompt]);
}

#[tokio::test]
async fn what_is_not_honoured_is_refused_by_name() {
    let bench = Bench::new(hello);
    let content = |kind: &str| json!({"input": [{"role": "user", "content": [{"type": kind}]}]});
    let format = |kind: &str| json!({"text": {"format": {"type": kind}}});
    let mut both = format("json_object");
    both["response_format"] = json!({"type": "json_object"});
    for (more, param) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"background": true}), "background"),
        (json!({"include": ["message.output_text.logprobs"]}), "include"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"truncation": "auto"}), "truncation"),
        (format("json_schema"), "text.format.schema"),
        (format("xml"), "text.format.type"),
        (both, "text.format"),
        (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (content("input_image"), "input[0].content[0].type"),
        (content("input_text"), "input[0].content[0].text"),
        (json!({"input": [{"role": "king", "content": "x"}]}), "input[0].role"),
        (json!({"input": [{"type": "item_reference", "id": "a"}]}), "input[0].type"),
        (json!({"input": [{"type": "function_call", "name": "f"}]}), "input[0].call_id"),
        (json!({"input": [{"type": "function_call_output", "call_id": "1"}]}), "input[0].output"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function", "name": "a b"}]}), "tools[0].name"),
        (json!({"reasoning": {"effort": "huge"}}), "reasoning.effort"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"input": "x".repeat(64)}), "input"),
        (json!({"n": 2}), "n"),
    ] {
        let answer = ask(&bench, more.clone()).await;
        let (status, _, _, found) = answer.error();
        assert_eq!((status, found.as_deref()), (StatusCode::BAD_REQUEST, Some(param)), "{more}");
    }
    let harmless = json!({
        "previous_response_id": null, "include": ["reasoning.encrypted_content"], "truncation": "disabled",
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "prompt_cache_key": "a", "store": false,
        "metadata": {"a": "b"}, "tool_choice": "auto", "service_tier": "auto",
    });
    assert_eq!(ask(&bench, harmless).await.status, StatusCode::OK);
}

#[tokio::test]
async fn older_paths_lead_to_the_same() {
    let bench = Bench::new(hello);
    assert_eq!(bench.post("/chat/completions", chat_body(json!({})).to_string()).await.status, StatusCode::OK);
    let completed = bench.post("/completions", json!({"prompt": "a"}).to_string()).await;
    assert_eq!(completed.json()["object"], "text_completion");
    assert_eq!(bench.post("/responses", json!({"input": "a"}).to_string()).await.status, StatusCode::OK);
    assert_eq!(bench.get("/models").await.json()["data"][0]["id"], "made-up");
    let prompt = |more: Value| async {
        bench.post("/apply-template", chat_body(more).to_string()).await.json()["prompt"].clone()
    };
    assert_eq!(prompt(json!({})).await, "u:x\n");
    let function = json!({"type": "function", "function": {"name": "f"}});
    assert_eq!(prompt(json!({"tools": [function]})).await, "u:x\n1");
    let spelled = json!({"messages": [{"role": "user", "content": "</s>"}]});
    assert_eq!(prompt(spelled).await, "u:</s>\n", "no mark of ours is in it");
    let wrong = bench.post("/apply-template", json!({"messages": []}).to_string()).await;
    assert_eq!(wrong.error().3.as_deref(), Some("messages"));
}
