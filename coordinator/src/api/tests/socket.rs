//! The server on a real socket: streams as bytes, clients that leave, and the way it stops.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::{
    api::{ServeError, places::Limits, serve},
    mesh::{events::MeshEvent, status::MeshState},
    text::fake::{mesh_status, row},
};

/// A server on a port of its own.
struct Served {
    mesh: FakeMesh,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    async fn new(script: impl Fn(&GenerateRequest) -> Vec<GenerateEvent> + Send + 'static) -> Self {
        Self::with(script, |_| {}).await
    }

    async fn with(
        script: impl Fn(&GenerateRequest) -> Vec<GenerateEvent> + Send + 'static,
        change: impl FnOnce(&mut ApiState),
    ) -> Self {
        let mesh = FakeMesh::new(script);
        let mut state = state(&mesh);
        state.drain = Duration::from_millis(50);
        change(&mut state);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(serve(listener, state, async { drop(stopped.await) }));
        Self { mesh, address, stop, ended }
    }

    async fn open(&self, head: &str, body: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).await.expect("connected");
        let request = format!("{head} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        socket.write_all(request.as_bytes()).await.expect("written");
        socket
    }

    async fn chat(&self, more: Value) -> TcpStream {
        self.open("POST /v1/chat/completions", &chat_body(more).to_string()).await
    }

    async fn stop(self) {
        self.stop.send(()).expect("the server runs");
        timeout(Duration::from_secs(5), self.ended).await.expect("in time").expect("no panic").expect("no error");
    }
}

/// Reads until `text` has come.
async fn read_until(socket: &mut TcpStream, text: &str) -> String {
    let mut bytes = Vec::new();
    loop {
        let so_far = String::from_utf8_lossy(&bytes).into_owned();
        if so_far.contains(text) {
            return so_far;
        }
        let read = timeout(Duration::from_secs(5), socket.read_buf(&mut bytes)).await;
        assert_ne!(read.expect("in time").expect("bytes"), 0, "ended before {text:?}: {so_far}");
    }
}

/// The status, and all that comes until the server ends the connection.
async fn read_to_end(socket: &mut TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    timeout(Duration::from_secs(5), socket.read_to_end(&mut bytes)).await.expect("in time").expect("in order");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // Whatever came before the answer itself.
    let answer = text.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer: {text}")), answer.to_owned())
}

/// A token, and then nothing for as long as somebody listens.
fn endless(_: &GenerateRequest) -> Vec<GenerateEvent> {
    vec![GenerateEvent::Token(row(word("Hello")))]
}

