//! One QUIC stream with our settings and nothing around it, from one thread to another over loopback: what can be moved at all.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use qmesh_net::{Admission, CloseCode, Endpoint, Identity, Incoming, RangeRequest, limits::SEND_WINDOW_BYTES};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

/// Seconds that so many bytes take.
///
/// # Errors
/// The system gives no thread or socket, or the stream breaks.
pub fn seconds(bytes: u64) -> Result<f64> {
    let (server, client) = (Identity::ephemeral(), Identity::ephemeral());
    let (serving, asking) = (runtime()?, runtime()?);
    let loopback = (Ipv4Addr::LOCALHOST, 0).into();
    let from = serving.block_on(async { Endpoint::bind(loopback, &server, Admission::anyone()) })?;
    let to = asking.block_on(async { Endpoint::bind(loopback, &client, Admission::only([])) })?;
    let address = from.local_addr().to_string();
    let sender = thread::spawn(move || serving.block_on(async { timeout(DEADLINE, send(from)).await }));
    let asked = async {
        let connection = to.dial(&[address], server.peer_id()).await?;
        let began = Instant::now();
        let mut range = connection.fetch_range(RangeRequest { tensor: [0; 32], offset: 0, bytes }).await?;
        while range.next().await?.is_some() {}
        let seconds = began.elapsed().as_secs_f64();
        connection.close(CloseCode::Ok, "");
        anyhow::Ok(seconds)
    };
    let seconds = asking.block_on(async { timeout(DEADLINE, asked).await });
    let seconds = seconds.context("a bare stream takes too long")??;
    match sender.join() {
        Ok(sent) => sent.context("a bare stream takes too long")??,
        Err(_) => bail!("the sender of a bare stream panicked"),
    }
    Ok(seconds)
}

/// Sends zeros for whatever is asked for first, until the other side has gone.
async fn send(endpoint: Endpoint) -> Result<()> {
    let connection = endpoint.accept().await.context("nobody asks for a bare stream")?;
    connection.bound_sends(SEND_WINDOW_BYTES);
    let Incoming::Range(mut range) = connection.accept_stream().await? else { bail!("a stream of another kind") };
    let mut left = range.request().bytes;
    range.accept(left).await?;
    let piece = Bytes::from(vec![0; PIECE_BYTES]);
    while left > 0 {
        let piece = piece.slice(..PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES)));
        left -= piece.len() as u64;
        range.write(piece).await?;
    }
    range.finish()?;
    connection.closed().await;
    Ok(())
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}

/// Bytes that are handed to QUIC at once.
const PIECE_BYTES: usize = 256 << 10;
const DEADLINE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_come() {
        assert!(seconds(3 * PIECE_BYTES as u64 + 1).unwrap() > 0.0);
    }
}
