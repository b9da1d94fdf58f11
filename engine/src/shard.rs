//! A shard: a contiguous range of a model's layers, loaded, with the KV cache of its sessions.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use candle_core::{Device, Tensor};
pub use qmesh_kernels::attend::PAGE_POSITIONS;
use qmesh_kernels::{Cpu, buffer::release_freed, lanes::Simd};
use qmesh_models::{footprint::LOGIT_ROWS, spec::ModelSpec};
use qmesh_team::Team;

pub use crate::load::{PackedTensor, PackedTensors, TensorSource};
use crate::{
    batch::{Batch, Slice},
    cache::{Cache, Pages},
    error::EngineError,
    layer_input::LayerInputRows,
    linear::{Linear, LogitScaling, logits},
    load::{Head, Parts, load},
    ops,
    sample::{SamplingParameters, Unsampled},
    states::{StateShape, States, settled_after},
    step::{Prefix, RowSum, SampledRow, Samples, SequenceRows, Step, StepOutput, SummedRows, WantedRow},
};

/// A loaded range of layers. One thread owns it; it computes on a thread team of its own.
#[derive(Debug)]
pub struct Shard {
    simd: Simd,
    team: Team,
    hidden: usize,
    /// Elements that come behind each hidden state for the shard's layers and those behind it, and how many each takes.
    beside: Beside,
    vocab: usize,
    embedding_scale: f32,
    parts: Parts,
    /// What the parts are made of, for other shards to share.
    tensors: PackedTensors,
    cache: Cache,
    /// What each layer holds of a session beside its part of the cache.
    state_shapes: Vec<StateShape>,
    sessions: HashMap<u64, Session>,
}

/// What layers take in of each row beside the hidden state.
#[derive(Clone, Copy, Debug)]
struct Beside {
    /// The shard's layers and all behind it.
    layers: usize,
    /// Elements that each takes; 0 where they take none.
    width: usize,
}

#[derive(Debug)]
struct Session {
    pages: Pages,
    states: States,
    max_positions: usize,
    sampling: SamplingParameters,
    /// Id of each position, kept by the last stage only.
    ids: Vec<u32>,
}

impl Shard {
    /// Loads `layers` of the model: reads each tensor once, as it is, unless another shard holds it. `spec` lists all
    /// layers and at least the tensors of this shard; `kv_positions` is the KV budget (rounded up to pages of
    /// [`PAGE_POSITIONS`]), allocated as it is used; `progress` is told the bytes read so far after each tensor.
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

