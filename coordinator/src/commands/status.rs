//! `status`: what a running coordinator says of itself.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::{
    cli::{CoordinatorArgs, Failure, StatusArgs},
    mesh::status::MeshStatus,
    render::{output, report},
};

pub(super) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let (answer, status) = ask(&args.coordinator)?;
    if args.json {
        // Written anew: what has answered may have put anything between the values.
        output::json(&answer.to_string())?;
    } else {
        output::text(report::status(&status))?;
    }
    Ok(())
}

/// What a coordinator says of itself, as it says it and as it is understood.
///
/// # Errors
/// There is none, or it asks for another key.
pub(super) fn ask(coordinator: &CoordinatorArgs) -> Result<(Value, MeshStatus), Failure> {
    let mut body = open(coordinator, "/api/status", Some(PATIENCE))?;
    let url = &coordinator.url;
    let body = body.read_to_string().map_err(|error| unreachable(url, &error))?;
    let no_coordinator = |_| Failure::failed(format!("{url} is no qmesh coordinator: it tells no status"));
    let answer: Value = serde_json::from_str(&body).map_err(no_coordinator)?;
    let status = MeshStatus::deserialize(&answer).map_err(no_coordinator)?;
    Ok((answer, status))
}

/// The body of what `path` of a coordinator answers, in `patience` as a whole where that is given.
///
/// # Errors
/// There is no coordinator, or it asks for another key.
pub(super) fn open(
    coordinator: &CoordinatorArgs,
    path: &str,
    patience: Option<Duration>,
) -> Result<ureq::Body, Failure> {
    let url = &coordinator.url;
    let address = address(url, path);
    let request = keyed(agent(patience).get(&address), coordinator);
    let response = request.call().map_err(|error| unreachable(url, &error))?;
    match response.status().as_u16() {
        200 => Ok(response.into_body()),
        401 => Err(wants_key(url)),
        code => Err(Failure::failed(format!("{address} answered {code}: it is no qmesh coordinator"))),
    }
}

/// The body of what `path` of a coordinator answers to this JSON, however long that takes.
///
/// # Errors
/// There is no coordinator, it asks for another key, or it refuses what is asked, in its own words.
pub(super) fn post(coordinator: &CoordinatorArgs, path: &str, json: &str) -> Result<ureq::Body, Failure> {
    let url = &coordinator.url;
    let address = address(url, path);
    let request = keyed(agent(None).post(&address), coordinator).header("Content-Type", "application/json");
    let response = request.send(json).map_err(|error| unreachable(url, &error))?;
    match response.status().as_u16() {
        200 => Ok(response.into_body()),
        401 => Err(wants_key(url)),
        code => {
            let answer = response.into_body().read_to_string().unwrap_or_default();
            let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
            let why = answer["error"]["message"].as_str().unwrap_or("it does not say why");
            Err(Failure::failed(format!("{address} answered {code}: {why}")))
        }
    }
}

fn address(url: &str, path: &str) -> String {
    format!("{}{path}", url.trim_end_matches('/'))
}

fn keyed<T>(request: ureq::RequestBuilder<T>, coordinator: &CoordinatorArgs) -> ureq::RequestBuilder<T> {
    match &coordinator.api_key {
        Some(key) => request.header("Authorization", format!("Bearer {}", key.as_str())),
        None => request,
    }
}

fn wants_key(url: &str) -> Failure {
    Failure::failed(format!("{url} asks for a key")).with_advice("--api-key KEY")
}

/// What asks a coordinator. Most are on this machine or beside it, where no proxy leads.
pub(super) fn agent(patience: Option<Duration>) -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
    config.timeout_connect(Some(PATIENCE)).timeout_global(patience).build().into()
}

pub(super) fn unreachable(url: &str, error: &ureq::Error) -> Failure {
    if matches!(error, ureq::Error::BadUri(_) | ureq::Error::Http(_)) {
        return Failure::usage(format!("`{url}` is no URL: {error}"));
    }
    Failure::unreachable(format!("cannot reach the coordinator at {url}: {error}"))
        .with_advice("start one with `coordinator serve`, or name another with --url")
}

/// A status is at hand: a coordinator that takes longer than this does not answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
