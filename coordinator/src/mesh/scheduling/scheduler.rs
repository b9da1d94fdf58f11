//! Which rows travel in the next step: a state machine without IO or clock.
//!
//! A sequence is its ids. `sent` counts those that went out under the present plan; whatever lies between `sent` and
//! the end of `ids` is ready to go: one id while it decodes, the rest of the prompt before that. A lost plan sets
//! `sent` back to zero, and the ids are computed again under the next one: the stream goes on with the same text. Where
//! the next pipeline stands before the present one is given up, they are computed there beforehand (`follow`).
//!
//! Room: a sequence gets what its ids take and a little more, and more as it grows. Where there is none left, the youngest gives
//! its own up and is computed again later (`room`).
//!
//! Books: the pages of every session on the stages are in `pages`, from `Open` to `Close`; every step in flight is in
//! `steps`. When nothing runs (`Scheduler::is_idle`), only beginnings that are kept for others hold pages.

mod admission;
mod answers;
mod drafts;
mod filling;
mod follow;
mod room;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use qmesh_net::{Frame, PlanEpoch, RowSum, Sampled, Segment, SessionId, StepId, StepTimes};

use super::{
    action::Action,
    draft_model::{DraftLimits, DraftModel},
    drafting::{DraftSource, Drafting},
    kept::Kept,
    pace::Pace,
    pages::PageLedger,
    phase::Phase,
    sequence::{Sequence, Taken},
    step::{Answer, Pipeline, StepUnderWay},
    successor::Successor,
};
use crate::{
    generate::{ClientId, GenerateError, GenerateEvent, GenerateRequest},
    grammar::GrammarError,
    mesh::{
        config::{PrefixReuse, Speculation},
        probe::TRIES_MOST,
        status::SequenceStatus,
    },
};

/// Bounds that do not change while the mesh runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Positions of one session.
    pub(crate) context: usize,
    /// Positions of all sessions together, on every stage.
    pub(crate) kv_positions: usize,
    /// Sessions at a time, where layers have a state of each.
    pub(crate) sessions: usize,
    /// Rows of one step.
    pub(crate) chunk_rows: usize,
    /// Ids of the vocabulary.
    pub(crate) vocab: usize,
    /// Values of a row.
    pub(crate) hidden: usize,
    /// Requests that may wait for room.
    pub(crate) waiting: usize,
    /// How long sequences wait for a lost pipeline to return.
    pub(crate) resume: Duration,
    /// Whether sequences begin with what earlier ones have left.
    pub(crate) prefix_reuse: PrefixReuse,
    /// Whether tokens are drafted.
    pub(crate) speculation: Speculation,
    /// What a model drafts, if there is one for it.
    pub(crate) draft_model: Option<DraftLimits>,
}

/// Tokens counted since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    /// Tokens of prompts that are done.
    pub(crate) prompt_tokens: u64,
    /// Of these, what was on the stages already.
    pub(crate) cached_tokens: u64,
    pub(crate) generated_tokens: u64,
    pub(crate) drafted_tokens: u64,
    /// Of the drafted tokens, the right ones.
    pub(crate) accepted_tokens: u64,
    /// Sequences that gave their room up to others.
    pub(crate) preemptions: u64,
}

/// The steps of the present pipeline, all times summed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepTotals {
    pub(crate) steps: u64,
    /// Computing, over all stages.
    pub(crate) compute: Duration,
    /// Computing, on the slowest stage.
    pub(crate) slowest: Duration,
    /// Neither computing nor waiting for a stage.
    pub(crate) hops: Duration,
}

