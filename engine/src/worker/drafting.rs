//! A small model, whole on the coordinator's machine, that says what may follow in the sessions of a mesh.
//!
//! Sessions that wait for drafts share steps: each has its next row in it, or the next part of the ids that it has not computed
//! yet. Tokens are drawn as the mesh draws them, by the same parameters and with the same noise, so that they are the same where
//! both models mean the same. What the mesh has taken is told with the next order, and is written over what was drafted.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    ops::ControlFlow,
    sync::mpsc::{self, Receiver, SyncSender, TryRecvError},
    thread,
    time::Instant,
};

use qmesh_models::footprint::{DRAFT_READ_ROWS, PAGE_POSITIONS};
use qmesh_net::{Digest, DraftAnswer, DraftOrder, Piped, Sampling, SessionId, body_bytes};

use super::compute::sampling_parameters;
use crate::{
    backend::LoadedShard,
    error::EngineError,
    sample::SamplingParameters,
    step::{SequenceRows, Step, StepOutput, Wants},
};

/// A model that drafts, and its sessions.
#[derive(Debug)]
pub struct DraftingModel {
    shard: Box<dyn LoadedShard>,
    vocab: usize,
    /// Positions of one session.
    context: usize,
    /// Positions of all sessions.
    kv_positions: usize,
    sessions: BTreeMap<SessionId, Session>,
    /// Steps so far: tells which session was not asked for longest.
    turn: u64,
}

/// Its bounds.
#[derive(Clone, Copy, Debug)]
pub struct DraftingRoom {
    /// Ids of its vocabulary.
    pub vocab: usize,
    /// Positions of one session.
    pub context: usize,
    /// Positions of all sessions together: as many as the shard was loaded with.
    pub kv_positions: usize,
}

#[derive(Debug)]
struct Session {
    sampling: SamplingParameters,
    /// What the mesh has of it.
    told: Vec<u32>,
    /// Ids that the shard has computed.
    held: Vec<u32>,
    /// Positions for which it has room on the shard, in whole pages; 0 where it is not open there.
    room: usize,
    job: Option<Job>,
    turn: u64,
}

/// Tokens that are being drafted.
#[derive(Debug)]
struct Job {
    most: usize,
    drafted: Vec<u32>,
    /// When the first and the last of them were there.
    times: Option<(Instant, Instant)>,
}

impl DraftingModel {
    /// One whose `shard` is all of a model, without sessions.
    pub fn new(shard: Box<dyn LoadedShard>, room: DraftingRoom) -> Self {
        let DraftingRoom { vocab, context, kv_positions } = room;
        let context = context.min(kv_positions);
        Self { shard, vocab, context, kv_positions, sessions: BTreeMap::new(), turn: 0 }
    }

