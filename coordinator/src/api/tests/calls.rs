//! Tools and calls of them.

use std::collections::HashSet;

use qmesh_models::{chat::ChatTemplate, tokenizer::ControlTokens};

use super::*;
use crate::text::{
    TextModel,
    fake::{ARGS, row, written},
};

/// A model whose template is this one, with room for instructions.
pub(super) fn templated(source: &str) -> TextModel {
    let template = ChatTemplate::new(source, "<s>", "</s>").expect("a sound template");
    TextModel { template: Ok(Arc::new(template)), context: 4096, ..model() }
}

/// A bench whose model writes this text.
pub(super) fn writes(text: &str) -> Bench {
    let tokens = [written(text), vec![END]].concat();
    Bench::new(move |_| generation(&tokens))
}

/// A request with a tool, and more.
fn with_tool(more: Value) -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let function = json!({"name": "weather", "description": "Now.", "parameters": parameters});
    let mut body = json!({"tools": [{"type": "function", "function": function}]});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// The prompts that the mesh has got, as text.
pub(super) fn prompts(bench: &Bench) -> Vec<String> {
    let tokenizer = model().tokenizer;
    let seen = bench.mesh.seen.lock().expect("no panic holds it");
    seen.iter().map(|request| tokenizer.decode(&request.ids, ControlTokens::Hide)).collect()
}

pub(super) fn is_id(id: &Value) -> bool {
    let digits = id.as_str().and_then(|id| id.strip_prefix("call_"));
    digits.is_some_and(|digits| digits.len() == 24 && digits.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

pub(super) const CALL_TEXT: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";

#[tokio::test]
async fn a_whole_call() {
    let choice = writes(CALL_TEXT).chat(with_tool(json!({}))).await.json()["choices"][0].clone();
    let (message, id) = (&choice["message"], &choice["message"]["tool_calls"][0]["id"]);
    assert!(is_id(id), "{choice}");
    let function = json!({"name": "weather", "arguments": "{\"city\": \"Rome\"}"});
    let call = json!({"id": id, "type": "function", "function": function});
    assert_eq!(message, &json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": [call]}));
    assert_eq!(choice["finish_reason"], "tool_calls");
    let answer = writes(&format!("I look.\n\n{CALL_TEXT}\n")).chat(with_tool(json!({"tool_choice": "auto"}))).await;
    assert!(!answer.headers.contains_key("x-qmesh-tools"), "its own template knows tools");
    let choice = answer.json()["choices"][0].clone();
    assert_eq!(choice["message"]["content"], "I look.");
    assert_eq!(choice["message"]["tool_calls"].as_array().map(Vec::len), Some(1));
    let choice = writes("<tool_call> no").chat(with_tool(json!({}))).await.json()["choices"][0].clone();
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("<tool_call> no"), &json!("stop")));
}

#[tokio::test]
async fn a_streamed_call() {
    let (chunks, done) = writes(CALL_TEXT).chat(with_tool(json!({"stream": true}))).await.events();
    let deltas: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["delta"].clone()).collect();
    let (first, rest) = deltas[1..].split_first().expect("chunks");
    assert!(done && is_id(&first["tool_calls"][0]["id"]), "{first}");
    let id = first["tool_calls"][0]["id"].clone();
    let function = json!({"name": "weather", "arguments": ""});
    let begun = json!({"tool_calls": [{"index": 0, "id": id, "type": "function", "function": function}]});
    assert_eq!(first, &begun);
    let (end, pieces) = rest.split_last().expect("an end");
    assert_eq!(
        (end, &chunks.last().expect("chunks")["choices"][0]["finish_reason"]),
        (&json!({}), &json!("tool_calls"))
    );
    let arguments: String = pieces
        .iter()
        .map(|delta| {
            let text = delta["tool_calls"][0]["function"]["arguments"].as_str().expect("a piece");
            assert_eq!(delta, &json!({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}));
            text
        })
        .collect();
    assert_eq!((arguments.as_str(), pieces.len() > 5), ("{\"city\": \"Rome\"}", true));
}

#[tokio::test]
async fn several_calls_and_several_choices() {
    let bench = writes(&format!("{CALL_TEXT}\n{CALL_TEXT}"));
    let object = bench.chat(with_tool(json!({"n": 2}))).await.json();
    let calls: Vec<_> =
        (0..4).map(|number| object["choices"][number / 2]["message"]["tool_calls"][number % 2].clone()).collect();
    assert!(calls.iter().all(|call| call["function"]["arguments"] == "{\"city\": \"Rome\"}"), "{object}");
    assert_eq!(calls.iter().map(|call| call["id"].to_string()).collect::<HashSet<_>>().len(), 4);
    let (chunks, _) = bench.chat(with_tool(json!({"n": 2, "stream": true}))).await.events();
    for index in 0..2 {
        let mine = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        let begun = mine.filter_map(|choice| choice["delta"]["tool_calls"][0].get("id").map(|_| choice));
        let numbers: Vec<_> = begun.map(|choice| choice["delta"]["tool_calls"][0]["index"].clone()).collect();
        assert_eq!(numbers, [0, 1]);
    }
}

#[tokio::test]
async fn one_call_ends_the_answer_where_only_one_is_wanted() {
    let text = format!("{CALL_TEXT}\n{CALL_TEXT} and more");
    let mut bench = Bench::new(move |_| written(&text).into_iter().map(|id| GenerateEvent::Token(row(id))).collect());
    let choice = bench.chat(with_tool(json!({"parallel_tool_calls": false}))).await.json()["choices"][0].clone();
    assert_eq!(choice["message"]["tool_calls"].as_array().map(Vec::len), Some(1), "{choice}");
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&Value::Null, &json!("tool_calls")));
    bench.mesh.cancelled().await;
}

