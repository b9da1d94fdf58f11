//! A UDP network in memory, with delay, loss and cuts drawn from a seed.
//!
//! Endpoints on it are real ones, QUIC and TLS included. On a `current_thread` runtime with a paused clock a run takes
//! no time and repeats exactly, since quinn's clock is tokio's. Where time does pass, that clock's timers are up to a
//! millisecond late: a network [on the system's clock](Network::on_system_clock) delivers within some 0.1 ms.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use quinn::{
    AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use tokio::time::Instant;

use crate::{admission::Admission, endpoint::Endpoint, error::NetError, identity::Identity, transport};

/// Most packets that wait for one endpoint; more are lost, as in a socket's buffer.
const INBOX_PACKETS: usize = 1 << 16;
/// Segments of one send, as quinn does on Linux.
const SEGMENTS: usize = 10;

/// What happens to packets from now on, one way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Time that every packet takes.
    pub delay: Duration,
    /// The most that is added to it, drawn anew for every packet, so that packets also overtake each other.
    pub jitter: Duration,
    /// Share of the packets that are lost, 0 to 1.
    pub loss: f64,
    /// Bytes a second that pass from one endpoint to another; 0 is no limit.
    pub rate: u64,
}

/// How many packets there were so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Packets {
    /// Handed to the network.
    pub sent: u64,
    /// Of those, lost by chance, cut or overflow.
    pub lost: u64,
}

/// The network. Clones share it.
#[derive(Clone)]
pub struct Network(Arc<Mutex<State>>);

struct State {
    clock: Clock,
    random: u64,
    faults: Faults,
    cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    dead: BTreeSet<SocketAddr>,
    inboxes: HashMap<SocketAddr, Inbox>,
    /// When the link from the one to the other will have sent what it was given.
    free: HashMap<(SocketAddr, SocketAddr), Instant>,
    packets: Packets,
    endpoints: u16,
}

/// What wakes the reader of a packet that is due.
#[derive(Clone, Copy)]
enum Clock {
    /// Tokio, whose clock can be paused.
    Tokio,
    /// The system.
    System,
}

#[derive(Default)]
struct Inbox {
    waiting: BinaryHeap<Reverse<Packet>>,
    reader: Option<Waker>,
}

/// Ordered by arrival, then by departure.
#[derive(Eq, Ord, PartialEq, PartialOrd)]
struct Packet {
    due: Instant,
    number: u64,
    from: SocketAddr,
    congested: bool,
    bytes: Vec<u8>,
}

impl Network {
    /// A network without faults, whose chances come from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::timed_by(Clock::Tokio, seed)
    }

    /// Like `new`, for runs in real time that need delays to be exact. Tokio's clock must not be paused.
    pub fn on_system_clock(seed: u64) -> Self {
        Self::timed_by(Clock::System, seed)
    }

    fn timed_by(clock: Clock, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            clock,
            random: seed,
            faults: Faults::default(),
            cuts: BTreeSet::new(),
            dead: BTreeSet::new(),
            inboxes: HashMap::new(),
            free: HashMap::new(),
            packets: Packets::default(),
            endpoints: 0,
        })))
    }

    /// What happens to packets from now on.
    pub fn faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Nothing passes between the two any more.
    pub fn cut(&self, a: SocketAddr, b: SocketAddr) {
        self.state().cuts.extend([(a, b), (b, a)]);
    }

    /// Packets pass again.
    pub fn heal(&self, a: SocketAddr, b: SocketAddr) {
        self.state().cuts.retain(|pair| *pair != (a, b) && *pair != (b, a));
    }

    /// The machine at the address falls silent for good, as if its power went.
    pub fn kill(&self, address: SocketAddr) {
        self.state().dead.insert(address);
    }

    /// How many packets there were so far.
    pub fn packets(&self) -> Packets {
        self.state().packets
    }

    /// An endpoint on this network, with an address of its own. Call it inside a tokio runtime.
    pub fn endpoint(&self, identity: &Identity, admission: Admission) -> Result<Endpoint, NetError> {
        let (address, seed, clock) = {
            let mut state = self.state();
            state.endpoints += 1;
            let [high, low] = state.endpoints.to_be_bytes();
            let address = SocketAddr::from((Ipv4Addr::new(10, 0, high, low), 7700));
            state.inboxes.insert(address, Inbox::default());
            (address, blake3::hash(&state.draw().to_le_bytes()), state.clock)
        };
        let mut config = transport::endpoint(identity);
        config.rng_seed(Some(*seed.as_bytes()));
        let timer = Mutex::new(clock.timer());
        let socket = Arc::new(MemorySocket { network: self.clone(), address, timer });
        Endpoint::over(socket, config, identity, admission)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({:?})", self.packets())
    }
}

