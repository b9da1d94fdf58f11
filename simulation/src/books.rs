//! A backend that computes with hashes and keeps strict books: what no worker may do to its shards is a finding.

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroUsize,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use qmesh_engine::{
    backend::{Backend, HeldTensor, HeldTensors, LoadedShard, ShardRequest},
    error::EngineError,
    sample::SamplingParameters,
    step::{Prefix, RowSum, SampledRow, Samples, Step, StepOutput, SummedRows, WantedRow},
};
use qmesh_models::{footprint::PAGE_POSITIONS, spec::TensorRole};

use crate::{
    Plant,
    model::{self, Drawing, HIDDEN},
};

/// The books of one worker's process, which all its shards write into.
#[derive(Clone, Debug, Default)]
pub struct Books {
    kept: Arc<Mutex<Kept>>,
    /// Whether the next load fails.
    no_memory: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Kept {
    findings: Vec<String>,
    /// What each loaded shard has open, by the shard's number.
    shards: BTreeMap<u64, ShardBook>,
    loaded: u64,
}

/// What one loaded shard has open.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ShardBook {
    /// Its layers.
    pub layers: Range<usize>,
    /// Its sessions.
    pub sessions: Vec<u64>,
    /// KV positions that they hold.
    pub positions_used: usize,
}

impl Books {
    /// The next shard finds no memory.
    pub fn fail_next_load(&self) {
        self.no_memory.store(true, Ordering::Relaxed);
    }

