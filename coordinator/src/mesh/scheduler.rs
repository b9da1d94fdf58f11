//! Which rows travel in the next step: a state machine without IO or clock.
//!
//! A sequence's ids are all that matters. `sent` counts those that went out under the present plan; whatever lies between
//! `sent` and the end of `ids` is ready to go, one token in decode and a chunk in prefill. A lost plan sets `sent` back to
//! zero, and the ids are computed again under the next one: the stream goes on with the same text.
//!
//! Books: a sequence's reserved positions are counted from `open` to `close`; every step in flight is in `steps`; both are
//! empty when nothing runs (`Scheduler::is_idle`).

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use qmesh_net::{
    Frame, FrameKind, OpenSession, PlanEpoch, Sampled, Segment, SessionId, StepId, WireType, limits::FRAME_SEGMENTS,
};

use super::sequence::{Phase, Sequence};
use crate::generate::{ClientId, GenerateError, GenerateEvent, GenerateRequest};

/// Bounds that do not change while the mesh runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Positions of one session.
    pub(crate) context: usize,
    /// Positions of all sessions together, on every stage.
    pub(crate) kv_positions: usize,
    /// Rows of one step.
    pub(crate) chunk_rows: usize,
    /// Ids of the vocabulary.
    pub(crate) vocab: usize,
    /// Requests that may wait for room.
    pub(crate) waiting: usize,
    /// How long sequences wait for a lost pipeline to return.
    pub(crate) resume: Duration,
}

/// What the scheduler wants done.
#[derive(Debug)]
pub(crate) enum Action {
    /// To every stage.
    Open(OpenSession),
    /// To every stage.
    Close(SessionId),
    /// To stage 0.
    Frame(Frame),
    /// To whoever submitted the sequence.
    Deliver(SessionId, GenerateEvent),
}

/// The pipeline that steps run through.
#[derive(Clone, Copy, Debug)]
struct Pipeline {
    epoch: PlanEpoch,
    stages: usize,
}

