//! What a bare datagram takes from one thread to another: the least that a hop on loopback can cost on this machine.

use std::{
    hint::black_box,
    net::{Ipv4Addr, UdpSocket},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::statistics::Samples;

/// Seconds until a thread that sleeps has got a datagram of `bytes` bytes from one that computes, without any protocol: the
/// median of some.
///
/// # Errors
/// The system gives no socket or no thread, or a datagram is lost.
pub fn one_way(bytes: usize) -> Result<f64> {
    let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot open a socket on loopback");
    let (here, there) = (bind()?, bind()?);
    here.connect(there.local_addr()?)?;
    there.set_read_timeout(Some(LOST))?;
    let (arrivals, arrived) = mpsc::channel();
    let receiver = thread::Builder::new().name("datagrams".into()).spawn(move || {
        let mut buffer = vec![0; bytes];
        while there.recv(&mut buffer).is_ok() && arrivals.send(Instant::now()).is_ok() {}
    })?;
    let (datagram, memory) = (vec![1; bytes], vec![1; COOLING]);
    let delays = (0..DATAGRAMS).map(|_| {
        compute(&memory);
        let sent = Instant::now();
        here.send(&datagram)?;
        let at = arrived.recv_timeout(LOST).context("a datagram on loopback was lost")?;
        Ok(at.saturating_duration_since(sent).as_secs_f64())
    });
    let delays = delays.collect::<Result<Samples>>()?;
    drop(arrived);
    // It leaves with the next datagram, which need not come: at last when none has come for a while.
    here.send(&datagram)?;
    // It does nothing that could panic.
    drop(receiver.join());
    Ok(delays.median())
}

/// As a stage's step does, leaves nothing of others in the caches.
fn compute(memory: &[u8]) {
    let started = Instant::now();
    while started.elapsed() < STEP {
        black_box(memory.iter().step_by(64).map(|&byte| u64::from(byte)).sum::<u64>());
    }
}

const DATAGRAMS: usize = 200;
/// What computes between two of them.
const STEP: Duration = Duration::from_millis(2);
/// Bytes that it reads, more than a core's caches hold.
const COOLING: usize = 16 << 20;
/// Nothing on loopback takes so long.
const LOST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_takes_some_time() {
        let seconds = one_way(2304).unwrap();
        assert!(seconds > 0.0 && seconds < 1.0, "{seconds} s");
    }
}
