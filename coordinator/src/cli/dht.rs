//! Arguments about the DHT.

use clap::Args;
use qmesh_discovery::{Bootstrap, Dht};

use super::mesh::advertised;

/// Whether a coordinator is found on the DHT.
#[derive(Args, Clone, Debug, Default)]
pub struct DhtArgs {
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

impl DhtArgs {
    /// The DHT, where it is wanted.
    pub fn dht(&self) -> Option<Dht> {
        let nodes = &self.dht_bootstrap;
        let bootstrap = if nodes.is_empty() { Bootstrap::Public } else { Bootstrap::Nodes(nodes.clone()) };
        self.dht.then(|| Dht::new(bootstrap))
    }

    /// What a worker's command says to find the record; it begins with a space if it is not empty.
    pub fn of_workers(&self) -> String {
        let nodes = &self.dht_bootstrap;
        let bootstrap = if nodes.is_empty() { String::new() } else { format!(" --dht-bootstrap {}", nodes.join(",")) };
        if self.dht { format!(" --dht{bootstrap}") } else { String::new() }
    }
}
