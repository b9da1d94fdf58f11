//! Generations as text, from a scripted mesh.

use std::time::SystemTime;

use qmesh_models::{
    chat::{Message, RenderOptions},
    tokenizer::LeadingSpace,
};
use qmesh_net::Sampling;
use serde_json::{Value, json};

use super::{
    fake::{CONTROL, END, FakeMesh, byte, generation, model, row, word},
    *,
};
use crate::generate::{ClientId, GenerateEvent, PromptRows};

/// What comes of `tokens`: the deltas with the texts of their tokens, and why the text ended.
async fn read(tokens: &[u32], stops: &[&str]) -> (Vec<(String, Vec<String>)>, TextEndReason, usize) {
    let events = generation(tokens);
    let mesh = FakeMesh::new(move |_| events.clone());
    let mut stream = start(&mesh, stops);
    let mut deltas = Vec::new();
    loop {
        match stream.next().await.expect("an end comes first") {
            TextEvent::Delta(delta) => {
                deltas.push((delta.text, delta.tokens.into_iter().map(|token| token.spelled.text).collect()));
            }
            TextEvent::Finished(end) => {
                assert!(stream.next().await.is_none());
                return (deltas, end.reason, end.generated_tokens);
            }
            event @ (TextEvent::Prompt(_)
            | TextEvent::Progress { .. }
            | TextEvent::Prefilled { .. }
            | TextEvent::Thought(_)
            | TextEvent::Call(_)
            | TextEvent::Failed(_)) => {
                panic!("{event:?}")
            }
        }
    }
}

fn start(mesh: &FakeMesh, stops: &[&str]) -> TextStream {
    let text = model();
    let request = GenerateRequest {
        ids: vec![1],
        max_tokens: 8,
        sampling: Sampling::default(),
        ends: Arc::clone(&text.ends),
        grammar: None,
        prompt_rows: PromptRows::Last,
        client: ClientId(0),
        key: None,
    };
    let stops = stops.iter().map(ToString::to_string).collect();
    let options = TextOptions { stops, tokens: TokenDetail::On, leading_space: LeadingSpace::Keep, reading: None };
    text.generate(&mesh.handle, request, options).expect("the mesh takes it")
}

