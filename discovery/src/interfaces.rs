//! This machine's addresses, and when they change: a cable instead of Wi-Fi, another lease, an overlay that comes up.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tokio::time::{Interval, MissedTickBehavior, interval};

/// Watches this machine's addresses. They are asked for now and then: that costs some microseconds, works in the same way on every
/// system, and is soon enough for a link that takes a second to come up.
#[derive(Debug)]
pub struct Interfaces {
    addresses: BTreeSet<IpAddr>,
    ticks: Interval,
}

impl Interfaces {
    /// Watches from now on. Call it inside a tokio runtime.
    pub fn watch() -> Self {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { addresses: addresses(), ticks }
    }

    /// The addresses as they were when they were last asked for.
    pub fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.addresses
    }

    /// Waits until the addresses are others than before; then all of them as they are now. Cancel-safe.
    pub async fn changed(&mut self) -> &BTreeSet<IpAddr> {
        loop {
            self.ticks.tick().await;
            let addresses = addresses();
            if addresses != self.addresses {
                self.addresses = addresses;
                return &self.addresses;
            }
        }
    }
}

/// Those of all interfaces; none where the system does not tell.
fn addresses() -> BTreeSet<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.iter().map(|interface| interface.ip().to_canonical()).collect()
}

/// How often they are asked for.
const EVERY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_change_is_told() {
        let mut interfaces = Interfaces::watch();
        let still = tokio::time::timeout(8 * EVERY, interfaces.changed()).await;
        assert!(still.is_err(), "nothing has changed: {still:?}");
        // As if one had been added meanwhile, and another were gone.
        let gone = IpAddr::from([192, 0, 2, 77]);
        interfaces.addresses = [gone].into();
        let now = interfaces.changed().await;
        assert!(now.contains(&Ipv4Addr::LOCALHOST.into()) && !now.contains(&gone), "{now:?}");
    }
}
