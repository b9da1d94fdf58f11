//! A backend that computes for only a part of the time, as a worker with a part of a CPU does.

use std::{
    num::NonZeroUsize,
    thread,
    time::{Duration, Instant},
};

use qmesh_engine::{
    backend::{Backend, HeldTensors, LoadedShard, ShardRequest},
    error::EngineError,
    sample::SamplingParameters,
    step::{Prefix, Step, StepOutput},
};

/// Computes as `inner` does, and rests after each step until the step took its share of the time only.
#[derive(Debug)]
pub struct Throttled<B> {
    inner: B,
    share: f64,
}

impl<B> Throttled<B> {
    /// Computes for `share` of the time, above 0 and at most 1.
    pub fn new(inner: B, share: f64) -> Self {
        Self { inner, share }
    }
}

impl<B: Backend> Backend for Throttled<B> {
    fn numerics(&self) -> Result<String, EngineError> {
        self.inner.numerics()
    }

    fn threads(&self) -> NonZeroUsize {
        self.inner.threads()
    }

    fn load(
        &self,
        request: &ShardRequest<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Box<dyn LoadedShard>, EngineError> {
        let inner = self.inner.load(request, progress)?;
        Ok(Box::new(ThrottledShard { inner, share: self.share }))
    }
}

#[derive(Debug)]
struct ThrottledShard {
    inner: Box<dyn LoadedShard>,
    share: f64,
}

impl LoadedShard for ThrottledShard {
    fn open(&mut self, session: u64, max_positions: usize, sampling: SamplingParameters) -> Result<(), EngineError> {
        self.inner.open(session, max_positions, sampling)
    }

    fn fork(
        &mut self,
        session: u64,
        max_positions: usize,
        sampling: SamplingParameters,
        prefix: Prefix,
    ) -> Result<(), EngineError> {
        self.inner.fork(session, max_positions, sampling, prefix)
    }

    fn keep(&mut self, session: u64, positions: usize) -> Result<(), EngineError> {
        self.inner.keep(session, positions)
    }

    fn close(&mut self, session: u64) -> Result<(), EngineError> {
        self.inner.close(session)
    }

    fn step(&mut self, step: &Step) -> Result<StepOutput, EngineError> {
        let began = Instant::now();
        let output = self.inner.step(step);
        thread::sleep(rest(began.elapsed(), self.share));
        output
    }

    fn kv_positions_used(&self) -> usize {
        self.inner.kv_positions_used()
    }

    fn tensors(&self) -> HeldTensors {
        self.inner.tensors()
    }
}

/// How long to rest after computing for so long.
fn rest(computed: Duration, share: f64) -> Duration {
    computed.mul_f64((1.0 / share - 1.0).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_the_time_is_two_thirds_of_rest() {
        assert_eq!(rest(Duration::from_millis(10), 1.0), Duration::ZERO);
        assert_eq!(rest(Duration::from_millis(10), 0.25), Duration::from_millis(30));
    }
}
