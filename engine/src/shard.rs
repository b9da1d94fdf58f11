//! A shard: a contiguous range of a model's layers, loaded, with the KV cache of its sessions.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use candle_core::{Device, Tensor};
use qmesh_models::spec::{ModelSpec, TensorSpec};
use rayon::prelude::*;

pub use crate::kernel::attend::PAGE_POSITIONS;
use crate::{
    attention::{Batch, Slice},
    cache::{Cache, Pages},
    error::EngineError,
    kernel::lanes::Simd,
    linear::project,
    load::{Head, Parts, load},
    ops,
    sample::SamplingParameters,
    step::{SampledRow, SequenceRows, Step, StepOutput, Wants},
};

/// Where a shard's tensors come from.
pub trait TensorSource {
    /// Fills `into` (exactly `tensor.bytes` long) with the tensor's bytes as they are in the file.
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError>;
}

/// A loaded range of layers. One thread owns it; it computes on a thread team of its own.
#[derive(Debug)]
pub struct Shard {
    simd: Simd,
    team: rayon::ThreadPool,
    hidden: usize,
    vocab: usize,
    embedding_scale: f32,
    parts: Parts,
    cache: Cache,
    sessions: HashMap<u64, Session>,
}

#[derive(Debug)]
struct Session {
    pages: Pages,
    max_positions: usize,
    sampling: SamplingParameters,
    /// Id of each position, kept by the last stage only.
    ids: Vec<u32>,
}

/// A row that the last stage samples after.
struct Wanted {
    row: usize,
    session: u64,
    position: usize,
    target: Option<u32>,
}

impl Shard {
    /// Loads `layers` of the model: reads each tensor once, as it is. `spec` lists all layers and at least the tensors
    /// of this shard; `kv_positions` is the KV budget (rounded up to pages of [`PAGE_POSITIONS`]), allocated as it is
    /// used; `progress` is told the bytes loaded so far after each tensor.
    pub fn load(
        spec: &ModelSpec,
        layers: Range<usize>,
        kv_positions: usize,
        threads: usize,
        source: &dyn TensorSource,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, EngineError> {
        Self::load_on(Simd::choose()?, spec, layers, kv_positions, threads, source, progress)
    }

    /// Opens a session of at most `max_positions` positions and reserves their pages.
    pub fn open(
        &mut self,
        session: u64,
        max_positions: usize,
        sampling: SamplingParameters,
    ) -> Result<(), EngineError> {
        if self.sessions.contains_key(&session) {
            return Err(EngineError::SessionOpen { session });
        }
        sampling.check(self.vocab)?;
        // Positions are 32 bits wide in the key of the sampling noise.
        let pages = u32::try_from(max_positions).ok().and_then(|_| self.cache.reserve(max_positions));
        let pages = pages.ok_or_else(|| EngineError::KvFull {
            session,
            needed: max_positions,
            free: self.cache.free_positions(),
        })?;
        self.sessions.insert(session, Session { pages, max_positions, sampling, ids: Vec::new() });
        Ok(())
    }

    /// Closes a session and frees its pages; one that is not open is an error that changes nothing.
    pub fn close(&mut self, session: u64) -> Result<(), EngineError> {
        let closed = self.sessions.remove(&session).ok_or(EngineError::UnknownSession { session })?;
        self.cache.release(closed.pages);
        Ok(())
    }

    /// KV positions reserved by open sessions, whole pages.
    pub fn kv_positions_used(&self) -> usize {
        self.cache.reserved_positions()
    }

    /// The instruction set that the kernels run on, as `QMESH_SIMD` names it.
    pub fn simd(&self) -> &'static str {
        self.simd.name()
    }

    /// Computes one step. A refused step leaves every session as it was; one that fails in the middle leaves its
    /// sessions at `position`, without the step's rows.
    pub fn step(&mut self, step: &Step) -> Result<StepOutput, EngineError> {
        self.check(step)?;
        for sequence in &step.sequences {
            // Checked above, as in the next loops; growing a session's memory does not change what it holds.
            if let Some(session) = self.sessions.get_mut(&sequence.session) {
                self.cache.extend(&mut session.pages, sequence.position + sequence.rows)?;
            }
        }
        let slices = self.begin(step);
        let (outcome, slices) = self.team.install(|| self.compute(step, slices));
        for (sequence, slice) in step.sequences.iter().zip(slices) {
            if let Some(session) = self.sessions.get_mut(&sequence.session) {
                session.pages = slice.pages;
                session.pages.len = sequence.position + if outcome.is_ok() { sequence.rows } else { 0 };
                session.ids.truncate(session.pages.len);
            }
        }
        outcome
    }

    fn load_on(
        simd: Simd,
        spec: &ModelSpec,
        layers: Range<usize>,
        kv_positions: usize,
        threads: usize,
        source: &dyn TensorSource,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, EngineError> {
        let parts = load(simd, spec, &layers, source, progress)?;
        let team = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|i| format!("compute-{i}"))
            .build()
            .map_err(|e| EngineError::Threads { threads, reason: e.to_string() })?;
        let cache = Cache::new(spec.layers[layers].iter().map(|l| &l.attention), kv_positions);
        let ModelSpec { hidden, vocab, embedding_scale, .. } = *spec;
        Ok(Self { simd, team, hidden, vocab, embedding_scale, parts, cache, sessions: HashMap::new() })
    }

