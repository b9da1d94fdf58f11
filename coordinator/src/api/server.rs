//! The server under the router: connections with deadlines on both directions, and an end in two steps.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::ensure;
use axum::{Router, body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::ServiceExt;

use super::{Api, ApiState, guard::Hosts, patient::Patient, router};

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 512;
/// Time for a request's head to arrive, and for which an idle connection is kept.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Time for which a client may refuse to read.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Time to write the last words once streams have been told to end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Where the server is in its life.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Phase {
    /// Requests come and go.
    Serving,
    /// No new ones; those that run may finish.
    Draining,
    /// Those that still run end with an error.
    Closing,
}

impl Phase {
    /// Waits for this phase or a later one, or for the server to be gone.
    pub(crate) async fn reached(self, phase: &mut watch::Receiver<Self>) {
        // What it returns guards the value, which nobody needs.
        drop(phase.wait_for(|phase| *phase >= self).await);
    }
}

/// Who is at the other end, for fairness between clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote(pub(crate) SocketAddr);

/// Serves the API until `shutdown` is done, then lets running requests finish for `state.drain`.
///
/// # Errors
/// When others than this machine could connect and no key is asked of them. A connection that fails concerns no other.
pub async fn serve(listener: TcpListener, state: ApiState, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let hosts = if address.ip().is_loopback() { Hosts::Loopback(state.hosts.clone()) } else { Hosts::Any };
    ensure!(
        hosts != Hosts::Any || state.api_key.is_some(),
        "{address} can be reached from other machines: set --api-key, or listen on 127.0.0.1"
    );
    let drain = state.drain;
    let (phase, watched) = watch::channel(Phase::Serving);
    let router = router(Arc::new(Api::new(state, hosts, watched.clone())));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => report(ended),
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, address)) => {
                    connections.spawn(connection(stream, Remote(address), router.clone(), watched.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    // Out of file descriptors, mostly: trying again at once would spin.
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    for (next, time) in [(Phase::Draining, drain), (Phase::Closing, LAST_WORDS)] {
        phase.send_replace(next);
        if timeout(time, async { while connections.join_next().await.is_some() {} }).await.is_ok() {
            break;
        }
    }
    connections.shutdown().await;
    Ok(())
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task failed");
    }
}

async fn connection(stream: TcpStream, remote: Remote, router: Router, mut phase: watch::Receiver<Phase>) {
    // Tokens are small and go out one by one.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, mut request) = (router.clone(), request.map(Body::new));
        request.extensions_mut().insert(remote);
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(Patient::new(stream, WRITE_DEADLINE)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = Phase::Draining.reached(&mut phase) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, address = %remote.0, "connection ended");
    }
}
