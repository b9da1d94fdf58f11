//! Every limit and deadline of the wire, with the relations that must hold between them.

use std::time::Duration;

/// Version of the messages inside ALPN `qmesh/1`; both ends of a join must have the same.
pub const PROTOCOL: u16 = 7;
/// Most bytes of one control message, its type included.
pub const MESSAGE_BYTES: usize = 1 << 20;
/// Most sections of one message or frame.
pub const SECTIONS: usize = 16;
/// Most bytes of a message's sections, their heads included.
pub const MESSAGE_SECTIONS_BYTES: usize = 256 << 10;
/// Most bytes of a frame's sections, their heads included.
pub const FRAME_SECTIONS_BYTES: usize = 4 << 10;
/// Bytes of one value of an activation row: an f32.
pub const VALUE_BYTES: usize = 4;
/// Most bytes of a frame's payload.
pub const FRAME_PAYLOAD_BYTES: usize = 64 << 20;
/// Most segments (sequences) in a frame.
pub const FRAME_SEGMENTS: usize = 256;
/// Most rows in a frame, over all segments.
pub const FRAME_ROWS: usize = 16 << 10;
/// Most values in a row.
pub const FRAME_WIDTH: usize = 64 << 10;
/// Most candidates reported for a sampled row.
pub const CANDIDATES: usize = 64;
/// Bytes of a frame's fixed head.
pub const FIXED_HEAD_BYTES: usize = 48;
/// The whole head is padded to a multiple of this.
pub const HEAD_ALIGNMENT: usize = 32;
/// Bytes of one segment in a frame's head.
pub const SEGMENT_BYTES: usize = 32;
/// Most bytes of a frame's whole head.
pub const HEAD_BYTES: usize =
    (FIXED_HEAD_BYTES + FRAME_SEGMENTS * SEGMENT_BYTES + 4 * FRAME_ROWS + FRAME_SECTIONS_BYTES)
        .next_multiple_of(HEAD_ALIGNMENT);
/// Most bytes of the first message on a control stream: far more than a `Hello` of any version needs.
pub const HELLO_BYTES: usize = 128 << 10;
/// Most bytes of a message from a worker: none of them is long.
pub const WORKER_MESSAGE_BYTES: usize = 64 << 10;
/// Most bytes of each text in a `Hello`.
pub const HELLO_TEXT_BYTES: usize = 256;
/// Most tokens that a mask speaks of.
pub const MASK_TOKENS: usize = 1 << 20;
/// Most rows of steps under way on one plan that wait for a mask, or whose masks have come before them.
pub const MASKS_UNDER_WAY: usize = 512;
/// Most addresses in a ticket.
pub const TICKET_ADDRESSES: usize = 16;
/// Most addresses that a peer is dialled at: those of a ticket, and where it was before.
pub const DIALLED_ADDRESSES: usize = TICKET_ADDRESSES + 4;
/// Most addresses of its own that a worker names.
pub const OWN_ADDRESSES: usize = 8;

/// Most machines that have a shared model, and that a reader is told of.
pub const HOLDERS: usize = 32;

/// Most workers that a `Load` names as sources of weights, or as who may ask for them.
pub const SOURCE_PEERS: usize = 16;
/// Words of 64 CPUs that a worker may name: 4,096 CPUs.
pub const CPU_WORDS: usize = 64;
/// Most sources that a `Load` names for one tensor.
pub const SOURCES_OF_TENSOR: usize = 2;
/// Most tensors that a `Load` names sources for.
pub const SOURCE_TENSORS: usize = 8192;