impl State {
    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to below 1.
    fn chance(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// When a packet of `len` bytes, given to the link now, has left it.
    fn sent(&mut self, from: SocketAddr, to: SocketAddr, len: usize) -> Instant {
        let now = Instant::now();
        if self.faults.rate == 0 {
            return now;
        }
        let free = self.free.entry((from, to)).or_insert(now);
        *free = now.max(*free) + Duration::from_secs_f64(len as f64 / self.faults.rate as f64);
        *free
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, congested: bool, bytes: &[u8]) {
        let (lucky, jitter) = (self.chance() >= self.faults.loss, self.chance());
        let cut = self.cuts.contains(&(from, to)) || self.dead.contains(&from) || self.dead.contains(&to);
        let sent = self.sent(from, to, bytes.len());
        let due = sent + self.faults.delay + self.faults.jitter.mul_f64(jitter);
        let number = self.packets.sent;
        self.packets.sent += 1;
        match self.inboxes.get_mut(&to) {
            Some(inbox) if lucky && !cut && inbox.waiting.len() < INBOX_PACKETS => {
                inbox.waiting.push(Reverse(Packet { due, number, from, congested, bytes: bytes.to_vec() }));
                inbox.reader.take().into_iter().for_each(Waker::wake);
            }
            Some(_) | None => self.packets.lost += 1,
        }
    }
}

impl Clock {
    fn timer(self) -> Pin<Box<dyn AsyncTimer>> {
        match self {
            Self::Tokio => TokioRuntime.new_timer(Instant::now().into_std()),
            Self::System => Box::pin(SystemTimer(async_io::Timer::never())),
        }
    }
}

#[derive(Debug)]
struct SystemTimer(async_io::Timer);

impl AsyncTimer for SystemTimer {
    fn reset(mut self: Pin<&mut Self>, due: std::time::Instant) {
        self.0.set_at(due);
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(drop)
    }
}

struct MemorySocket {
    network: Network,
    address: SocketAddr,
    timer: Mutex<Pin<Box<dyn AsyncTimer>>>,
}

impl fmt::Debug for MemorySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemorySocket({})", self.address)
    }
}

impl Drop for MemorySocket {
    fn drop(&mut self) {
        self.network.state().inboxes.remove(&self.address);
    }
}

impl AsyncUdpSocket for MemorySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut state = self.network.state();
        let congested = transmit.ecn == Some(EcnCodepoint::Ce);
        for datagram in transmit.contents.chunks(transmit.segment_size.unwrap_or(usize::MAX)) {
            state.send(self.address, transmit.destination, congested, datagram);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut state = self.network.state();
            let Some(inbox) = state.inboxes.get_mut(&self.address) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            let count = inbox.deliver(bufs, meta);
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            inbox.reader = Some(cx.waker().clone());
            let Some(Reverse(next)) = inbox.waiting.peek() else { return Poll::Pending };
            timer.as_mut().reset(next.due.into_std());
            drop(state);
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Inbox {
    /// Fills buffers with packets that have arrived; how many.
    fn deliver(&mut self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let now = Instant::now();
        let mut count = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta) {
            if self.waiting.peek().is_none_or(|Reverse(packet)| packet.due > now) {
                break;
            }
            let Some(Reverse(packet)) = self.waiting.pop() else { break };
            let len = packet.bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&packet.bytes[..len]);
            let ecn = packet.congested.then_some(EcnCodepoint::Ce);
            *meta = RecvMeta { addr: packet.from, len, stride: len, ecn, dst_ip: None };
            count += 1;
        }
        count
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
