//! Calls and their results in earlier messages, for templates that do not know them.

use std::borrow::Cow;

use qmesh_models::chat::{ChatTemplate, Message};
use serde_json::{Map, Value, json};

/// Whether there are calls or results of calls.
pub(super) fn has_calls(messages: &[Message]) -> bool {
    messages.iter().any(|message| is_call(message) || is_result(message))
}

/// Leaves something of a conversation out, if there is any of it.
type Without = fn(&[Message]) -> Option<Vec<Message>>;

/// Leave out calls, and results. A template that makes the same text of what is left does not look at them.
pub(super) const WITHOUT: [Without; 3] = [without_calls, without_calls_and_null, without_results];

/// The same conversation with calls as a text of the assistant, and results as one of the user.
pub(super) fn as_text(messages: &[Message]) -> Vec<Message> {
    let mut told: Vec<Message> = Vec::new();
    let mut after_result = false;
    for message in messages {
        let mut message = message.clone();
        let result = is_result(&message);
        if let Some(Value::Array(calls)) = message.extra.shift_remove("tool_calls") {
            let said = text_of(&message);
            let lines = said.into_iter().chain(calls.iter().map(call_text));
            message.content = Some(lines.collect::<Vec<_>>().join("\n").into());
        }
        if result {
            let text = format!("<tool_response>\n{}\n</tool_response>", text_of(&message).unwrap_or_default());
            // Many templates want user and assistant to take turns.
            if let (true, Some(last)) = (after_result, told.last_mut()) {
                last.content = Some(format!("{}\n{text}", text_of(last).unwrap_or_default()).into());
                continue;
            }
            message = Message::new("user", text);
        }
        after_result = result;
        told.push(message);
    }
    told
}

/// What tells a model that was not trained on tools how to call these.
pub(super) fn instructions(tools: &[Value]) -> String {
    let described: Vec<_> = tools.iter().map(|tool| tool.get("function").unwrap_or(tool).to_string()).collect();
    format!(
        "You can call these functions, each described by a line of JSON:\n{}\n\nTo call one, answer with nothing but\n\
         <tool_call>\n{{\"name\": \"NAME\", \"arguments\": {{…}}}}\n</tool_call>\nwhere the arguments are those that \
         the function's description asks for. Several calls may follow each other. What comes of them is told you \
         between <tool_response> and </tool_response>. Call no other functions, and call one only if it helps.",
        described.join("\n"),
    )
}

/// The conversation with these instructions in its system message.
pub(super) fn instructed(messages: &[Message], instructions: &str) -> Vec<Message> {
    let mut messages = messages.to_vec();
    match messages.first_mut() {
        Some(first) if first.role == "system" => {
            let text = text_of(first).map_or_else(String::new, |text| format!("{text}\n\n"));
            first.content = Some(format!("{text}{instructions}").into());
        }
        _ => messages.insert(0, Message::new("system", instructions)),
    }
    messages
}

/// The conversation with its system message as the beginning of the first user message: some templates know none.
pub(super) fn without_system(messages: &[Message]) -> Vec<Message> {
    let (system, mut rest): (Vec<_>, Vec<_>) = messages.iter().cloned().partition(|message| message.role == "system");
    let system: Vec<_> = system.iter().filter_map(text_of).collect();
    match rest.iter_mut().find(|message| message.role == "user") {
        Some(user) => {
            let texts = system.into_iter().chain(text_of(user));
            user.content = Some(texts.collect::<Vec<_>>().join("\n\n").into());
        }
        None => rest.insert(0, Message::new("user", system.join("\n\n"))),
    }
    rest
}

/// Mistral's templates take no ids of calls but such of nine letters and digits; ours are longer.
pub(super) fn with_ids_for<'m>(template: &ChatTemplate, messages: &'m [Message]) -> Cow<'m, [Message]> {
    if !has_calls(messages) || !template.source().contains("Tool call IDs should be alphanumeric strings with length 9")
    {
        return Cow::Borrowed(messages);
    }
    let mut messages = messages.to_vec();
    let shorten = |id: Option<&mut Value>| {
        if let Some(id) = id
            && let Some(text) = id.as_str()
        {
            *id = nine(text).into();
        }
    };
    for message in &mut messages {
        if let Some(Value::Array(calls)) = message.extra.get_mut("tool_calls") {
            calls.iter_mut().for_each(|call| shorten(call.get_mut("id")));
        }
        if is_result(message) {
            shorten(message.extra.get_mut("tool_call_id"));
        }
    }
    Cow::Owned(messages)
}

fn without_calls(messages: &[Message]) -> Option<Vec<Message>> {
    let mut silent = messages.iter().any(is_call).then(|| messages.to_vec())?;
    silent.iter_mut().for_each(|message| drop(message.extra.shift_remove("tool_calls")));
    Some(silent)
}