    /// Opens a session of at most `max_positions` positions. It takes pages as it comes to need them.
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
        self.check_size(session, max_positions)?;
        let (pages, states) = (Pages::default(), States::new(&self.state_shapes)?);
        self.sessions.insert(session, Session { pages, states, max_positions, sampling, ids: Vec::new() });
        Ok(())
    }

    /// Opens a session as [`Shard::open`] does, which begins with `prefix`: it shares that session's pages.
    pub fn fork(
        &mut self,
        session: u64,
        max_positions: usize,
        sampling: SamplingParameters,
        prefix: Prefix,
    ) -> Result<(), EngineError> {
        let Prefix { session: source, positions } = prefix;
        if self.sessions.contains_key(&session) {
            return Err(EngineError::SessionOpen { session });
        }
        sampling.check(self.vocab)?;
        self.check_size(session, max_positions)?;
        let states = States::new(&self.state_shapes)?;
        let held = self.sessions.get_mut(&source).ok_or(EngineError::UnknownSession { session: source })?;
        if states.are_some() {
            return Err(EngineError::Prefix { session, source_session: source, positions, held: 0 });
        }
        if positions > held.pages.len || !positions.is_multiple_of(PAGE_POSITIONS) || positions >= max_positions {
            return Err(EngineError::Prefix { session, source_session: source, positions, held: held.pages.len });
        }
        let pages = self.cache.fork(&mut held.pages, positions);
        let ids = held.ids.get(..positions).unwrap_or_default().to_vec();
        self.sessions.insert(session, Session { pages, states, max_positions, sampling, ids });
        Ok(())
    }

    /// Leaves a session its first `positions` only, and frees what it has beyond their pages.
    pub fn keep(&mut self, session: u64, positions: usize) -> Result<(), EngineError> {
        let held = self.sessions.get_mut(&session).ok_or(EngineError::UnknownSession { session })?;
        self.cache.shorten(&mut held.pages, positions);
        held.max_positions = held.max_positions.min(positions);
        held.ids.truncate(positions);
        Ok(())
    }

    /// Closes a session and frees its pages; one that is not open is an error that changes nothing.
    pub fn close(&mut self, session: u64) -> Result<(), EngineError> {
        let closed = self.sessions.remove(&session).ok_or(EngineError::UnknownSession { session })?;
        self.cache.release(closed.pages);
        Ok(())
    }

    /// KV positions that open sessions hold, whole pages.
    pub fn kv_positions_used(&self) -> usize {
        self.cache.used_positions()
    }

    /// Its tensors, for other shards to share.
    pub fn tensors(&self) -> &PackedTensors {
        &self.tensors
    }

    /// The instruction set that the kernels run on, as `QMESH_SIMD` names it.
    pub fn simd(&self) -> &'static str {
        self.simd.name()
    }

    /// Computes one step. A refused step leaves every session as it was; one that fails in the middle leaves its
    /// sessions at `position`, without the step's rows, and so does a session after whose rows nothing can be sampled.
    pub fn step(&mut self, step: &Step) -> Result<StepOutput, EngineError> {
        self.check(step)?;
        for sequence in &step.sequences {
            // Checked above, as in the next loops; growing a session's memory does not change what it holds.
            if let Some(session) = self.sessions.get_mut(&sequence.session) {
                self.cache.extend(&mut session.pages, sequence.position + sequence.rows)?;
            }
        }
        let slices = self.begin(step);
        let (outcome, slices) = self.compute(step, slices);
        let failed = failed_sessions(step, &outcome);
        for (sequence, slice) in step.sequences.iter().zip(slices) {
            if let Some(session) = self.sessions.get_mut(&sequence.session) {
                let end = sequence.position + sequence.rows;
                (session.pages, session.states) = (slice.pages, slice.states);
                let is_whole = outcome.is_ok() && !failed.contains(&sequence.session);
                session.pages.len = if is_whole { end } else { sequence.position };
                session.ids.truncate(session.pages.len);
                // Where a step broke off in the middle, states may have some of its rows: they are of no use any more.
                let settled = if outcome.is_ok() { settled_after(sequence.position, end) } else { usize::MAX };
                session.states.settled = settled;
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
        let team = Team::new(threads)?;
        release_freed();
        let (parts, tensors) = load(Cpu { simd, team: &team }, spec, &layers, source, progress)?;
        release_freed();
        let state_shapes = spec.layers[layers.clone()].iter().map(StateShape::of).collect();
        let ModelSpec { hidden, vocab, embedding_scale, .. } = *spec;
        let width = spec.layer_inputs.map_or(0, |inputs| inputs.width);
        let beside = Beside { layers: spec.layers.len() - layers.start, width };
        let cache = Cache::new(spec.layers[layers].iter().map(|layer| &layer.mixer), kv_positions);
        let sessions = HashMap::new();
        Ok(Self { simd, team, hidden, beside, vocab, embedding_scale, parts, tensors, cache, state_shapes, sessions })
    }

    /// Whether a session of so many positions could ever be held.
    fn check_size(&self, session: u64, max_positions: usize) -> Result<(), EngineError> {
        // Positions are 32 bits wide in the key of the sampling noise.
        if u32::try_from(max_positions).is_ok() && self.cache.is_large_enough(max_positions) {
            return Ok(());
        }
        Err(EngineError::KvFull { session, needed: max_positions, free: self.cache.free_positions() })
    }

    fn check(&self, step: &Step) -> Result<(), EngineError> {
        let wrong = |what: String| Err(EngineError::Step { what });
        let (mut seen, mut free) = (HashSet::new(), self.cache.free_positions());
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
            if position < held.pages.fixed() {
                return wrong(format!("session {session} shares its first {} positions", held.pages.fixed()));
            }
            if !held.states.can_go_on_from(position) {
                return Err(EngineError::Settled { session, position, settled: held.states.settled });
            }
            let max_positions = held.max_positions;
            if rows > max_positions - position {
                let position = position.saturating_add(rows - 1);
                return Err(EngineError::BeyondSession { session, position, max_positions });
            }
            let needed = held.pages.lacks(position + rows);
            free = free.checked_sub(needed).ok_or(EngineError::KvFull { session, needed, free })?;
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
            (None, Some(hidden)) if hidden.len() == rows * self.incoming() => Ok(()),
            (None, Some(hidden)) => {
                wrong(format!("{} elements of activation for {rows} rows of {}", hidden.len(), self.incoming()))
            }
        }
    }

    /// Elements of a row that comes from an earlier stage.
    fn incoming(&self) -> usize {
        self.hidden + self.beside.layers * self.beside.width
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
                let (pages, mut states) = (std::mem::take(&mut held.pages), std::mem::take(&mut held.states));
                if position == 0 {
                    states.clear();
                }
                slices.push(Slice { pages, states, first, rows, position });
            }
            first += rows;
        }
        slices
    }

    fn compute(&self, step: &Step, slices: Vec<Slice>) -> (Result<StepOutput, EngineError>, Vec<Slice>) {
        let positions: Vec<usize> = slices.iter().flat_map(|s| s.position..s.position + s.rows).collect();
        let ropes = self.parts.ropes.iter().map(|frequencies| frequencies.table(&self.team, &positions)).collect();
        let layer_inputs = LayerInputRows::default();
        let mut batch = Batch { cpu: self.cpu(), cache: &self.cache, ropes, slices, chosen: Vec::new(), layer_inputs };
        let outcome = match &self.parts.head {
            Some(head) => self.compute_last(step, head, &mut batch).map(StepOutput::Sampled),
            None => self.forward(step, &mut batch).map(StepOutput::Hidden),
        };
        (outcome, batch.slices)
    }

    fn cpu(&self) -> Cpu<'_> {
        Cpu { simd: self.simd, team: &self.team }
    }

    /// The last hidden state of every row, and behind it what later layers take in: row after row.
    fn forward(&self, step: &Step, batch: &mut Batch<'_>) -> Result<Vec<f32>, EngineError> {
        let x = self.begin_rows(step, batch)?;
        let x = self.parts.blocks.iter().try_fold(x, |x, block| block.forward(&x, batch))?;
        let hidden = ops::read(&x, <[f32]>::to_vec)?;
        Ok(batch.layer_inputs.joined(hidden, self.parts.blocks.len()))
    }

    /// What the last stage samples: its last block and the head compute only the rows that are wanted.
    fn compute_last(&self, step: &Step, head: &Head, batch: &mut Batch<'_>) -> Result<Samples, EngineError> {
        let (wanted, summed) = (step.wanted_rows(), step.summed_rows());
        // First those that are sampled after, then those that are summed.
        let rows = wanted.iter().map(|w| w.row).chain(summed.iter().flat_map(|s| s.rows.clone())).collect::<Vec<_>>();
        let mut x = self.begin_rows(step, batch)?;
        if let Some((last, blocks)) = self.parts.blocks.split_last() {
            x = blocks.iter().try_fold(x, |x, block| block.forward(&x, batch))?;
            x = last.forward_rows(&x, batch, &rows)?;
        }
        let sums = self.sum(&summed, head, &x, wanted.len())?;
        Ok(Samples { rows: self.sample(step, &wanted, head, &x)?, sums })
    }

    /// What goes into the first block, (rows, hidden), and into the batch what layers take in beside.
    fn begin_rows(&self, step: &Step, batch: &mut Batch<'_>) -> candle_core::Result<Tensor> {
        let shape = (step.ids.len(), self.hidden);
        match &self.parts.embedding {
            Some(table) => {
                let x = Tensor::from_vec(self.embed(table, &step.ids), shape, &Device::Cpu)?;
                if let Some(maker) = &self.parts.layer_inputs {
                    batch.layer_inputs = maker.make(self.cpu(), &step.ids, &x)?;
                }
                Ok(x)
            }
            None => {
                let mut hidden = step.hidden.clone().unwrap_or_default();
                let Beside { layers, width } = self.beside;
                if width > 0 {
                    batch.layer_inputs = LayerInputRows::split(&mut hidden, self.hidden, layers, width);
                }
                Tensor::from_vec(hidden, shape, &Device::Cpu)
            }
        }
    }

    /// What tokens are embedded to: (rows, hidden).
    fn embed(&self, table: &Linear, ids: &[u32]) -> Vec<f32> {
        const TOGETHER: usize = 16;
        let mut hidden = vec![0.0; ids.len() * self.hidden];
        let tasks = ids.chunks(TOGETHER).zip(hidden.chunks_mut(TOGETHER * self.hidden)).collect();
        self.team.each(tasks, |(ids, hidden): (&[u32], &mut [f32])| {
            table.matrix.look_up(self.simd, ids, hidden);
            hidden.iter_mut().for_each(|x| *x *= self.embedding_scale);
        });
        hidden
    }

    /// The sums of rows of `x` from `first` on, each of which is one of `summed` in its turn.
    fn sum(
        &self,
        summed: &[SummedRows],
        head: &Head,
        x: &Tensor,
        mut first: usize,
    ) -> Result<Vec<Result<RowSum, EngineError>>, EngineError> {
        let mut sums = Vec::with_capacity(summed.len());
        for SummedRows { session, rows, position } in summed {
            let normed = x.narrow(0, first, rows.len())?;
            let sum = ops::read(&normed, |x| self.sum_rows(head, x))?;
            sums.push(sum.map_err(|row| EngineError::NonFinite { session: *session, position: position + row }));
            first += rows.len();
        }
        Ok(sums)
    }

    /// The sum of rows after the final norm, or the first one that cannot be summed.
    fn sum_rows(&self, head: &Head, x: &[f32]) -> Result<RowSum, usize> {
        let mut sum = RowSum::zeros(self.hidden);
        for (at, rows) in x.chunks(LOGIT_ROWS * self.hidden).enumerate() {
            let mut normed = rows.to_vec();
            head.norm.apply(self.cpu(), &mut normed);
            for (row, normed) in normed.chunks_exact(self.hidden).enumerate() {
                sum.add(normed).map_err(|_beyond| at * LOGIT_ROWS + row)?;
            }
        }
        Ok(sum)
    }

    /// Samples after the first rows of `x`, which are those wanted.
    fn sample(
        &self,
        step: &Step,
        wanted: &[WantedRow],
        head: &Head,
        x: &Tensor,
    ) -> Result<Vec<Result<SampledRow, EngineError>>, EngineError> {
        let mut sampled = Vec::with_capacity(wanted.len());
        for (at, wanted) in wanted.chunks(LOGIT_ROWS).enumerate() {
            let rows = x.narrow(0, at * LOGIT_ROWS, wanted.len())?;
            let scaling = LogitScaling { scale: head.scale, soft_cap: head.soft_cap };
            let logits = logits(self.cpu(), &rows, &head.norm, &head.matrix, scaling)?; // (wanted, vocab)
            let chunk: Vec<_> = ops::read(&logits, |logits| {
                let rows = logits.chunks_exact(self.vocab).zip(wanted).collect();
                self.team.map(rows, |(logits, wanted): (&[f32], &WantedRow)| self.sample_row(step, logits, wanted))
            })?;
            sampled.extend(chunk);
        }
        Ok(sampled)
    }

    fn sample_row(&self, step: &Step, logits: &[f32], wanted: &WantedRow) -> Result<SampledRow, EngineError> {
        let WantedRow { session, position, target, .. } = *wanted;
        let held = self.sessions.get(&session).ok_or(EngineError::UnknownSession { session })?;
        let allowed = step.allowed.get(&(session, position));
        let row = held.sampling.sample(self.simd, logits, allowed, &held.ids[..=position], target);
        row.map_err(|unsampled| match unsampled {
            Unsampled::NotFinite => EngineError::NonFinite { session, position },
            Unsampled::NothingAllowed => EngineError::NothingAllowed { session, position },
        })
    }
}

/// Those after whose rows nothing could be sampled, or whose rows could not be summed.
fn failed_sessions(step: &Step, outcome: &Result<StepOutput, EngineError>) -> HashSet<u64> {
    match outcome {
        Ok(StepOutput::Sampled(samples)) => samples.failures(step).into_iter().map(|(session, _)| session).collect(),
        Ok(StepOutput::Hidden(_)) | Err(_) => HashSet::new(),
    }
}

#[cfg(test)]
mod tests;
