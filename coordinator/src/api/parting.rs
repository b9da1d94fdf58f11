//! How connections end.
//!
//! A client that closes its side of a connection has said all it had to say, or it has gone: TCP tells these apart only
//! once something is sent. So while its answer is being made, it is sent what HTTP lets a server send at any time, and
//! if that comes back, it has gone, and the answer is given up.
//!
//! And a client that is still sending when it is answered, a body that is too large say, gets to read its answer:
//! closing at once would reset the connection under it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// How far the answer to a connection's request is. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<AtomicU8>);

/// Lets whoever takes in a request's body say that all of it is there.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    progress: Progress,
    received: Stage,
}

/// How far an answer is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    /// No request is there.
    Idle = 0,
    /// Not all of it has been taken in.
    Receiving = 1,
    /// All of it has, and nothing of the answer is there.
    Waiting = 2,
    /// The answer's events go out, in chunks.
    Streaming = 3,
    /// The answer goes out, or its client cannot be sent anything before it.
    Sending = 4,
}

/// A socket of a connection, see the module.
#[derive(Debug)]
pub(crate) struct Parting<T> {
    inner: T,
    progress: Progress,
    /// The stage in which something was last written, and whether it is all out.
    written: Stage,
    flushed: bool,
    /// Set once the client has closed its side.
    measuring: Option<Measuring>,
    lingering: Option<Lingering>,
}

/// How the client is found out to have gone.
#[derive(Debug)]
struct Measuring {
    next: Pin<Box<Sleep>>,
    rounds: usize,
    /// What of a probe is not out yet.
    rest: &'static [u8],
}

/// The end, in which nothing is sent any more, and what comes is thrown away.
#[derive(Debug)]
struct Lingering {
    silence: Pin<Box<Sleep>>,
    end: Instant,
}

/// Any number of these may come before an answer, and clients must know it.
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// A chunk with a comment, which an event stream may have anywhere.
const COMMENT: &[u8] = b"3\r\n:\n\n\r\n";
/// Times between probes; the last one is that of the rest. A reset takes a round trip.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(2), Duration::from_secs(10)];
/// Silence after which a client is sending nothing more.
const SILENCE: Duration = Duration::from_secs(1);
/// Time after which a client that goes on sending is not listened to any longer.
const LINGER: Duration = Duration::from_secs(10);

impl Progress {
    pub(crate) fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Relaxed);
    }

    fn get(&self) -> Stage {
        let stages = [Stage::Receiving, Stage::Waiting, Stage::Streaming, Stage::Sending];
        let number = self.0.load(Ordering::Relaxed);
        stages.into_iter().find(|&stage| stage as u8 == number).unwrap_or(Stage::Idle)
    }
}

impl Receipt {
    /// The stage is `received` once it is given.
    pub(crate) fn new(progress: Progress, received: Stage) -> Self {
        Self { progress, received }
    }

