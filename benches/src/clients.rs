//! Clients of a mesh that ask, read every token as it comes, and note when.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use qmesh_coordinator::{
    generate::{ClientId, GenerateEvent, GenerateRequest, Generation, PromptRows},
    grammar::CompiledGrammar,
    mesh::MeshHandle,
};
use qmesh_net::Sampling;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};

use crate::statistics::Samples;

/// What is asked of a mesh at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Load {
    /// Clients, one request each.
    pub clients: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens that each wants.
    pub tokens: usize,
}

/// One request and when its tokens came.
#[derive(Clone, Debug)]
pub struct Stream {
    /// When it was handed in.
    pub submitted: Instant,
    /// When each token came.
    pub times: Vec<Instant>,
    /// The tokens.
    pub ids: Vec<u32>,
}

/// A request under way.
#[derive(Debug)]
pub struct RunningRequest {
    generation: Generation,
    stream: Stream,
}

impl RunningRequest {
    /// Asks for up to `tokens` greedy tokens after `prompt`, or up to one of `ends`.
    ///
    /// # Errors
    /// The mesh takes no more requests.
    pub fn submit(mesh: &MeshHandle, client: u64, prompt: Vec<u32>, tokens: usize, ends: Arc<[u32]>) -> Result<Self> {
        Self::submit_held(mesh, client, prompt, tokens, ends, None)
    }

    /// The same of an answer that is held to a grammar.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_held(
        mesh: &MeshHandle,
        client: u64,
        prompt: Vec<u32>,
        tokens: usize,
        ends: Arc<[u32]>,
        grammar: Option<Arc<CompiledGrammar>>,
    ) -> Result<Self> {
        let submitted = Instant::now();
        let generation = mesh.submit(GenerateRequest {
            ids: prompt,
            max_tokens: tokens,
            sampling: Sampling::default(),
            ends,
            grammar,
            prompt_rows: PromptRows::Last,
            client: ClientId(client),
            key: None,
        })?;
        Ok(Self { generation, stream: Stream { submitted, times: Vec::new(), ids: Vec::new() } })
    }

    /// When the next token came; `None` after the last one.
    ///
    /// # Errors
    /// The generation failed, or nothing came for minutes.
    pub async fn next(&mut self) -> Result<Option<Instant>> {
        loop {
            let event = tokio::time::timeout(SILENCE, self.generation.next()).await;
            match event.with_context(|| format!("no token for {} s", SILENCE.as_secs()))? {
                Some(GenerateEvent::Token(sampled)) => {
                    let now = Instant::now();
                    self.stream.times.push(now);
                    self.stream.ids.push(sampled.token);
                    return Ok(Some(now));
                }
                Some(
                    GenerateEvent::Prompt(_)
                    | GenerateEvent::Pooled(_)
                    | GenerateEvent::Progress { .. }
                    | GenerateEvent::Prefilled { .. },
                ) => {}
                Some(GenerateEvent::Finished(_)) => return Ok(None),
                Some(GenerateEvent::Failed(error)) => return Err(error.into()),
                None => bail!("a generation ended without an end"),
            }
        }
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// As [`Self::next`], or not a single token came.
    pub async fn finish(mut self) -> Result<Stream> {
        while self.next().await?.is_some() {}
        ensure!(!self.stream.ids.is_empty(), "a generation without a token");
        Ok(self.stream)
    }

    /// What came so far; the rest is cancelled.
    pub fn cancel(self) -> Stream {
        self.stream
    }
}

/// Clients that decode for as long as something else is measured.
#[derive(Debug)]
pub struct Decoding {
    streams: Vec<JoinHandle<Result<Stream>>>,
    stop: watch::Sender<()>,
}

impl Decoding {
    /// Asks for a stream of up to `most` tokens after each prompt, and returns when each has got `calm` of them.
    ///
    /// # Errors
    /// The mesh takes no more requests.
    pub async fn start(mesh: &MeshHandle, prompts: Vec<Vec<u32>>, calm: usize, most: usize) -> Result<Self> {
        let (stop, stopped) = watch::channel(());
        let mut warm = Vec::new();
        let streams = (0..).zip(prompts).map(|(client, prompt)| {
            let running = RunningRequest::submit(mesh, client, prompt, most, Arc::from([]))?;
            let (ready, is_ready) = oneshot::channel();
            warm.push(is_ready);
            Ok(tokio::spawn(decode(running, calm, ready, stopped.clone())))
        });
        let streams = streams.collect::<Result<Vec<_>>>()?;
        for ready in warm {
            // Whoever failed says so when it is awaited.
            let _failed = ready.await;
        }
        Ok(Self { streams, stop })
    }