    fn check(&self, step: &Step) -> Result<(), EngineError> {
        let wrong = |what: String| Err(EngineError::Step { what });
        let mut seen = HashSet::new();
        let mut ids = step.ids.iter();
        for &SequenceRows { session, position, rows, .. } in &step.sequences {
            let held = self.sessions.get(&session).ok_or(EngineError::UnknownSession { session })?;
            if !seen.insert(session) {
                return wrong(format!("session {session} appears twice"));
            }
            if rows == 0 {
                return wrong(format!("session {session} has no rows"));
            }
            if position > held.pages.len {
                return Err(EngineError::Gap { session, need: held.pages.len });
            }
            let max_positions = held.max_positions;
            if rows > max_positions - position {
                let position = position.saturating_add(rows - 1);
                return Err(EngineError::BeyondSession { session, position, max_positions });
            }
            if let Some(id) = ids.by_ref().take(rows).find(|id| **id as usize >= self.vocab) {
                return Err(EngineError::OutsideVocabulary { session, id: *id, vocab: self.vocab });
            }
        }
        // Each is at most its session's positions, so the sum cannot overflow.
        let rows: usize = step.sequences.iter().map(|s| s.rows).sum();
        if rows == 0 || rows != step.ids.len() {
            return wrong(format!("{} ids for {rows} rows", step.ids.len()));
        }
        match (&self.parts.embedding, &step.hidden) {
            (Some(_), None) => Ok(()),
            (Some(_), Some(_)) => wrong("an activation for the stage that embeds".into()),
            (None, None) => wrong("no activation for a stage that does not embed".into()),
            (None, Some(hidden)) if hidden.len() == rows * self.hidden => Ok(()),
            (None, Some(hidden)) => {
                wrong(format!("{} elements of activation for {rows} rows of {}", hidden.len(), self.hidden))
            }
        }
    }

    /// Takes the pages out of the sessions of a checked step, and notes its ids.
    fn begin(&mut self, step: &Step) -> Vec<Slice> {
        let mut slices = Vec::with_capacity(step.sequences.len());
        let mut first = 0;
        for &SequenceRows { session, position, rows, .. } in &step.sequences {
            if let Some(held) = self.sessions.get_mut(&session) {
                if self.parts.head.is_some() {
                    held.ids.truncate(position);
                    held.ids.extend_from_slice(&step.ids[first..first + rows]);
                }
                slices.push(Slice { pages: std::mem::take(&mut held.pages), first, rows, position });
            }
            first += rows;
        }
        slices
    }

    fn compute(&self, step: &Step, slices: Vec<Slice>) -> (Result<StepOutput, EngineError>, Vec<Slice>) {
        let positions: Vec<usize> = slices.iter().flat_map(|s| s.position..s.position + s.rows).collect();
        let ropes = self.parts.ropes.iter().map(|frequencies| frequencies.table(&positions)).collect();
        let mut batch = Batch { simd: self.simd, cache: &self.cache, ropes, slices };
        let outcome = self.forward(step, &mut batch).map_err(EngineError::from).and_then(|x| match &self.parts.head {
            Some(head) => self.sample(step, head, &x).map(StepOutput::Sampled),
            None => Ok(StepOutput::Hidden(ops::read(&x, <[f32]>::to_vec)?)),
        });
        (outcome, batch.slices)
    }

    /// The last hidden state: (rows, hidden).
    fn forward(&self, step: &Step, batch: &mut Batch<'_>) -> candle_core::Result<Tensor> {
        let rows = step.ids.len();
        let hidden = match (&self.parts.embedding, &step.hidden) {
            (Some(table), _) => {
                let mut rows = table.matrix.look_up(self.simd, &step.ids);
                rows.iter_mut().for_each(|x| *x *= self.embedding_scale);
                rows
            }
            (None, hidden) => hidden.clone().unwrap_or_default(),
        };
        let x = Tensor::from_vec(hidden, (rows, self.hidden), &Device::Cpu)?;
        self.parts.blocks.iter().try_fold(x, |x, block| block.forward(&x, batch))
    }

    fn sample(&self, step: &Step, head: &Head, x: &Tensor) -> Result<Vec<SampledRow>, EngineError> {
        let wanted = wanted(step);
        let mut sampled = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(LOGIT_ROWS) {
            let rows: Vec<u32> = wanted.iter().map(|w| w.row as u32).collect();
            let rows = x.index_select(&Tensor::from_vec(rows, wanted.len(), &Device::Cpu)?, 0)?;
            let logits = project(self.simd, &rows, Some(&head.norm), &[&head.matrix])?; // (wanted, vocab)
            let chunk: Result<Vec<_>, _> = ops::read(&logits, |logits| {
                let rows = logits.par_chunks_exact(self.vocab).zip(wanted);
                rows.map(|(logits, wanted)| self.sample_row(logits, wanted)).collect()
            })?;
            sampled.extend(chunk?);
        }
        Ok(sampled)
    }

    fn sample_row(&self, logits: &[f32], wanted: &Wanted) -> Result<SampledRow, EngineError> {
        let Wanted { session, position, target, .. } = *wanted;
        let held = self.sessions.get(&session).ok_or(EngineError::UnknownSession { session })?;
        let row = held.sampling.sample(self.simd, logits, &held.ids[..=position], target);
        row.ok_or(EngineError::NonFinite { session, position })
    }
}

/// Rows of logits that are in memory at once: a row of a large vocabulary is a megabyte.
const LOGIT_ROWS: usize = 32;

fn wanted(step: &Step) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    let mut start = 0;
    for &SequenceRows { session, position, rows, wants } in &step.sequences {
        let end = start + rows;
        let first = match wants {
            Wants::None => end,
            Wants::Last => end - 1,
            Wants::All => start,
        };
        wanted.extend((first..end).map(|row| {
            let target = (row + 1 < end).then(|| step.ids[row + 1]);
            Wanted { row, session, position: position + row - start, target }
        }));
        start = end;
    }
    wanted
}

#[cfg(test)]
mod tests;
