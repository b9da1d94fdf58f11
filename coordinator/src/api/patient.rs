//! A socket that waits for its reader, but not for ever.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// How long a reader is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// At a time.
    pub(crate) stall: Duration,
    /// In all, beside the time that what it has read takes at `bytes_per_s`.
    pub(crate) stalls: Duration,
    pub(crate) bytes_per_s: u32,
}

/// Fails writes that wait for too long: a client that stops reading, or hardly reads, must not hold its answer in
/// memory.
#[derive(Debug)]
pub(crate) struct Patient<T> {
    inner: T,
    patience: Patience,
    written_bytes: u64,
    /// Time spent waiting, without the wait that goes on.
    waited: Duration,
    waiting: Option<Waiting>,
}

/// A write that waits.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    deadline: Pin<Box<Sleep>>,
}

impl<T: AsyncWrite + Unpin> Patient<T> {
    pub(crate) fn new(inner: T, patience: Patience) -> Self {
        Self { inner, patience, written_bytes: 0, waited: Duration::ZERO, waiting: None }
    }

    fn bounded<R>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if outcome.is_ready() {
            self.waited += self.waiting.take().map_or(Duration::ZERO, |waiting| waiting.since.elapsed());
            return outcome;
        }
        let wait = self.longest_wait();
        let begun = || Waiting { since: Instant::now(), deadline: Box::pin(sleep(wait)) };
        ready!(self.waiting.get_or_insert_with(begun).deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }

    /// How long the next wait may be.
    fn longest_wait(&self) -> Duration {
        let Patience { stall, stalls, bytes_per_s } = self.patience;
        let reading = Duration::from_secs(self.written_bytes / u64::from(bytes_per_s.max(1)));
        (stalls + reading).saturating_sub(self.waited).min(stall)
    }

    fn count(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.written_bytes += bytes as u64;
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, bytes);
        let outcome = self.bounded(cx, outcome);
        self.count(outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.bounded(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.bounded(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
        let outcome = self.bounded(cx, outcome);
        self.count(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Patience =
        Patience { stall: Duration::from_secs(30), stalls: Duration::from_secs(300), bytes_per_s: 1024 };

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_waited_for_and_a_dead_one_is_not() {
        let (near, mut far) = duplex(8);
        let mut near = Patient::new(near, PATIENCE);
        let reader = async {
            let mut bytes = [0; 8];
            for _ in 0..4 {
                sleep(Duration::from_secs(29)).await;
                far.read_exact(&mut bytes).await.expect("bytes come");
            }
        };
        let (written, ()) = tokio::join!(near.write_all(&[7; 32]), reader);
        written.expect("every write makes progress in time");
        let started = Instant::now();
        near.write_all(&[7; 8]).await.expect("fits the pipe");
        let error = near.write_all(&[7; 8]).await.expect_err("nobody reads");
        assert_eq!((error.kind(), started.elapsed().as_secs()), (io::ErrorKind::TimedOut, 30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_hardly_reads_is_not_waited_for_all_day() {
        let (near, mut far) = duplex(8);
        let mut near = Patient::new(near, PATIENCE);
        let trickle = async {
            let mut byte = [0];
            loop {
                sleep(Duration::from_secs(29)).await;
                far.read_exact(&mut byte).await.expect("bytes come");
            }
        };
        let started = Instant::now();
        let error = tokio::select! {
            written = near.write_all(&[7; 1000]) => written.expect_err("it takes hours"),
            () = trickle => unreachable!("it goes on for ever"),
        };
        assert_eq!((error.kind(), started.elapsed().as_secs()), (io::ErrorKind::TimedOut, 300));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_of_a_slow_line_gets_all_of_it() {
        let (near, mut far) = duplex(4096);
        let mut near = Patient::new(near, PATIENCE);
        let reader = async {
            let mut bytes = [0; 2048];
            for _ in 0..1000 {
                sleep(Duration::from_secs(1)).await;
                far.read_exact(&mut bytes).await.expect("bytes come");
            }
        };
        let answer = vec![7; 2_048_000];
        let (written, ()) = tokio::join!(near.write_all(&answer), reader);
        written.expect("two kilobytes a second are enough");
    }
}
