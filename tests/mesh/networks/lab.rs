//! Networks that a test makes for itself, of namespaces, virtual cables and NATs: an internet, hosts on it, homes behind routers.

use std::{
    fs,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use qmesh_tests::process::{self, Running};
use serde_json::Value;

use super::super::STARTING;

/// What a router does with the ports of those behind it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Nat {
    /// It leaves them as they are, and lets only those answer who were asked.
    Keeps,
    /// It chooses another one for every destination, at random, and lets only those answer who were asked.
    Random,
    /// It leaves them as they are, and lets everybody in who sends to them, also from inside.
    Open,
}

/// An internet and all that is on it; dropping it removes it.
pub(super) struct Lab {
    prefix: String,
    names: Vec<String>,
    cables: u32,
}

/// A host, by the name of its namespace.
#[derive(Clone, Debug)]
pub(super) struct Host {
    name: String,
}

/// A router, and what it counts.
#[derive(Clone, Debug)]
pub(super) struct Home {
    router: Host,
    /// The router's address on its outer network.
    pub(super) address: String,
    /// The first three numbers of the addresses inside.
    network: String,
    hosts: u32,
}

impl Lab {
    /// An empty internet, 198.51.100.0/24; or none, where this machine lets nobody make one, which is said aloud. On CI that is a
    /// failure.
    pub(super) fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if let Err(why) = possible() {
            assert!(std::env::var_os("CI").is_none(), "networks cannot be made here: {why}");
            eprintln!("SKIPPED: networks cannot be made here: {why}");
            return None;
        }
        let prefix = format!("q{:x}n{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self { prefix, names: Vec::new(), cables: 0 };
        let internet = lab.namespace("internet");
        internet.ip("link add br0 type bridge");
        internet.ip("link set br0 up");
        Some(lab)
    }

    /// A host with the address 198.51.100.`number`.
    pub(super) fn host(&mut self, number: u32) -> Host {
        let host = self.namespace(&format!("host{number}"));
        self.plug(&host, "eth", &self.internet(), &format!("198.51.100.{number}"));
        host
    }

    /// A home behind a router with the address 198.51.100.`number`.
    pub(super) fn home(&mut self, number: u32, nat: Nat) -> Home {
        let (address, outer) = (format!("198.51.100.{number}"), self.internet());
        self.router(nat, address, &outer, None, format!("192.168.{number}"))
    }

    /// A home behind a router that is itself inside another home.
    pub(super) fn home_inside(&mut self, outer: &mut Home, nat: Nat) -> Home {
        outer.hosts += 1;
        let address = format!("{}.{}", outer.network, outer.hosts);
        let (bridge, gateway) = (outer.router.clone(), format!("{}.1", outer.network));
        self.router(nat, address.clone(), &bridge, Some(&gateway), format!("10.0.{}", outer.hosts))
    }

    /// A host in a home.
    pub(super) fn inside(&mut self, home: &mut Home) -> Host {
        home.hosts += 1;
        let host = self.namespace(&format!("in{}-{}", home.network, home.hosts));
        self.plug(&host, "eth", &home.router, &format!("{}.{}", home.network, home.hosts));
        host.ip(&format!("route add default via {}.1", home.network));
        host
    }

    /// A cable from this test to a host, and the address at which what listens on the host's loopback is reached by it: for the
    /// HTTP API.
    pub(super) fn cable(&mut self, host: &Host) -> String {
        self.cables += 1;
        let (near, net) = (format!("{}c{}", self.prefix, self.cables), std::process::id() % 250);
        let octet = 4 * (NEXT_CABLE.fetch_add(1, Ordering::Relaxed) % 60);
        run(&format!("ip link add {near} type veth peer name test netns {}", host.name));
        run(&format!("ip addr add 10.199.{net}.{}/30 dev {near}", octet + 1));
        run(&format!("ip link set {near} up"));
        let far = format!("10.199.{net}.{}", octet + 2);
        host.ip(&format!("addr add {far}/30 dev test"));
        host.ip("link set test up");
        host.run("sh -c", &["echo 1 > /proc/sys/net/ipv4/conf/test/route_localnet"]);
        host.nft(
            "table ip test {
                chain arriving {
                    type nat hook prerouting priority dstnat;
                    iifname test ip protocol tcp dnat to 127.0.0.1
                }
            }",
        );
        far
    }

    fn router(&mut self, nat: Nat, address: String, outer: &Host, gateway: Option<&str>, network: String) -> Home {
        let router = self.namespace(&format!("router{network}"));
        self.plug(&router, "wan", outer, &address);
        if let Some(gateway) = gateway {
            router.ip(&format!("route add default via {gateway}"));
        }
        router.ip("link add br0 type bridge");
        router.ip("link set br0 up");
        router.ip(&format!("addr add {network}.1/24 dev br0"));
        router.run("sh -c", &["echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        router.nft(&rules(nat, &address));
        Home { router, address, network, hosts: 1 }
    }

    fn internet(&self) -> Host {
        Host { name: format!("{}internet", self.prefix) }
    }

    fn namespace(&mut self, name: &str) -> Host {
        let name = format!("{}{name}", self.prefix);
        run(&format!("ip netns add {name}"));
        self.names.push(name.clone());
        let host = Host { name };
        host.ip("link set lo up");
        host
    }

    /// Connects a host to the bridge of another one.
    fn plug(&mut self, host: &Host, device: &str, bridge: &Host, address: &str) {
        self.cables += 1;
        let port = format!("p{}", self.cables);
        host.ip(&format!("link add {device} type veth peer name {port} netns {}", bridge.name));
        bridge.ip(&format!("link set {port} master br0 up"));
        host.ip(&format!("addr add {address}/24 dev {device}"));
        host.ip(&format!("link set {device} up"));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            // Processes in it have been killed: they are dropped before.
            drop(Command::new("ip").args(["netns", "del", name]).output());
        }
    }
}