/// Sequences, and the steps that carry them.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    pipeline: Option<Pipeline>,
    successor: Option<Successor>,
    sequences: BTreeMap<SessionId, Sequence>,
    queue: VecDeque<SessionId>,
    steps: BTreeMap<StepId, StepUnderWay>,
    /// When a step last came back, or the sequences came over from another pipeline.
    returned: Option<Instant>,
    pages: PageLedger,
    pace: Pace,
    draft_model: Option<DraftModel>,
    /// Beginnings that ended sequences have left on the stages.
    kept: BTreeMap<SessionId, Kept>,
    /// Sequences whose grammar lets nothing follow any more: they are to be ended.
    lost: Vec<(SessionId, GrammarError)>,
    /// Rows computed for each client that has sequences here.
    served: BTreeMap<ClientId, u64>,
    next_session: u64,
    next_step: u32,
    turn: u64,
    pub(crate) totals: Totals,
    pub(crate) step_totals: StepTotals,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            pipeline: None,
            successor: None,
            sequences: BTreeMap::new(),
            queue: VecDeque::new(),
            steps: BTreeMap::new(),
            returned: None,
            pages: PageLedger::new(limits.kv_positions, limits.sessions),
            pace: Pace::default(),
            draft_model: limits.draft_model.map(DraftModel::new),
            kept: BTreeMap::new(),
            lost: Vec::new(),
            served: BTreeMap::new(),
            next_session: 1,
            next_step: FIRST_STEP,
            turn: 0,
            totals: Totals::default(),
            step_totals: StepTotals::default(),
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
        self.welcome(request.client);
        let drafting = Drafting::new(self.draft_model.as_ref().map_or(0.0, DraftModel::share));
        self.sequences.insert(session, Sequence::new(now, request, self.limits.context, drafting));
        self.queue.push_back(session);
        Ok(session)
    }

    /// Nobody listens any more.
    pub(crate) fn cancel(&mut self, session: SessionId) -> Vec<Action> {
        self.end(session, None)
    }

    /// A pipeline stands: sequences that lost theirs start over, with all the ids they have.
    pub(crate) fn pipeline_up(&mut self, epoch: PlanEpoch, stages: usize) {
        if self.is_current(epoch) {
            return;
        }
        self.pipeline = Some(Pipeline { epoch, stages });
        self.next_step = FIRST_STEP;
        self.pace = Pace::new(stages);
        self.step_totals = StepTotals::default();
    }

    /// The pipeline is gone, and with it every session and every step. Sequences wait for the next one, unless they
    /// have a follower there; but for those that lost one too often without a token in between: what brings pipelines
    /// down may be their own rows.
    pub(crate) fn pipeline_down(&mut self, now: Instant, why: &str) -> Vec<Action> {
        self.pipeline = None;
        self.steps.clear();
        self.queue.clear();
        self.kept.clear();
        self.pages.clear();
        self.sequences.retain(|_, s| s.phase != Phase::Ending);
        for (&session, sequence) in &mut self.sequences {
            sequence.restart(now);
            self.queue.push_back(session);
        }
        let mut actions = if self.successor.is_some() { self.fall_over(now) } else { Vec::new() };
        let hopeless = self.sequences.iter().filter(|(_, s)| s.restarts > RESTARTS_MOST).map(|(&id, _)| id);
        let hopeless: Vec<_> = hopeless.collect();
        let error = GenerateError::WorkerLost { text: why.to_owned() };
        actions.extend(hopeless.into_iter().flat_map(|s| self.end(s, Some(GenerateEvent::Failed(error.clone())))));
        actions
    }

    /// One stage has made room for the session.
    pub(crate) fn opened(&mut self, epoch: PlanEpoch, session: SessionId) {
        if self.is_next(epoch) {
            self.follower_opened(session);
        } else if self.is_current(epoch)
            && let Some(sequence) = self.sequences.get_mut(&session)
        {
            sequence.stage_opened();
        }
    }

    /// A stage has failed the session and taken its rows out of the steps under way; a step without other rows does not
    /// come back.
    pub(crate) fn failed(&mut self, epoch: PlanEpoch, session: SessionId, text: &str) -> Vec<Action> {
        if self.is_next(epoch) {
            return self.follower_failed(session);
        }
        if !self.is_current(epoch) {
            return Vec::new();
        }
        self.steps.retain(|_, step| step.forget(session));
        if let Some(sequence) = self.sequences.get_mut(&session) {
            sequence.in_flight = 0;
            sequence.spoiled = true;
        }
        self.end(session, Some(GenerateEvent::Failed(GenerateError::Fault { text: text.to_owned() })))
    }

    /// A step came out of the last stage, with what was made of it.
    pub(crate) fn stepped(&mut self, now: Instant, frame: &Frame, answer: Answer) -> Vec<Action> {
        if self.is_next(frame.epoch) {
            return self.follower_stepped(now, frame);
        }
        if !self.is_current(frame.epoch) {
            return Vec::new();
        }
        let Some(step) = self.steps.remove(&frame.step) else { return Vec::new() };
        self.returned = Some(now);
        let sessions: Vec<SessionId> = step.segments.iter().map(|s| s.session).collect();
        // A step from which a stage took rows tells nothing of how long so many rows take.
        if sessions.iter().all(|session| self.sequences.get(session).is_some_and(|s| !s.spoiled)) {
            self.learn(step.rows(), frame.times, now.saturating_duration_since(step.sent));
        }
        for session in &sessions {
            if let Some(sequence) = self.sequences.get_mut(session) {
                sequence.in_flight -= 1;
                sequence.restarts = 0;
            }
        }
        let mut actions = self.fail_strays(frame);
        let (mut rows, mut sums) = (answer.rows.into_iter(), answer.sums.into_iter());
        for segment in &frame.segments {
            let rows: Vec<Sampled> = rows.by_ref().take(segment.rows as usize).collect();
            let sum = if segment.wants.is_sum() { sums.next() } else { None };
            actions.extend(self.take_part(now, segment, rows, sum));
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

    /// Admits the sequences for which there is room, and fills steps, as many as may be under way.
    pub(crate) fn pump(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.pump_successor(now);
        let Some(pipeline) = self.pipeline else { return actions };
        if !self.is_closing(now) {
            actions.extend(self.admit(pipeline));
        }
        actions.extend(self.provide_room());
        actions.extend(self.ask_for_drafts(now));
        while !self.is_draining()
            && let Some(filled) = self.fill_step(now, pipeline)
        {
            actions.extend(filled.into_actions());
        }
        for (session, error) in std::mem::take(&mut self.lost) {
            actions.extend(self.end(session, Some(GenerateEvent::Failed(GenerateError::Grammar(error)))));
        }
        actions
    }

    /// Whether a sequence has not come to its end yet.
    pub(crate) fn computes(&self, session: SessionId) -> bool {
        self.sequences.get(&session).is_some_and(|sequence| sequence.phase != Phase::Ending)
    }

    /// What may be said of each sequence that has not come to its end.
    pub(crate) fn statuses(&self) -> Vec<SequenceStatus> {
        let going = self.sequences.iter().filter(|(_, sequence)| sequence.phase != Phase::Ending);
        going.map(|(session, sequence)| sequence.status(session.0)).collect()
    }

    /// Sequences on the stages.
    pub(crate) fn running(&self) -> usize {
        self.sequences.len() - self.queue.len()
    }

    /// Sequences that wait for room.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Positions set aside on the stages, for sequences and for what is kept.
    pub(crate) fn positions_reserved(&self) -> usize {
        self.pages.used_positions()
    }

    /// The same on the stages that sequences are following to.
    pub(crate) fn positions_reserved_next(&self) -> usize {
        self.successor.as_ref().map_or(0, |successor| successor.pages.used_positions())
    }

    /// Nothing runs and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.sequences.is_empty() && self.queue.is_empty() && self.steps.is_empty()
    }

    /// Whether sequences can run now.
    pub(crate) fn serves(&self) -> bool {
        self.pipeline.is_some()
    }

    fn is_next(&self, epoch: PlanEpoch) -> bool {
        self.successor.as_ref().is_some_and(|s| s.pipeline.epoch == epoch)
    }

    pub(crate) fn is_current(&self, epoch: PlanEpoch) -> bool {
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

    fn learn(&mut self, rows: usize, times: StepTimes, whole: Duration) {
        self.pace.learn(rows, times, whole);
        let micros = |us: u32| Duration::from_micros(us.into());
        let totals = &mut self.step_totals;
        totals.steps += 1;
        totals.compute += micros(times.compute_us);
        totals.slowest += micros(times.slowest_us);
        totals.hops += whole.saturating_sub(micros(times.compute_us) + micros(times.queued_us));
    }

    /// Takes in what was made of a segment, if anything.
    fn take_part(&mut self, now: Instant, segment: &Segment, rows: Vec<Sampled>, sum: Option<RowSum>) -> Vec<Action> {
        let session = segment.session;
        let Some(sequence) = self.sequences.get_mut(&session).filter(|s| s.is_on_stages()) else {
            return Vec::new();
        };
        let taken = match sum {
            Some(sum) => sequence.take_sum(now, segment, &sum),
            None if rows.is_empty() => {
                let progress = sequence.progress(segment);
                return progress.into_iter().map(|event| Action::Deliver(session, event)).collect();
            }
            None => sequence.take_rows(now, segment, rows),
        };
        let Taken { events, prompt_tokens, cached, generated, verified } = taken;
        self.totals.prompt_tokens += prompt_tokens;
        self.totals.cached_tokens += cached;
        self.totals.generated_tokens += generated;
        if let Some(verified) = verified {
            self.totals.drafted_tokens += verified.drafted as u64;
            self.totals.accepted_tokens += verified.right as u64;
            let model = self.draft_model.as_mut().filter(|_| verified.source == DraftSource::Model);
            model.into_iter().for_each(|model| model.verified(verified));
        }
        events.into_iter().map(|event| Action::Deliver(session, event)).collect()
    }

    /// Ends a sequence with a last event, or with none when nobody listens.
    fn end(&mut self, session: SessionId, last: Option<GenerateEvent>) -> Vec<Action> {
        let Some(sequence) = self.sequences.get_mut(&session) else { return Vec::new() };
        let told = last.filter(|_| sequence.phase != Phase::Ending).map(|event| Action::Deliver(session, event));
        let mut actions: Vec<_> = told.into_iter().collect();
        if sequence.phase == Phase::Waiting {
            let client = sequence.request.client;
            self.sequences.remove(&session);
            self.queue.retain(|&s| s != session);
            self.forget_if_gone(client);
        } else {
            sequence.phase = Phase::Ending;
            actions.extend(self.close_if_over(session));
        }
        actions
    }

    /// Closes a sequence that has ended or gives its room up once its last step is back, so that no stage meets a row of a
    /// closed session.
    fn close_if_over(&mut self, session: SessionId) -> Vec<Action> {
        match self.sequences.get(&session).filter(|s| s.in_flight == 0).map(|s| s.phase) {
            Some(Phase::Ending) => {
                let sequence = self.sequences.remove(&session);
                sequence.map(|sequence| self.leave(session, sequence)).unwrap_or_default()
            }
            Some(Phase::Yielding) => self.queue_again(session),
            Some(Phase::Waiting | Phase::Opening { .. } | Phase::Running) | None => Vec::new(),
        }
    }
}

/// The number of a pipeline's first step; probes have those before it.
const FIRST_STEP: u32 = TRIES_MOST;
/// Pipelines that a sequence may lose between two of its tokens.
const RESTARTS_MOST: usize = 3;

#[cfg(test)]
mod tests;
