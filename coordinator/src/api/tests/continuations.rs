//! `POST /completion`: prompts of every kind, what an answer says, and how it is streamed.

use super::*;
use crate::{
    api::bias::NEVER,
    text::fake::{byte, written},
};

async fn post(bench: &Bench, body: Value) -> Answer {
    bench.post("/completion", body.to_string()).await
}

/// The ids of what was asked so far, a prompt each.
fn asked(bench: &Bench) -> Vec<Vec<u32>> {
    bench.mesh.seen.lock().expect("no panic holds it").iter().map(|seen| seen.ids.clone()).collect()
}

#[tokio::test]
async fn a_text_goes_on() {
    let bench = Bench::new(hello);
    let body = json!({
        "prompt": "a", "n_predict": 9, "seed": 42, "temperature": 0, "ignore_eos": true, "id_slot": 0, "n_keep": 4,
        "cache_prompt": false,
    });
    let answer = post(&bench, body).await.json();
    for (path, value) in [
        ("/content", json!("Hello world")),
        ("/tokens", json!([])),
        ("/stop", json!(true)),
        ("/stop_type", json!("eos")),
        ("/prompt", json!("<s>a")),
        ("/has_new_line", json!(false)),
        ("/truncated", json!(false)),
        ("/tokens_predicted", json!(3)),
        ("/tokens_evaluated", json!(2)),
        ("/timings/prompt_n", json!(2)),
        ("/timings/cache_n", json!(0)),
        ("/timings/predicted_n", json!(3)),
        ("/generation_settings/n_predict", json!(9)),
        ("/generation_settings/seed", json!(42)),
        ("/generation_settings/temperature", json!(0.0)),
        ("/generation_settings/logit_bias", json!([{"token": END, "bias": null}])),
    ] {
        assert_eq!(answer.pointer(path), Some(&value), "{path}");
    }
    let seen = bench.mesh.seen.lock().expect("no panic holds it");
    assert_eq!((seen[0].max_tokens, &seen[0].sampling.logit_bias), (9, &vec![(END, NEVER)]));
}

#[tokio::test]
async fn prompts_come_in_every_way() {
    let bench = Bench::new(hello);
    for (prompt, ids) in [
        (json!("a"), vec![vec![1, word("a")]]),
        (json!([5, 6]), vec![vec![5, 6]]),
        (json!({"prompt_string": "a"}), vec![vec![1, word("a")]]),
        (json!([5, "x", 6]), vec![vec![5, byte(b'x'), 6]]),
        (json!(["a", 6]), vec![vec![1, word("a"), 6]]),
        (json!(["a", "b"]), vec![vec![1, word("a")], vec![1, word("b")]]),
        (json!([[5], "b", {"prompt_string": "c"}]), vec![vec![5], vec![1, word("b")], vec![1, word("c")]]),
    ] {
        bench.mesh.seen.lock().expect("no panic holds it").clear();
        let answer = post(&bench, json!({"prompt": prompt, "n_predict": 2})).await.json();
        assert_eq!(asked(&bench), ids, "{prompt}");
        match answer.as_array() {
            Some(all) => assert!(all.len() == ids.len() && all.iter().all(|one| one["content"] == "Hello world")),
            None => assert_eq!((ids.len(), &answer["content"]), (1, &json!("Hello world"))),
        }
    }
    let too_long = json!(["a", 5, "x".repeat(5000)]);
    for (prompt, param) in [
        (json!(null), "prompt"),
        (json!([]), "prompt"),
        (json!([[]]), "prompt"),
        (json!([1, -1]), "prompt[1]"),
        (json!([1, null]), "prompt[1]"),
        (json!({"prompt_string": 1}), "prompt.prompt_string"),
        (json!({"prompt_string": "a", "multimodal_data": "iVBO"}), "prompt"),
        (json!(vec!["a"; 65]), "prompt"),
        (too_long, "prompt"),
    ] {
        let (status, _, _, found) = post(&bench, json!({"prompt": prompt})).await.error();
        assert_eq!((status, found.as_deref()), (StatusCode::BAD_REQUEST, Some(param)), "{prompt}");
    }
}

#[tokio::test]
async fn tokens_and_their_probabilities_come_where_they_are_wanted() {
    let bench = Bench::new(hello);
    let ids = [word("Hello"), word("▁world")];
    let body = json!({"prompt": "a", "return_tokens": true, "n_probs": 2});
    let answer = post(&bench, body.clone()).await.json();
    assert_eq!(answer["tokens"], json!(ids));
    let probabilities = answer["completion_probabilities"].as_array().expect("a list");
    assert_eq!(probabilities.len(), 2);
    assert_eq!(
        (&probabilities[0]["id"], &probabilities[0]["token"], &probabilities[0]["logprob"]),
        (&json!(ids[0]), &json!("Hello"), &json!(-0.5))
    );
    assert_eq!(probabilities[0]["top_logprobs"].as_array().map(Vec::len), Some(2));
    let mut streamed = body;
    streamed["stream"] = true.into();
    let (events, done) = post(&bench, streamed).await.events();
    let (last, parts) = events.split_last().expect("events");
    assert!(!done && last["stop"] == true && last["content"] == "" && last.get("completion_probabilities").is_none());
    let tokens: Vec<_> = parts.iter().map(|part| (&part["stop"], &part["tokens"])).collect();
    assert_eq!(tokens, [(&json!(false), &json!([ids[0]])), (&json!(false), &json!([ids[1]]))]);
    assert!(parts.iter().all(|part| part["completion_probabilities"].as_array().is_some_and(|all| all.len() == 1)));
}

#[tokio::test]
async fn an_answer_that_fills_the_context_is_truncated() {
    let bench = Bench::new(|request| generation(&written(&"\n".repeat(request.max_tokens))));
    let answer = post(&bench, json!({"prompt": "a", "n_predict": -1})).await.json();
    assert_eq!(
        (&answer["stop_type"], &answer["truncated"], &answer["has_new_line"]),
        (&json!("limit"), &json!(true), &json!(true))
    );
    assert_eq!((&answer["tokens_predicted"], &answer["generation_settings"]["n_predict"]), (&json!(62), &json!(-1)));
}

#[tokio::test]
async fn what_is_not_done_is_refused_by_name() {
    let bench = Bench::new(hello);
    for (more, param) in [
        (json!({"n_predict": -3}), "n_predict"),
        (json!({"n_probs": 21}), "n_probs"),
        (json!({"post_sampling_probs": true}), "post_sampling_probs"),
        (json!({"input_suffix": "b"}), "input_suffix"),
        (json!({"mirostat": 2}), "mirostat"),
    ] {
        let mut body = more;
        body["prompt"] = "a".into();
        let (status, _, _, found) = post(&bench, body).await.error();
        assert_eq!((status, found.as_deref()), (StatusCode::BAD_REQUEST, Some(param)));
    }
}
