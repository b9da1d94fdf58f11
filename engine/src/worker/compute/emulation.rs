//! What computes a worker's steps: its shard, or, for measuring everything around it, a clock.

use std::{collections::HashMap, ops::Range, thread, time::Duration};

use qmesh_models::spec::ModelSpec;

use crate::{
    error::EngineError,
    sample::SamplingParameters,
    shard::{PAGE_POSITIONS, Prefix, Shard, wanted},
    step::{SampledRow, Step, StepOutput},
};

/// How a worker computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Compute {
    /// With its layers.
    #[default]
    Real,
    /// Not at all: it waits, and its tokens mean nothing.
    Emulated(Emulation),
}

/// How long a step of the whole model takes; a stage waits for its layers' share of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Emulation {
    /// Microseconds of every step.
    pub base_us: u64,
    /// Microseconds more for each row.
    pub row_us: u64,
}

impl Emulation {
    /// The stage of `layers`.
    pub(crate) fn stage(self, spec: &ModelSpec, layers: &Range<usize>) -> EmulatedShard {
        EmulatedShard {
            emulation: self,
            share: layers.len() as f64 / spec.layers.len().max(1) as f64,
            hidden: spec.hidden,
            vocab: spec.vocab,
            is_last: layers.end == spec.layers.len(),
            sessions: HashMap::new(),
        }
    }
}

/// What computes.
#[derive(Debug)]
pub(crate) enum Computer {
    Shard(Box<Shard>),
    Emulated(EmulatedShard),
}

/// A shard without layers: it knows how long they would take.
#[derive(Debug)]
pub(crate) struct EmulatedShard {
    emulation: Emulation,
    share: f64,
    hidden: usize,
    vocab: usize,
    is_last: bool,
    /// The most positions of each session.
    sessions: HashMap<u64, usize>,
}

impl Computer {
    pub(super) fn open(
        &mut self,
        session: u64,
        max_positions: usize,
        sampling: SamplingParameters,
        prefix: Option<Prefix>,
    ) -> Result<(), EngineError> {
        match (self, prefix) {
            (Self::Shard(shard), None) => shard.open(session, max_positions, sampling),
            (Self::Shard(shard), Some(prefix)) => shard.fork(session, max_positions, sampling, prefix),
            (Self::Emulated(shard), _) => {
                shard.sessions.insert(session, max_positions);
                Ok(())
            }
        }
    }

    pub(super) fn keep(&mut self, session: u64, positions: usize) -> Result<(), EngineError> {
        match self {
            Self::Shard(shard) => shard.keep(session, positions),
            Self::Emulated(shard) => {
                shard.sessions.insert(session, positions);
                Ok(())
            }
        }
    }

    pub(super) fn close(&mut self, session: u64) -> Result<(), EngineError> {
        match self {
            Self::Shard(shard) => shard.close(session),
            Self::Emulated(shard) => {
                shard.sessions.remove(&session);
                Ok(())
            }
        }
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<StepOutput, EngineError> {
        match self {
            Self::Shard(shard) => shard.step(step),
            Self::Emulated(shard) => Ok(shard.step(step)),
        }
    }

    pub(super) fn kv_positions_used(&self) -> usize {
        match self {
            Self::Shard(shard) => shard.kv_positions_used(),
            Self::Emulated(shard) => shard.sessions.values().map(|p| p.next_multiple_of(PAGE_POSITIONS)).sum(),
        }
    }
}

impl EmulatedShard {
    fn step(&self, step: &Step) -> StepOutput {
        let Emulation { base_us, row_us } = self.emulation;
        let whole = Duration::from_micros(base_us.saturating_add(row_us.saturating_mul(step.ids.len() as u64)));
        thread::sleep(whole.mul_f64(self.share));
        if !self.is_last {
            return StepOutput::Hidden(vec![0.0; step.ids.len() * self.hidden]);
        }
        StepOutput::Sampled(wanted(step).iter().map(|row| self.token(row.position, step.ids[row.row])).collect())
    }

    /// Depends on position and id alone, so that every cut and batch has the same text.
    fn token(&self, position: usize, id: u32) -> SampledRow {
        let mixed = (position as u64).wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(id)).wrapping_mul(0x85eb_ca6b);
        let token = u32::try_from((mixed >> 8) % self.vocab.max(1) as u64).unwrap_or_default();
        SampledRow { token, logprob: 0.0, target_logprob: f32::NAN, digest: 0, top: Vec::new() }
    }
}