#[tokio::test]
async fn older_clients_get_their_call() {
    let bench = writes(&format!("{CALL_TEXT}{CALL_TEXT}"));
    let older = json!({"functions": [{"name": "weather"}], "function_call": "auto"});
    let choice = bench.chat(older.clone()).await.json()["choices"][0].clone();
    let function = json!({"name": "weather", "arguments": "{\"city\": \"Rome\"}"});
    assert_eq!((&choice["message"]["function_call"], &choice["finish_reason"]), (&function, &json!("function_call")));
    assert_eq!(choice["message"].get("tool_calls"), None);
    let mut streamed = older;
    streamed["stream"] = json!(true);
    let (chunks, _) = bench.chat(streamed).await.events();
    assert_eq!(chunks[1]["choices"][0]["delta"]["function_call"], json!({"name": "weather", "arguments": ""}));
    let result = json!({"messages": [
        {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "x"},
    ]});
    let bench = Bench::with(hello, |state| state.text = Arc::new(TextModel { context: 4096, ..model() }));
    assert_eq!(bench.chat(result).await.status, StatusCode::OK);
    let call = "<tool_call>\n{\"name\":\"f\",\"arguments\":{}}\n</tool_call>";
    assert_eq!(prompts(&bench), [format!("a:{call}\nu:<tool_response>\nx\n</tool_response>\n")]);
}

#[tokio::test]
async fn without_tools_nothing_is_read() {
    for body in [json!({}), with_tool(json!({"tool_choice": "none"})), json!({"tools": []})] {
        let bench = writes(CALL_TEXT);
        let choice = bench.chat(body).await.json()["choices"][0].clone();
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(CALL_TEXT), &json!("stop")));
        assert_eq!(prompts(&bench), ["u:x\n"], "no tool is told of");
    }
}

#[tokio::test]
async fn a_call_that_is_cut_off_says_so() {
    let tokens = written("<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Ro");
    let choice = Bench::new(move |_| generation(&tokens)).chat(with_tool(json!({}))).await.json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"city\": \"Ro");
    let stopped = writes(CALL_TEXT).chat(with_tool(json!({"stop": "Ro"}))).await.json()["choices"][0].clone();
    assert_eq!(stopped["message"]["tool_calls"][0]["function"]["arguments"], "{\"city\": \"");
}

#[tokio::test]
async fn control_tokens_are_read_and_not_shown() {
    let source = "{{ messages[0].content }}{{ tools }}{# [TOOL_CALLS] and [ARGS] #}";
    let bench =
        |tokens: Vec<u32>| Bench::with(move |_| generation(&tokens), |state| state.text = Arc::new(templated(source)));
    let call = bench([written("[TOOL_CALLS]weather"), vec![ARGS], written("{}"), vec![END]].concat());
    let message = call.chat(with_tool(json!({}))).await.json()["choices"][0]["message"].clone();
    let function = json!({"name": "weather", "arguments": "{}"});
    assert_eq!((&message["content"], &message["tool_calls"][0]["function"]), (&Value::Null, &function));
    let none = bench([written("a"), vec![ARGS], written("b"), vec![END]].concat());
    for (body, content) in [
        (with_tool(json!({})), "ab"),
        (json!({}), "ab"),
        (with_tool(json!({"stop": "[ARGS]"})), "a"),
        (with_tool(json!({"stop": "]"})), "ab"),
    ] {
        assert_eq!(none.chat(body).await.json()["choices"][0]["message"]["content"], content);
    }
}

#[tokio::test]
async fn log_probabilities_come_with_calls() {
    let bench = writes(&format!("I look.{CALL_TEXT}"));
    let tokens = "I look.".len() + CALL_TEXT.len();
    let choice = bench.chat(with_tool(json!({"logprobs": true}))).await.json()["choices"][0].clone();
    assert_eq!(choice["logprobs"]["content"].as_array().map(Vec::len), Some(tokens));
    let (chunks, _) = bench.chat(with_tool(json!({"logprobs": true, "stream": true}))).await.events();
    let listed = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(listed.map(Vec::len).sum::<usize>(), tokens);
}

#[tokio::test]
async fn a_template_that_knows_no_tools_gets_instructions() {
    let plain = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}";
    let strict = "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}\
                  {{ raise_exception('what is ' + m.role) }}{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}";
    let messages = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Rome\"}"}},
        ]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]);
    for (source, begins) in [(plain, "[system] You can call"), (strict, "[user] You can call")] {
        let tokens = [written(CALL_TEXT), vec![END]].concat();
        let bench = Bench::with(move |_| generation(&tokens), |state| state.text = Arc::new(templated(source)));
        let answer = bench.chat(with_tool(json!({"messages": messages}))).await;
        assert_eq!((answer.status, &answer.headers["x-qmesh-tools"]), (StatusCode::OK, &"generic".parse().unwrap()));
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "tool_calls");
        let prompt = &prompts(&bench)[0];
        assert!(prompt.starts_with(begins) && prompt.contains("\"description\":\"Now.\""), "{prompt}");
        let call = "[assistant] <tool_call>\n{\"name\":\"weather\",\"arguments\":{\"city\":\"Rome\"}}\n</tool_call>";
        assert!(prompt.contains(call), "{prompt}");
        assert!(prompt.ends_with("[user] <tool_response>\nrain\n</tool_response>\n"), "{prompt}");
        let streamed = bench.chat(with_tool(json!({"stream": true}))).await;
        assert_eq!(streamed.headers["x-qmesh-tools"], "generic");
        assert!(!bench.chat(json!({})).await.headers.contains_key("x-qmesh-tools"));
    }
}
