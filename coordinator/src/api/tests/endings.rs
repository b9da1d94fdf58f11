//! Where prompts of chats end: with a message to be answered, or with an answer that goes on.

use qmesh_models::{chat::ChatTemplate, tokenizer::ControlTokens};

use super::*;
use crate::text::TextModel;

/// Heads and ends of messages, and today's date.
const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}\
    {% if add_generation_prompt %}[assistant]{% endif %}{% if show_date %}{{ date_string }}{% endif %}";

fn bench() -> Bench {
    let template = Arc::new(ChatTemplate::new(TEMPLATE, "", "").expect("a sound template"));
    // A model that writes the space before its words, as those with SentencePiece do.
    let more = |_: &GenerateRequest| generation(&[word("▁world"), END]);
    Bench::with(more, |state| state.text = Arc::new(TextModel { template: Ok(template), ..model() }))
}

/// The prompts of what was asked so far.
fn prompts(bench: &Bench) -> Vec<String> {
    let seen = bench.mesh.seen.lock().expect("no panic holds it");
    seen.iter().map(|seen| model().tokenizer.decode(&seen.ids, ControlTokens::Hide)).collect()
}

fn begun() -> Value {
    json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "Hello"}])
}

#[tokio::test]
async fn an_answer_that_the_client_begins_goes_on_in_every_dialect() {
    let bench = bench();
    let chat = bench.chat(json!({"messages": begun()})).await.json();
    assert_eq!(chat["choices"][0]["message"]["content"], " world", "the space belongs to the text");
    let body = json!({"model": "made-up", "max_tokens": 5, "messages": begun()});
    let message = bench.post("/v1/messages", body.to_string()).await.json();
    assert_eq!(message["content"], json!([{"type": "text", "text": " world"}]));
    let body = json!({"model": "made-up", "stream": false, "messages": begun()});
    let ollama = bench.post("/api/chat", body.to_string()).await.json();
    assert_eq!(ollama["message"]["content"], " world");
    assert_eq!(prompts(&bench), vec!["[user]x;[assistant]Hello"; 3]);
}

#[tokio::test]
async fn clients_say_where_the_prompt_ends() {
    let bench = bench();
    let prompt = async |more: Value| {
        let answer = bench.post("/apply-template", chat_body(more).to_string()).await;
        answer.json()["prompt"].as_str().expect("a prompt").to_owned()
    };
    for (more, text) in [
        (json!({}), "[user]x;[assistant]"),
        (json!({"add_generation_prompt": false}), "[user]x;"),
        (json!({"messages": begun()}), "[user]x;[assistant]Hello"),
        (json!({"messages": begun(), "continue_final_message": true}), "[user]x;[assistant]Hello"),
        (json!({"messages": begun(), "continue_final_message": false}), "[user]x;[assistant]Hello;[assistant]"),
        (json!({"messages": begun(), "add_generation_prompt": true}), "[user]x;[assistant]Hello;[assistant]"),
        (json!({"chat_template_kwargs": {"show_date": 1, "date_string": "today"}}), "[user]x;[assistant]today"),
    ] {
        assert_eq!(prompt(more.clone()).await, text, "{more}");
    }
    let dated = prompt(json!({"chat_template_kwargs": {"show_date": 1}})).await;
    let date = dated.strip_prefix("[user]x;[assistant]").expect("the rest");
    assert_eq!((date.len(), date.split(' ').count()), ("30 Nov 2026".len(), 3), "{date}");
    for more in [
        json!({"continue_final_message": true}),
        json!({"messages": begun(), "continue_final_message": true, "add_generation_prompt": true}),
    ] {
        let (status, _, _, param) = bench.chat(more.clone()).await.error();
        assert_eq!((status, param.as_deref()), (StatusCode::BAD_REQUEST, Some("continue_final_message")), "{more}");
    }
}