    /// Cancels the rest.
    ///
    /// # Errors
    /// One of them failed.
    pub async fn stop(self) -> Result<Vec<Stream>> {
        drop(self.stop);
        let mut done = Vec::with_capacity(self.streams.len());
        for stream in self.streams {
            done.push(stream.await??);
        }
        Ok(done)
    }
}

impl Stream {
    /// Seconds from asking to the first token; NaN without one.
    pub fn first_s(&self) -> f64 {
        self.times.first().map_or(f64::NAN, |first| (*first - self.submitted).as_secs_f64())
    }

    /// Seconds between a token and the one before, for those that came in the span that `within` accepts.
    pub fn gaps_s(&self, within: impl Fn(Instant) -> bool) -> impl Iterator<Item = f64> {
        let pairs = self.times.windows(2).filter(move |pair| within(pair[1]));
        pairs.map(|pair| (pair[1] - pair[0]).as_secs_f64())
    }
}

/// Seconds a token of all streams together while all decode: from the last first token to the first last one; `None` where
/// they never do.
pub fn steady_s(streams: &[Stream]) -> Option<f64> {
    let from = *streams.iter().filter_map(|s| s.times.first()).max()?;
    let to = *streams.iter().filter_map(|s| s.times.last()).min()?;
    let tokens = streams.iter().flat_map(|s| &s.times).filter(|&&time| from < time && time <= to).count();
    (tokens > 0).then(|| (to - from).as_secs_f64() / tokens as f64)
}

/// Seconds a token of all streams together, from the first request to the last token: prompts included.
pub fn whole_s(streams: &[Stream]) -> f64 {
    let from = streams.iter().map(|s| s.submitted).min();
    let to = streams.iter().filter_map(|s| s.times.last()).max();
    let (Some(from), Some(&to)) = (from, to) else { return f64::NAN };
    (to - from).as_secs_f64() / streams.iter().map(|s| s.ids.len()).sum::<usize>() as f64
}

/// Seconds to the first token, of each.
pub fn firsts(streams: &[Stream]) -> Samples {
    streams.iter().map(Stream::first_s).collect()
}

/// Seconds from each token to the next, of all.
pub fn gaps(streams: &[Stream]) -> Samples {
    streams.iter().flat_map(|s| s.gaps_s(|_| true)).collect()
}

/// A digest of all ids in the clients' order: equal wherever the arithmetic is.
pub fn digest(streams: &[Stream]) -> String {
    let mut hasher = blake3::Hasher::new();
    for id in streams.iter().flat_map(|s| &s.ids) {
        hasher.update(&id.to_le_bytes());
    }
    hasher.finalize().to_hex()[..8].to_owned()
}

/// Reads until told to stop, and says when `calm` tokens are there.
async fn decode(
    mut running: RunningRequest,
    calm: usize,
    ready: oneshot::Sender<()>,
    mut stopped: watch::Receiver<()>,
) -> Result<Stream> {
    let mut ready = Some(ready);
    for count in 1.. {
        let next = tokio::select! {
            next = running.next() => next?,
            _ = stopped.changed() => None,
        };
        if next.is_none() {
            break;
        }
        if count >= calm
            && let Some(ready) = ready.take()
        {
            // Nobody waits any more when another stream has failed.
            let _unheard = ready.send(());
        }
    }
    Ok(running.cancel())
}

/// The slowest step that we know of takes a minute.
const SILENCE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_time_when_all_decode() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let stream = |times: &[u64]| Stream {
            submitted: start,
            times: times.iter().map(|ms| at(*ms)).collect(),
            ids: vec![7; times.len()],
        };
        // One after the other's prompt; both decode from 200 to 400, where five tokens come.
        let two = [stream(&[100, 150, 250, 350, 400]), stream(&[200, 300, 400, 500])];
        assert!((steady_s(&two).unwrap() - 0.2 / 5.0).abs() < 1e-9);
        assert!((whole_s(&two) - 0.5 / 9.0).abs() < 1e-9);
        assert_eq!(firsts(&two).all(), [0.1, 0.2]);
        assert_eq!((gaps(&two).all().len(), two[0].gaps_s(|t| t > at(250)).count()), (7, 2));
        let apart = [stream(&[100, 200]), stream(&[300, 400])];
        assert!(steady_s(&apart).is_none() && (whole_s(&apart) - 0.1).abs() < 1e-9);
        // One alone: the mean of its gaps.
        assert!((steady_s(&two[1..]).unwrap() - 0.1).abs() < 1e-9);
        assert!(digest(&two) != digest(&apart) && digest(&two) == digest(&two.clone()));
    }
}
