//! What pages of other origins may do (CORS). The guard decides which origins; a browser asks before and reads after.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};

/// A preflight is answered for every endpoint alike: a method that one does not take is refused when it comes.
const PREFLIGHT: [(HeaderName, HeaderValue); 3] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST, OPTIONS")),
    // The asterisk stands for all but `authorization`: OpenAI's own clients send headers of theirs.
    (header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, content-type, *")),
    (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")),
];
/// What of an answer's head a page may read beyond what all may.
const EXPOSED: HeaderValue = HeaderValue::from_static("retry-after, x-qmesh-tools, x-request-id");

/// Whether a browser asks what it may send. It cannot show a key yet.
pub(crate) fn is_preflight(request: &Request) -> bool {
    let has = |name: HeaderName| request.headers().contains_key(name);
    request.method() == Method::OPTIONS && has(header::ORIGIN) && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// What a page of an admitted origin may send. Old browsers and some proxies take 204 for a failure.
pub(crate) fn preflight() -> Response {
    (StatusCode::OK, PREFLIGHT).into_response()
}

/// Lets a page of `origin`, if it is admitted, read the answer.
pub(crate) fn admit(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}
