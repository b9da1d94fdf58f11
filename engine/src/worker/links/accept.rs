//! Streams that come in: frame streams are handed on, and range requests refused.

use qmesh_net::{Connection, Endpoint, FrameReceiver, Incoming};
use tokio::{sync::mpsc, task::JoinSet};

/// Neighbours that may be connected at a time: the old upstream and the new one, and a few to spare.
const NEIGHBOURS: usize = 8;

/// Hands on every link that neighbours open, until dropped.
pub(crate) async fn accept_neighbours(endpoint: Endpoint, arrivals: mpsc::Sender<FrameReceiver>) {
    let mut neighbours = JoinSet::new();
    while let Some(connection) = endpoint.accept().await {
        if neighbours.len() >= NEIGHBOURS {
            neighbours.join_next().await;
        }
        while neighbours.try_join_next().is_some() {}
        neighbours.spawn(accept_links(connection, arrivals.clone()));
    }
}

/// Hands on every link that comes in on one connection, until it is gone.
pub(crate) async fn accept_links(connection: Connection, arrivals: mpsc::Sender<FrameReceiver>) {
    loop {
        match connection.accept_stream().await {
            Ok(Incoming::Frames(receiver)) => {
                if arrivals.send(receiver).await.is_err() {
                    return;
                }
            }
            Ok(Incoming::Range(server)) => {
                if let Err(error) = server.refuse("workers serve no tensors").await {
                    tracing::debug!(%error, "could not refuse a range request");
                }
            }
            Err(error) => return tracing::debug!(%error, "no more links"),
        }
    }
}
