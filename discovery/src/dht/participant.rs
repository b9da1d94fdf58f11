//! What takes part in the DHT, by the crate `mainline`: a thread and a socket of its own.

use std::{net::Ipv4Addr, time::Duration};

use mainline::{
    Dht, MutableItem, SigningKey,
    async_dht::AsyncDht,
    errors::{PutMutableError, PutQueryError},
};
use tokio::{task::spawn_blocking, time::timeout};

use super::{Bootstrap, DhtError};

#[derive(Clone, Debug)]
pub(super) struct Participant(AsyncDht);

impl Participant {
    /// One that knows others.
    pub(super) async fn start(bootstrap: &Bootstrap) -> Result<Self, DhtError> {
        let mut builder = Dht::builder();
        let bootstrap = bootstrap.clone();
        // Names are resolved on the way.
        let built = spawn_blocking(move || {
            if let Bootstrap::Nodes(nodes) = &bootstrap {
                builder.bootstrap(nodes);
            }
            builder.build()
        });
        let participant = match built.await {
            Ok(Ok(dht)) => dht.as_async(),
            Ok(Err(error)) => return Err(DhtError::Socket(error.to_string())),
            Err(error) => return Err(DhtError::Socket(error.to_string())),
        };
        match timeout(PATIENCE, participant.bootstrapped()).await {
            Ok(true) => Ok(Self(participant)),
            Ok(false) | Err(_) => Err(DhtError::NoNodes),
        }
    }

    /// The newest value that is signed by this key, and its number.
    pub(super) async fn get(&self, key: &[u8; 32]) -> Option<(i64, Vec<u8>)> {
        let found = timeout(PATIENCE, self.0.get_mutable_most_recent(key, None)).await.ok().flatten();
        found.map(|item| (item.seq(), item.value().to_vec()))
    }

    /// Puts a value there, signed by the key of this seed.
    pub(super) async fn put(&self, seed: &[u8; 32], value: &[u8], number: i64) -> Result<(), DhtError> {
        let item = MutableItem::new(SigningKey::from_bytes(seed), value, number, None);
        match timeout(PATIENCE, self.0.put_mutable(item, None)).await {
            Ok(Ok(_)) => Ok(()),
            Err(_) | Ok(Err(PutMutableError::Query(PutQueryError::NoClosestNodes | PutQueryError::Timeout))) => {
                Err(DhtError::NoNodes)
            }
            Ok(Err(error)) => Err(DhtError::NotKept(error.to_string())),
        }
    }

    /// This machine's address as other nodes see it.
    pub(super) async fn public_address(&self) -> Option<Ipv4Addr> {
        self.0.info().await.public_address().map(|address| *address.ip())
    }
}

/// A question goes from node to node; each has two seconds to answer.
const PATIENCE: Duration = Duration::from_secs(20);
