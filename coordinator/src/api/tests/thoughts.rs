//! Thoughts, apart from answers.

use qmesh_models::chat::ChatTemplate;

use super::*;
use crate::text::{TextModel, fake::written};

/// A bench whose model thinks, or has been told not to, and then writes this text, which must be one by the request's grammar.
pub(super) fn thinks(text: &str) -> Bench {
    let source = "{{ messages[0].content }}{{ reasoning_effort }}{% if enable_thinking %}<think>\n{% endif %}\
                  {% if false %}</think>{% endif %}";
    let template = ChatTemplate::new(source, "<s>", "</s>").expect("a sound template");
    let tokens = [written(text), vec![END]].concat();
    Bench::with(
        move |request| {
            let mut walk = request.grammar.as_ref().map(|grammar| grammar.start());
            let mut follow = |token: &u32| walk.as_mut().map_or(Ok(()), |walk| walk.advance(*token));
            tokens.iter().try_for_each(&mut follow).expect("a text by the grammar");
            generation(&tokens)
        },
        move |state| state.text = Arc::new(TextModel { context: 4096, template: Ok(Arc::new(template)), ..model() }),
    )
}

pub(super) const TEXT: &str = "<think>\nOne and one?\n</think>\n\nTwo.";

#[tokio::test]
async fn thoughts_come_apart() {
    let answer = thinks(TEXT).chat(json!({})).await.json();
    let tokens = answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().expect("a number");
    assert!((1..="One and one?".len() as u64 + 2).contains(&tokens), "{tokens}");
    let choice = answer["choices"][0].clone();
    let message = json!({
        "role": "assistant", "content": "Two.", "refusal": null, "reasoning_content": "One and one?",
    });
    assert_eq!((&choice["message"], &choice["finish_reason"]), (&message, &json!("stop")));
    let (chunks, done) = thinks(TEXT).chat(json!({"stream": true})).await.events();
    let of = |field: &str| {
        let deltas = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str());
        deltas.collect::<String>()
    };
    assert_eq!((of("reasoning_content"), of("content"), done), ("One and one?".into(), "Two.".into(), true));
    let both = |chunk: &Value| {
        let delta = &chunk["choices"][0]["delta"];
        delta.get("reasoning_content").is_some() && delta.get("content").is_some()
    };
    assert!(!chunks.iter().any(both));
}

#[tokio::test]
async fn thoughts_that_the_prompt_begins() {
    let bench = thinks("One and one?\n</think>\n\nTwo.");
    let message = bench.chat(json!({"enable_thinking": true})).await.json()["choices"][0]["message"].clone();
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("One and one?"), &json!("Two.")));
    for body in [json!({}), json!({"enable_thinking": false}), json!({"reasoning_effort": "none"})] {
        let message = bench.chat(body).await.json()["choices"][0]["message"].clone();
        assert_eq!(
            (message.get("reasoning_content"), &message["content"]),
            (None, &json!("One and one?\n</think>\n\nTwo."))
        );
    }
    let kwargs = json!({"chat_template_kwargs": {"enable_thinking": true}});
    assert!(bench.chat(kwargs).await.json()["choices"][0]["message"]["reasoning_content"].is_string());
}

#[tokio::test]
async fn thoughts_are_where_clients_want_them() {
    for (body, thoughts, content) in [
        (json!({"reasoning_format": "none"}), None, TEXT),
        (json!({"separate_reasoning": false}), None, TEXT),
        (json!({"include_reasoning": false}), None, "Two."),
        (json!({"reasoning_format": "deepseek", "logprobs": true}), Some("One and one?"), "Two."),
    ] {
        let message = thinks(TEXT).chat(body.clone()).await.json()["choices"][0]["message"].clone();
        let found = message.get("reasoning_content").and_then(Value::as_str);
        assert_eq!((found, message["content"].as_str()), (thoughts, Some(content)), "{body}");
    }
}

#[tokio::test]
async fn an_answer_has_its_form_behind_thoughts_that_the_prompt_has_begun() {
    let schema = json!({"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]});
    let tool = json!({"type": "function", "function": {"name": "greet", "parameters": {"type": "object"}}});
    for asked in [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}}),
        json!({"response_format": {"type": "json_object"}, "tools": [tool]}),
        json!({"guided_regex": "[{]\"sum\": [0-9]+[}]"}),
    ] {
        let mut body = asked.clone();
        body["enable_thinking"] = json!(true);
        let answer = thinks("One and one?\n</think>\n\n{\"sum\": 2}").chat(body).await.json();
        let message = &answer["choices"][0]["message"];
        let said = (&message["reasoning_content"], &message["content"]);
        assert_eq!(said, (&json!("One and one?"), &json!("{\"sum\": 2}")), "{asked}: {answer}");
        // Without thoughts the form holds from the first token on.
        let answer = thinks("{\"sum\": 2}").chat(asked.clone()).await.json();
        assert_eq!(answer["choices"][0]["message"]["content"], "{\"sum\": 2}", "{asked}: {answer}");
    }
}

#[tokio::test]
async fn the_template_hears_of_the_effort() {
    let bench = thinks("x");
    bench.chat(json!({"reasoning_effort": "low"})).await;
    let ids = bench.mesh.seen.lock().expect("no panic holds it")[0].ids.clone();
    assert_eq!(ids[1..], written("xlow"));
}
