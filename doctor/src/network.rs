//! What the system gives the network: socket buffers, packets of what size, and a way to the coordinator.

use std::{
    fs, io,
    net::{SocketAddr, ToSocketAddrs, UdpSocket},
    path::Path,
    time::Duration,
};

use qmesh_net::{
    Admission, CloseCode, Connection, Endpoint, Identity, Introduced, Introducer, Nat, NetError, SocketBuffers, Survey,
    Ticket, limits::SOCKET_BUFFER_BYTES,
};

use crate::Finding;

const BUFFERS_CHECK: &str = "udp buffers";
const MTU_CHECK: &str = "mtu";
const COORDINATOR_CHECK: &str = "coordinator";
const OTHERS_CHECK: &str = "reached by others";
/// QUIC does not work below (RFC 9000, 14), headers of IPv6 and UDP included.
const MTU_LEAST: u32 = 1280;
/// Every token crosses every link of the pipeline once, so with more than this, distance is most of its time.
const RTT_MUCH: Duration = Duration::from_millis(30);

/// Where packets go that have no other way.
#[derive(Clone, Debug, Eq, PartialEq)]
struct DefaultRoute {
    device: String,
    mtu: u32,
}

/// Looks at what buffers the system gives a socket at `address`.
pub fn buffers(address: SocketAddr) -> Finding {
    judge_buffers(SocketBuffers::granted(address))
}

/// Looks at how large packets of the default route are.
pub fn mtu() -> Finding {
    if !Path::new("/proc/net/route").exists() {
        return Finding::unknown(MTU_CHECK, "it cannot be told here: it is read from Linux's /proc");
    }
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let device = default_device(&read("/proc/net/route"), &read("/proc/net/ipv6_route"));
    let route = device.and_then(|device| {
        let mtu = read(&format!("/sys/class/net/{device}/mtu")).trim().parse().ok()?;
        Some(DefaultRoute { device, mtu })
    });
    judge_mtu(route.as_ref())
}

/// Dials the coordinator of `ticket` from a socket at `listen`, asks it how it sees this machine, and hangs up. Call it inside a
/// tokio runtime.
pub async fn coordinator(ticket: &Ticket, listen: SocketAddr) -> [Finding; 2] {
    let dial = async {
        let endpoint = Endpoint::bind(listen, &Identity::ephemeral(), Admission::only([]))?;
        let (connection, by) = dial(&endpoint, ticket).await?;
        let observer = by.as_ref().map_or(connection.remote_address(), |introducer| introducer.address);
        let at = match connection.is_relayed() {
            true => format!(
                "it does not reach this machine itself; by the rendezvous {observer}, which passes packets on, it"
            ),
            false => connection.remote_address().to_string(),
        };
        let reached = (at, connection.rtt());
        let survey = endpoint.survey(observer).await;
        connection.close(CloseCode::Ok, "only a look");
        endpoint.close(CloseCode::Ok, "only a look");
        endpoint.closed().await;
        Ok::<_, NetError>((reached, survey))
    };
    let dialled = dial.await;
    let survey = dialled.as_ref().ok().and_then(|(_, survey)| *survey);
    [judge_coordinator(dialled.map(|(reached, _)| reached)), judge_others(survey.map(with_nat))]
}

/// Asks a program of ours at `peer`, as `host:port`, how it sees a socket at `listen`. Call it inside a tokio runtime.
pub async fn others(peer: &str, listen: SocketAddr) -> Finding {
    let Some(address) = peer.to_socket_addrs().ok().and_then(|mut found| found.next()) else {
        return Finding::fail(OTHERS_CHECK, format!("{peer} is no address"), "name a peer as HOST:PORT");
    };
    match Endpoint::bind(listen, &Identity::ephemeral(), Admission::only([])) {
        Ok(endpoint) => judge_others(endpoint.survey(address).await.map(with_nat)),
        Err(error) => Finding::fail(OTHERS_CHECK, error.to_string(), "stop whoever has the port, or use another one"),
    }
}

/// What NAT is before this machine: none, if it has the address that was seen, so that a socket can be bound there.
fn with_nat(survey: Survey) -> (Survey, Nat) {
    let is_own = UdpSocket::bind((survey.seen.ip(), 0)).is_ok();
    (survey, if is_own { Nat::None } else { Nat::of(&survey, &[]) })
}

/// By a rendezvous where the ticket names some, which also leads to a coordinator that is near.
async fn dial(endpoint: &Endpoint, ticket: &Ticket) -> Result<(Connection, Option<Introducer>), NetError> {
    if !ticket.rendezvous.is_empty()
        && let Ok(Introduced { connection, by }) = endpoint.find(ticket).await
    {
        return Ok((connection, by));
    }
    Ok((endpoint.dial(&ticket.addresses, ticket.coordinator).await?, None))
}