impl Host {
    /// Lets no more than so many kilobits a second out of it, and so many kilobytes at once.
    pub(super) fn limit(&self, kilobits: u32, burst_kb: u32) {
        let (rate, burst) = (format!("{kilobits}kbit"), format!("{burst_kb}kb"));
        self.run("tc qdisc add dev eth root tbf", &["rate", &rate, "burst", &burst, "latency", "50ms"]);
    }

    /// Its address 198.51.100.`from` becomes 198.51.100.`to`.
    pub(super) fn moves(&self, from: u32, to: u32) {
        self.ip(&format!("addr del 198.51.100.{from}/24 dev eth"));
        self.ip(&format!("addr add 198.51.100.{to}/24 dev eth"));
    }

    /// A program of ours that runs there.
    pub(super) fn command(&self, name: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(process::binaries().join(name));
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs something of this test's there; threads that it starts stay there.
    pub(super) fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        let there = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        there.join().unwrap()
    }

    fn ip(&self, what: &str) {
        run(&format!("ip -n {} {what}", self.name));
    }

    fn nft(&self, rules: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), rules).unwrap();
        self.run("nft -f", &[&file.path().to_string_lossy()]);
    }

    fn run(&self, program: &str, more: &[&str]) -> Output {
        let words = ["netns", "exec", &self.name].into_iter().chain(program.split(' ')).chain(more.iter().copied());
        finished(Command::new("ip").args(words))
    }
}

impl Home {
    /// Its router opens ports where it is asked to, by this protocol: `pcp` or `nat-pmp`.
    pub(super) fn opens_ports(&self, protocol: &str) -> Running {
        let mut command = Command::new("ip");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/mesh/networks/router.py");
        command.args(["netns", "exec", &self.router.name, "python3", script, &self.address, protocol]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut server = Running::start(command);
        server.wait_for(STARTING, "the router's server", |line| (line == "ready").then_some(()));
        server
    }

    /// Bytes that left it for this address until now.
    pub(super) fn sent_to(&self, address: &str) -> u64 {
        let listed = self.router.run("nft -j list", &["set", "ip", "home", "sent"]);
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        let set = listed["nftables"].as_array().unwrap().iter().find_map(|item| item.get("set")).unwrap();
        let elements = set["elem"].as_array().into_iter().flatten().map(|element| &element["elem"]);
        let to = elements.filter(|element| element["val"] == address);
        to.filter_map(|element| element["counter"]["bytes"].as_u64()).sum()
    }
}

/// Cables of this process, so that their addresses differ.
static NEXT_CABLE: AtomicU32 = AtomicU32::new(0);

/// What a router does with packets. It counts what leaves by its destination.
fn rules(nat: Nat, address: &str) -> String {
    let (masquerade, before, after) = match nat {
        Nat::Keeps => ("masquerade", String::new(), ""),
        Nat::Random => ("masquerade fully-random", String::new(), ""),
        Nat::Open => (
            "masquerade",
            format!("ip daddr {address} meta l4proto udp dnat ip to udp dport map @inside"),
            "meta l4proto udp update @inside { udp sport : ip saddr . udp sport }",
        ),
    };
    // From inside to the router's own address: the way back must lead by the router as well.
    let hairpin = if nat == Nat::Open { "iifname br0 oifname br0 ct status dnat masquerade" } else { "" };
    let outgoing = if after.is_empty() { String::new() } else { format!("oifname wan {after}") };
    format!(
        "table ip home {{
            set sent {{ type ipv4_addr; flags dynamic; counter; size 1024; }}
            map inside {{ type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 300s; size 1024; }}
            chain arriving {{ type nat hook prerouting priority dstnat; {before}; }}
            chain leaving {{
                type nat hook postrouting priority srcnat;
                {outgoing}
                {hairpin}
                oifname wan {masquerade}
            }}
            chain passing {{
                type filter hook forward priority filter; policy drop;
                iifname br0 oifname wan update @sent {{ ip daddr }}
                iifname br0 accept
                ct status dnat accept
                ct state established,related accept
            }}
            chain staying {{
                type filter hook input priority filter; policy drop;
                iifname != wan accept
                ct state established,related accept
            }}
        }}"
    )
}

/// Why no network can be made here.
fn possible() -> Result<(), String> {
    for (tool, flag) in [("ip", "-V"), ("nft", "--version")] {
        let found = Command::new(tool).arg(flag).output();
        found.map_err(|error| format!("{tool} does not run ({error}): it comes with iproute2, nft with nftables"))?;
    }
    let name = format!("q{:x}try{:?}", std::process::id(), std::thread::current().id());
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let added = Command::new("ip").args(["netns", "add", &name]).output().map_err(|error| error.to_string())?;
    drop(Command::new("ip").args(["netns", "del", &name]).output());
    if added.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&added.stderr).trim().to_owned()) }
}

fn run(line: &str) -> Output {
    let mut words = line.split(' ');
    finished(Command::new(words.next().unwrap()).args(words))
}

fn finished(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
