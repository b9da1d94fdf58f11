//! What whoever runs the coordinator decides about workers. A key of the API does not do: who may ask the model must not be able
//! to add a machine that reads along.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequestParts, Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderName, HeaderValue, request::Parts},
};

use super::{Api, ApiState, error::ApiError};
use crate::mesh::owner::{Decided, OwnerError, WorkerList};

/// Where the owner's key is shown.
pub const OWNER_KEY: HeaderName = HeaderName::from_static("x-qmesh-owner-key");

/// Somebody who has shown the owner's key.
pub(crate) struct Owner;

type Who = Result<Path<String>, PathRejection>;

impl FromRequestParts<Arc<Api>> for Owner {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        if is_shown(&parts.headers, &api.state) { Ok(Self) } else { Err(ApiError::NotOwner) }
    }
}

/// Whether the owner's key is among the headers.
pub(crate) fn is_shown(headers: &HeaderMap, state: &ApiState) -> bool {
    let sent = headers.get(OWNER_KEY).map_or(&b""[..], HeaderValue::as_bytes);
    state.owner_key.as_ref().is_some_and(|key| key.matches(sent))
}

pub(crate) async fn workers(_: Owner, State(api): State<Arc<Api>>) -> Result<Json<WorkerList>, ApiError> {
    api.state.mesh.workers().await.map(Json).ok_or_else(|| ApiError::from(OwnerError::Over))
}

pub(crate) async fn admit(_: Owner, State(api): State<Arc<Api>>, who: Who) -> Result<Json<Decided>, ApiError> {
    Ok(Json(api.state.mesh.admit(&named(who)?).await?))
}

pub(crate) async fn refuse(_: Owner, State(api): State<Arc<Api>>, who: Who) -> Result<Json<Decided>, ApiError> {
    Ok(Json(api.state.mesh.refuse(&named(who)?).await?))
}

pub(crate) async fn revoke(_: Owner, State(api): State<Arc<Api>>, who: Who) -> Result<Json<Decided>, ApiError> {
    Ok(Json(api.state.mesh.revoke(&named(who)?).await?))
}

pub(crate) async fn forget(_: Owner, State(api): State<Arc<Api>>, who: Who) -> Result<Json<Decided>, ApiError> {
    Ok(Json(api.state.mesh.forget(&named(who)?).await?))
}

/// What does not decode names nobody.
fn named(who: Who) -> Result<String, ApiError> {
    who.map(|Path(who)| who).map_err(|_| ApiError::NoSuchEndpoint)
}

impl From<OwnerError> for ApiError {
    fn from(error: OwnerError) -> Self {
        let text = error.to_string();
        match error {
            OwnerError::Nobody { .. } => Self::NoSuchWorker { text },
            OwnerError::Several { .. } | OwnerError::Already { .. } => Self::UnclearWorker { text },
            OwnerError::Members(_) | OwnerError::Changing(_) | OwnerError::Over => Self::Internal { text },
        }
    }
}
