//! A connection: one authenticated peer, and the streams to it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use quinn::SendStream;
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{Mutex, mpsc},
    task::AbortHandle,
};

use crate::{
    aside::RelayTag,
    close::CloseCode,
    code::JoinCode,
    control::{ControlReceiver, ControlSender},
    door::Place,
    error::NetError,
    ids::{PeerId, PlanEpoch},
    limits::WAITING_STREAMS,
    link::FrameSender,
    message::RangeRequest,
    range::RangeReader,
    reading::{self, Holder, ReadGrant},
    relay::is_far,
    secret::ReadSecret,
    sorter::{Incoming, Sorter},
    stream::{Reader, open},
    tls::EXPORTER_LABEL,
    transport,
};

/// An authenticated connection. Clones share it; when the last clone and the last stream are dropped it closes.
///
/// While only streams are left nothing new is accepted, so keep a clone for as long as the peer may open streams.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

/// A connection that is not kept open.
#[derive(Debug)]
pub(crate) struct WeakConnection(Weak<Inner>);

struct Inner {
    quic: quinn::Connection,
    peer: PeerId,
    local_peer: PeerId,
    exporter: [u8; 32],
    control: Mutex<mpsc::Receiver<(SendStream, Reader)>>,
    streams: Mutex<mpsc::Receiver<Incoming>>,
    sorter: AbortHandle,
    /// Waits until the place at the door is lost, for as long as the peer has not proved that it may join.
    guest: OnceLock<AbortHandle>,
}

impl Connection {
    pub(crate) fn new(quic: quinn::Connection, local_peer: PeerId) -> Result<Self, NetError> {
        let setup = |text: &str| NetError::Setup { text: text.into() };
        let identity =
            quic.peer_identity().and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
        let peer = identity.and_then(|keys| PeerId::from_spki(keys.first()?)).ok_or(setup("the peer showed no key"))?;
        let mut exporter = [0; 32];
        quic.export_keying_material(&mut exporter, EXPORTER_LABEL, b"").map_err(|_| setup("no TLS exporter"))?;
        let (control_in, control) = mpsc::channel(1);
        let (streams_in, streams) = mpsc::channel(WAITING_STREAMS);
        let sorter = Sorter { quic: quic.clone(), peer, control: control_in, streams: streams_in };
        let sorter = tokio::spawn(sorter.run()).abort_handle();
        let (control, streams) = (Mutex::new(control), Mutex::new(streams));
        let guest = OnceLock::new();
        Ok(Self(Arc::new(Inner { quic, peer, local_peer, exporter, control, streams, sorter, guest })))
    }

    /// A connection whose peer must still prove that it may join, and which is closed if its place is lost before that.
    pub(crate) fn guest(quic: quinn::Connection, local_peer: PeerId, place: Place) -> Result<Self, NetError> {
        let connection = Self::new(quic.clone(), local_peer)?;
        let waiting = tokio::spawn(async move {
            place.lost().await;
            quic.close(CloseCode::Limit.to_varint(), b"others came, and there was no place left");
        });
        connection.0.guest.get_or_init(|| waiting.abort_handle());
        Ok(connection)
    }

    /// The peer has proved that it may join: it gets the limits of a worker, and its place at the door becomes free.
    pub(crate) fn trust(&self) {
        if let Some(waiting) = self.0.guest.get() {
            waiting.abort();
            transport::lift_limits(&self.0.quic);
        }
    }

    /// Who is at the other end, proven.
    pub fn peer(&self) -> PeerId {
        self.0.peer
    }

    /// Who we are.
    pub(crate) fn local_peer(&self) -> PeerId {
        self.0.local_peer
    }

    /// Where the peer's packets come from.
    pub fn remote_address(&self) -> SocketAddr {
        self.0.quic.remote_address()
    }

    /// The address of this machine that the peer dialled, where the system tells; `None` where this side has dialled.
    pub(crate) fn local_ip(&self) -> Option<IpAddr> {
        self.0.quic.local_ip().map(|ip| ip.to_canonical())
    }

    /// The same connection, which then closes although this is held.
    pub(crate) fn downgrade(&self) -> WeakConnection {
        WeakConnection(Arc::downgrade(&self.0))
    }

    /// Whether its packets are passed on by a relay.
    pub fn is_relayed(&self) -> bool {
        is_far(self.remote_address())
    }

    /// QUIC's current estimate of the round trip.
    pub fn rtt(&self) -> Duration {
        self.0.quic.rtt()
    }

    /// The shortest round trip so far: what the way takes when nobody has to wait.
    pub fn least_rtt(&self) -> Duration {
        self.0.quic.stats().path.min_rtt
    }

