//! What only whoever runs the coordinator may ask.

use qmesh_net::{JoinCode, PeerId};

use super::*;
use crate::api::OWNER_KEY;

const KEY: &str = "the-owners-key";

fn bench() -> Bench {
    Bench::with(hello, |state| {
        state.api_key = Some("sesame".parse().expect("a key"));
        state.owner_key = Some(KEY.parse().expect("a key"));
    })
}

async fn ask(bench: &Bench, method: &str, path: &str, key: (&str, &str)) -> Answer {
    let request = Request::builder().method(method).uri(path).header(key.0, key.1);
    bench.ask(request.body(Body::empty()).expect("a request")).await
}

async fn decide(bench: &Bench, path: &str) -> Answer {
    ask(bench, "POST", &format!("/api/workers/{path}"), (OWNER_KEY.as_str(), KEY)).await
}

/// Of the worker that the scripted mesh has with this key.
fn code(key: u8) -> String {
    let peer = PeerId([key; 32]);
    JoinCode::of(&[key; 32], peer, peer).to_string()
}

#[tokio::test]
async fn a_clients_key_is_not_the_owners() {
    let bench = bench();
    let paths = [("GET", "/api/workers"), ("POST", "/api/workers/attic/admit"), ("POST", "/api/workers/cellar/revoke")];
    for (method, path) in paths {
        assert_eq!(ask(&bench, method, path, ("x-none", "x")).await.status, StatusCode::UNAUTHORIZED, "{path}");
        let client = ask(&bench, method, path, ("x-api-key", "sesame")).await;
        assert_eq!((client.status, client.error().1.as_str()), (StatusCode::FORBIDDEN, "permission_error"), "{path}");
        let wrong = ask(&bench, method, path, (OWNER_KEY.as_str(), "sesame")).await;
        assert_eq!(wrong.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    // The owner may ask what clients may.
    assert_eq!(ask(&bench, "GET", "/v1/models", (OWNER_KEY.as_str(), KEY)).await.status, StatusCode::OK);
    // A server without an owner's key has no owner, whatever is shown.
    let nobody = Bench::new(hello);
    for shown in ["", KEY] {
        let answer = ask(&nobody, "GET", "/api/workers", (OWNER_KEY.as_str(), shown)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{shown:?}");
    }
}

#[tokio::test]
async fn a_worker_is_admitted_by_its_code_and_stays_in_the_list() {
    let bench = bench();
    let several = decide(&bench, "attic/admit").await;
    assert_eq!(several.status, StatusCode::CONFLICT);
    assert!([1, 2].iter().all(|key| several.text.contains(&code(*key))), "{}", several.text);
    assert_eq!(decide(&bench, "loft/admit").await.error().0, StatusCode::NOT_FOUND);
    assert_eq!(decide(&bench, "%ff/admit").await.error().0, StatusCode::NOT_FOUND);
    let admitted = decide(&bench, &format!("{}/admit", code(2))).await;
    let key = PeerId([2; 32]).to_string();
    assert_eq!((admitted.status, admitted.json()), (StatusCode::OK, json!({"name": "attic", "key": key})));
    let list = ask(&bench, "GET", "/api/workers", (OWNER_KEY.as_str(), KEY)).await.json();
    let rights: Vec<_> = list["workers"].as_array().expect("workers").iter().map(|w| (&w["name"], &w["by"])).collect();
    assert_eq!(rights, [(&json!("attic"), &json!("key")), (&json!("cellar"), &json!("ticket"))], "{list}");
    assert_eq!(decide(&bench, &format!("{}/refuse", code(1))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_worker_is_revoked_once_and_forgotten() {
    let bench = bench();
    assert_eq!(decide(&bench, "cellar/forget").await.status, StatusCode::NOT_FOUND);
    assert_eq!(decide(&bench, "cellar/revoke").await.status, StatusCode::OK);
    let again = decide(&bench, "cellar/revoke").await;
    assert!(again.status == StatusCode::CONFLICT && again.text.contains("revoked already"), "{}", again.text);
    let key = PeerId([3; 32]).to_string();
    assert_eq!(decide(&bench, &format!("{key}/forget")).await.json(), json!({"name": "cellar", "key": key}));
    assert_eq!(decide(&bench, "cellar/revoke").await.status, StatusCode::OK);
}
