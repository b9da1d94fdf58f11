//! A port of the router that leads to this machine: asked for by PCP (RFC 6887), or by NAT-PMP (RFC 6886) where the router knows no
//! other, and renewed for as long as it is needed.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

use crab_nat::{InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp};
use thiserror::Error;
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::addresses::outward_address;

/// Why the router opens no port.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PortMapError {
    /// This system does not say which router its packets leave by.
    #[error("no router is known here: the default route has none, or it cannot be read on this system")]
    NoRouter,
    /// The router does not answer, or refuses.
    #[error("the router {router} opens no port: {text}")]
    Refused {
        /// Its address.
        router: Ipv4Addr,
        /// What it says.
        text: String,
    },
    /// The port that it gives is on no address of the internet: there is another router behind it.
    #[error(
        "the router {router} is itself behind another one (its address there is {outside}): that one would have to open a port too"
    )]
    BehindAnother {
        /// Its address.
        router: Ipv4Addr,
        /// Its address on its other side.
        outside: IpAddr,
    },
}

/// What came of a renewal.
pub type Renewed = Result<(), PortMapError>;

/// A port of the router that leads to this machine. It is given back by [`PortMap::end`]; dropped without that, it ends by itself
/// within the hour.
#[derive(Debug)]
pub struct PortMap {
    address: SocketAddr,
    /// Ends the renewals.
    end: oneshot::Sender<()>,
    renewing: JoinHandle<()>,
}

impl PortMap {
    /// Asks the router of this machine for a port that leads to the UDP port `port` here, the same one if that is free there; it
    /// is renewed from then on, and `told` hears how that goes. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// There is no router, or it does not do that, or it is not the last one before the internet.
    pub async fn ask(port: NonZeroU16, told: impl FnMut(Renewed) + Send + 'static) -> Result<Self, PortMapError> {
        let router = default_router(&fs::read_to_string(ROUTES).unwrap_or_default()).ok_or(PortMapError::NoRouter)?;
        let here =
            outward_address(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.get()))).ok_or(PortMapError::NoRouter)?;
        let refused = |text: String| PortMapError::Refused { router, text };
        let asked = PortMapping::new(router.into(), here, InternetProtocol::Udp, port, options(port));
        let mapping = asked.await.map_err(|error| refused(error.to_string()))?;
        let outside = match mapping.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => external_ip.to_canonical(),
            PortMappingType::NatPmp => {
                let asked = natpmp::external_address(router.into(), Some(PATIENCE)).await;
                asked.map_err(|error| refused(error.to_string()))?.into()
            }
        };
        if crate::is_of_a_private_network(outside) || outside.is_unspecified() {
            let _given_back = mapping.try_drop().await;
            return Err(PortMapError::BehindAnother { router, outside });
        }
        let address = SocketAddr::new(outside, mapping.external_port().get());
        let (end, ended) = oneshot::channel();
        let renewing = tokio::spawn(renew(mapping, router, told, ended));
        Ok(Self { address, end, renewing })
    }

    /// Where others reach this machine by it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives the port back, unless the router takes too long over it.
    pub async fn end(self) {
        drop(self.end);
        let _in_time = timeout(GIVING_BACK, self.renewing).await;
    }
}

/// Renews it at half of its time, or sooner after a failure, until the other end of `ended` goes.
async fn renew(
    mut mapping: PortMapping,
    router: Ipv4Addr,
    mut told: impl FnMut(Renewed),
    mut ended: oneshot::Receiver<()>,
) {
    let (place, mut wait) = (mapping.external_port(), half_of(&mapping));
    loop {
        tokio::select! {
            _ = &mut ended => break,
            () = sleep(wait) => {}
        }
        let text = match mapping.renew().await {
            Ok(()) if mapping.external_port() == place => None,
            Ok(()) => Some(format!("it has given port {} away, and {} for it", place, mapping.external_port())),
            Err(error) => Some(error.to_string()),
        };
        wait = if text.is_none() { half_of(&mapping) } else { AGAIN };
        told(text.map_or(Ok(()), |text| Err(PortMapError::Refused { router, text })));
    }
    if let Err((error, _)) = mapping.try_drop().await {
        tracing::debug!(%error, "the router keeps the port until its time is over");
    }
}

fn half_of(mapping: &PortMapping) -> Duration {
    Duration::from_secs(u64::from(mapping.lifetime().max(2)) / 2)
}

fn options(port: NonZeroU16) -> PortMappingOptions {
    PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: Some(LIFETIME_SECONDS),
        timeout_config: Some(PATIENCE),
    }
}

/// The router of the default route with the least metric, by a table as in Linux's /proc/net/route.
fn default_router(table: &str) -> Option<Ipv4Addr> {
    let route = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "00000000", router, _, _, _, metric, "00000000", ..] = fields[..] else { return None };
        // In the byte order of the machine, which for addresses is that of the network.
        let router = Ipv4Addr::from(u32::from_str_radix(router, 16).ok()?.to_ne_bytes());
        (!router.is_unspecified()).then_some((metric.parse::<u32>().ok()?, router))
    };
    table.lines().filter_map(route).min().map(|(_, router)| router)
}

const ROUTES: &str = "/proc/net/route";
/// How long a port is asked for at a time.
const LIFETIME_SECONDS: u32 = 3600;
/// How long it takes until a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// How long a router may take: it is near, and may lose a packet.
const PATIENCE: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 3, max_retry_timeout: None };
/// How long the end of a program waits for the router.
const GIVING_BACK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_router_is_that_of_the_best_default_route() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                     eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                     eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
                     tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0\n";
        // As little-endian machines write it.
        let expected = if cfg!(target_endian = "little") { Some([192, 168, 1, 1].into()) } else { None };
        assert!(expected.is_none() || default_router(table) == expected);
        assert_eq!(default_router(""), None);
    }
}