    /// What was found since the last call.
    pub fn take_findings(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().findings)
    }

    /// What the loaded shards have open, the oldest shard first.
    pub fn shards(&self) -> Vec<ShardBook> {
        self.lock().shards.values().cloned().collect()
    }

    fn find(&self, text: String) {
        self.lock().findings.push(text);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Computes with hashes.
#[derive(Debug)]
pub struct HashBackend {
    /// Threads that it says it has.
    pub threads: NonZeroUsize,
    /// What its shards do is written here.
    pub books: Books,
    /// What is wrong with it on purpose.
    pub plant: Option<Plant>,
}

impl Backend for HashBackend {
    fn numerics(&self) -> Result<String, EngineError> {
        Ok("hash".to_owned())
    }

    fn threads(&self) -> NonZeroUsize {
        self.threads
    }

    fn load(
        &self,
        request: &ShardRequest<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Box<dyn LoadedShard>, EngineError> {
        let mut bytes_read = 0;
        for tensor in &request.spec.tensors {
            match request.held.get(&tensor.role) {
                None => bytes_read += tensor.bytes,
                Some(held) if held.get() == Some(&tensor.name) => {}
                Some(_) => self.books.find(format!("tensor {} was taken over from another tensor", tensor.name)),
            }
        }
        progress(bytes_read);
        if self.books.no_memory.swap(false, Ordering::Relaxed) {
            return Err(EngineError::OutOfMemory { needed: bytes_read, tensor: "the shard".to_owned() });
        }
        let ShardRequest { spec, layers, kv_positions, .. } = request;
        let tensors = spec.tensors.iter().map(|tensor| (tensor.role, tensor.name.clone())).collect();
        let mut kept = self.books.lock();
        kept.loaded += 1;
        let number = kept.loaded;
        kept.shards.insert(number, ShardBook { layers: layers.clone(), ..ShardBook::default() });
        Ok(Box::new(HashShard {
            number,
            layers: layers.clone(),
            of: spec.layers.len(),
            vocab: spec.vocab,
            pages: kv_positions.div_ceil(PAGE_POSITIONS),
            pages_used: 0,
            sessions: BTreeMap::new(),
            tensors,
            books: self.books.clone(),
            plant: self.plant,
        }))
    }
}

/// Some layers, and the sessions open there.
struct HashShard {
    number: u64,
    layers: Range<usize>,
    /// Layers of the whole model.
    of: usize,
    vocab: usize,
    /// The budget.
    pages: usize,
    pages_used: usize,
    sessions: BTreeMap<u64, Session>,
    tensors: BTreeMap<TensorRole, String>,
    books: Books,
    plant: Option<Plant>,
}

/// A session on one shard.
struct Session {
    drawing: Drawing,
    max_positions: usize,
    /// Positions at the beginning that are shared, and not written any more.
    fixed: usize,
    /// Of each position, what each layer remembers.
    memories: Vec<Vec<u64>>,
    /// Those taken; shared ones have several holders.
    pages: Vec<Arc<()>>,
}

impl HashShard {
    fn note(&self) {
        let (sessions, positions_used) = (self.sessions.keys().copied().collect(), self.kv_positions_used());
        let book = ShardBook { layers: self.layers.clone(), sessions, positions_used };
        self.books.lock().shards.insert(self.number, book);
    }

    /// Takes the pages that the sessions of a step lack. No coordinator lets it come to that there are none left.
    fn take_pages(&mut self, step: &Step) -> Result<(), EngineError> {
        for of in &step.sequences {
            let Some(held) = self.sessions.get_mut(&of.session) else { continue };
            while held.pages.len() * PAGE_POSITIONS < of.position + of.rows {
                if self.pages_used == self.pages {
                    self.books.find(format!("there is no page left for session {}", of.session));
                    return Err(EngineError::KvFull { session: of.session, needed: PAGE_POSITIONS, free: 0 });
                }
                self.pages_used += 1;
                held.pages.push(Arc::new(()));
            }
        }
        Ok(())
    }

    fn free(&mut self, pages: impl Iterator<Item = Arc<()>>) {
        let freed = pages.filter_map(Arc::into_inner).count();
        // A page that is freed twice makes room that is not there.
        let again = usize::from(self.plant == Some(Plant::PageFreedTwice) && freed > 0);
        match self.pages_used.checked_sub(freed + again) {
            Some(used) => self.pages_used = used,
            None => {
                self.pages_used = 0;
                self.books.find("more pages were freed than were in use".to_owned());
            }
        }
    }

    fn insert(
        &mut self,
        session: u64,
        max_positions: usize,
        sampling: &SamplingParameters,
        memories: Vec<Vec<u64>>,
        shared: Vec<Arc<()>>,
    ) -> Result<(), EngineError> {
        if self.sessions.contains_key(&session) {
            self.books.find(format!("session {session} was opened twice"));
            return Err(EngineError::SessionOpen { session });
        }
        let SamplingParameters { temperature, seed, sequence, .. } = *sampling;
        if max_positions > self.pages * PAGE_POSITIONS {
            return Err(EngineError::KvFull { session, needed: max_positions, free: self.pages * PAGE_POSITIONS });
        }
        let (drawing, fixed) = (Drawing { temperature, seed, sequence }, memories.len());
        self.sessions.insert(session, Session { drawing, max_positions, fixed, memories, pages: shared });
        self.note();
        Ok(())
    }

    fn check(&self, step: &Step) -> Result<(), EngineError> {
        for of in &step.sequences {
            let session = of.session;
            let held = self.sessions.get(&session).ok_or(EngineError::UnknownSession { session })?;
            if of.position > held.memories.len() {
                return Err(EngineError::Gap { session, need: held.memories.len() });
            }
            if of.position < held.fixed {
                let what = format!("session {session} shares its first {} positions", held.fixed);
                return Err(EngineError::Step { what });
            }
            let max_positions = held.max_positions;
            if of.position + of.rows > max_positions {
                return Err(EngineError::BeyondSession { session, position: of.position + of.rows - 1, max_positions });
            }
        }
        if step.hidden.is_some() == (self.layers.start == 0) {
            return Err(EngineError::Step { what: "rows for another stage".to_owned() });
        }
        Ok(())
    }

    /// The states after each row, where every row is one of its position.
    fn states(&mut self, step: &Step) -> Result<Vec<u64>, EngineError> {
        let (mut states, mut row) = (Vec::with_capacity(step.ids.len()), 0);
        for of in &step.sequences {
            let session = of.session;
            let Some(held) = self.sessions.get_mut(&session) else { continue };
            held.memories.truncate(of.position);
            for position in of.position..of.position + of.rows {
                let id = step.ids[row];
                if id as usize >= self.vocab {
                    return Err(EngineError::OutsideVocabulary { session, id, vocab: self.vocab });
                }
                let entered = match &step.hidden {
                    None => Some(model::embed(id)),
                    Some(rows) => model::from_row(&rows[row * HIDDEN..(row + 1) * HIDDEN], position),
                };
                let mut state = entered.unwrap_or_else(|| {
                    self.books.find(format!("a row of another position came for position {position} of {session}"));
                    0
                });
                let before = held.memories.last();
                let memories = self.layers.clone().enumerate().map(|(at, layer)| {
                    let (memory, out) = model::layer(layer, before.map(|layers| layers[at]), state);
                    state = out;
                    memory
                });
                let memories = memories.collect();
                held.memories.push(memories);
                states.push(state);
                row += 1;
            }
        }
        Ok(states)
    }

    fn sampled(&self, step: &Step, states: &[u64], wanted: &WantedRow) -> Result<SampledRow, EngineError> {
        let WantedRow { row, session, position, target } = *wanted;
        let unknown = Drawing { temperature: 0.0, seed: 0, sequence: 0 };
        let drawing = self.sessions.get(&session).map_or(unknown, |held| held.drawing);
        let drawn = model::sample(states[row], position, &drawing, target);
        let (logprob, target_logprob) = (drawn.logprob, drawn.target_logprob);
        let token = match step.allowed.get(&(session, position)) {
            None => Some(drawn.token),
            Some(allowed) => allowed.nearest(drawn.token, u32::try_from(self.vocab).unwrap_or(u32::MAX)),
        };
        let token = token.ok_or(EngineError::NothingAllowed { session, position })?;
        Ok(SampledRow { token, logprob, target_logprob, digest: drawn.digest, top: Vec::new() })
    }
}

/// The sum of the rows that these states are.
fn sum(states: &[u64], summed: &SummedRows) -> Result<RowSum, EngineError> {
    let SummedRows { session, ref rows, position } = *summed;
    let mut sum = RowSum::zeros(HIDDEN);
    for (position, row) in (position..).zip(rows.clone()) {
        let row = model::to_row(states[row], position);
        sum.add(&row).map_err(|_beyond| EngineError::NonFinite { session, position })?;
    }
    Ok(sum)
}

impl LoadedShard for HashShard {
    fn open(&mut self, session: u64, max_positions: usize, sampling: SamplingParameters) -> Result<(), EngineError> {
        self.insert(session, max_positions, &sampling, Vec::new(), Vec::new())
    }

    fn fork(
        &mut self,
        session: u64,
        max_positions: usize,
        sampling: SamplingParameters,
        prefix: Prefix,
    ) -> Result<(), EngineError> {
        let Prefix { session: source_session, positions } = prefix;
        let unknown = EngineError::UnknownSession { session: source_session };
        let held = self.sessions.get_mut(&source_session).ok_or(unknown)?;
        let there = held.memories.len();
        if positions > there || !positions.is_multiple_of(PAGE_POSITIONS) || positions >= max_positions {
            return Err(EngineError::Prefix { session, source_session, positions, held: there });
        }
        held.fixed = held.fixed.max(positions);
        let memories = held.memories[..positions].to_vec();
        let shared = held.pages[..positions / PAGE_POSITIONS].to_vec();
        self.insert(session, max_positions, &sampling, memories, shared)
    }

    fn keep(&mut self, session: u64, positions: usize) -> Result<(), EngineError> {
        let held = self.sessions.get_mut(&session).ok_or(EngineError::UnknownSession { session })?;
        if positions > held.memories.len() {
            self.books.find(format!("session {session} was to keep {positions} of {}", held.memories.len()));
        }
        held.memories.truncate(positions);
        held.max_positions = held.max_positions.min(positions);
        let left = held.memories.len().div_ceil(PAGE_POSITIONS);
        let freed = held.pages.split_off(left.min(held.pages.len()));
        self.free(freed.into_iter());
        self.note();
        Ok(())
    }

    fn close(&mut self, session: u64) -> Result<(), EngineError> {
        let Some(held) = self.sessions.remove(&session) else {
            self.books.find(format!("session {session} was closed and was not open"));
            return Err(EngineError::UnknownSession { session });
        };
        self.free(held.pages.into_iter());
        self.note();
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<StepOutput, EngineError> {
        self.check(step)?;
        self.take_pages(step)?;
        let states = self.states(step)?;
        self.note();
        if self.layers.end == self.of {
            let wanted = step.wanted_rows();
            let sampled = wanted.iter().map(|wanted| self.sampled(step, &states, wanted));
            let sums = step.summed_rows().into_iter().map(|summed| sum(&states, &summed)).collect();
            return Ok(StepOutput::Sampled(Samples { rows: sampled.collect(), sums }));
        }
        let positions = step.sequences.iter().flat_map(|of| of.position..of.position + of.rows);
        Ok(StepOutput::Hidden(states.iter().zip(positions).flat_map(|(&s, p)| model::to_row(s, p)).collect()))
    }

    fn kv_positions_used(&self) -> usize {
        self.pages_used * PAGE_POSITIONS
    }

    fn tensors(&self) -> HeldTensors {
        self.tensors.iter().map(|(role, name)| (*role, HeldTensor::new(name.clone()))).collect()
    }
}

impl Drop for HashShard {
    fn drop(&mut self) {
        self.books.lock().shards.remove(&self.number);
    }
}

impl fmt::Debug for HashShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashShard").field("layers", &self.layers).finish_non_exhaustive()
    }
}
