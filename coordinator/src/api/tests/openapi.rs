//! The description of the API is that of the API.

use std::collections::BTreeSet;

use super::*;

/// The routes of the router, by method and path, as its source has them.
fn routes() -> BTreeSet<(String, String)> {
    let source = include_str!("../../api.rs");
    let routes = source.lines().filter_map(|line| line.trim().strip_prefix(".route(\""));
    let routes = routes.map(|route| {
        let (path, rest) = route.split_once("\", ").expect("a path and what is there");
        let (method, _) = rest.split_once('(').expect("a method");
        (method.to_owned(), path.replace("{*", "{"))
    });
    routes.collect()
}

#[tokio::test]
async fn every_route_is_described_and_nothing_else() {
    let bench = Bench::new(hello);
    let document = bench.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let described: BTreeSet<_> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().expect("operations").keys().map(move |method| (method.clone(), path.clone()))
        })
        .collect();
    assert!(described.len() > 30);
    assert_eq!(described, routes());
    let index = bench.get("/").await.text;
    assert!(described.iter().all(|(_, path)| index.contains(path.as_str())), "{index}");
}

#[tokio::test]
async fn what_the_description_refers_to_is_there() {
    let document = Bench::new(hello).get("/openapi.json").await.json();
    let text = document.to_string();
    let mut ids = BTreeSet::new();
    for item in document["paths"].as_object().expect("paths").values() {
        for operation in item.as_object().expect("operations").values() {
            assert!(ids.insert(operation["operationId"].to_string()), "{operation} has the name of another");
            assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()));
        }
    }
    for reference in text.split("\"$ref\":\"").skip(1) {
        let place = reference.split('"').next().and_then(|place| place.strip_prefix('#')).expect("a place in it");
        assert!(document.pointer(place).is_some_and(|schema| schema.is_object()), "{place}");
    }
}

#[tokio::test]
async fn what_chats_take_is_described() {
    let document = Bench::new(hello).get("/openapi.json").await.json();
    let schema = |place: &str| {
        let found = document.pointer(&format!("/components/schemas/{place}"));
        found.unwrap_or_else(|| panic!("no {place}")).clone()
    };
    for name in
        ["guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar", "json_schema", "stop_token_ids"]
    {
        schema(&format!("Parameters/properties/{name}"));
    }
    for name in ["tool_calls", "tool_call_id", "reasoning_content"] {
        schema(&format!("SentChatMessage/properties/{name}"));
    }
    let messages = schema("ChatRequest/properties/messages/items/$ref");
    assert_eq!(messages, "#/components/schemas/SentChatMessage");
    // A null is a content beside calls.
    assert_eq!(schema("SentChatMessage/properties/content/oneOf/2/type"), "null");
    assert_eq!(schema("SentChatMessage/anyOf/1/required"), json!(["tool_calls"]));
    let pattern = schema("SentTool/properties/function/properties/name/pattern");
    assert_eq!(pattern, "^[a-zA-Z0-9_.-]{1,64}$", "as the server has it");
    let named = json!({"type": "function", "function": {"name": "a.b_c-1"}});
    assert_eq!(Bench::new(hello).chat(json!({"tools": [named]})).await.status, StatusCode::OK);
}
