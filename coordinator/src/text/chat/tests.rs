//! Conversations with tools, in the templates of models.

use std::{collections::BTreeMap, time::SystemTime};

use qmesh_models::tokenizer::ControlTokens;
use serde_json::json;

use super::{
    super::{
        fake::{model, written},
        part::{AnswerPart, CallEvent},
    },
    *,
};
use crate::grammar::Grammar;

fn golden(name: &str) -> String {
    let path = format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/chat/{}"), name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn templated(source: &str) -> TextModel {
    let template = ChatTemplate::new(source, "<s>", "</s>").expect("a sound template");
    TextModel { template: Ok(Arc::new(template)), context: 1 << 16, ..model() }
}

fn tools() -> Vec<Value> {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}});
    let function = json!({"name": "weather", "description": "Tells the sky.", "parameters": parameters});
    vec![json!({"type": "function", "function": function})]
}

/// A question, a call and what came of it.
fn conversation() -> Vec<Message> {
    let mut call = Message { content: Some(Value::Null), ..Message::new("assistant", "") };
    let function = json!({"name": "weather", "arguments": {"city": "Rome"}});
    call.extra.insert(
        "tool_calls".to_owned(),
        json!([{"id": "call_abcdefghijklmnopqrstuvwx", "type": "function", "function": function}]),
    );
    let mut result = Message::new("tool", "thunder");
    result.extra.insert("tool_call_id".to_owned(), "call_abcdefghijklmnopqrstuvwx".into());
    result.extra.insert("name".to_owned(), "weather".into());
    vec![Message::new("user", "How is it?"), call, result]
}

/// All calls, and thoughts apart.
fn wanted(choice: ToolChoice) -> ChatWanted {
    ChatWanted { choice, calls: CallsWanted::All, strict: Vec::new(), thoughts: ThoughtsWanted::Apart }
}

fn prompt(text: &TextModel, messages: &[Message], tools: &[Value]) -> (String, ToolsShown) {
    let options = RenderOptions { tools, ..RenderOptions::new(SystemTime::UNIX_EPOCH) };
    let prompt = text.chat(messages, &options, &wanted(ToolChoice::Auto)).expect("a prompt");
    (text.tokenizer.decode(&prompt.ids, ControlTokens::Show), prompt.tools)
}

