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
