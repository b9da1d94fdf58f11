//! The page at `/`: the pipeline at work, and a chat. One file without any request to elsewhere; what it shows comes from the API,
//! for which it asks for the key where there is one.

use std::sync::{Arc, LazyLock};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    response::{Html, IntoResponse, Response},
};

use super::{Api, mesh};

/// Nobody shows the page inside of another one. What it may load itself, which is nothing, is said in the page.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("frame-ancestors 'none'")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    // Another version of the program has another page at the same address.
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
];

static PAGE: LazyLock<String> = LazyLock::new(|| {
    let page = include_str!("page/page.html").replace("/*style*/", include_str!("page/page.css"));
    page.replace("/*script*/", include_str!("page/page.js"))
});

/// The page for browsers, and for others the names of the endpoints.
pub(crate) async fn root(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response {
    let mut response = match wants_page(&headers) {
        true => (HEADERS, Html(PAGE.as_str())).into_response(),
        false => mesh::index(&api).into_response(),
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// Whether a browser asks for the page. It holds nothing of this server, and cannot show a key before it is there.
pub(crate) fn is_asked_for(request: &Request) -> bool {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    reads && request.uri().path() == "/" && wants_page(request.headers())
}

fn wants_page(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|kind| kind.split(';').next().is_some_and(|k| k.trim() == "text/html"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_small_file_that_asks_nobody_else() {
        assert!(PAGE.len() < 60 << 10, "{} bytes", PAGE.len());
        assert!(!PAGE.contains("/*style*/") && !PAGE.contains("/*script*/"));
        // The names of XML's vocabularies are no requests.
        let elsewhere = PAGE.replace("http://www.w3.org/", "");
        for scheme in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!elsewhere.contains(scheme), "{scheme}");
        }
        assert!(!PAGE.contains("innerHTML") && !PAGE.contains("eval("));
    }

    #[test]
    fn browsers_get_the_page_and_programs_do_not() {
        let wants = |accept| wants_page(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]));
        assert!(wants("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8") && wants("text/html;q=0.8"));
        assert!(!wants("*/*") && !wants("application/json") && !wants_page(&HeaderMap::new()));
    }
}