    pub(crate) fn give(&self) {
        self.progress.set(self.received);
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Parting<T> {
    pub(crate) fn new(inner: T, progress: Progress) -> Self {
        Self { inner, progress, written: Stage::Idle, flushed: true, measuring: None, lingering: None }
    }

    /// What may be sent now beside the answer.
    fn probe(&self) -> Option<&'static [u8]> {
        match self.progress.get() {
            Stage::Waiting if self.flushed => Some(INTERIM),
            // Its head must be out, and its last chunk whole.
            Stage::Streaming if self.flushed && self.written == Stage::Streaming => Some(COMMENT),
            Stage::Idle | Stage::Receiving | Stage::Waiting | Stage::Streaming | Stage::Sending => None,
        }
    }

    /// Waits, after the client has closed its side: for the end of its answer, or for a sign that it has gone.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_rest(cx))?;
            let (stage, probe) = (self.progress.get(), self.probe());
            let Some(measuring) = self.measuring.as_mut().filter(|_| stage != Stage::Idle) else {
                return Poll::Ready(Ok(()));
            };
            ready!(measuring.next.as_mut().poll(cx));
            // What had come of the request was taken in meanwhile, and more does not come.
            if stage == Stage::Receiving && measuring.rounds > 0 {
                return Poll::Ready(Ok(()));
            }
            let pause = PAUSES[measuring.rounds.min(PAUSES.len() - 1)];
            measuring.next.as_mut().reset(Instant::now() + pause);
            measuring.rounds += 1;
            measuring.rest = probe.unwrap_or_default();
        }
    }

    /// Sends what is left of a probe, before anything else.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(measuring) = &mut self.measuring else { return Poll::Ready(Ok(())) };
        while !measuring.rest.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, measuring.rest))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            measuring.rest = &measuring.rest[sent..];
        }
        Poll::Ready(Ok(()))
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut thrown_away = [0; 8192];
        let start = || Lingering { silence: Box::pin(sleep(SILENCE)), end: Instant::now() + LINGER };
        let lingering = self.lingering.get_or_insert_with(start);
        loop {
            let mut buffer = ReadBuf::new(&mut thrown_away);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && Instant::now() < lingering.end => {
                    lingering.silence.as_mut().reset((Instant::now() + SILENCE).min(lingering.end));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return lingering.silence.as_mut().poll(cx),
            }
        }
    }

    fn wrote(&mut self, written: &Poll<io::Result<usize>>) {
        if written.is_ready() {
            self.written = self.progress.get();
        }
        self.flushed = false;
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Parting<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.measuring.is_none() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
            if buf.filled().len() > before || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            self.measuring = Some(Measuring { next: Box::pin(sleep(Duration::ZERO)), rounds: 0, rest: &[] });
        }
        self.poll_gone(cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Parting<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(cx))?;
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(cx))?;
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
        self.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_rest(cx))?;
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(self.poll_rest(cx))?;
            ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
        }
        if self.measuring.is_none() {
            ready!(self.poll_silence(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A connection on which a whole request came, and its client's side.
    async fn connection(stage: Stage) -> (Parting<DuplexStream>, Progress, DuplexStream) {
        let (near, mut far) = duplex(1 << 16);
        let progress = Progress::default();
        let mut near = Parting::new(near, progress.clone());
        far.write_all(b"?").await.expect("written");
        assert_eq!(near.read_u8().await.expect("it comes"), b'?');
        progress.set(stage);
        (near, progress, far)
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_said_all_gets_an_answer() {
        for (stage, head, probe) in [(Stage::Waiting, &b""[..], INTERIM), (Stage::Streaming, b"head", COMMENT)] {
            let (mut near, progress, mut far) = connection(stage).await;
            near.write_all(head).await.expect("written");
            near.flush().await.expect("flushed");
            far.shutdown().await.expect("its side is closed");
            let answering = async {
                sleep(Duration::from_secs(60)).await;
                progress.set(Stage::Idle);
            };
            let mut rest = Vec::new();
            let (end, ()) = tokio::join!(near.read_to_end(&mut rest), answering);
            assert_eq!(end.expect("no error"), 0);
            near.write_all(b"answer").await.expect("written");
            drop(near);
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.expect("all of it");
            let probes = got.strip_prefix(head).and_then(|got| got.strip_suffix(b"answer")).expect("an answer");
            assert!(probes.len() / probe.len() >= 5 && probes.chunks(probe.len()).all(|one| one == probe));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_is_found_out() {
        for stage in [Stage::Waiting, Stage::Streaming] {
            let (mut near, _progress, far) = connection(stage).await;
            near.write_all(b"x").await.expect("written");
            near.flush().await.expect("flushed");
            drop(far);
            let started = Instant::now();
            near.read_u8().await.expect_err("it has gone");
            assert!(started.elapsed() < Duration::from_secs(1), "{stage:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_comes_between_an_answer_and_its_parts() {
        for stage in [Stage::Sending, Stage::Streaming] {
            let (mut near, _progress, mut far) = connection(stage).await;
            far.shutdown().await.expect("its side is closed");
            let waited = tokio::time::timeout(Duration::from_secs(60), near.read_u8()).await;
            assert!(waited.is_err(), "its answer goes on");
            drop(near);
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.expect("the end");
            assert_eq!(got, b"", "{stage:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_ends_in_the_middle_has_ended() {
        let (mut near, _progress, mut far) = connection(Stage::Receiving).await;
        far.shutdown().await.expect("its side is closed");
        let started = Instant::now();
        assert_eq!(near.read(&mut [0]).await.expect("the end"), 0);
        assert!(started.elapsed() < Duration::from_secs(1));
        // But one that was only not taken in yet has not.
        let (mut near, progress, mut far) = connection(Stage::Receiving).await;
        far.shutdown().await.expect("its side is closed");
        let taking_in = async { progress.set(Stage::Waiting) };
        let (waited, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(9), near.read_u8()), taking_in);
        assert!(waited.is_err(), "its answer is waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_still_sending_can_read_its_answer() {
        let (mut near, _progress, mut far) = connection(Stage::Idle).await;
        let ending = async {
            near.write_all(b"too large").await.expect("written");
            near.shutdown().await.expect("closed in order");
        };
        let sending = async {
            far.write_all(&vec![7; 1 << 20]).await.expect("all of it is taken");
            let mut answer = String::new();
            far.read_to_string(&mut answer).await.expect("an answer");
            far.shutdown().await.expect("closed");
            answer
        };
        let ((), answer) = tokio::join!(ending, sending);
        assert_eq!(answer, "too large");
        // But not for ever.
        let (mut near, _progress, mut far) = connection(Stage::Idle).await;
        let endless = async {
            while far.write_all(&[7; 1024]).await.is_ok() {
                sleep(SILENCE / 2).await;
            }
        };
        let started = Instant::now();
        tokio::select! {
            closed = near.shutdown() => closed.expect("closed in order"),
            () = endless => unreachable!("it is listened to"),
        }
        assert_eq!(started.elapsed(), LINGER);
    }
}