fn judge_others(survey: Option<(Survey, Nat)>) -> Finding {
    let Some((survey, nat)) = survey else {
        return Finding::unknown(OTHERS_CHECK, "nobody answers who could tell");
    };
    let seen = survey.seen;
    match (nat, survey.unasked) {
        (_, true) => Finding::ok(OTHERS_CHECK, format!("yes, at {seen}: {nat}")),
        (Nat::None, false) => Finding::warn(
            OTHERS_CHECK,
            format!("not at {seen}, though there is no NAT: packets are dropped that were not asked for"),
            "let UDP packets to the port through the firewall",
        ),
        (Nat::Keeps | Nat::Open, false) => {
            Finding::ok(OTHERS_CHECK, format!("when both sides send, as workers do: {nat}, as {seen}"))
        }
        (Nat::Changes, false) => Finding::warn(
            OTHERS_CHECK,
            format!("only by those that are open to everybody: {nat}, seen as {seen}"),
            "packets to others pass by the coordinator, which works; a port that the router forwards to this machine (--listen \
             0.0.0.0:PORT) is quicker",
        ),
        (Nat::Unknown, false) => {
            Finding::unknown(OTHERS_CHECK, format!("perhaps when both sides send: {nat}, seen as {seen}"))
        }
    }
}

fn judge_buffers(granted: io::Result<SocketBuffers>) -> Finding {
    let SocketBuffers { receive_bytes, send_bytes } = match granted {
        Ok(granted) => granted,
        Err(error) => {
            return Finding::fail(
                BUFFERS_CHECK,
                format!("no UDP socket: {error}"),
                "allow this program to open sockets",
            );
        }
    };
    let kib = |bytes: usize| format!("{} KiB", bytes / 1024);
    let (receive, send) = (kib(receive_bytes), kib(send_bytes));
    let found = format!("{receive} to receive, {send} to send, of {} wanted", kib(SOCKET_BUFFER_BYTES));
    let short: Vec<_> = [("net.core.rmem_max", receive_bytes), ("net.core.wmem_max", send_bytes)]
        .into_iter()
        .filter(|(_, bytes)| *bytes < SOCKET_BUFFER_BYTES)
        .map(|(setting, _)| format!("{setting}={SOCKET_BUFFER_BYTES}"))
        .collect();
    if short.is_empty() {
        return Finding::ok(BUFFERS_CHECK, found);
    }
    let fix = format!("as root: sysctl -w {}, and the same in a file of /etc/sysctl.d for good", short.join(" "));
    Finding::warn(BUFFERS_CHECK, format!("{found}: packets are lost when many come at once"), fix)
}

fn judge_mtu(route: Option<&DefaultRoute>) -> Finding {
    match route {
        None => Finding::unknown(MTU_CHECK, "there is no default route: only networks of this machine can be reached"),
        Some(DefaultRoute { device, mtu }) if *mtu < MTU_LEAST => Finding::fail(
            MTU_CHECK,
            format!("{mtu} bytes on {device}, QUIC needs {MTU_LEAST}"),
            format!("as root: ip link set dev {device} mtu {MTU_LEAST}, or more"),
        ),
        Some(DefaultRoute { device, mtu }) => Finding::ok(MTU_CHECK, format!("{mtu} bytes on {device}")),
    }
}

fn judge_coordinator(reached: Result<(String, Duration), NetError>) -> Finding {
    match reached {
        Ok((at, rtt)) => {
            let found = format!("{at} answers in {:.1} ms", rtt.as_secs_f64() * 1e3);
            if rtt <= RTT_MUCH {
                return Finding::ok(COORDINATOR_CHECK, found);
            }
            let fix = "it works, but every token waits for it: machines of one place are quicker together";
            Finding::warn(COORDINATOR_CHECK, found, fix)
        }
        Err(error @ NetError::WrongKey { .. }) => Finding::fail(
            COORDINATOR_CHECK,
            error.to_string(),
            "get a new ticket from the coordinator (`coordinator ticket`): another one answers at that address",
        ),
        Err(error) => Finding::fail(
            COORDINATOR_CHECK,
            error.to_string(),
            "see that it runs, that it listens on more than loopback (--listen 0.0.0.0:4433), that the ticket's addresses \
             are right (--advertise), and that no firewall drops UDP",
        ),
    }
}

/// The device of the default route with the least metric: of IPv4, or else of IPv6. Tables as in Linux's /proc/net.
fn default_device(ipv4: &str, ipv6: &str) -> Option<String> {
    let of_ipv4 = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [device, "00000000", _, _, _, _, metric, "00000000", ..] = fields[..] else { return None };
        Some((metric.parse::<u32>().ok()?, device.to_owned()))
    };
    let of_ipv6 = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [destination, "00", _, _, _, metric, _, _, _, device] = fields[..] else { return None };
        let everywhere = destination.bytes().all(|b| b == b'0') && device != "lo";
        Some((u32::from_str_radix(metric, 16).ok().filter(|_| everywhere)?, device.to_owned()))
    };
    let least = ipv4.lines().filter_map(of_ipv4).min().or_else(|| ipv6.lines().filter_map(of_ipv6).min());
    least.map(|(_, device)| device)
}