    /// Takes an order in. What cannot be done is answered at once.
    pub fn order(&mut self, order: DraftOrder) -> Option<DraftAnswer> {
        match order {
            DraftOrder::Open { session, sampling } => {
                self.close(session);
                let sampling = sampling_parameters(Sampling { top: 0, digest: Digest::Off, ..sampling });
                let (told, held) = (Vec::new(), Vec::new());
                self.sessions.insert(session, Session { sampling, told, held, room: 0, job: None, turn: 0 });
                None
            }
            DraftOrder::Draft { session, from, ids, most } => {
                let failed = |text: String| Some(DraftAnswer::Failed { session, text });
                let Some(drafting) = self.sessions.get_mut(&session) else {
                    return failed("no such session".to_owned());
                };
                if drafting.told.len() != from as usize {
                    return failed(format!("{} ids were told, these are from {from} on", drafting.told.len()));
                }
                if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab) {
                    return failed(format!("id {id} is not in the vocabulary of {}", self.vocab));
                }
                drafting.told.extend(ids);
                drafting.job = (most > 0).then(|| Job { most: most as usize, drafted: Vec::new(), times: None });
                None
            }
            DraftOrder::Close { session } => {
                self.close(session);
                None
            }
        }
    }

    /// Whether drafts are wanted that are not there yet.
    pub fn is_busy(&self) -> bool {
        self.sessions.values().any(|session| session.job.is_some())
    }

    /// Computes one step, and says what is finished with it.
    pub fn step(&mut self) -> Vec<DraftAnswer> {
        let mut answers = self.end_full();
        let Some(step) = self.fill(&mut answers) else { return answers };
        match self.shard.step(&step) {
            Ok(StepOutput::Sampled(samples)) => {
                let mut rows = samples.rows.into_iter();
                let mut start = 0;
                for sequence in &step.sequences {
                    let end = start + sequence.rows;
                    let token = if sequence.wants == Wants::Last { rows.next() } else { None };
                    let token = token.map(|row| row.map(|row| row.token)).transpose();
                    answers.extend(self.computed(sequence, &step.ids[start..end], token));
                    start = end;
                }
            }
            Ok(StepOutput::Hidden(_)) => answers.extend(self.fail_all(&step, "it is no whole model")),
            Err(error) => answers.extend(self.fail_all(&step, &error.to_string())),
        }
        answers.extend(self.end_full());
        answers
    }

    /// The next rows of all sessions that wait for drafts.
    fn fill(&mut self, answers: &mut Vec<DraftAnswer>) -> Option<Step> {
        let waiting = self.sessions.iter().filter(|(_, session)| session.job.is_some());
        let waiting: Vec<SessionId> = waiting.map(|(&session, _)| session).collect();
        // Who has much to read holds nobody up for long.
        let most = if waiting.len() > 1 { READ_BESIDE } else { DRAFT_READ_ROWS };
        let mut step = Step::default();
        self.turn += 1;
        for session in waiting {
            let Some((position, ids, wants)) = self.next_rows(session, most) else { continue };
            match self.make_room(session, position + ids.len()) {
                Ok(()) => {}
                // There may be room later.
                Err(EngineError::KvFull { .. }) => {
                    answers.extend(self.finish(session));
                    continue;
                }
                Err(error) => {
                    answers.extend(self.fail(session, &error.to_string()));
                    continue;
                }
            }
            step.sequences.push(SequenceRows { session: session.0, position, rows: ids.len(), wants });
            step.ids.extend(ids);
        }
        (!step.ids.is_empty()).then_some(step)
    }

    /// What a session computes next: from where on, which ids, and what is wanted of them.
    fn next_rows(&mut self, session: SessionId, most: usize) -> Option<(usize, Vec<u32>, Wants)> {
        let drafting = self.sessions.get_mut(&session)?;
        let job = drafting.job.as_ref()?;
        drafting.turn = self.turn;
        let wanted = || drafting.told.iter().chain(&job.drafted);
        let length = drafting.told.len() + job.drafted.len();
        let same = wanted().zip(&drafting.held).take_while(|(a, b)| a == b).count();
        // After the last row the next token is drawn, so that row is computed in any case.
        let position = same.min(length.checked_sub(1)?);
        let ids: Vec<u32> = wanted().skip(position).take(most).copied().collect();
        let wants = if position + ids.len() == length { Wants::Last } else { Wants::None };
        Some((position, ids, wants))
    }

    /// Sees to it that a session has so many positions on the shard: whoever was not asked for longest is forgotten there.
    fn make_room(&mut self, session: SessionId, positions: usize) -> Result<(), EngineError> {
        let needed = positions.next_multiple_of(PAGE_POSITIONS);
        let others = |model: &Self| -> usize {
            model.sessions.iter().filter(|(other, _)| **other != session).map(|(_, other)| other.room).sum()
        };
        while others(self) + needed > self.kv_positions {
            let idle = self.sessions.iter().filter(|(other, s)| **other != session && s.room > 0 && s.job.is_none());
            let idle = idle.min_by_key(|(_, s)| s.turn).map(|(&other, _)| other);
            let free = self.kv_positions.saturating_sub(others(self));
            self.forget(idle.ok_or(EngineError::KvFull { session: session.0, needed, free })?);
        }
        let Some(drafting) = self.sessions.get_mut(&session) else { return Ok(()) };
        if drafting.room == 0 {
            self.shard.open(session.0, self.context, drafting.sampling.clone())?;
        }
        drafting.room = drafting.room.max(needed);
        Ok(())
    }

    /// Takes in what came of a session's rows.
    fn computed(
        &mut self,
        rows: &SequenceRows,
        ids: &[u32],
        token: Result<Option<u32>, EngineError>,
    ) -> Option<DraftAnswer> {
        let session = SessionId(rows.session);
        let token = match token {
            Ok(token) => token,
            Err(error) => return self.fail(session, &error.to_string()),
        };
        let drafting = self.sessions.get_mut(&session)?;
        drafting.held.truncate(rows.position);
        drafting.held.extend(ids);
        if let (Some(job), Some(token)) = (&mut drafting.job, token) {
            let now = Instant::now();
            job.times = Some((job.times.map_or(now, |(first, _)| first), now));
            job.drafted.push(token);
        }
        None
    }

    /// Ends the jobs that have all that was wanted, or all that there is room for.
    fn end_full(&mut self) -> Vec<DraftAnswer> {
        let is_full = |session: &Session| {
            let length = |job: &Job| session.told.len() + job.drafted.len();
            // The last draft is not computed.
            let beyond = |length: usize| length == 0 || length > self.context;
            session.job.as_ref().is_some_and(|job| job.drafted.len() >= job.most || beyond(length(job)))
        };
        let full: Vec<SessionId> =
            self.sessions.iter().filter(|(_, s)| is_full(s)).map(|(&session, _)| session).collect();
        full.into_iter().filter_map(|session| self.finish(session)).collect()
    }

    /// Ends a session's job with what it has.
    fn finish(&mut self, session: SessionId) -> Option<DraftAnswer> {
        let drafting = self.sessions.get_mut(&session)?;
        let Job { drafted: ids, times, .. } = drafting.job.take()?;
        let took = times.map(|(first, last)| last - first).unwrap_or_default();
        let token_us = took.as_micros() / ids.len().saturating_sub(1).max(1) as u128;
        let token_us = u32::try_from(token_us).unwrap_or(u32::MAX);
        let at = u32::try_from(drafting.told.len()).unwrap_or(u32::MAX);
        Some(DraftAnswer::Drafted { session, at, ids, token_us })
    }

    fn fail_all(&mut self, step: &Step, text: &str) -> Vec<DraftAnswer> {
        step.sequences.iter().filter_map(|sequence| self.fail(SessionId(sequence.session), text)).collect()
    }

    fn fail(&mut self, session: SessionId, text: &str) -> Option<DraftAnswer> {
        self.sessions.get_mut(&session)?.job.take()?;
        self.forget(session);
        Some(DraftAnswer::Failed { session, text: text.to_owned() })
    }

    fn close(&mut self, session: SessionId) {
        self.forget(session);
        self.sessions.remove(&session);
    }

    /// Frees what a session has on the shard.
    fn forget(&mut self, session: SessionId) {
        let Some(drafting) = self.sessions.get_mut(&session).filter(|drafting| drafting.room > 0) else { return };
        drafting.room = 0;
        drafting.held.clear();
        // It is open, so that there is nothing that could be refused.
        let _closed = self.shard.close(session.0);
    }
}

