//! A backend that waits instead of computing, for measuring everything around the computation.

use std::{collections::HashMap, num::NonZeroUsize, thread, time::Duration};

use qmesh_engine::{
    backend::{Backend, HeldTensors, LoadedShard, ShardRequest},
    error::EngineError,
    sample::SamplingParameters,
    shard::PAGE_POSITIONS,
    step::{Prefix, RowSum, SampledRow, Samples, Step, StepOutput, TokenSet},
};
use qmesh_models::numerics;

/// How long a step of the whole model takes; a stage waits for its layers' share of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Emulation {
    /// Microseconds of every step.
    pub base_us: u64,
    /// Microseconds more for each row.
    pub row_us: u64,
}

impl Backend for Emulation {
    /// What every worker must name: its tokens mean nothing, but they are the same everywhere.
    fn numerics(&self) -> Result<String, EngineError> {
        Ok(numerics::expected())
    }

    fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    fn load(
        &self,
        request: &ShardRequest<'_>,
        _progress: &mut dyn FnMut(u64),
    ) -> Result<Box<dyn LoadedShard>, EngineError> {
        let ShardRequest { spec, layers, .. } = request;
        Ok(Box::new(EmulatedShard {
            emulation: *self,
            share: layers.len() as f64 / spec.layers.len().max(1) as f64,
            hidden: spec.hidden,
            vocab: spec.vocab,
            is_last: layers.end == spec.layers.len(),
            sessions: HashMap::new(),
        }))
    }
}

/// A shard without layers: it knows how long they would take.
#[derive(Debug)]
struct EmulatedShard {
    emulation: Emulation,
    /// Of the model's layers.
    share: f64,
    hidden: usize,
    vocab: usize,
    is_last: bool,
    /// The most positions of each session.
    sessions: HashMap<u64, usize>,
}

impl LoadedShard for EmulatedShard {
    fn open(&mut self, session: u64, max_positions: usize, _sampling: SamplingParameters) -> Result<(), EngineError> {
        self.sessions.insert(session, max_positions);
        Ok(())
    }

    fn fork(
        &mut self,
        session: u64,
        max_positions: usize,
        sampling: SamplingParameters,
        _prefix: Prefix,
    ) -> Result<(), EngineError> {
        self.open(session, max_positions, sampling)
    }

    fn keep(&mut self, session: u64, positions: usize) -> Result<(), EngineError> {
        self.sessions.insert(session, positions);
        Ok(())
    }

    fn close(&mut self, session: u64) -> Result<(), EngineError> {
        self.sessions.remove(&session);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<StepOutput, EngineError> {
        let Emulation { base_us, row_us } = self.emulation;
        let whole = Duration::from_micros(base_us.saturating_add(row_us.saturating_mul(step.ids.len() as u64)));
        thread::sleep(whole.mul_f64(self.share));
        if !self.is_last {
            return Ok(StepOutput::Hidden(vec![0.0; step.ids.len() * self.hidden]));
        }
        let wanted = step.wanted_rows();
        let sampled = wanted.iter().map(|row| {
            let allowed = step.allowed.get(&(row.session, row.position));
            let sampled = self.token(row.position, step.ids[row.row], allowed);
            sampled.ok_or(EngineError::NothingAllowed { session: row.session, position: row.position })
        });
        let sums = step.summed_rows().iter().map(|_| Ok(RowSum::zeros(self.hidden))).collect();
        Ok(StepOutput::Sampled(Samples { rows: sampled.collect(), sums }))
    }

    fn kv_positions_used(&self) -> usize {
        self.sessions.values().map(|positions| positions.next_multiple_of(PAGE_POSITIONS)).sum()
    }

    fn tensors(&self) -> HeldTensors {
        HeldTensors::new()
    }
}

impl EmulatedShard {
    /// Depends on position, id and what is allowed alone, so that every cut and batch has the same text; none where
    /// nothing is allowed.
    fn token(&self, position: usize, id: u32, allowed: Option<&TokenSet>) -> Option<SampledRow> {
        let mixed = (position as u64).wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(id)).wrapping_mul(0x85eb_ca6b);
        let token = u32::try_from((mixed >> 8) % self.vocab.max(1) as u64).unwrap_or_default();
        let vocab = u32::try_from(self.vocab).unwrap_or(u32::MAX);
        let token = allowed.map_or(Some(token), |allowed| allowed.nearest(token, vocab))?;
        Some(SampledRow { token, logprob: 0.0, target_logprob: f32::NAN, digest: 0, top: Vec::new() })
    }
}
