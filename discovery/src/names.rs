//! What can be dialled: a host and a port.

use std::net::SocketAddr;

/// Whether this is a `host:port` that can be dialled: a name or an IP address of some machine, and a port.
pub fn is_dialable(text: &str) -> bool {
    match text.parse::<SocketAddr>() {
        Ok(address) => !address.ip().is_unspecified() && address.port() != 0,
        Err(_) => text.rsplit_once(':').is_some_and(|(host, port)| is_host_name(host) && is_port(port)),
    }
}

/// Whether a resolver could know the name. One whose last label is a number is an IPv4 address gone wrong.
pub fn is_host_name(host: &str) -> bool {
    let is_label = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        (1..=63).contains(&label.len()) && plain && !label.starts_with('-') && !label.ends_with('-')
    };
    // A dot at the end marks a name as complete.
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= HOST_NAME_BYTES_MAX && host.split('.').all(is_label) && !last.bytes().all(|b| b.is_ascii_digit())
}

fn is_port(text: &str) -> bool {
    // A number's own parser takes a sign.
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// The longest name of the DNS.
const HOST_NAME_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_a_port_can_be_dialled() {
        for good in
            ["mesh.example:4433", "localhost:1", "my_host.:65535", "10.0.0.1:6881", "[fd00::1]:4433", "1and1:80"]
        {
            assert!(is_dialable(good), "{good}");
        }
        for bad in
            ["", "host", ":1", "host:0", "host:port", "0.0.0.0:1", "300.1.1.1:4433", "fd00::1:4433", "a/b:1", "é:1"]
        {
            assert!(!is_dialable(bad), "{bad}");
        }
        assert!(!is_dialable("\u{1b}[31m:1") && !is_host_name(&"a.".repeat(128)));
    }
}