#[tokio::test]
async fn a_stream_as_bytes() {
    let served = Served::new(hello).await;
    let mut socket = served.chat(json!({"stream": true})).await;
    let text = read_until(&mut socket, "data: [DONE]\n\n").await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\r\nx-request-id: req_"), "{text}");
    // Each event is one HTTP chunk: it went out when it was made.
    let (_, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(body.contains("\"delta\":{\"content\":\"Hello\"}") && body.matches("\n\n\r\n").count() >= 4, "{body}");
    // The connection is good for more.
    socket.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("written");
    read_until(&mut socket, "\"status\":\"ok\"").await;
    drop(socket);
    served.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels() {
    let mut served = Served::new(endless).await;
    let mut streamed = served.chat(json!({"stream": true})).await;
    read_until(&mut streamed, "Hello").await;
    drop(streamed);
    served.mesh.cancelled().await;
    let whole = served.chat(json!({})).await;
    while served.mesh.seen.lock().expect("no panic holds it").len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(whole);
    served.mesh.cancelled().await;
    served.stop().await;
}

#[tokio::test]
async fn a_client_that_has_said_all_gets_its_answer() {
    let served = Served::new(hello).await;
    for (more, last) in [(json!({}), "\"total_tokens\""), (json!({"stream": true}), "data: [DONE]")] {
        let mut socket = served.chat(more).await;
        socket.shutdown().await.expect("its side is closed");
        let (status, text) = read_to_end(&mut socket).await;
        assert!(status == 200 && text.contains("Hello") && text.contains(last), "{text}");
    }
    served.stop().await;
}

#[tokio::test]
async fn a_refusal_is_read_by_who_is_still_sending() {
    let served = Served::with(hello, |state| state.api_key = Some("sesame".parse().expect("a key"))).await;
    let key = "authorization: Bearer sesame\r\n";
    for (path, key, status) in [
        ("/v1/chat/completions", key, 413),
        ("/v1/chat/completions", "", 401),
        ("/nowhere", key, 404),
        ("/v1/models", key, 405),
    ] {
        let mut socket = TcpStream::connect(served.address).await.expect("connected");
        let bytes = 20 << 20;
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{key}content-length: {bytes}\r\n\r\n");
        socket.write_all(head.as_bytes()).await.expect("written");
        socket.write_all(&vec![b' '; bytes]).await.expect("all of it is taken");
        let (found, text) = read_to_end(&mut socket).await;
        assert!(found == status && text.contains("{\"error\":{\"message\":"), "{path}: {text}");
    }
    served.stop().await;
}

const LIMITS: Limits = Limits { ordinary: 6, per_address: 4, measuring: 2, authenticated: 1 };

#[tokio::test]
async fn silent_connections_keep_nobody_waiting() {
    let served = Served::with(hello, |state| state.limits = LIMITS).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(served.address).await.expect("connected"));
    }
    let mut probe = served.open("GET /health", "").await;
    read_until(&mut probe, "\"status\":\"ok\"").await;
    read_until(&mut served.chat(json!({"stream": true})).await, "[DONE]").await;
    served.stop().await;
}

#[tokio::test]
async fn silent_connections_take_no_place_of_who_is_being_answered() {
    let mut served = Served::with(endless, |state| state.limits = LIMITS).await;
    let mut busy = Vec::new();
    for _ in 1..LIMITS.per_address {
        let mut socket = served.chat(json!({"stream": true})).await;
        read_until(&mut socket, "Hello").await;
        busy.push(socket);
    }
    // These have one place to take from each other.
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(served.address).await.expect("connected"));
        let mut probe = served.open("GET /health", "").await;
        read_until(&mut probe, "\"status\":\"ok\"").await;
    }
    let mut rest = [0; 64];
    for socket in &mut busy {
        let more = timeout(Duration::from_millis(20), socket.read(&mut rest)).await;
        assert!(more.is_err(), "nothing has come, not even an end: {more:?}");
    }
    // The server has noticed none of them leave either.
    assert!(served.mesh.cancelled.try_recv().is_err());
    drop((busy, silent));
    served.mesh.cancelled().await;
    served.stop().await;
}

#[tokio::test]
async fn a_crowd_leaves_room_for_probes_and_the_key() {
    let served = Served::with(endless, |state| state.limits = LIMITS).await;
    let mut busy = Vec::new();
    for _ in 0..LIMITS.per_address {
        let mut socket = served.chat(json!({"stream": true})).await;
        read_until(&mut socket, "Hello").await;
        busy.push(socket);
    }
    let (status, text) = read_to_end(&mut served.chat(json!({})).await).await;
    let refused = ["\r\nretry-after: ", "\r\nconnection: close\r\n", "\"too_many_connections\"", "--trusted-proxy"];
    assert!(status == 429 && refused.iter().all(|part| text.contains(part)), "{text}");
    for path in ["/health", "/ready"] {
        read_until(&mut served.open(&format!("GET {path}"), "").await, "HTTP/1.1 200 OK").await;
    }
    drop(busy);
    served.stop().await;

    let keyed = |state: &mut ApiState| {
        state.limits = LIMITS;
        state.api_key = Some("sesame".parse().expect("a key"));
    };
    let served = Served::with(endless, keyed).await;
    let head = "GET /api/events HTTP/1.1\r\nauthorization: Bearer sesame\r\nhost: localhost\r\n\r\n";
    let mut busy = Vec::new();
    for _ in 0..=LIMITS.per_address {
        let mut socket = TcpStream::connect(served.address).await.expect("connected");
        socket.write_all(head.as_bytes()).await.expect("written");
        read_until(&mut socket, "\"state\":\"ready\"").await;
        busy.push(socket);
    }
    // The one place that is kept for the key is taken now.
    let mut socket = TcpStream::connect(served.address).await.expect("connected");
    socket.write_all(head.as_bytes()).await.expect("written");
    assert_eq!(read_to_end(&mut socket).await.0, 429);
    drop(busy);
    served.stop().await;
}

