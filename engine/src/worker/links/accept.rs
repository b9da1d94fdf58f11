//! Streams that come in: frame streams are handed on, and range requests answered.

use qmesh_net::{Connection, Endpoint, FrameReceiver, Incoming, limits::SOURCE_PEERS};
use tokio::{sync::mpsc, task::JoinSet};

use crate::worker::tensors::Server;

/// Neighbours that may be connected at a time: the old upstream and the new one, those that ask for tensors of two plans,
/// and a few to spare.
const NEIGHBOURS: usize = 8 + 2 * SOURCE_PEERS;
/// Requests of one peer that are answered at a time; more wait.
const REQUESTS: usize = 8;

/// Hands on every link that neighbours open, and serves them tensors, until dropped.
pub(crate) async fn accept_neighbours(endpoint: Endpoint, arrivals: mpsc::Sender<FrameReceiver>, server: Server) {
    let mut neighbours = JoinSet::new();
    while let Some(connection) = endpoint.accept().await {
        if neighbours.len() >= NEIGHBOURS {
            neighbours.join_next().await;
        }
        while neighbours.try_join_next().is_some() {}
        Server::welcome(&connection);
        neighbours.spawn(accept_links(connection, arrivals.clone(), server.clone()));
    }
}

/// Hands on every link that comes in on one connection, and answers what it asks for, until it is gone.
pub(crate) async fn accept_links(connection: Connection, arrivals: mpsc::Sender<FrameReceiver>, server: Server) {
    let mut requests = JoinSet::new();
    loop {
        match connection.accept_stream().await {
            Ok(Incoming::Frames(receiver)) => {
                if arrivals.send(receiver).await.is_err() {
                    return;
                }
            }
            Ok(Incoming::Range(request)) => {
                if requests.len() >= REQUESTS {
                    requests.join_next().await;
                }
                while requests.try_join_next().is_some() {}
                let (server, connection) = (server.clone(), connection.clone());
                requests.spawn(async move {
                    if let Err(error) = server.serve(&connection, request).await {
                        tracing::debug!(%error, "could not serve a tensor");
                    }
                });
            }
            Ok(Incoming::Reading(reading)) => reading.refuse("a worker shares no models").await,
            Err(error) => return tracing::debug!(%error, "no more links"),
        }
    }
}
