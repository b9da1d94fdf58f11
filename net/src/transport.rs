//! QUIC's settings, each with its reason, and the UDP socket.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
};

use quinn::{AckFrequencyConfig, EndpointConfig, MtuDiscoveryConfig, TransportConfig, congestion::CubicConfig};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    identity::Identity,
    limits::{
        BIDI_STREAMS, CONNECTION_WINDOW_BYTES, GUEST_SEND_WINDOW_BYTES, GUEST_WINDOW_BYTES, IDLE_TIMEOUT,
        JOINED_BIDI_STREAMS, JOINED_SEND_WINDOW_BYTES, JOINED_UNI_STREAMS, JOINED_WINDOW_BYTES, KEEP_ALIVE,
        PACKETS_PER_ACK, SEND_WINDOW_BYTES, SOCKET_BUFFER_BYTES, STREAM_WINDOW_BYTES, UDP_PAYLOAD_BYTES, UNI_STREAMS,
    },
};

/// How far away a peer is, as far as its address tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reach {
    /// This machine.
    Loopback,
    /// A private network.
    Local,
    /// The internet.
    Wide,
}

impl Reach {
    pub(crate) fn of(address: SocketAddr) -> Self {
        match address.ip().to_canonical() {
            ip if ip.is_loopback() => Self::Loopback,
            IpAddr::V4(ip) if ip.is_private() || ip.is_link_local() => Self::Local,
            IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local() => Self::Local,
            IpAddr::V4(_) | IpAddr::V6(_) => Self::Wide,
        }
    }
}

/// Settings of a connection to a peer so far away.
pub(crate) fn transport(reach: Reach) -> Arc<TransportConfig> {
    Arc::new(settings(reach))
}

fn settings(reach: Reach) -> TransportConfig {
    let mut config = TransportConfig::default();
    // quinn does not see a killed peer at once: only silence tells.
    config.max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("4 s fit a QUIC timeout")));
    config.keep_alive_interval(Some(KEEP_ALIVE));
    config.initial_rtt(std::time::Duration::from_millis(100));
    config.stream_receive_window(STREAM_WINDOW_BYTES.into());
    config.receive_window(CONNECTION_WINDOW_BYTES.into());
    config.send_window(SEND_WINDOW_BYTES);
    config.max_concurrent_uni_streams(UNI_STREAMS.into());
    config.max_concurrent_bidi_streams(BIDI_STREAMS.into());
    config.datagram_receive_buffer_size(None);
    // By default every second packet is acknowledged at once, before what came with it is handed on.
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(PACKETS_PER_ACK.into());
    config.ack_frequency_config(Some(acks));
    // The default of 12 kB never grows on a link that sends one frame at a time, so each large frame would take an RTT more.
    let mut cubic = CubicConfig::default();
    cubic.initial_window(match reach {
        Reach::Loopback | Reach::Local => 1 << 20,
        Reach::Wide => 256 << 10,
    });
    config.congestion_controller_factory(Arc::new(cubic));
    if reach == Reach::Loopback {
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(UDP_PAYLOAD_BYTES);
        config.mtu_discovery_config(Some(mtu));
    }
    config
}

/// Settings of a connection whose peer must still prove that it may join, with the tight limits that it has until then.
pub(crate) fn guest_transport(reach: Reach) -> Arc<TransportConfig> {
    let mut config = settings(reach);
    config.receive_window(GUEST_WINDOW_BYTES.into());
    config.send_window(GUEST_SEND_WINDOW_BYTES);
    config.max_concurrent_uni_streams(0_u32.into());
    // The control stream.
    config.max_concurrent_bidi_streams(1_u32.into());
    Arc::new(config)
}

/// The limits of a worker that has joined.
pub(crate) fn lift_limits(quic: &quinn::Connection) {
    quic.set_receive_window(JOINED_WINDOW_BYTES.into());
    quic.set_send_window(JOINED_SEND_WINDOW_BYTES);
    quic.set_max_concurrent_uni_streams(JOINED_UNI_STREAMS.into());
    quic.set_max_concurrent_bi_streams(JOINED_BIDI_STREAMS.into());
}

/// Settings of the socket's packets. Resets are keyed by the identity, so that peers notice a restart at once.
pub(crate) fn endpoint(identity: &Identity) -> EndpointConfig {
    let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, identity.reset_key());
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.max_udp_payload_size(UDP_PAYLOAD_BYTES).expect("6500 is above QUIC's least of 1200");
    // The bit tells QUIC's packets from those beside it.
    config.grease_quic_bit(false);
    config
}

/// What the system gives a UDP socket that asks for [`SOCKET_BUFFER_BYTES`] on either side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SocketBuffers {
    /// For packets that nobody has read yet.
    pub receive_bytes: usize,
    /// For packets that are not sent yet.
    pub send_bytes: usize,
}

impl SocketBuffers {
    /// Asks as an endpoint at `address` does, with a socket that is closed at once.
    ///
    /// # Errors
    /// The system gives no such socket.
    pub fn granted(address: SocketAddr) -> io::Result<Self> {
        let socket = unbound(address)?;
        // Linux counts what it keeps about each packet too, and says twice what it was asked for.
        let part = if cfg!(any(target_os = "linux", target_os = "android")) { 2 } else { 1 };
        Ok(Self { receive_bytes: socket.recv_buffer_size()? / part, send_bytes: socket.send_buffer_size()? / part })
    }
}

/// A socket with buffers large enough for a window of packets.
pub(crate) fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = unbound(address)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // `[::]` means every address, IPv4's too, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    let bytes = socket.recv_buffer_size()?.min(socket.send_buffer_size()?);
    if bytes < SOCKET_BUFFER_BYTES {
        let hint = "raise net.core.rmem_max and net.core.wmem_max to 4194304 for full speed";
        tracing::info!(bytes, wanted = SOCKET_BUFFER_BYTES, hint, "the system limits socket buffers");
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // Best effort: a refusal shows in the size read back.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_what_buffers_it_gives() {
        let granted = SocketBuffers::granted("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(granted.receive_bytes > 2048 && granted.send_bytes > 2048, "{granted:?}");
        assert!(granted.receive_bytes <= SOCKET_BUFFER_BYTES, "no more than was asked for: {granted:?}");
    }

    #[test]
    fn addresses_tell_how_far_a_peer_is() {
        for (address, reach) in [
            ("127.0.0.1:1", Reach::Loopback),
            ("[::1]:1", Reach::Loopback),
            ("[::ffff:127.0.0.1]:1", Reach::Loopback),
            ("192.168.0.9:1", Reach::Local),
            ("[fe80::1]:1", Reach::Local),
            ("[fd00::1]:1", Reach::Local),
            ("1.1.1.1:1", Reach::Wide),
            ("[2606:4700::1]:1", Reach::Wide),
        ] {
            assert_eq!(Reach::of(address.parse().unwrap()), reach, "{address}");
        }
    }
}