    /// Bytes that only the two ends of this connection know, and that no other connection has.
    pub(crate) fn exporter(&self) -> [u8; 32] {
        self.0.exporter
    }

    /// What the calls carry of the end that was dialled, once it is elsewhere: no other connection has it.
    pub(crate) fn call_tag(&self) -> RelayTag {
        let key = blake3::derive_key("qmesh moved v1", &self.exporter());
        RelayTag(*key.first_chunk().expect("32 bytes hold 16"))
    }

    /// What the screens of both ends show, where a worker asks its coordinator to be let in.
    pub(crate) fn join_code(&self, worker: PeerId, coordinator: PeerId) -> JoinCode {
        JoinCode::of(&self.exporter(), worker, coordinator)
    }

    /// The same, at the worker that dialled its coordinator.
    pub fn own_join_code(&self) -> JoinCode {
        self.join_code(self.local_peer(), self.peer())
    }

    /// Keeps no more than so many bytes to send, and not yet acknowledged: what is served here must not fill the memory.
    pub fn bound_sends(&self, bytes: u64) {
        self.0.quic.set_send_window(bytes);
    }

    /// Closes at once; what was not yet sent is lost.
    pub fn close(&self, code: CloseCode, text: &str) {
        self.0.quic.close(code.to_varint(), text.as_bytes());
    }

    /// Waits until the connection is gone, and tells why.
    pub async fn closed(&self) -> NetError {
        NetError::connection(self.peer(), self.0.quic.closed().await)
    }

    /// Opens the control stream: the dialler does, once.
    pub async fn open_control(&self) -> Result<(ControlSender, ControlReceiver), NetError> {
        let (send, recv) = open(self.peer(), self.0.quic.open_bi()).await?;
        let sender = ControlSender::open(self.peer(), send).await?;
        Ok((sender, ControlReceiver::new(self.reader(recv))))
    }

    /// Waits for the peer's control stream. Cancel-safe.
    pub async fn accept_control(&self) -> Result<(ControlSender, ControlReceiver), NetError> {
        let stream = self.0.control.lock().await.recv().await;
        let (send, reader) = stream.ok_or_else(|| self.lost())?;
        Ok((ControlSender::accepted(self.peer(), send), ControlReceiver::new(reader)))
    }

    /// Opens the link to this peer for a plan.
    pub async fn open_frames(&self, epoch: PlanEpoch) -> Result<FrameSender, NetError> {
        let send = open(self.peer(), self.0.quic.open_uni()).await?;
        FrameSender::open(self.peer(), send, epoch).await
    }

    /// Waits for the next link or range request of the peer. Cancel-safe.
    pub async fn accept_stream(&self) -> Result<Incoming, NetError> {
        let stream = self.0.streams.lock().await.recv().await;
        stream.ok_or_else(|| self.lost())
    }

    /// Asks for a piece of a tensor.
    pub async fn fetch_range(&self, request: RangeRequest) -> Result<RangeReader, NetError> {
        let (send, recv) = open(self.peer(), self.0.quic.open_bi()).await?;
        RangeReader::ask(self.peer(), send, self.reader(recv), request).await
    }

    /// Asks for the right to read a shared model, which the secret proves; `me` says whether others can get it here as well.
    /// What may be read then is asked for by [`Connection::fetch_range`].
    ///
    /// # Errors
    /// The link's; a refusal is [`NetError::ReadingRefused`].
    pub async fn ask_to_read(&self, secret: &ReadSecret, me: &Holder) -> Result<ReadGrant, NetError> {
        let (send, recv) = open(self.peer(), self.0.quic.open_bi()).await?;
        reading::ask(self, send, self.reader(recv), secret, me).await
    }

    fn reader(&self, recv: quinn::RecvStream) -> Reader {
        Reader::new(self.0.quic.clone(), self.peer(), recv)
    }

    fn lost(&self) -> NetError {
        match self.0.quic.close_reason() {
            Some(reason) => NetError::connection(self.peer(), reason),
            None => NetError::ClosedHere { peer: self.peer() },
        }
    }
}

impl WeakConnection {
    pub(crate) fn upgrade(&self) -> Option<Connection> {
        self.0.upgrade().map(Connection)
    }

    /// Whether somebody holds it.
    pub(crate) fn is_here(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({} at {})", self.peer().short(), self.remote_address())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Both tasks hold the connection too, which would otherwise never close.
        self.sorter.abort();
        if let Some(waiting) = self.guest.get() {
            waiting.abort();
        }
    }
}
