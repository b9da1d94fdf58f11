//! What stands before every route: a request id, who may ask, and what errors outside the routes look like.

use std::{net::IpAddr, sync::Arc};

use super::{
    Api, ApiState, caller::KeyName, cors, error::ApiError, owner, page, params::random, places::Visit, vendor::Vendor,
};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What anyone may ask, with or without a key: probes have none.
const OPEN_PATHS: [&str; 6] = ["/health", "/v1/health", "/healthz", "/ping", "/ready", "/readyz"];

/// Which names a request may give the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Hosts {
    /// Bound to a real address: any.
    Any,
    /// Bound to loopback: loopback's own and these, or a page that rebinds its DNS name could speak to us.
    Loopback {
        /// Further names of the server.
        hosts: Vec<String>,
        /// Pages that may ask from elsewhere, as browsers name their origin; `*` stands for all.
        origins: Vec<String>,
    },
}

impl Hosts {
    fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let Self::Loopback { hosts, origins } = self else { return Ok(()) };
        let allowed = |host: &str| is_loopback(host) || hosts.iter().any(|name| name.eq_ignore_ascii_case(host));
        let invited = |origin: &str| origins.iter().any(|one| one == "*" || one.eq_ignore_ascii_case(origin));
        let refuse = |header: HeaderName, value: &str| {
            Err(ApiError::Forbidden { header, value: value.chars().filter(char::is_ascii_graphic).take(80).collect() })
        };
        if let Some(host) = uri.host()
            && !allowed(host)
        {
            return refuse(header::HOST, host);
        }
        for name in [header::HOST, header::ORIGIN] {
            for value in headers.get_all(&name) {
                let text = value.to_str().unwrap_or_default();
                if name == header::ORIGIN && invited(text) {
                    continue;
                }
                let authority = text.split_once("://").map_or(text, |(_, authority)| authority);
                if !authority.parse::<Authority>().is_ok_and(|authority| allowed(authority.host())) {
                    return refuse(name, text);
                }
            }
        }
        Ok(())
    }
}

/// Lets a request through to its route, or not; every response gets an id, and its pages may read what they asked for.
pub(crate) async fn guard(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let id = format!("req_{:016x}", random());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let known = api.hosts.check(request.uri(), request.headers());
    let origin = known.is_ok().then(|| request.headers().get(header::ORIGIN).cloned()).flatten();
    let mut key = None;
    let mut response = match known {
        Ok(()) if cors::is_preflight(&request) => cors::preflight(),
        Ok(()) => match admit(&api, &request) {
            Ok(name) => {
                key.clone_from(&name);
                if let Some(name) = name {
                    request.extensions_mut().insert(KeyName(name));
                }
                next.run(request).await
            }
            Err(error) => error.into_response(),
        },
        // Without a permission in it: the browser tells the page's author what lacks.
        Err(ApiError::Forbidden { header: ref name, .. })
            if *name == header::ORIGIN && cors::is_preflight(&request) =>
        {
            StatusCode::OK.into_response()
        }
        Err(error) => error.into_response(),
    };
    response = Vendor::of(&path).worded(response);
    cors::admit(response.headers_mut(), origin);
    let status = response.status();
    let key = key.as_deref();
    tracing::debug!(id, key, %method, path = path.escape_debug().to_string(), status = status.as_u16(), "answered");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Probes are let in always, as is whoever wants the page alone. Whoever shows a key has a place even in a crowd; its name
/// comes back, if it has one.
fn admit(api: &Api, request: &Request) -> Result<Option<Arc<str>>, ApiError> {
    if OPEN_PATHS.contains(&request.uri().path()) || page::is_asked_for(request) {
        return Ok(None);
    }
    let (wanted, shown) = (api.state.wants_key(), shown(request.headers(), &api.state));
    if wanted && shown == Shown::Nothing {
        return Err(ApiError::Unauthorized);
    }
    let name = if let Shown::Named(name) = shown { Some(name) } else { None };
    match request.extensions().get::<Arc<Visit>>().and_then(|visit| Some((visit, visit.crowd()?))) {
        Some((visit, crowd)) if !wanted || !visit.has_authenticated() => Err(ApiError::Crowded(crowd)),
        Some(_) | None => Ok(name),
    }
}

/// What key a request shows.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Shown {
    /// None, or one that is not ours.
    Nothing,
    Unnamed,
    Named(Arc<str>),
}

/// As OpenAI's clients show a key, or as Anthropic's do.
fn shown(headers: &HeaderMap, state: &ApiState) -> Shown {
    let bearer = headers.get(header::AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes).split_at_checked(7);
    let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ")).map(|(_, key)| key);
    let sent = headers.get("x-api-key").map(HeaderValue::as_bytes).into_iter().chain(bearer);
    // Whoever runs the server may ask all that its clients may.
    let shown = if owner::is_shown(headers, state) { Shown::Unnamed } else { Shown::Nothing };
    sent.fold(shown, |shown, sent| {
        let unnamed = state.api_key.as_ref().is_some_and(|key| key.matches(sent));
        match state.named_keys.name_of(sent) {
            Some(name) => Shown::Named(name),
            None if unnamed => Shown::Unnamed,
            None => shown,
        }
    })
}

fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).parse::<IpAddr>();
    address.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_reach_a_loopback_server() {
        let origins = vec!["https://app.example".into(), "vscode-webview://1a2b".into()];
        let hosts = Hosts::Loopback { hosts: vec!["host.docker.internal".into()], origins };
        let check = |name: HeaderName, value: &'static str| {
            hosts
                .check(&Uri::from_static("/"), &HeaderMap::from_iter([(name, HeaderValue::from_static(value))]))
                .is_ok()
        };
        for good in ["localhost:8080", "LOCALHOST", "127.0.0.1:80", "127.1.2.3", "[::1]:8080", "host.docker.internal:1"]
        {
            assert!(check(header::HOST, good), "{good}");
        }
        for bad in ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1:80", "", "a b", "192.168.0.1"]
        {
            assert!(!check(header::HOST, bad), "{bad}");
        }
        assert!(check(header::ORIGIN, "http://localhost:3000"));
        assert!(check(header::ORIGIN, "https://app.example") && check(header::ORIGIN, "vscode-webview://1a2b"));
        assert!(!check(header::ORIGIN, "http://app.example") && !check(header::HOST, "app.example"));
        let all = Hosts::Loopback { hosts: vec![], origins: vec!["*".into()] };
        let from = |origin| HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_static(origin))]);
        assert!(all.check(&Uri::from_static("/"), &from("null")).is_ok());
        assert!(!check(header::ORIGIN, "https://evil.example") && !check(header::ORIGIN, "null"));
        assert!(hosts.check(&Uri::from_static("http://evil.example/"), &HeaderMap::new()).is_err());
        assert!(Hosts::Any.check(&Uri::from_static("http://evil.example/"), &HeaderMap::new()).is_ok());
    }
}