#[tokio::test]
async fn a_trusted_proxy_says_for_whom_it_asks() {
    let trusting = |state: &mut ApiState| {
        state.limits = Limits { per_address: 1, ..LIMITS };
        state.trusted_proxies.push([127, 0, 0, 1].into());
    };
    let served = Served::with(hello, trusting).await;
    let mut connections = Vec::new();
    for client in ["203.0.113.7", "203.0.113.7", "198.51.100.1"] {
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nx-forwarded-for: {client}\r\nhost: localhost\r\n");
        let body = chat_body(json!({"stream": true})).to_string();
        let mut socket = TcpStream::connect(served.address).await.expect("connected");
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        socket.write_all(request.as_bytes()).await.expect("written");
        read_until(&mut socket, "[DONE]").await;
        connections.push(socket);
    }
    let clients: Vec<_> = served.mesh.seen.lock().expect("no panic holds it").iter().map(|seen| seen.client).collect();
    assert!(clients[0] == clients[1] && clients[1] != clients[2], "{clients:?}");
    drop(connections);
    served.stop().await;
}

#[tokio::test]
async fn stopping_ends_streams_with_an_error() {
    let mut served = Served::new(endless).await;
    let mut running = served.chat(json!({"stream": true})).await;
    read_until(&mut running, "Hello").await;
    let mut events = served.open("GET /api/events", "").await;
    read_until(&mut events, "\"state\":\"ready\"").await;
    served.mesh.status.send_replace(Arc::new(mesh_status(MeshState::Stopping)));
    read_until(&mut events, "\"state\":\"stopping\"").await;
    served.stop.send(()).expect("the server runs");
    let mut rest = String::new();
    running.read_to_string(&mut rest).await.expect("the stream is closed in order");
    assert!(
        rest.contains("shutting_down") && !rest.contains("[DONE]") && !rest.contains("\"finish_reason\":\"s"),
        "{rest}"
    );
    timeout(Duration::from_secs(5), served.ended).await.expect("in time").expect("no panic").expect("no error");
    served.mesh.cancelled().await;
    assert!(TcpStream::connect(served.address).await.is_err(), "nothing listens");
}

#[tokio::test]
async fn what_happens_is_told_beside_the_status() {
    let served = Served::new(hello).await;
    let mut events = served.open("GET /api/events", "").await;
    read_until(&mut events, "\"state\":\"ready\"").await;
    served.mesh.bus.publish(MeshEvent::FaultSeen { worker: "w1".to_owned(), text: "a NaN".to_owned() });
    read_until(
        &mut events,
        "event: fault_seen\ndata: {\"worker\":\"w1\",\"text\":\"a NaN\",\"sentence\":\"w1: a NaN.\"}\n\n",
    )
    .await;
    drop(events);
    served.stop().await;
}

#[tokio::test]
async fn slow_heads_are_cut_off() {
    let served = Served::new(hello).await;
    let mut socket = TcpStream::connect(served.address).await.expect("connected");
    socket.write_all(b"GET /health HT").await.expect("written");
    tokio::time::pause();
    let mut rest = Vec::new();
    // The clock jumps ahead while nothing else happens.
    timeout(Duration::from_secs(11), socket.read_to_end(&mut rest)).await.expect("cut off in time").expect("closed");
    tokio::time::resume();
    served.stop().await;
}

#[tokio::test]
async fn strangers_need_a_key() {
    let mesh = FakeMesh::new(hello);
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
    let error = serve(listener, state(&mesh), std::future::pending()).await.expect_err("no key");
    assert!(error.to_string().contains("--api-key"), "{error}");
}