#[cfg(test)]
mod tests {
    use qmesh_net::JoinSecret;

    use super::*;
    use crate::Verdict;

    const IPV4: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
";
    const IPV6: &str = "\
fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 1 0 1 eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 1 0 3 eth1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 1 0 200200 lo
";

    #[test]
    fn the_default_route_is_the_one_with_the_least_metric() {
        assert_eq!(default_device(IPV4, IPV6).as_deref(), Some("eth0"));
        assert_eq!(default_device("", IPV6).as_deref(), Some("eth1"));
        assert_eq!(default_device("", ""), None);
    }

    #[test]
    fn packets_must_hold_what_quic_sends() {
        let verdict = |mtu| judge_mtu(Some(&DefaultRoute { device: "eth0".into(), mtu })).verdict;
        assert_eq!([1500, 1280, 1279].map(verdict), [Verdict::Ok, Verdict::Ok, Verdict::Fail]);
        assert_eq!(judge_mtu(None).verdict, Verdict::Unknown);
    }

    #[test]
    fn short_buffers_name_the_setting_that_bounds_them() {
        let judged = |receive_bytes, send_bytes| judge_buffers(Ok(SocketBuffers { receive_bytes, send_bytes }));
        assert_eq!(judged(SOCKET_BUFFER_BYTES, SOCKET_BUFFER_BYTES).verdict, Verdict::Ok);
        let finding = judged(212_992, SOCKET_BUFFER_BYTES);
        assert_eq!(finding.verdict, Verdict::Warn);
        assert!(finding.found.starts_with("208 KiB to receive, 4096 KiB to send, of 4096 KiB wanted"), "{finding:?}");
        let fix = finding.fix.unwrap();
        assert!(fix.contains("net.core.rmem_max=4194304") && !fix.contains("wmem"), "{fix}");
        assert!(judged(1, 1).fix.unwrap().contains("net.core.rmem_max=4194304 net.core.wmem_max=4194304"));
        assert_eq!(judge_buffers(Err(io::ErrorKind::PermissionDenied.into())).verdict, Verdict::Fail);
        assert_ne!(buffers("127.0.0.1:0".parse().unwrap()).verdict, Verdict::Fail);
    }

    #[tokio::test]
    async fn a_coordinator_is_reached_or_missed() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let identity = Identity::ephemeral();
        let there = Endpoint::bind(listen, &identity, Admission::anyone()).unwrap();
        let ticket = |coordinator| Ticket {
            addresses: vec![there.local_addr().to_string()],
            rendezvous: Vec::new(),
            coordinator,
            secret: JoinSecret::random(),
            expires_unix: None,
        };
        let [reached, others] = coordinator(&ticket(identity.peer_id()), listen).await;
        assert_eq!((reached.verdict, others.verdict), (Verdict::Ok, Verdict::Ok), "{reached:?} {others:?}");
        assert!(reached.found.starts_with(&there.local_addr().to_string()), "{reached:?}");
        let [other, unknown] = coordinator(&ticket(Identity::ephemeral().peer_id()), listen).await;
        assert_eq!(unknown.verdict, Verdict::Unknown);
        assert_eq!(super::others(&there.local_addr().to_string(), listen).await.verdict, Verdict::Ok);
        assert!(other.fix.is_some_and(|fix| fix.starts_with("get a new ticket")));
    }

    #[test]
    fn what_others_see_is_told_with_what_to_do() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let judged = |again: Option<&str>, unasked| {
            let survey = Survey { seen: at("203.0.113.1:7"), seen_again: again.map(at), unasked };
            judge_others(Some((survey, Nat::of(&survey, &[]))))
        };
        let keeps = judged(Some("203.0.113.1:7"), false);
        assert_eq!((keeps.verdict, keeps.found.contains("same port")), (Verdict::Ok, true), "{keeps:?}");
        let changes = judged(Some("203.0.113.1:8"), false);
        assert_eq!((changes.verdict, changes.found.contains("another port")), (Verdict::Warn, true), "{changes:?}");
        assert_eq!(judged(None, false).verdict, Verdict::Unknown);
        assert!(judged(None, true).found.starts_with("yes, at 203.0.113.1:7"));
        let closed = Survey { seen: at("203.0.113.1:7"), seen_again: None, unasked: false };
        assert_eq!(judge_others(Some((closed, Nat::None))).verdict, Verdict::Warn);
        assert_eq!(judge_others(None).verdict, Verdict::Unknown);
    }

    #[test]
    fn distance_is_worth_a_warning() {
        let at = || "192.0.2.1:4433".to_owned();
        let near = judge_coordinator(Ok((at(), Duration::from_micros(450))));
        assert_eq!(near, Finding::ok(COORDINATOR_CHECK, "192.0.2.1:4433 answers in 0.5 ms"));
        assert_eq!(judge_coordinator(Ok((at(), Duration::from_millis(120)))).verdict, Verdict::Warn);
    }
}