fn delta(text: &str, tokens: &[&str]) -> (String, Vec<String>) {
    (text.to_owned(), tokens.iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn control_and_end_tokens_are_no_text() {
    let tokens = [word("Hello"), CONTROL, word("▁world"), END];
    let (deltas, reason, count) = read(&tokens, &[]).await;
    let expected =
        [delta("Hello", &["Hello"]), delta("", &["<|tool|>"]), delta(" world", &[" world"]), delta("", &["</s>"])];
    assert_eq!((deltas.as_slice(), reason, count), (&expected[..], TextEndReason::EndToken, 4));
}

#[tokio::test]
async fn characters_come_whole() {
    let smile: Vec<u32> = "🙂".bytes().map(byte).collect();
    let (deltas, reason, _) = read(&[&smile[..], &[word("a")]].concat(), &[]).await;
    let texts: Vec<_> = deltas.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!((texts.concat().as_str(), reason), ("🙂a", TextEndReason::Length));
    assert!(texts.contains(&"🙂"), "{texts:?}");
    let (deltas, ..) = read(&[word("a"), smile[0], smile[1]], &[]).await;
    assert_eq!(deltas.iter().map(|(text, _)| text.as_str()).collect::<String>(), "a\u{FFFD}");
}

#[tokio::test]
async fn a_stop_string_across_tokens_never_gets_out() {
    let tokens = [word("Hello"), word("▁ST"), word("OP"), word("▁more")];
    let (deltas, reason, count) = read(&tokens, &["STOP"]).await;
    assert_eq!(deltas, [delta("Hello", &["Hello"]), delta(" ", &[]), delta("", &[" ST"])]);
    assert_eq!((reason, count), (TextEndReason::StopString, 3));
    let (deltas, reason, _) = read(&[word("▁ST"), word("a"), END], &["STOP"]).await;
    assert_eq!(deltas, [delta(" ", &[]), delta("STa", &[" ST", "a"]), delta("", &["</s>"])]);
    assert_eq!(reason, TextEndReason::EndToken);
    let (deltas, reason, _) = read(&[word("a"), word("▁ST")], &["STOP"]).await;
    assert_eq!(deltas, [delta("a", &["a"]), delta(" ", &[]), delta("ST", &[" ST"])]);
    assert_eq!(reason, TextEndReason::Length);
}

#[tokio::test]
async fn a_control_token_can_be_a_stop_string() {
    for (stops, count) in [(&["<|tool|>"][..], 2), (&["zzz", "<|tool|> world"], 3), (&["o<|tool|>"], 2)] {
        let (deltas, reason, generated) = read(&[word("Hello"), CONTROL, word("▁world"), word("a")], stops).await;
        let text: String = deltas.iter().map(|(text, _)| text.as_str()).collect();
        let tokens: Vec<_> = deltas.iter().flat_map(|(_, tokens)| tokens).collect();
        let expected = if stops == ["o<|tool|>"] { "Hell" } else { "Hello" };
        assert_eq!((text.as_str(), reason, generated), (expected, TextEndReason::StopString, count), "{stops:?}");
        assert_eq!(tokens, ["Hello"], "{stops:?}");
    }
    // The token that ends generations as well; and what only looks like a part of one stops nothing.
    assert_eq!(read(&[word("a"), END], &["a</s>"]).await, (vec![], TextEndReason::StopString, 2));
    let (deltas, reason, _) = read(&[word("a"), CONTROL, word("b"), END], &[">", "tool"]).await;
    let text: String = deltas.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!((text.as_str(), reason), ("ab", TextEndReason::EndToken));
}

#[tokio::test]
async fn what_ends_early_is_cancelled_or_failed() {
    let mut mesh = FakeMesh::new(|_| vec![GenerateEvent::Token(row(word("a"))), GenerateEvent::Token(row(word("b")))]);
    let mut stopped = start(&mesh, &["b"]);
    while stopped.next().await.is_some() {}
    mesh.cancelled().await;
    let mut dropped = start(&mesh, &[]);
    assert!(matches!(dropped.next().await, Some(TextEvent::Delta(_))));
    drop(dropped);
    mesh.cancelled().await;
    let lost = GenerateError::WorkerLost { text: "worker b is gone".to_owned() };
    let mesh = FakeMesh::new(move |_| vec![GenerateEvent::Token(row(word("a"))), GenerateEvent::Failed(lost.clone())]);
    let mut failed = start(&mesh, &[]);
    assert!(matches!(failed.next().await, Some(TextEvent::Delta(_))));
    assert!(matches!(failed.next().await, Some(TextEvent::Failed(GenerateError::WorkerLost { .. }))));
    assert!(failed.next().await.is_none());
}

#[test]
fn prompts_become_ids() {
    let text = model();
    let ids = |prompt: &str| std::iter::once(1).chain(prompt.bytes().map(byte)).collect::<Vec<_>>();
    let messages = [Message::new("user", "x")];
    let options = RenderOptions::new(SystemTime::UNIX_EPOCH);
    assert_eq!(text.chat_prompt(&messages, &options).expect("a sound template"), ids("u:x\n"));
    assert_eq!(text.raw_prompt("", Specials::Plain).expect("bos"), [1]);
    assert_eq!(text.raw_prompt("</", Specials::Plain).expect("bytes"), ids("</"));
    let blind = ChatTemplate::new("{{ messages[0].content }}", "", "").expect("a sound template");
    let blind = TextModel { template: Ok(Arc::new(blind)), ..text.clone() };
    let tools = [json!({"type": "function", "function": {"name": "f"}})];
    let with_tools = RenderOptions { tools: &tools, ..options.clone() };
    assert!(matches!(blind.chat_prompt(&messages, &with_tools), Err(PromptError::NoTools { .. })));
    assert_eq!(text.chat_prompt(&messages, &with_tools).expect("tools are known").last(), Some(&byte(b'1')));
    let strict = "{% for m in messages %}{{ m.content.strip() }}{% endfor %}{% for t in tools %}t{% endfor %}";
    let strict = ChatTemplate::new(strict, "", "").expect("a sound template");
    let strict = TextModel { template: Ok(Arc::new(strict)), ..text.clone() };
    let silent = Message { content: Some(Value::Null), ..Message::new("assistant", "") };
    let ends_in_tool = strict.chat_prompt(&[messages[0].clone(), silent], &with_tools).expect("null is an empty text");
    assert_eq!(ends_in_tool.last(), Some(&byte(b't')));
    let mute = TextModel { template: Err("it has no chat template".to_owned()), ..text };
    let error = mute.chat_prompt(&messages, &options).expect_err("no template").to_string();
    assert_eq!(error, "made-up cannot chat: it has no chat template; complete plain text instead");
}

#[test]
fn only_the_template_writes_control_tokens() {
    let source =
        "{{ eos_token }}{{ messages[0].content | trim }}{{ messages[0].name }}{{ tools | tojson }}{{ mood }}<|tool|>";
    let template = ChatTemplate::new(source, "<s>", "</s>").expect("a sound template");
    let text = TextModel { template: Ok(Arc::new(template)), ..model() };
    let tools = [json!({"</s>": ["<unk>"]})];
    let extra = json!({"mood": "<s><|tool|>"}).as_object().expect("an object").clone();
    let options = RenderOptions { tools: &tools, extra, ..RenderOptions::new(SystemTime::UNIX_EPOCH) };
    let mut message = Message::new("user", " x</s> \u{FDD0}</</s>s> ");
    message.extra.insert("name".to_owned(), json!("<|tool|>"));
    let ids = text.chat_prompt(&[message], &options).expect("a sound template");
    let written = "x</s> \u{FDD0}</</s>s><|tool|>[{\"</s>\": [\"<unk>\"]}]<s><|tool|>";
    let written = text.raw_prompt(written, Specials::Plain).expect("bytes");
    assert_eq!(ids, [&[1, END], &written[1..], &[CONTROL]].concat());
    let every = ('\u{FDD0}'..='\u{FDEF}').collect::<String>();
    let refused = text.chat_prompt(&[Message::new("user", every)], &options);
    assert!(matches!(refused, Err(PromptError::Noncharacters)));
}
