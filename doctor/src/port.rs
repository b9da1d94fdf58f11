//! Whether the addresses that are to be listened on can be.

use std::{
    io,
    net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket},
};

use crate::Finding;

/// The flag that sets an address, for advice.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetBy {
    /// `--listen`.
    Listen,
    /// `--host` and `--port`.
    HostAndPort,
}

/// Looks whether the UDP address `address`, for the mesh, can be listened on.
pub fn udp(address: SocketAddr) -> Finding {
    judge("mesh port", &format!("udp {address}"), SetBy::Listen, UdpSocket::bind(address).map(drop))
}

/// Looks whether the HTTP API can be listened on, at all addresses of `host`.
pub fn http(host: &str, port: u16) -> Finding {
    let bind = || {
        // All at once, as the server has them.
        let listeners: Vec<_> = (host, port).to_socket_addrs()?.map(TcpListener::bind).collect::<Result<_, _>>()?;
        if listeners.is_empty() { Err(io::ErrorKind::AddrNotAvailable.into()) } else { Ok(()) }
    };
    judge("http port", &format!("tcp {host}:{port}"), SetBy::HostAndPort, bind())
}

fn judge(check: &'static str, address: &str, set_by: SetBy, bound: io::Result<()>) -> Finding {
    let (flag, port_flag) = match set_by {
        SetBy::Listen => ("--listen", "--listen"),
        SetBy::HostAndPort => ("--host", "--port"),
    };
    let Err(error) = bound else { return Finding::ok(check, format!("{address} can be listened on")) };
    let fix = if error.kind() == io::ErrorKind::AddrInUse {
        format!("if that is not a coordinator or worker of yours, stop it, or choose another port with {port_flag}")
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        format!("choose a port above 1023 with {port_flag}")
    } else if error.kind() == io::ErrorKind::AddrNotAvailable {
        format!("choose an address of this machine with {flag}; 0.0.0.0 stands for all of them")
    } else {
        format!("choose another address with {flag}")
    };
    Finding::fail(check, format!("{address} cannot be listened on: {error}"), fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;

    #[test]
    fn a_free_port_is_fine_and_a_taken_one_is_not() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let finding = udp(taken.local_addr().unwrap());
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.fix.unwrap().contains("--listen"));
        assert_eq!(udp("127.0.0.1:0".parse().unwrap()).verdict, Verdict::Ok);

        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let finding = http("127.0.0.1", taken.local_addr().unwrap().port());
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.fix.unwrap().ends_with("with --port"));
        assert_eq!(http("127.0.0.1", 0).verdict, Verdict::Ok);
    }

    #[test]
    fn each_refusal_has_its_advice() {
        for (kind, advice) in [
            (io::ErrorKind::AddrInUse, "choose another port with --port"),
            (io::ErrorKind::PermissionDenied, "above 1023 with --port"),
            (io::ErrorKind::AddrNotAvailable, "an address of this machine with --host"),
            (io::ErrorKind::Other, "another address with --host"),
        ] {
            let finding = judge("http port", "tcp a:1", SetBy::HostAndPort, Err(kind.into()));
            assert!(finding.fix.as_ref().is_some_and(|fix| fix.contains(advice)), "{finding:?}");
            assert!(finding.found.starts_with("tcp a:1 cannot be listened on: "), "{finding:?}");
        }
    }
}
