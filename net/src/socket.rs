//! The one socket of an endpoint: QUIC has it, and what travels beside QUIC is put in and taken out here.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    aside::{Aside, HEAD_BYTES, Kind, RelayTag, is_quic},
    ids::PlanEpoch,
    question::{Answer, Budget, QUESTION_BYTES, Second, canonical},
    relay::{Passing, RelayGrant, Relays, is_far},
};

/// Packets that came by a relay and wait for QUIC, which takes them at once.
const WAITING: usize = 1024;
/// Packets of one kind and tag that wait for who hears them.
const HEARD_WAITING: usize = 16;

/// A socket that is shared by QUIC and by what travels beside it.
pub(crate) struct SharedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    second: Option<Second>,
    state: Mutex<State>,
}

/// Where something came from, and its bytes.
type Packet = (SocketAddr, Vec<u8>);

#[derive(Default)]
struct State {
    relays: Relays,
    /// From far ends: each with the sender's address.
    arrived: VecDeque<Packet>,
    /// Who waits for packets of a kind with a tag.
    hearers: HashMap<(Kind, RelayTag), Vec<mpsc::Sender<Packet>>>,
    answered: Budget,
}

impl SharedSocket {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>, second: Option<Second>) -> Self {
        Self { inner, second, state: Mutex::default() }
    }

    /// Sends a packet that nobody has to understand, so that the way back is open.
    pub(crate) fn knock(&self, address: SocketAddr, tag: RelayTag) {
        self.send_aside(address, Aside { kind: Kind::Knock, tag, payload: &[] });
    }

    /// Tells the relay of a far end where this machine is.
    pub(crate) fn check_in(&self, far: SocketAddr) {
        let way = self.state().relays.way(far);
        if let Some((relay, tag)) = way {
            self.send_aside(relay, Aside { kind: Kind::Relayed, tag, payload: &[] });
        }
    }

    /// Passes packets on from now on.
    pub(crate) fn grant(&self, grant: RelayGrant) {
        self.state().relays.grant(Instant::now().into_std(), grant);
    }

    /// Passes nothing on any more for this plan.
    pub(crate) fn revoke(&self, epoch: PlanEpoch) {
        self.state().relays.revoke(epoch);
    }

    /// Bytes passed on so far.
    pub(crate) fn passed_bytes(&self) -> u64 {
        self.state().relays.passed_bytes()
    }

    /// The address by which QUIC knows the peer behind a relay.
    pub(crate) fn reach(&self, relay: SocketAddr, tag: RelayTag) -> SocketAddr {
        let is_ipv6 = self.inner.local_addr().is_ok_and(|address| address.is_ipv6());
        let relay = if is_ipv6 { mapped(relay) } else { relay };
        self.state().relays.reach(relay, tag)
    }

    /// The far end needs no address any more.
    pub(crate) fn leave(&self, far: SocketAddr) {
        self.state().relays.leave(far);
    }

    /// Hands on packets of this kind that carry this tag.
    pub(crate) fn hear(self: &Arc<Self>, kind: Kind, tag: RelayTag) -> Heard {
        let (sender, packets) = mpsc::channel(HEARD_WAITING);
        self.state().hearers.entry((kind, tag)).or_default().push(sender);
        Heard { socket: Arc::clone(self), key: (kind, tag), packets }
    }

    pub(crate) fn send_aside(&self, destination: SocketAddr, aside: Aside<'_>) {
        let contents = aside.bytes();
        let is_ipv6 = self.inner.local_addr().is_ok_and(|address| address.is_ipv6());
        let destination = if is_ipv6 { mapped(destination) } else { destination };
        let transmit = Transmit { destination, ecn: None, contents: &contents, segment_size: None, src_ip: None };
        // It may get lost on its way as well: whoever needs it sends it again.
        let _ = self.inner.try_send(&transmit);
    }

    /// Every segment of the transmission, to the relay.
    fn send_far(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some((destination, tag)) = self.state().relays.way(transmit.destination) else { return Ok(()) };
        let segment_bytes = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let segments = transmit.contents.len().div_ceil(segment_bytes);
        let mut contents = Vec::with_capacity(transmit.contents.len() + segments * HEAD_BYTES);
        for payload in transmit.contents.chunks(segment_bytes) {
            Aside { kind: Kind::Relayed, tag, payload }.write(&mut contents);
        }
        let segment_size = transmit.segment_size.map(|bytes| bytes + HEAD_BYTES);
        self.inner.try_send(&Transmit { destination, ecn: None, contents: &contents, segment_size, src_ip: None })
    }

    /// Leaves QUIC's packets in the buffer, which then has `meta.len` bytes, and does with the others what is to be done.
    fn sort(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let stride = meta.stride.max(1);
        if buffer[..meta.len].chunks(stride).all(is_quic) {
            return;
        }
        let mut kept = 0;
        let mut at = 0;
        while at < meta.len {
            let end = (at + stride).min(meta.len);
            if is_quic(&buffer[at..end]) {
                buffer.copy_within(at..end, kept);
                kept += end - at;
            } else {
                self.take_aside(meta.addr, &buffer[at..end]);
            }
            at = end;
        }
        meta.len = kept;
    }

    fn take_aside(&self, from: SocketAddr, packet: &[u8]) {
        let Some(aside) = Aside::parse(packet) else { return };
        match aside.kind {
            Kind::Question | Kind::QuestionToOther => self.answer(from, aside),
            Kind::Knock | Kind::Answer | Kind::Call | Kind::Seek | Kind::Found => {
                for hearer in self.state().hearers.get(&(aside.kind, aside.tag)).into_iter().flatten() {
                    // Who has not read the last ones has enough of them.
                    let _ = hearer.try_send((canonical(from), aside.payload.to_vec()));
                }
            }
            Kind::Relayed => {
                let mut state = self.state();
                let now = Instant::now().into_std();
                match state.relays.arrived(now, from, aside.tag, aside.payload.len()) {
                    Passing::On(to, tag) => {
                        drop(state);
                        self.send_aside(to, Aside { tag, ..aside });
                    }
                    Passing::Here(far) if state.arrived.len() < WAITING => {
                        state.arrived.push_back((far, aside.payload.to_vec()));
                    }
                    Passing::Here(_) | Passing::Nowhere => {}
                }
            }
        }
    }

    fn answer(&self, from: SocketAddr, question: Aside<'_>) {
        if question.payload.len() < QUESTION_BYTES || !self.state().answered.spend(Instant::now().into_std()) {
            return;
        }
        match (&self.second, question.kind == Kind::Question) {
            (second, true) => {
                let other_port = second.as_ref().map_or(0, Second::port);
                let payload = Answer { other_port, seen: canonical(from) }.bytes();
                self.send_aside(from, Aside { kind: Kind::Answer, tag: question.tag, payload: &payload });
            }
            (Some(second), false) => second.answer(from, question.tag),
            (None, false) => {}
        }
    }

    /// Gives QUIC what came from far ends; how many packets.
    fn deliver(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut state = self.state();
        let mut count = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta) {
            let Some((addr, packet)) = state.arrived.pop_front() else { break };
            let len = packet.len().min(buffer.len());
            buffer[..len].copy_from_slice(&packet[..len]);
            *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
            count += 1;
        }
        count
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Packets of one kind with one tag, for as long as somebody wants them.
pub(crate) struct Heard {
    socket: Arc<SharedSocket>,
    key: (Kind, RelayTag),
    packets: mpsc::Receiver<Packet>,
}

impl Heard {
    /// The next one: where it comes from, and its payload. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Packet {
        // The socket has the other end until this is dropped.
        match self.packets.recv().await {
            Some(packet) => packet,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.packets.close();
        let mut state = self.socket.state();
        if let Some(hearers) = state.hearers.get_mut(&self.key) {
            hearers.retain(|hearer| !hearer.is_closed());
            if hearers.is_empty() {
                state.hearers.remove(&self.key);
            }
        }
    }
}

/// The IPv6 form of an address, as sockets of both families have it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        SocketAddr::V6(_) => address,
    }
}

impl fmt::Debug for SharedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for SharedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if is_far(transmit.destination) { self.send_far(transmit) } else { self.inner.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        // QUIC asks until there is nothing, so what this call finds for it beside its own packets comes with the next one.
        let count = self.deliver(bufs, meta);
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter_mut().zip(meta).take(count) {
            self.sort(buffer, meta);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