#[test]
fn every_template_tells_of_tools_calls_and_results() {
    let names: BTreeMap<String, Value> = serde_json::from_str(&golden("templates.json")).expect("JSON");
    let native = [
        "command-r7b",
        "deepseek-v3.2",
        "gemma4",
        "glm4.6",
        "glm4.7-flash",
        "gpt-oss",
        "granite3.0",
        "granite3.3",
        "granite4.0",
        "granite4.1",
        "kimi-k2",
        "kimi-k2-thinking",
        "llama3.1",
        "llama3.2",
        "minimax-m2",
        "minimax-m3",
        "ministral3",
        "mistral-nemo",
        "mistral-small3.2",
        "mistral-v3",
        "nemotron-3-nano",
        "nemotron-nano-v2",
        "qwen2.5",
        "qwen3",
        "qwen3-coder",
        "qwen3.5",
        "seed-oss",
        "step3.5",
    ];
    let mut wrong = Vec::new();
    for name in names.keys() {
        let text = templated(&golden(&format!("{name}.jinja")));
        let wanted = if native.contains(&name.as_str()) { ToolsShown::Native } else { ToolsShown::Generic };
        let (asked, shown) = prompt(&text, &conversation()[..1], &tools());
        let (answered, shown_again) = prompt(&text, &conversation(), &tools());
        let (without, none) = prompt(&text, &conversation(), &[]);
        let told = ["Tells the sky.", "How is it?", "Rome", "thunder"].map(|told| answered.contains(told));
        let shows = [shown == wanted, shown_again == wanted, asked.contains("Tells the sky.")];
        let leaves_out = none == ToolsShown::None && !without.contains("Tells the sky.");
        let goes_on = without.contains("Rome") && without.contains("thunder");
        if shows != [true; 3] || told != [true; 4] || !leaves_out || !goes_on {
            wrong.push(format!("{name}: {shows:?} {told:?} {leaves_out} {goes_on}\n{asked}\n{answered}\n{without}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn an_answer_is_read_as_its_template_has_it() {
    let options = |tools| RenderOptions { tools, ..RenderOptions::new(SystemTime::UNIX_EPOCH) };
    let tools = tools();
    let call = "<tool_call>{\"name\": \"weather\"}</tool_call>";
    let twice = format!("{call}{call}");
    for (template, calls) in [("qwen2.5", 2), ("smollm2", 2), ("gemma2", 2)] {
        let text = templated(&golden(&format!("{template}.jinja")));
        let chat = |tools| text.chat(&conversation()[..1], &options(tools), &wanted(ToolChoice::Auto));
        let mut reading = chat(&tools).expect("a prompt").reading;
        reading.push(&twice);
        assert_eq!(reading.calls(), calls, "{template}");
        let mut without = chat(&[]).expect("a prompt").reading;
        without.push(&twice);
        assert_eq!(without.calls(), 0, "{template}");
    }
    // This one's template refuses a conversation with two calls in one message.
    let llama = templated(&golden("llama3.2.jinja"));
    let chat = llama.chat(&conversation()[..1], &options(&tools), &wanted(ToolChoice::Auto));
    let mut reading = chat.expect("a prompt").reading;
    reading.push("{\"name\": \"weather\", \"parameters\": {}}; {\"name\": \"weather\", \"parameters\": {}}");
    assert!(reading.has_ended() && reading.calls() == 1);
}

#[test]
fn tools_are_a_text_where_a_template_wants_one() {
    let text = templated("{% for m in messages %}{{ m.content }}{% endfor %} functools[{{ functions + '|' }}");
    let written = |tools| {
        let options = RenderOptions { tools, ..RenderOptions::new(SystemTime::UNIX_EPOCH) };
        text.chat_text(&conversation()[..1], &options).expect("a text")
    };
    assert!(written(&[]).ends_with(" functools[|"));
    let tools = tools();
    let told = written(&tools);
    let listed = told.split_once(" functools[").and_then(|(_, rest)| rest.strip_suffix('|')).expect("the tools");
    assert_eq!(serde_json::from_str::<Vec<Value>>(listed).expect("JSON"), tools);
}

#[test]
fn what_a_template_says_against_a_conversation_is_told() {
    let picky = "{{ raise_exception('no ' + messages[0].role) }}";
    let options = RenderOptions::new(SystemTime::UNIX_EPOCH);
    let chat = |messages: &[Message]| {
        let refused = templated(picky).chat(messages, &options, &wanted(ToolChoice::None));
        refused.expect_err("it is picky").to_string()
    };
    assert_eq!(chat(&conversation()), "no user");
    let plain = templated("{{ messages[0].content }}");
    assert_eq!(prompt(&plain, &[Message::new("user", "x")], &[]), ("<s>x".to_owned(), ToolsShown::None));
    assert_eq!(plain.chat_prompt(&[Message::new("user", "x")], &options).expect("ids")[1..], written("x"));
}

#[test]
fn a_demanded_call_is_read_in_the_format_that_it_is_forced_to() {
    let tools = tools();
    let options = RenderOptions { tools: &tools, ..RenderOptions::new(SystemTime::UNIX_EPOCH) };
    for template in
        ["qwen2.5", "qwen3-coder", "glm4.6", "gpt-oss", "llama3.1", "mistral-small3.2", "granite3.3", "gemma2"]
    {
        let text = templated(&golden(&format!("{template}.jinja")));
        for choice in [ToolChoice::Required, ToolChoice::Named("weather".to_owned())] {
            let prompt = text.chat(&conversation()[..1], &options, &wanted(choice)).expect("a prompt");
            let ForcedCall { prefix, schema, suffix, .. } = prompt.forced.expect("a demand");
            let whole = schema["properties"].get("name").is_some();
            let key = if schema["properties"].get("parameters").is_some() { "parameters" } else { "arguments" };
            let json = if whole { json!({"name": "weather", key: {"city": "Rome"}}) } else { json!({"city": "Rome"}) };
            let mut reading = prompt.reading;
            let parts = [reading.push(&format!("{prefix}{json}{suffix}")), reading.finish()].concat();
            assert!(
                matches!(&parts[0], AnswerPart::Call(CallEvent::Begun { name, .. }) if name == "weather"),
                "{parts:?}"
            );
            let rest = |part: &AnswerPart| matches!(part, AnswerPart::Call(_));
            assert!(reading.calls() == 1 && parts.iter().all(rest), "{template}: {parts:?}");
        }
    }
    let thinks = templated("{{ messages[0].content }}<think>\n{% if false %}</think>{% endif %}");
    let prompt = |choice| thinks.chat(&conversation()[..1], &options, &wanted(choice)).expect("a prompt");
    assert_eq!(prompt(ToolChoice::Required).thoughts_end, Some("</think>"));
    assert_eq!(prompt(ToolChoice::Auto).forced, None);
}

#[test]
fn what_a_template_writes_between_tags_is_what_a_strict_tool_takes() {
    let list = json!({"type": "array", "items": {"type": "integer"}, "minItems": 1});
    let parameters = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "minLength": 2}, "days": {"type": "integer"}, "units": list},
        "required": ["city", "days", "units"],
        "additionalProperties": false,
    });
    let function = json!({"name": "weather", "description": "Tells the sky.", "parameters": parameters});
    let tools = [json!({"type": "function", "function": function})];
    let mut said = conversation();
    said.truncate(2);
    let arguments = json!({"city": "Rome\n<b>", "days": 2, "units": [1, 2]});
    said[1].extra["tool_calls"][0]["function"]["arguments"] = arguments;
    for template in [
        "deepseek-v3.2",
        "glm4.6",
        "glm4.7-flash",
        "minimax-m2",
        "nemotron-3-nano",
        "qwen3-coder",
        "qwen3.5",
        "seed-oss",
        "step3.5",
    ] {
        let text = templated(&golden(&format!("{template}.jinja")));
        let options = RenderOptions { tools: &tools, ..RenderOptions::new(SystemTime::UNIX_EPOCH) };
        let wanted = ChatWanted { strict: vec!["weather".to_owned()], ..wanted(ToolChoice::Auto) };
        let held = text.chat(&said[..1], &options, &wanted).expect("a prompt").held.expect("it can be held");
        let close = held.thoughts.filter(|thoughts| thoughts.begun).map_or("", |thoughts| thoughts.close);
        let mut walk = text.compile(&Grammar::held(held).expect("short enough")).expect("a grammar").start();
        let options = RenderOptions { generation_prompt: GenerationPrompt::Omit, ..options };
        let told = text.chat_text(&said, &options).expect("a text");
        let (_, answer) = told.rsplit_once("How is it?").expect("the question");
        let mut held = 0;
        for byte in written(&format!("{close}{answer}")) {
            walk.advance(byte).unwrap_or_else(|error| panic!("{template}: {error}: {answer}"));
            held += usize::from(!walk.is_free());
        }
        assert!(walk.is_free() && held > 50, "{template}, {held} bytes: {answer}");
    }
}
