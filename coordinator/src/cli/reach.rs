//! Arguments about how workers find a coordinator.

use clap::Args;
use qmesh_discovery::{Bootstrap, Dht, is_dialable};

/// How workers find a coordinator.
#[derive(Args, Clone, Debug, Default)]
pub struct ReachArgs {
    /// Address to put into the join line, where it is not the one listened on; may be repeated
    #[arg(long, value_name = "HOST:PORT", env = "QMESH_ADVERTISE", value_delimiter = ',', value_parser = advertised)]
    pub advertise: Vec<String>,
    /// Where a worker is, or will be, that others reach (it runs `shard-worker join … --listen 0.0.0.0:PORT`): it brings together
    /// those that do not reach this coordinator, which may be behind a NAT, and passes packets on where they cannot go
    /// straight; may be repeated
    #[arg(long, value_name = "HOST:PORT", env = "QMESH_RENDEZVOUS", value_delimiter = ',', value_parser = advertised)]
    pub rendezvous: Vec<String>,
    /// Ask the router (PCP, NAT-PMP) for a port that leads to this coordinator, and put it into the join line: not every router
    /// does that
    #[arg(long, env = "QMESH_MAP_PORT")]
    pub map_port: bool,
    /// Put a record on the public DHT of BitTorrent, by which workers that have the ticket find this coordinator from other
    /// networks, also when its address changes
    #[arg(long, env = "QMESH_DHT")]
    pub dht: bool,
    /// Nodes of the DHT to ask first, instead of the public ones
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "QMESH_DHT_BOOTSTRAP",
        value_delimiter = ',',
        value_parser = advertised,
        requires = "dht"
    )]
    pub dht_bootstrap: Vec<String>,
}

impl ReachArgs {
    /// Whether workers of other networks are meant.
    pub fn is_wide(&self) -> bool {
        self.wide_flag().is_some()
    }

    /// The flag that says so.
    pub fn wide_flag(&self) -> Option<&'static str> {
        let flags = [(self.dht, "--dht"), (!self.rendezvous.is_empty(), "--rendezvous"), (self.map_port, "--map-port")];
        flags.into_iter().find_map(|(is_given, flag)| is_given.then_some(flag))
    }

    /// The DHT, where it is wanted.
    pub fn dht(&self) -> Option<Dht> {
        self.dht.then(|| Dht::new(Bootstrap::of(&self.dht_bootstrap)))
    }

    /// What a worker's command says to find the record; it begins with a space if it is not empty.
    pub fn of_workers(&self) -> String {
        let nodes = &self.dht_bootstrap;
        let bootstrap = if nodes.is_empty() { String::new() } else { format!(" --dht-bootstrap {}", nodes.join(",")) };
        if self.dht { format!(" --dht{bootstrap}") } else { String::new() }
    }
}

/// An address that workers can try: a name or an IP address of this machine, and a port.
pub(super) fn advertised(text: &str) -> Result<String, String> {
    let wanted =
        "HOST:PORT is needed, as workers reach it, such as mesh.example:4433, 192.168.1.2:4433 or [fd00::1]:4433";
    if is_dialable(text) { Ok(text.to_owned()) } else { Err(wanted.to_owned()) }
}
