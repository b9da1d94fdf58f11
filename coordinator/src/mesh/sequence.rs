//! One sequence as the scheduler sees it: its ids, how many of them went out, and what comes back.

use std::time::{Duration, Instant};

use qmesh_net::{Sampled, Segment, SegmentFlags, SessionId, Wants};

use crate::generate::{Finish, FinishReason, GenerateEvent, GenerateRequest, PromptRows};

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// For room, or for a pipeline.
    Waiting,
    /// On its way to the stages; so many have not answered yet.
    Opening {
        /// Stages without an answer.
        missing: usize,
    },
    /// On every stage.
    Running,
    /// Over, but a step may still carry its rows.
    Ending,
}

/// One sequence: prompt and generated ids, and its books.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) request: GenerateRequest,
    pub(crate) phase: Phase,
    /// Positions that it may come to hold.
    pub(crate) max_positions: usize,
    /// Steps that carry rows of it.
    pub(crate) in_flight: usize,
    /// Pipelines lost since a step of it last came back.
    pub(crate) restarts: usize,
    /// When it was last served; the least recent goes first.
    pub(crate) turn: u64,
    /// Since when it waits for a pipeline that it had lost.
    pub(crate) waiting_since: Option<Instant>,
    /// Prompt, then generated.
    ids: Vec<u32>,
    sent: usize,
    prompt_rows: Vec<Sampled>,
    prompt_done: bool,
    started: Instant,
    first_token: Option<Instant>,
}

impl Sequence {
    pub(crate) fn new(now: Instant, request: GenerateRequest, context: usize) -> Self {
        let max_positions = request.ids.len().saturating_add(request.max_tokens).min(context);
        Self {
            phase: Phase::Waiting,
            max_positions,
            in_flight: 0,
            restarts: 0,
            turn: 0,
            waiting_since: None,
            ids: request.ids.clone(),
            sent: 0,
            prompt_rows: Vec::new(),
            prompt_done: false,
            started: now,
            first_token: None,
            request,
        }
    }

    /// Back to the start, with all the ids that it has: the stages that knew it are gone.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.restarts += usize::from(self.in_flight > 0);
        self.phase = Phase::Waiting;
        self.sent = 0;
        self.in_flight = 0;
        self.waiting_since.get_or_insert(now);
        if !self.prompt_done {
            self.prompt_rows.clear();
        }
    }

    pub(crate) fn stage_opened(&mut self) {
        if let Phase::Opening { missing } = self.phase {
            self.phase = if missing <= 1 { Phase::Running } else { Phase::Opening { missing: missing - 1 } };
            self.waiting_since = None;
        }
    }

    /// Ids that no frame has carried yet.
    pub(crate) fn unsent(&self) -> usize {
        self.ids.len() - self.sent
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.phase == Phase::Running && self.unsent() > 0
    }

    pub(crate) fn is_decoding(&self) -> bool {
        self.phase == Phase::Running && self.unsent() <= 1
    }

    /// The next at most `rows` ids as a segment; two, where they are scored and only one is left room for.
    pub(crate) fn next_segment(&mut self, now: Instant, session: SessionId, rows: usize) -> (Segment, Vec<u32>) {
        if self.sent == 0 && !self.prompt_done && self.prompt_rows.is_empty() {
            self.started = now;
        }
        let scored = self.request.prompt_rows == PromptRows::All && !self.prompt_done;
        // A chunk's last row has no next id to score, so the next chunk begins with that row again: it takes two to move.
        let rows = if scored { rows.max(2) } else { rows };
        let end = self.ids.len().min(self.sent + rows);
        let last = end == self.ids.len();
        let wants = match (scored, last) {
            (true, _) => Wants::All,
            (false, true) => Wants::Last,
            (false, false) => Wants::None,
        };
        let position = self.sent;
        let ids = self.ids[position..end].to_vec();
        let again = usize::from(scored && !last);
        self.sent = end - again;
        self.in_flight += 1;
        let segment = Segment {
            session,
            position: count(position),
            rows: count(ids.len()),
            wants,
            flags: SegmentFlags::default(),
        };
        (segment, ids)
    }

    /// Takes a segment's rows back: events for whoever asked, prompt tokens done and tokens generated.
    pub(crate) fn take_rows(
        &mut self,
        now: Instant,
        segment: &Segment,
        mut rows: Vec<Sampled>,
    ) -> (Vec<GenerateEvent>, u64, u64) {
        let end = segment.position as usize + segment.rows as usize;
        let mut events = Vec::new();
        let mut prompt_tokens = 0;
        if segment.wants == Wants::All && !self.prompt_done {
            self.prompt_rows.truncate(segment.position as usize);
            self.prompt_rows.append(&mut rows.clone());
        }
        if end < self.ids.len() {
            return (events, 0, 0);
        }
        if !self.prompt_done {
            self.prompt_done = true;
            prompt_tokens = self.request.ids.len() as u64;
            if self.request.prompt_rows == PromptRows::All {
                events.push(GenerateEvent::Prompt(std::mem::take(&mut self.prompt_rows)));
            }
        }
        let Some(row) = rows.pop() else { return (events, prompt_tokens, 0) };
        let generated = self.take_token(now, row, &mut events);
        (events, prompt_tokens, generated)
    }

    fn take_token(&mut self, now: Instant, row: Sampled, events: &mut Vec<GenerateEvent>) -> u64 {
        let mut generated = 0;
        let mut ended = false;
        if self.request.max_tokens > 0 {
            generated = 1;
            self.first_token.get_or_insert(now);
            ended = self.request.ends.contains(&row.token);
            self.ids.push(row.token);
            events.push(GenerateEvent::Token(row));
        }
        let full = self.ids.len() >= self.max_positions;
        if ended || full {
            let reason = if ended { FinishReason::End } else { FinishReason::Length };
            events.push(GenerateEvent::Finished(self.finish(now, reason)));
            self.phase = Phase::Ending;
        }
        generated
    }

    fn finish(&self, now: Instant, reason: FinishReason) -> Finish {
        let prompt_tokens = self.request.ids.len();
        let first = self.first_token.unwrap_or(now);
        Finish {
            reason,
            prompt_tokens,
            generated_tokens: self.ids.len() - prompt_tokens,
            prefill: first.saturating_duration_since(self.started),
            decode: now.checked_duration_since(first).unwrap_or(Duration::ZERO),
        }
    }
}

/// Positions and rows fit: a context is bounded far below 2³².
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
