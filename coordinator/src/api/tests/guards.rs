//! Who is let in, and what is answered outside the completions.

use axum::http::Method;

use super::*;
use crate::{generate::GenerateError, mesh::status::MeshState, text::fake::mesh_status};

#[tokio::test]
async fn the_mesh_as_probes_see_it() {
    let bench = Bench::new(hello);
    assert_eq!(bench.get("/ready").await.status, StatusCode::OK);
    for (state, code) in [
        (MeshState::Waiting, "no_pipeline"),
        (MeshState::Loading, "loading"),
        (MeshState::Failed, "no_pipeline"),
        (MeshState::Stopping, "shutting_down"),
    ] {
        bench.mesh.status.send_replace(Arc::new(mesh_status(state)));
        for answer in
            [bench.get("/ready").await, bench.chat(json!({})).await, bench.complete(json!({"prompt": "a"})).await]
        {
            let error = (StatusCode::SERVICE_UNAVAILABLE, "unavailable_error".to_owned(), Some(code.to_owned()), None);
            assert_eq!(answer.error(), error);
            assert!(answer.headers.contains_key("retry-after") && answer.text.contains("one worker is missing"));
        }
        assert_eq!(bench.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
        for path in ["/health", "/v1/health", "/healthz", "/ping"] {
            let health = bench.get(path).await;
            assert_eq!((health.status, &health.json()["status"]), (StatusCode::OK, &json!("ok")), "{path}");
        }
    }
    assert_eq!(bench.get("/api/status").await.json()["state"], "stopping");
    assert!(bench.get("/").await.text.contains("POST /v1/chat/completions"));
}

#[tokio::test]
async fn models_have_one_name_and_aliases() {
    let bench = Bench::new(hello);
    let list = bench.get("/v1/models").await.json();
    let model = &list["data"][0];
    assert_eq!((&list["object"], &model["id"], &model["object"]), (&json!("list"), &json!("made-up"), &json!("model")));
    assert!(model["created"].is_u64() && model["owned_by"].is_string());
    for path in ["/v1/models/", "/models/"] {
        for id in ["made-up", "alias", "alias:latest"] {
            let mut named = model.clone();
            named["id"] = id.into();
            assert_eq!(bench.get(&format!("{path}{id}")).await.json(), named, "{path}{id}");
        }
    }
    let unknown = (
        StatusCode::NOT_FOUND,
        "not_found_error".to_owned(),
        Some("model_not_found".to_owned()),
        Some("model".to_owned()),
    );
    for path in ["/v1/models/org/repo:Q4", "/v1/models/%ff", "/v1/models/%00", "/v1/models/..%2f..%2fetc/passwd"] {
        assert_eq!(bench.get(path).await.error(), unknown, "{path}");
    }
    assert_eq!(bench.chat(json!({"model": "gpt-4"})).await.error(), unknown);
    assert_eq!(bench.chat(json!({"model": "alias"})).await.status, StatusCode::OK);
}

#[tokio::test]
async fn full_queues_ask_for_patience() {
    let bench = Bench::new(|_| vec![GenerateEvent::Failed(GenerateError::QueueFull { waiting: 256 })]);
    for body in [json!({}), json!({"stream": true}), json!({"n": 4})] {
        let answer = bench.chat(body).await;
        let full = (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error".to_owned(), Some("queue_full".to_owned()), None);
        assert_eq!(answer.error(), full);
        assert!(answer.headers.contains_key("retry-after"));
    }
}

#[tokio::test]
async fn a_key_opens_everything_but_probes() {
    let bench = Bench::with(hello, |state| state.api_key = Some("sesame".parse().expect("a key")));
    let status = async |path: &str, authorization: Option<&str>| {
        let mut request = Request::get(path);
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let answer = bench.ask(request.body(Body::empty()).expect("a request")).await;
        assert!(answer.headers.contains_key("x-request-id"));
        answer.status
    };
    for path in ["/v1/models", "/", "/api/status", "/nowhere", "/v1/models?api_key=sesame"] {
        assert_eq!(status(path, None).await, StatusCode::UNAUTHORIZED, "{path}");
    }
    let long = format!("Bearer {}", "sesame".repeat(1000));
    for wrong in ["Bearer wrong!", "Bearer ", "sesame", "Basic sesame", "Bearer sesame2", "Béarer", long.as_str()] {
        assert_eq!(status("/v1/models", Some(wrong)).await, StatusCode::UNAUTHORIZED, "{wrong}");
    }
    assert_eq!(status("/v1/models", Some("Bearer sesame")).await, StatusCode::OK);
    for open in ["/health", "/v1/health", "/healthz", "/ping", "/ready", "/readyz"] {
        assert_eq!(status(open, None).await, StatusCode::OK, "{open}");
    }
    assert_eq!(status("/version", None).await, StatusCode::UNAUTHORIZED);
    let refused = bench.get("/v1/models").await;
    assert_eq!(refused.error().1, "authentication_error");
    assert_eq!(refused.headers["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn strangers_and_strays_are_told_so() {
    let bench = Bench::new(hello);
    let rebound = Request::get("/v1/models").header("host", "evil.example").body(Body::empty()).expect("a request");
    let answer = bench.ask(rebound).await;
    assert_eq!((answer.status, answer.error().1.as_str()), (StatusCode::FORBIDDEN, "permission_error"));
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    let ask = async |method: Method, path: &str| {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("a request");
        bench.ask(request).await
    };
    for path in ["/nowhere", "/v1/", "/..%2f..%2fetc/passwd", "/v1/chat/completions/"] {
        assert_eq!(ask(Method::GET, path).await.error().0, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(ask(Method::GET, "/v1/completions").await.error().0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(ask(Method::OPTIONS, "/v1/chat/completions").await.error().0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(ask(Method::DELETE, "/v1/models").await.error().0, StatusCode::METHOD_NOT_ALLOWED);
    for (method, path) in
        [(Method::GET, "/%ff"), (Method::POST, "//"), (Method::OPTIONS, "*"), (Method::GET, "/?%ff=%")]
    {
        let answer = ask(method, path).await;
        let text = answer.headers["content-type"].to_str().expect("text");
        assert!(path == "/?%ff=%" || text == "application/json" && answer.error().0.is_client_error(), "{path}");
    }
    let head = ask(Method::HEAD, "/health").await;
    assert_eq!((head.status, head.text.as_str()), (StatusCode::OK, ""));
    assert_eq!(ask(Method::HEAD, "/v1/completions").await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn pages_of_admitted_origins_may_ask() {
    let bench = Bench::with(hello, |state| state.api_key = Some("sesame".parse().expect("a key")));
    let ask = async |method: Method, path: &str, headers: &[(&str, &str)]| {
        let mut request = Request::builder().method(method).uri(path).header("host", "127.0.0.1:8080");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        bench.ask(request.body(Body::empty()).expect("a request")).await
    };
    let (good, evil) = (("origin", "http://localhost:3000"), ("origin", "https://evil.example"));
    let wish = [("access-control-request-method", "POST"), ("access-control-request-headers", "authorization")];
    let preflight = ask(Method::OPTIONS, "/v1/chat/completions", &[good, wish[0], wish[1]]).await;
    assert_eq!((preflight.status, preflight.text.as_str()), (StatusCode::OK, ""));
    let says = |answer: &Answer, name: &str, words: &[&str]| {
        let value = answer.headers[name].to_str().expect("text").to_owned();
        assert!(words.iter().all(|word| value.split(", ").any(|said| said == *word)), "{name}: {value}");
    };
    says(&preflight, "access-control-allow-methods", &["GET", "POST"]);
    says(&preflight, "access-control-allow-headers", &["authorization", "content-type"]);
    // Pages read errors as well: those of the key, of the route and of the request.
    let key = ("authorization", "Bearer sesame");
    for (method, path, headers, status) in [
        (Method::GET, "/v1/models", &[good, key][..], StatusCode::OK),
        (Method::GET, "/v1/models", &[good], StatusCode::UNAUTHORIZED),
        (Method::GET, "/nowhere", &[good, key], StatusCode::NOT_FOUND),
        (Method::POST, "/v1/completions", &[good, key], StatusCode::BAD_REQUEST),
        (Method::OPTIONS, "/v1/models", &[good, wish[0]], StatusCode::OK),
    ] {
        let answer = ask(method, path, headers).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.headers["access-control-allow-origin"], good.1, "{path}");
        says(&answer, "access-control-expose-headers", &["retry-after", "x-request-id"]);
        says(&answer, "vary", &["Origin"]);
    }
    for headers in [&[evil, wish[0]][..], &[evil, key], &[("origin", "null"), wish[0]]] {
        for method in [Method::OPTIONS, Method::GET] {
            let answer = ask(method.clone(), "/v1/models", headers).await;
            // A preflight is answered, and permits nothing.
            let asks = method == Method::OPTIONS && headers.contains(&wish[0]);
            assert_eq!(answer.status, if asks { StatusCode::OK } else { StatusCode::FORBIDDEN });
            assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("access-control")));
            says(&answer, "vary", &["Origin"]);
        }
    }
    let elsewhere = ask(Method::GET, "/v1/models", &[key]).await;
    assert!(!elsewhere.headers.contains_key("access-control-allow-origin"));
    says(&elsewhere, "vary", &["Origin"]);
}