/// Sequences, and the steps that carry them.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    pipeline: Option<Pipeline>,
    sequences: BTreeMap<SessionId, Sequence>,
    queue: VecDeque<SessionId>,
    steps: BTreeMap<StepId, Vec<SessionId>>,
    next_session: u64,
    next_step: u32,
    turn: u64,
    /// Tokens of prompts computed and tokens generated, since the start.
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            pipeline: None,
            sequences: BTreeMap::new(),
            queue: VecDeque::new(),
            steps: BTreeMap::new(),
            next_session: 1,
            next_step: 0,
            turn: 0,
            prompt_tokens: 0,
            generated_tokens: 0,
        }
    }

    /// Takes a request in; its events carry the session returned.
    ///
    /// # Errors
    /// What is wrong with the request itself, or a full queue.
    pub(crate) fn submit(&mut self, now: Instant, request: GenerateRequest) -> Result<SessionId, GenerateError> {
        self.check(&request)?;
        let session = SessionId(self.next_session);
        self.next_session += 1;
        self.sequences.insert(session, Sequence::new(now, request, self.limits.context));
        self.queue.push_back(session);
        Ok(session)
    }

    /// Nobody listens any more.
    pub(crate) fn cancel(&mut self, session: SessionId) -> Vec<Action> {
        self.end(session, None)
    }

    /// A pipeline stands: sequences that lost theirs start over, with all the ids they have.
    pub(crate) fn pipeline_up(&mut self, epoch: PlanEpoch, stages: usize) {
        self.pipeline = Some(Pipeline { epoch, stages });
    }

    /// The pipeline is gone, and with it every session and every step. Sequences wait for the next one, but for those
    /// that lost one too often without a token in between: what brings pipelines down may be their own rows.
    pub(crate) fn pipeline_down(&mut self, now: Instant, why: &str) -> Vec<Action> {
        self.pipeline = None;
        self.steps.clear();
        self.queue.clear();
        self.sequences.retain(|_, s| s.phase != Phase::Ending);
        for (&session, sequence) in &mut self.sequences {
            sequence.restart(now);
            self.queue.push_back(session);
        }
        let hopeless = self.sequences.iter().filter(|(_, s)| s.restarts > RESTARTS_MOST).map(|(&id, _)| id);
        let hopeless: Vec<_> = hopeless.collect();
        let error = GenerateError::WorkerLost { text: why.to_owned() };
        hopeless.into_iter().flat_map(|s| self.end(s, Some(GenerateEvent::Failed(error.clone())))).collect()
    }

    /// One stage has made room for the session.
    pub(crate) fn opened(&mut self, epoch: PlanEpoch, session: SessionId) {
        if self.is_current(epoch)
            && let Some(sequence) = self.sequences.get_mut(&session)
        {
            sequence.stage_opened();
        }
    }

    /// The session has failed on a stage, which took its rows out of the step: a step of its own does not come back.
    pub(crate) fn failed(&mut self, epoch: PlanEpoch, session: SessionId, text: &str) -> Vec<Action> {
        if !self.is_current(epoch) {
            return Vec::new();
        }
        self.steps.retain(|_, sessions| {
            sessions.retain(|&s| s != session);
            !sessions.is_empty()
        });
        if let Some(sequence) = self.sequences.get_mut(&session) {
            sequence.in_flight = 0;
        }
        self.end(session, Some(GenerateEvent::Failed(GenerateError::Fault { text: text.to_owned() })))
    }

    /// A step came out of the last stage; `rows` has the rows that were wanted, segment after segment.
    pub(crate) fn stepped(&mut self, now: Instant, frame: &Frame, mut rows: Vec<Sampled>) -> Vec<Action> {
        if !self.is_current(frame.epoch) {
            return Vec::new();
        }
        let Some(sessions) = self.steps.remove(&frame.step) else { return Vec::new() };
        for session in &sessions {
            if let Some(sequence) = self.sequences.get_mut(session) {
                sequence.in_flight -= 1;
                sequence.restarts = 0;
            }
        }
        let mut actions = Vec::new();
        for segment in frame.segments.iter().filter(|s| s.rows > 0) {
            let rest = rows.split_off((segment.rows as usize).min(rows.len()));
            let own = std::mem::replace(&mut rows, rest);
            actions.extend(self.take_rows(now, segment, own));
        }
        for session in sessions {
            actions.extend(self.close_if_over(session));
        }
        actions
    }

    /// Fails what has waited too long for a pipeline.
    pub(crate) fn expire(&mut self, now: Instant, why: &str) -> Vec<Action> {
        if self.pipeline.is_some() {
            return Vec::new();
        }
        let late = |s: &&Sequence| s.waiting_since.is_some_and(|since| now - since > self.limits.resume);
        let sessions: Vec<_> = self.sequences.iter().filter(|(_, s)| late(s)).map(|(&id, _)| id).collect();
        let error = GenerateError::WorkerLost { text: why.to_owned() };
        sessions.into_iter().flat_map(|s| self.end(s, Some(GenerateEvent::Failed(error.clone())))).collect()
    }

    /// Admits what has room and fills steps, as far as credits reach.
    pub(crate) fn pump(&mut self, now: Instant) -> Vec<Action> {
        let Some(pipeline) = self.pipeline else { return Vec::new() };
        let mut actions = self.admit(pipeline);
        while self.steps.len() < CREDITS_PER_STAGE * pipeline.stages {
            let Some(frame) = self.fill_step(now, pipeline) else { break };
            actions.push(Action::Frame(frame));
        }
        actions
    }

    /// Sequences on the stages.
    pub(crate) fn running(&self) -> usize {
        self.sequences.len() - self.queue.len()
    }

    /// Sequences that wait for room.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Positions promised to sequences on the stages.
    pub(crate) fn positions_reserved(&self) -> usize {
        self.sequences.values().filter(|s| s.phase != Phase::Waiting).map(|s| pages(s.max_positions)).sum()
    }

    /// Nothing runs and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.sequences.is_empty() && self.queue.is_empty() && self.steps.is_empty()
    }

    fn is_current(&self, epoch: PlanEpoch) -> bool {
        self.pipeline.is_some_and(|p| p.epoch == epoch)
    }

    fn check(&self, request: &GenerateRequest) -> Result<(), GenerateError> {
        if self.queue.len() >= self.limits.waiting {
            return Err(GenerateError::QueueFull { waiting: self.queue.len() });
        }
        if request.ids.is_empty() {
            return Err(GenerateError::BadPrompt { text: "it is empty".to_owned() });
        }
        if let Some(id) = request.ids.iter().find(|&&id| id as usize >= self.limits.vocab) {
            let text = format!("id {id} is not in the vocabulary of {}", self.limits.vocab);
            return Err(GenerateError::BadPrompt { text });
        }
        let prompt_tokens = request.ids.len();
        if prompt_tokens + usize::from(request.max_tokens > 0) > self.limits.context {
            return Err(GenerateError::ContextExceeded { prompt_tokens, context: self.limits.context });
        }
        Ok(())
    }

    /// Opens waiting sequences while their reservations fit; the client with the fewest running goes first.
    fn admit(&mut self, pipeline: Pipeline) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(place) = self.next_in_queue() {
            let session = self.queue[place];
            let free = self.limits.kv_positions.saturating_sub(self.positions_reserved());
            let Some(sequence) = self.sequences.get_mut(&session) else { break };
            if pages(sequence.max_positions) > free {
                break;
            }
            self.queue.remove(place);
            sequence.phase = Phase::Opening { missing: pipeline.stages };
            let max_positions = u32::try_from(sequence.max_positions).unwrap_or(u32::MAX);
            let sampling = sequence.request.sampling.clone();
            actions.push(Action::Open(OpenSession { epoch: pipeline.epoch, session, max_positions, sampling }));
        }
        actions
    }

    fn next_in_queue(&self) -> Option<usize> {
        let running = |client: ClientId| {
            self.sequences.values().filter(|s| s.request.client == client && s.phase != Phase::Waiting).count()
        };
        (0..self.queue.len()).min_by_key(|&i| self.sequences.get(&self.queue[i]).map(|s| running(s.request.client)))
    }

    /// One frame with what is ready: decode rows first, then prefill chunks in the rows that are left.
    fn fill_step(&mut self, now: Instant, pipeline: Pipeline) -> Option<Frame> {
        let mut ready: Vec<SessionId> =
            self.sequences.iter().filter(|(_, s)| s.is_ready()).map(|(&session, _)| session).collect();
        ready.sort_by_key(|s| self.sequences.get(s).map(|s| (s.unsent() > 1, s.turn)));
        let decoding = self.sequences.values().filter(|s| s.is_decoding()).count();
        // One group per stage, so that no stage waits for the whole crowd to come round.
        let mut decode_rows_left = decoding.div_ceil(pipeline.stages).max(1);
        let mut rows_left = self.limits.chunk_rows;
        let mut frame = self.empty_frame(pipeline);
        for session in ready {
            let Some(sequence) = self.sequences.get_mut(&session) else { continue };
            let decodes = sequence.unsent() == 1;
            if rows_left == 0 || frame.segments.len() == FRAME_SEGMENTS || (decodes && decode_rows_left == 0) {
                continue;
            }
            let (segment, ids) = sequence.next_segment(now, session, rows_left);
            decode_rows_left -= usize::from(decodes);
            rows_left = rows_left.saturating_sub(ids.len());
            self.turn += 1;
            sequence.turn = self.turn;
            frame.segments.push(segment);
            frame.ids.extend(ids);
        }
        if frame.segments.is_empty() {
            return None;
        }
        self.steps.insert(frame.step, frame.segments.iter().map(|s| s.session).collect());
        self.next_step = self.next_step.wrapping_add(1);
        Some(frame)
    }

    fn empty_frame(&self, pipeline: Pipeline) -> Frame {
        Frame {
            kind: FrameKind::Tokens,
            wire: WireType::F32,
            epoch: pipeline.epoch,
            step: StepId(self.next_step),
            width: 0,
            segments: Vec::new(),
            ids: Vec::new(),
            payload: Bytes::new(),
        }
    }

    fn take_rows(&mut self, now: Instant, segment: &Segment, rows: Vec<Sampled>) -> Vec<Action> {
        let session = segment.session;
        let Some(sequence) = self.sequences.get_mut(&session).filter(|s| s.phase == Phase::Running) else {
            return Vec::new();
        };
        let (events, prompt_tokens, generated) = sequence.take_rows(now, segment, rows);
        self.prompt_tokens += prompt_tokens;
        self.generated_tokens += generated;
        events.into_iter().map(|event| Action::Deliver(session, event)).collect()
    }

    /// Ends a sequence with a last event, or with none when nobody listens.
    fn end(&mut self, session: SessionId, last: Option<GenerateEvent>) -> Vec<Action> {
        let Some(sequence) = self.sequences.get_mut(&session) else { return Vec::new() };
        let told = last.filter(|_| sequence.phase != Phase::Ending).map(|event| Action::Deliver(session, event));
        let mut actions: Vec<_> = told.into_iter().collect();
        if sequence.phase == Phase::Waiting {
            self.sequences.remove(&session);
            self.queue.retain(|&s| s != session);
        } else {
            sequence.phase = Phase::Ending;
            actions.extend(self.close_if_over(session));
        }
        actions
    }

    /// Closes an ended sequence once its last step is back, so that no stage meets a row of a closed session.
    fn close_if_over(&mut self, session: SessionId) -> Option<Action> {
        let over = self.sequences.get(&session).is_some_and(|s| s.phase == Phase::Ending && s.in_flight == 0);
        over.then(|| {
            self.sequences.remove(&session);
            Action::Close(session)
        })
    }
}

/// Positions as the pages of the KV cache count them.
fn pages(positions: usize) -> usize {
    positions.next_multiple_of(PAGE_POSITIONS)
}

/// Positions of a KV page: what a stage reserves at a time.
const PAGE_POSITIONS: usize = 64;
/// Steps in flight per stage: one computes, one waits.
const CREDITS_PER_STAGE: usize = 2;
/// Pipelines that a sequence may lose between two of its tokens.
const RESTARTS_MOST: usize = 3;

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