/// Where null makes a template fail, it is rendered with an empty text.
fn without_calls_and_null(messages: &[Message]) -> Option<Vec<Message>> {
    let mut silent = without_calls(messages)?;
    let null = silent.iter_mut().filter(|message| message.content == Some(Value::Null));
    null.for_each(|message| message.content = Some("".into()));
    Some(silent)
}

fn without_results(messages: &[Message]) -> Option<Vec<Message>> {
    let rest = || messages.iter().filter(|message| !is_result(message)).cloned().collect();
    messages.iter().any(is_result).then(rest)
}

fn is_call(message: &Message) -> bool {
    message.extra.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
}

fn is_result(message: &Message) -> bool {
    message.role == "tool"
}

fn text_of(message: &Message) -> Option<String> {
    match message.content.as_ref()? {
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Value::Null => None,
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => Some(other.to_string()),
    }
}

/// A call as the instructions ask for it.
fn call_text(call: &Value) -> String {
    let function = call.get("function").unwrap_or(call);
    let arguments = function.get("arguments").cloned().unwrap_or_else(|| Map::new().into());
    let name = function.get("name").cloned().unwrap_or_default();
    format!("<tool_call>\n{}\n</tool_call>", json!({"name": name, "arguments": arguments}))
}

/// The end of an id, which differs where ids do.
fn nine(id: &str) -> String {
    let digits: Vec<char> = id.chars().filter(char::is_ascii_alphanumeric).collect();
    let end: String = digits[digits.len().saturating_sub(9)..].iter().collect();
    format!("{end:0>9}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Vec<Message> {
        let calls = json!([
            {"id": "call_abcdefghijklmn", "type": "function", "function": {"name": "f", "arguments": {"a": [1]}}},
            {"id": "2", "type": "function", "function": {"name": "g"}},
        ]);
        let mut call = Message::new("assistant", "I look.");
        call.extra.insert("tool_calls".to_owned(), calls);
        let result = |id: &str, text: &str| {
            let mut result = Message::new("tool", text);
            result.extra.insert("tool_call_id".to_owned(), id.into());
            result
        };
        vec![Message::new("user", "x"), call, result("call_abcdefghijklmn", "one"), result("2", "two")]
    }

    #[test]
    fn calls_and_results_can_be_told_as_text() {
        let told = as_text(&conversation());
        let texts: Vec<_> = told.iter().map(|message| (message.role.as_str(), text_of(message).unwrap())).collect();
        let calls = "I look.\n<tool_call>\n{\"name\":\"f\",\"arguments\":{\"a\":[1]}}\n</tool_call>\n<tool_call>\n\
                     {\"name\":\"g\",\"arguments\":{}}\n</tool_call>";
        let results = "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>";
        assert_eq!(texts, [("user", "x".into()), ("assistant", calls.into()), ("user", results.into())]);
        assert!(has_calls(&conversation()) && !has_calls(&told));
        let lengths = |messages: &[Message]| WITHOUT.map(|without| without(messages).map(|rest| rest.len()));
        assert_eq!(lengths(&conversation()), [Some(4), Some(4), Some(2)]);
        assert_eq!(lengths(&told), [None, None, None]);
    }

    #[test]
    fn instructions_find_a_place() {
        let [user, system] = [Message::new("user", "x"), Message::new("system", "Be brief.")];
        let alone = instructed(std::slice::from_ref(&user), "Do.");
        assert_eq!((alone[0].role.as_str(), text_of(&alone[0])), ("system", Some("Do.".to_owned())));
        let both = instructed(&[system, user], "Do.");
        assert_eq!((both.len(), text_of(&both[0])), (2, Some("Be brief.\n\nDo.".to_owned())));
        let merged = without_system(&both);
        assert_eq!((merged.len(), text_of(&merged[0])), (1, Some("Be brief.\n\nDo.\n\nx".to_owned())));
    }

    #[test]
    fn mistral_gets_ids_that_it_takes() {
        let picky = "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}";
        let messages = conversation();
        let plain = ChatTemplate::new("x", "", "").unwrap();
        assert!(matches!(with_ids_for(&plain, &messages), Cow::Borrowed(_)));
        let picky = ChatTemplate::new(picky, "", "").unwrap();
        let messages = with_ids_for(&picky, &messages);
        let id = |place: usize| messages[1].extra["tool_calls"][place]["id"].clone();
        assert_eq!((id(0), id(1)), ("fghijklmn".into(), "000000002".into()));
        assert_eq!(messages[2].extra["tool_call_id"], "fghijklmn");
    }
}
