//! Who asks.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use axum::extract::Request;

use super::places::Visit;
use crate::generate::ClientId;

/// The name of the key that a request has shown, where it has one: an extension of requests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct KeyName(pub(crate) Arc<str>);

/// Who asks, as far as that is known.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    address: Option<IpAddr>,
    key: Option<Arc<str>>,
}

/// On whose behalf something is computed.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// For fairness.
    pub(crate) id: ClientId,
    /// The name of its key, for people.
    pub(crate) key: Option<Arc<str>>,
}

impl Caller {
    /// Who has sent a request.
    pub(crate) fn of(request: &Request) -> Self {
        let extensions = request.extensions();
        Self {
            address: extensions.get::<Arc<Visit>>().map(|visit| visit.client),
            key: extensions.get::<KeyName>().map(|KeyName(name)| Arc::clone(name)),
        }
    }

    /// Clients are told apart by the names of their keys, or else by address; and behind one of these, by the `user` that they
    /// name.
    pub(crate) fn client(&self, user: Option<&str>) -> Client {
        let mut hasher = DefaultHasher::new();
        match &self.key {
            Some(key) => (key, user).hash(&mut hasher),
            None => (self.address, user).hash(&mut hasher),
        }
        Client { id: ClientId(hasher.finish()), key: self.key.clone() }
    }
}
