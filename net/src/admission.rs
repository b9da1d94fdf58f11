//! Which peers may connect at all.

use std::{collections::HashSet, sync::Arc};

use arc_swap::ArcSwap;

use crate::ids::PeerId;

/// The keys an endpoint accepts connections from; clones share it, so that it can change while the endpoint runs.
#[derive(Clone, Debug)]
pub struct Admission(Arc<ArcSwap<Guests>>);

#[derive(Debug)]
enum Guests {
    Anyone,
    Only(HashSet<PeerId>),
}

impl Admission {
    /// Every key may connect, and the join proof decides: a coordinator.
    pub fn anyone() -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Guests::Anyone)))
    }

    /// Only these keys may connect: a worker, with the neighbours its plan names.
    pub fn only(peers: impl IntoIterator<Item = PeerId>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Guests::Only(peers.into_iter().collect()))))
    }

    /// From now on exactly these keys may connect. Connections that stand are not touched.
    pub fn allow(&self, peers: impl IntoIterator<Item = PeerId>) {
        self.0.store(Arc::new(Guests::Only(peers.into_iter().collect())));
    }

    /// Whether any key may connect, so that peers still have to prove that they may join.
    pub(crate) fn is_open(&self) -> bool {
        matches!(&**self.0.load(), Guests::Anyone)
    }

    /// Whether this key may connect.
    pub fn admits(&self, peer: PeerId) -> bool {
        match &**self.0.load() {
            Guests::Anyone => true,
            Guests::Only(peers) => peers.contains(&peer),
        }
    }
}