/// Drafts what is ordered, until nobody orders any more.
///
/// # Errors
/// The answers cannot be written; whoever wanted them is gone.
pub fn draft(model: &mut DraftingModel, orders: impl Read + Send + 'static, mut answers: impl Write) -> io::Result<()> {
    let (ordered, waiting) = mpsc::sync_channel(ORDERS_WAITING);
    thread::Builder::new().name("qmesh-orders".into()).spawn(move || read_orders(orders, &ordered))?;
    write(&mut answers, &[DraftAnswer::Ready])?;
    while let ControlFlow::Continue(said) = take_orders(model, &waiting) {
        write(&mut answers, &said)?;
        let drafted = model.step();
        write(&mut answers, &drafted)?;
    }
    Ok(())
}

/// Takes in all orders that have come, and waits for one where there is nothing else to do.
fn take_orders(model: &mut DraftingModel, waiting: &Receiver<DraftOrder>) -> ControlFlow<(), Vec<DraftAnswer>> {
    let mut said = Vec::new();
    loop {
        let order = if model.is_busy() || !said.is_empty() {
            match waiting.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Empty) => return ControlFlow::Continue(said),
                Err(TryRecvError::Disconnected) => return ControlFlow::Break(()),
            }
        } else {
            match waiting.recv() {
                Ok(order) => order,
                Err(mpsc::RecvError) => return ControlFlow::Break(()),
            }
        };
        said.extend(model.order(order));
    }
}

fn read_orders(mut from: impl Read, ordered: &SyncSender<DraftOrder>) {
    let mut next = || -> Option<DraftOrder> {
        let mut length = [0; 4];
        from.read_exact(&mut length).ok()?;
        let mut body = vec![0; body_bytes(length).ok()?];
        from.read_exact(&mut body).ok()?;
        DraftOrder::from_body(&body).inspect_err(|error| tracing::error!(%error, "an order to draft")).ok()
    };
    // Whoever takes the orders may be gone.
    while next().is_some_and(|order| ordered.send(order).is_ok()) {}
}

fn write(into: &mut impl Write, answers: &[DraftAnswer]) -> io::Result<()> {
    for answer in answers {
        into.write_all(&answer.to_pipe().map_err(io::Error::other)?)?;
    }
    into.flush()
}

/// Rows of a session's ids that are computed at a time beside other sessions that wait.
const READ_BESIDE: usize = 16;
/// Orders that wait; the pipe holds more.
const ORDERS_WAITING: usize = 64;

#[cfg(test)]
mod tests;
