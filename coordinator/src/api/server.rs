//! The server under the router: connections with deadlines on both directions, and an end in two steps.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, HttpBody},
    http::{HeaderMap, Request, Response, Version, header},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::ServiceExt;

use super::{
    Api, ApiState,
    guard::Hosts,
    listen::Listeners,
    parting::{Parting, Progress, Receipt, Stage},
    patient::{Patience, Patient},
    places::{Place, Places, Visit},
    router,
};

/// Time for a request's head to arrive, and for which an idle connection is kept.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// The same in a place that is kept for probes: a new one shall soon have it.
const KEPT_HEAD_DEADLINE: Duration = Duration::from_secs(2);
/// Most bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// How long a client may refuse to read, or hardly read.
const PATIENCE: Patience =
    Patience { stall: Duration::from_secs(30), stalls: Duration::from_secs(300), bytes_per_s: 1024 };
/// Time to write the last words once streams have been told to end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why the API cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Whoever reaches this machine could use the API, and no key is asked of them.
    #[error("{address} can be reached from other machines: set --api-key, or listen on 127.0.0.1")]
    Open {
        /// Where it would listen.
        address: SocketAddr,
    },
    /// The system does not say where the sockets listen.
    #[error("cannot tell where the API listens: {0}")]
    Listeners(#[source] io::Error),
}

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

/// Serves the API until `shutdown` is done, then lets running requests finish for `state.drain`.
///
/// # Errors
/// When others than this machine could connect and no key is asked of them. A connection that fails concerns no other.
pub async fn serve(
    listeners: impl Into<Listeners>,
    state: ApiState,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let listeners = listeners.into();
    let addresses = listeners.addresses().map_err(ServeError::Listeners)?;
    let open = addresses.into_iter().find(|address| !address.ip().is_loopback());
    let hosts = if open.is_none() {
        Hosts::Loopback { hosts: state.hosts.clone(), origins: state.origins.clone() }
    } else {
        Hosts::Any
    };
    if let Some(address) = open
        && !state.wants_key()
    {
        return Err(ServeError::Open { address });
    }
    let drain = state.drain;
    let places = Places::new(state.limits, state.trusted_proxies.clone());
    let (phase, watched) = watch::channel(Phase::Serving);
    let router = router(Arc::new(Api::new(state, hosts, watched.clone())));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => report(ended),
            accepted = listeners.accept() => match accepted {
                // Where even the kept places are taken, the connection is dropped.
                Ok((stream, address)) => if let Some(place) = places.enter(address.ip()) {
                    connections.spawn(connection(stream, place, router.clone(), watched.clone()));
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    // Out of file descriptors, mostly: trying again at once would spin.
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listeners);
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

async fn connection(stream: TcpStream, place: Place, router: Router, mut phase: watch::Receiver<Phase>) {
    // Tokens are small and go out one by one.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let progress = Progress::default();
    let socket = Parting::new(Patient::new(stream, PATIENCE), progress.clone());
    let service = service_fn(|request: Request<Incoming>| {
        let answering = Answering::new(place.visit(request.headers()), progress.clone(), &request);
        let router = router.clone();
        async move { Ok::<_, Infallible>(answering.answer(router, request).await) }
    });
    let head_deadline = if place.is_kept() { KEPT_HEAD_DEADLINE } else { HEAD_DEADLINE };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_deadline)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = place.taken() => Ok(()),
        () = Phase::Draining.reached(&mut phase) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, address = %place.peer(), "connection ended");
    }
}

/// A request and its answer, until the last byte has been handed on.
#[derive(Debug)]
struct Answering {
    visit: Arc<Visit>,
    progress: Progress,
    version: Version,
}

impl Answering {
    fn new(visit: Visit, progress: Progress, request: &Request<Incoming>) -> Self {
        // At once: the socket may be looked at before the answer is.
        progress.set(Stage::Receiving);
        Self { visit: Arc::new(visit), progress, version: request.version() }
    }

    async fn answer(
        self,
        router: Router,
        request: Request<Incoming>,
    ) -> Response<impl HttpBody<Data = Bytes, Error = axum::Error>> {
        let mut request = request.map(Body::new);
        // Older clients know nothing that could come before an answer.
        let received = if self.version < Version::HTTP_11 { Stage::Sending } else { Stage::Waiting };
        let receipt = Receipt::new(self.progress.clone(), received);
        if request.body().is_end_stream() {
            receipt.give();
        }
        request.extensions_mut().insert(receipt);
        request.extensions_mut().insert(Arc::clone(&self.visit));
        let response = router.oneshot(request).await.unwrap_or_else(|never| match never {});
        let streams = self.version == Version::HTTP_11 && is_event_stream(response.headers());
        self.progress.set(if streams { Stage::Streaming } else { Stage::Sending });
        response.map(|body| {
            body.map_err(move |error| {
                // The body has it, so that it lasts as long.
                let _last = &self;
                error
            })
        })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.progress.set(Stage::Idle);
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}
