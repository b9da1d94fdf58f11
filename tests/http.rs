//! A client of the API, as small as a test needs.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use serde_json::Value;

/// An answer: status and body.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body, parsed; a string where it is no JSON.
    pub body: Value,
}

/// GET.
///
/// # Panics
/// When nothing answers.
pub fn get(url: &str) -> Answer {
    let response = agent().get(url).call().unwrap_or_else(|e| panic!("GET {url}: {e}"));
    answer(response)
}

/// POST of a JSON body.
///
/// # Panics
/// When nothing answers.
pub fn post(url: &str, body: &Value) -> Answer {
    let request = agent().post(url).content_type("application/json");
    let response = request.send(body.to_string()).unwrap_or_else(|e| panic!("POST {url}: {e}"));
    answer(response)
}

/// POST whose answer is a stream of server-sent events; `each` sees them as they come, without the `[DONE]`.
///
/// # Panics
/// When nothing answers, the answer is no stream, or it ends without `[DONE]`.
pub fn stream(url: &str, body: &Value, mut each: impl FnMut(&Value)) {
    let request = agent().post(url).content_type("application/json");
    let mut response = request.send(body.to_string()).unwrap_or_else(|e| panic!("POST {url}: {e}"));
    assert_eq!(response.status(), 200, "{url}");
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let line = line.expect("the stream goes on");
        match line.strip_prefix("data: ") {
            Some("[DONE]") => return,
            Some(event) => each(&serde_json::from_str(event).unwrap_or_else(|e| panic!("{event}: {e}"))),
            None => assert!(line.is_empty() || line.starts_with(':'), "not an event: {line}"),
        }
    }
    panic!("the stream ended without [DONE]");
}

/// The text that a streamed chunk adds, of chat and of plain completions.
pub fn delta(event: &Value) -> &str {
    let choice = &event["choices"][0];
    choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default()
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(300))).build().into()
}

fn answer(mut response: ureq::http::Response<ureq::Body>) -> Answer {
    let status = response.status().as_u16();
    let text = response.body_mut().read_to_string().expect("a body can be read");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, body }
}