/// Incoming one-way streams a peer may have open (frames).
pub const UNI_STREAMS: u32 = 256;
/// Incoming two-way streams a peer may have open (control, weight ranges).
pub const BIDI_STREAMS: u32 = 64;
/// Unread bytes one stream may hold.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// Unread bytes all streams of a connection may hold.
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Bytes of a connection sent and not yet acknowledged.
pub const SEND_WINDOW_BYTES: u64 = 32 << 20;
/// Unread bytes that a peer may have here before it has proved that it may join; it may open a control stream only.
pub const GUEST_WINDOW_BYTES: u32 = 16 << 10;
/// Bytes sent to such a peer, and not yet acknowledged.
pub const GUEST_SEND_WINDOW_BYTES: u64 = 16 << 10;
/// One-way streams that a worker may have open at its coordinator: the last stage's link, and that of the next plan.
pub const JOINED_UNI_STREAMS: u32 = 4;
/// Two-way streams that a worker may have open at its coordinator: control, and a few weight ranges.
pub const JOINED_BIDI_STREAMS: u32 = 16;
/// Unread bytes that a worker may have at its coordinator.
pub const JOINED_WINDOW_BYTES: u32 = 8 << 20;
/// Bytes sent to a worker that has joined, and not yet acknowledged.
pub const JOINED_SEND_WINDOW_BYTES: u64 = 16 << 20;
/// Bytes of tensors sent by a worker to another one, and not yet acknowledged: its memory is spoken for.
pub const PEER_SEND_WINDOW_BYTES: u64 = 2 << 20;
/// Largest UDP payload: with a larger one, ten segments in one send would exceed 65,507 bytes and vanish.
pub const UDP_PAYLOAD_BYTES: u16 = 6500;
/// Packets that may come before they are acknowledged, unless they have waited for 25 ms.
pub const PACKETS_PER_ACK: u32 = 10;
/// Kernel buffer asked for on each side of the socket; the default loses packets even on loopback.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Handshakes that wait to be begun; more are refused.
pub const WAITING_HANDSHAKES: usize = 512;
/// Connections at the door, that is, before they have proved that they may join, from other machines.
pub const DOOR_REMOTE: usize = 128;
/// Connections at the door from one address; the oldest of them makes room for another.
pub const DOOR_PER_ADDRESS: usize = 16;
/// Connections at the door from this machine. They have places of their own, so that there is always room for them.
pub const DOOR_LOOPBACK: usize = 64;
/// Connections at the door above which a dialler must first prove its address.
pub const UNPROVEN_ADDRESSES: usize = 16;
/// Keys that joined and need no ticket to come back; when there are more, the one that joined first is forgotten.
pub const KNOWN_PEERS: usize = 4096;
/// Streams of one connection that arrived and were not yet taken.
pub const WAITING_STREAMS: usize = 16;

/// Bytes a second that a relay passes on for one grant: 100 Mbit/s.
pub const GRANT_BYTES_PER_SECOND: u64 = 12_500_000;
/// A link says something every second, so after such a silence nobody needs its grant.
pub const GRANT_IDLE: Duration = Duration::from_secs(60);

/// Time to reach a peer, over all its addresses.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// Time for each half of a join and for an incoming handshake.
pub const JOIN_DEADLINE: Duration = Duration::from_secs(5);
/// Time for which a worker without a ticket may wait at the coordinator until somebody admits it.
pub const ASKING_TIME: Duration = Duration::from_secs(600);
/// Time a send, a range transfer or the opening of a stream may stand still.
pub const STALL_DEADLINE: Duration = Duration::from_secs(30);
/// Silence after which a connection is lost.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Interval at which a quiet connection proves that it lives.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);

const _: () = {
    assert!(UDP_PAYLOAD_BYTES as usize * 10 < 65_507);
    assert!(FRAME_PAYLOAD_BYTES + HEAD_BYTES <= u32::MAX as usize);
    assert!(FRAME_SEGMENTS <= FRAME_ROWS);
    assert!(FRAME_SEGMENTS <= u16::MAX as usize);
    assert!(FRAME_WIDTH * VALUE_BYTES <= FRAME_PAYLOAD_BYTES);
    assert!(FRAME_SECTIONS_BYTES <= u16::MAX as usize);
    assert!(MESSAGE_SECTIONS_BYTES < MESSAGE_BYTES);
    assert!(FRAME_ROWS * (20 + 12 * CANDIDATES) <= FRAME_PAYLOAD_BYTES);
    assert!(MASK_TOKENS / 8 + 64 <= MESSAGE_BYTES);
    assert!(FRAME_ROWS / 8 + 8 <= FRAME_SECTIONS_BYTES);
    assert!(MESSAGE_BYTES <= STREAM_WINDOW_BYTES as usize);
    assert!(HELLO_TEXT_BYTES * 8 <= MESSAGE_BYTES);
    assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
    assert!(UNPROVEN_ADDRESSES <= DOOR_PER_ADDRESS);
    assert!(DOOR_PER_ADDRESS < DOOR_LOOPBACK && DOOR_LOOPBACK < DOOR_REMOTE);
    assert!(HELLO_BYTES <= MESSAGE_BYTES && WORKER_MESSAGE_BYTES <= MESSAGE_BYTES);
    assert!(GUEST_WINDOW_BYTES < JOINED_WINDOW_BYTES && JOINED_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
    assert!(KEEP_ALIVE.as_millis() * 3 < IDLE_TIMEOUT.as_millis());
    assert!(JOIN_DEADLINE.as_millis() <= DIAL_DEADLINE.as_millis());
};
