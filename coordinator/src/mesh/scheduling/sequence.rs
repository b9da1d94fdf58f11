//! One sequence as the scheduler sees it: its ids, how many of them went out, and what comes back.

use std::time::{Duration, Instant};

use qmesh_models::footprint::ROLLBACK_ROWS;
use qmesh_net::{RowSum, Sampled, Segment, SessionId, TokenMask, Trail, Trails, Wants};

use super::{
    drafting::{Drafting, Verified},
    pages::PAGE_POSITIONS,
    phase::Phase,
    pool::Pool,
};
use crate::{
    generate::{Finish, FinishReason, GenerateError, GenerateEvent, GenerateRequest, PromptRows},
    grammar::{GrammarError, GrammarWalk},
    mesh::status::{SequencePhase, SequenceStatus},
};

/// One sequence: prompt and generated ids, and its books.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) request: GenerateRequest,
    pub(crate) phase: Phase,
    /// The most positions that it can come to hold: its prompt and all tokens that it may generate.
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
    pub(crate) ids: Vec<u32>,
    sent: usize,
    /// The trails of the ids that were sent, and of the drafts behind them.
    trails: Trails,
    /// How many of the ids sent every stage has computed; no rejected draft is among them.
    pub(crate) computed: usize,
    /// Whether a stage has failed it: nothing of it can be relied on.
    pub(crate) spoiled: bool,
    pub(crate) drafting: Drafting,
    /// How far its text has come along its grammar: through all generated ids.
    walk: Option<GrammarWalk>,
    /// Positions of the prompt that were on the stages already when it was first admitted.
    cached: Option<usize>,
    prompt_rows: Vec<Sampled>,
    /// Where the prompt shall become a vector.
    pool: Option<Pool>,
    prompt_done: bool,
    started: Instant,
    first_token: Option<Instant>,
}

/// Rows of a sequence for a step.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) segment: Segment,
    /// One per row.
    pub(crate) ids: Vec<u32>,
    /// What may follow the last rows, one mask for each; none where anything may.
    pub(crate) masks: Vec<TokenMask>,
}

/// What came of a segment.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// What whoever asked is told.
    pub(crate) events: Vec<GenerateEvent>,
    /// Tokens of the prompt, if it is done with this segment; else 0.
    pub(crate) prompt_tokens: u64,
    /// Of these, what was on the stages already.
    pub(crate) cached: u64,
    pub(crate) generated: u64,
    /// What came of drafts, if there were any.
    pub(crate) verified: Option<Verified>,
}

impl Sequence {
    pub(crate) fn new(now: Instant, request: GenerateRequest, context: usize, drafting: Drafting) -> Self {
        let pool = match request.prompt_rows {
            PromptRows::Pooled(pooling) => Some(Pool::new(pooling)),
            PromptRows::Last | PromptRows::All => None,
        };
        let ids = pool.as_ref().map_or_else(|| request.ids.clone(), |pool| pool.ids(&request.ids));
        let max_tokens = if pool.is_some() { 0 } else { request.max_tokens };
        let max_positions = ids.len().saturating_add(max_tokens).min(context);
        Self {
            phase: Phase::Waiting,
            max_positions,
            in_flight: 0,
            restarts: 0,
            turn: 0,
            waiting_since: None,
            ids,
            sent: 0,
            trails: Trails::default(),
            computed: 0,
            spoiled: false,
            drafting,
            walk: request.grammar.as_ref().filter(|_| max_tokens > 0).map(|grammar| grammar.start()),
            cached: None,
            prompt_rows: Vec::new(),
            pool,
            prompt_done: false,
            started: now,
            first_token: None,
            request,
        }
    }

    /// Starts over with all the ids that it has, because the stages that knew it are gone.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.restarts += usize::from(self.in_flight > 0);
        self.phase = Phase::Waiting;
        (self.sent, self.computed) = (0, 0);
        self.drafting.forget();
        self.in_flight = 0;
        self.waiting_since.get_or_insert(now);
        self.forget_prompt();
    }

    /// Waits for room, as another sequence needs what it had. Its ids are computed again later.
    pub(crate) fn give_way(&mut self) {
        self.phase = Phase::Waiting;
        (self.sent, self.computed) = (0, 0);
        self.drafting.forget();
        self.forget_prompt();
    }

    /// What has come of an unfinished prompt will come again.
    fn forget_prompt(&mut self) {
        if !self.prompt_done {
            self.prompt_rows.clear();
            self.pool.iter_mut().for_each(Pool::clear);
        }
    }

    /// How many positions are set aside for it at a time: what its ids take and the next tokens will.
    pub(crate) fn room(&self) -> usize {
        self.max_positions.min(self.ids.len() + ROOM_AHEAD)
    }

    /// How many positions its next step may come to hold at most.
    pub(crate) fn room_least(&self) -> usize {
        self.max_positions.min(self.ids.len() + DRAFTS_MOST)
    }

    /// Whether it has room on the stages and may come to need more than the `held` positions.
    pub(crate) fn may_outgrow(&self, held: usize) -> bool {
        match self.phase {
            Phase::Opening { .. } | Phase::Running => held < self.max_positions,
            Phase::Waiting | Phase::Yielding | Phase::Ending => false,
        }
    }

    /// What may be said of it, under the number of its request.
    pub(crate) fn status(&self, request: u64) -> SequenceStatus {
        let phase = match self.phase {
            Phase::Waiting => SequencePhase::Waiting,
            Phase::Opening { .. } | Phase::Running | Phase::Yielding | Phase::Ending => SequencePhase::Running,
        };
        let (prompt_tokens, sampling) = (self.request.ids.len(), &self.request.sampling);
        SequenceStatus {
            request,
            phase,
            prompt_tokens,
            cached_tokens: self.cached.unwrap_or(0),
            computed_tokens: self.computed,
            generated_tokens: self.ids.len().saturating_sub(prompt_tokens),
            max_tokens: self.max_positions.saturating_sub(prompt_tokens),
            temperature: sampling.temperature,
            seed: sampling.seed,
        }
    }

    /// Whether whoever asked has had something of its answer.
    pub(crate) fn is_answering(&self) -> bool {
        self.prompt_done
    }

    /// Goes on with the stages of another pipeline, to which its ids up to `sent` were sent already.
    pub(crate) fn follow(&mut self, phase: Phase, sent: usize, computed: usize, in_flight: usize, trails: Trails) {
        self.phase = phase;
        self.trails = trails;
        (self.sent, self.computed, self.in_flight) = (sent, computed, in_flight);
        self.drafting.forget();
        self.waiting_since = None;
    }

    /// Whether it runs and its prompt is done: its answer would pause if it started over.
    pub(crate) fn has_begun(&self) -> bool {
        self.phase == Phase::Running && self.prompt_done
    }

    /// How many of the first `held` positions of a session with `ids` this one can begin with, in whole pages.
    pub(crate) fn shareable(&self, ids: &[u32], held: usize) -> usize {
        // A scored prompt needs all its rows, and so does a mean; any other one the last.
        let needs_all = self.is_scored() || self.pool.as_ref().is_some_and(|pool| !pool.can_share());
        let wanted = if needs_all { 0 } else { self.ids.len() - 1 };
        let same = self.ids.iter().zip(ids).take(held.min(wanted)).take_while(|(a, b)| a == b).count();
        same / PAGE_POSITIONS * PAGE_POSITIONS
    }

    /// Its session is being opened on the stages, where its first `shared` positions are already.
    pub(crate) fn opening(&mut self, stages: usize, shared: usize) {
        self.phase = Phase::Opening { missing: stages };
        (self.sent, self.computed) = (shared, shared);
        self.cached.get_or_insert(shared);
    }

    pub(crate) fn stage_opened(&mut self) {
        if matches!(self.phase, Phase::Opening { .. }) {
            self.phase = self.phase.answered();
            self.waiting_since = None;
        }
    }

    /// Ids that no frame has carried yet.
    pub(crate) fn unsent(&self) -> usize {
        self.ids.len() - self.sent
    }

    /// Whether every stage has its session, and what comes back of it counts.
    pub(crate) fn is_on_stages(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Yielding)
    }

    /// Whether its prompt is so short that the sequences that decode can wait for it.
    pub(crate) fn is_short(&self) -> bool {
        self.prompt_done || self.request.ids.len() - self.cached.unwrap_or(0) <= SHORT_ROWS
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.phase == Phase::Running && self.unsent() > 0
    }

    pub(crate) fn is_decoding(&self) -> bool {
        self.phase == Phase::Running && self.unsent() <= 1 && self.pool.is_none()
    }

    /// Whether its rows are added up.
    pub(crate) fn is_pooled(&self) -> bool {
        self.pool.is_some()
    }

    /// Whether it waits for what a model drafts.
    pub(crate) fn awaits_draft(&self, now: Instant) -> bool {
        self.is_ready() && self.is_decoding() && self.drafting.awaits(now)
    }

    /// How many tokens may be drafted for it at a time.
    pub(crate) fn draft_room(&self) -> usize {
        let most = match &self.walk {
            Some(walk) if !walk.follows_drafts() => 0,
            Some(walk) if walk.is_free() => DRAFTS_MOST,
            Some(_) => DRAFTS_MASKED,
            None => DRAFTS_MOST,
        };
        // The token after the last draft is drawn too, and is the last that there is room for.
        most.min(self.max_positions.saturating_sub(self.ids.len() + 1))
    }

    /// Whether each of its tokens waits for a mask.
    pub(crate) fn is_masked(&self) -> bool {
        self.walk.as_ref().is_some_and(|walk| !walk.is_free())
    }

    /// The last id, which is the only one not sent yet, and at most `most` drafted ids after it.
    ///
    /// # Errors
    /// Its grammar lets nothing follow.
    pub(crate) fn drafted_rows(&mut self, session: SessionId, most: usize) -> Result<Rows, GrammarError> {
        let most = most.min(self.draft_room());
        let mut drafted = self.drafting.next(&self.ids, most);
        let masks = self.walk.as_mut().map(|walk| walk.masks(&mut drafted)).transpose()?.unwrap_or_default();
        let position = self.sent;
        self.sent += 1;
        self.in_flight += 1;
        let ids: Vec<u32> = self.ids[position..].iter().chain(&drafted).copied().collect();
        self.drafting.sent(drafted);
        let wants = if ids.len() > 1 || self.is_scored() { Wants::All } else { Wants::Last };
        let trail = self.trail(position, &ids);
        let segment = Segment { session, position: count(position), rows: count(ids.len()), wants, trail };
        Ok(Rows { segment, ids, masks })
    }

    /// The next ids, at most `rows` of them. A scored prompt takes two where only one is asked for.
    ///
    /// # Errors
    /// They are the last ones, and its grammar lets nothing follow.
    pub(crate) fn next_rows(&mut self, now: Instant, session: SessionId, rows: usize) -> Result<Rows, GrammarError> {
        if self.sent == 0 && !self.prompt_done && self.prompt_rows.is_empty() {
            self.started = now;
        }
        let scored = self.is_scored();
        // A chunk's last row has no next id to score, so the next chunk begins with that row again: it takes two to
        // move.
        let rows = if scored { rows.max(2) } else { rows };
        let end = self.ids.len().min(self.sent + rows);
        let last = end == self.ids.len();
        let mask = self.walk.as_mut().filter(|walk| last && !walk.is_free()).map(GrammarWalk::mask).transpose()?;
        let wants = match (&self.pool, scored, last) {
            (Some(pool), ..) => pool.wants(last),
            (None, true, _) => Wants::All,
            (None, false, true) => Wants::Last,
            (None, false, false) => Wants::None,
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
            trail: self.trail(position, &ids),
        };
        Ok(Rows { segment, ids, masks: mask.into_iter().collect() })
    }

    /// The trails of the ids that were sent.
    pub(crate) fn trails(&self) -> &Trails {
        &self.trails
    }

    /// The trail of its ids before `position`, and of `ids` from there on.
    fn trail(&mut self, position: usize, ids: &[u32]) -> Trail {
        let held = self.trails.len().min(position);
        self.trails.write(held, &self.ids[held..position]);
        self.trails.write(position, ids).unwrap_or_default()
    }

    /// Whether the rows of its prompt are still wanted.
    fn is_scored(&self) -> bool {
        self.request.prompt_rows == PromptRows::All && !self.prompt_done
    }

    /// Takes in the sum of the rows of a segment that came back.
    pub(crate) fn take_sum(&mut self, now: Instant, segment: &Segment, sum: &RowSum) -> Taken {
        let (end, mut taken) = (segment.position as usize + segment.rows as usize, Taken::default());
        let Some(pool) = self.pool.as_mut().filter(|_| !self.prompt_done) else { return taken };
        pool.add(sum);
        let vector = (end == self.ids.len()).then(|| pool.vector());
        self.computed = self.computed.max(end.min(self.sent));
        if let Some(vector) = vector {
            self.prompt_is_done(&mut taken);
            taken.events.push(GenerateEvent::Pooled(vector));
            taken.events.push(GenerateEvent::Finished(self.finish(now, FinishReason::Length)));
            self.phase = Phase::Ending;
        }
        taken
    }

    /// Takes in the rows of a segment that came back.
    pub(crate) fn take_rows(&mut self, now: Instant, segment: &Segment, mut rows: Vec<Sampled>) -> Taken {
        let end = segment.position as usize + segment.rows as usize;
        let mut taken = Taken::default();
        if segment.wants == Wants::All && !self.prompt_done {
            self.prompt_rows.truncate(segment.position as usize);
            self.prompt_rows.append(&mut rows.clone());
        }
        // The last row of a scored prompt's chunk is written again by the next one: nobody may share it before.
        let again = usize::from(self.is_scored() && end < self.ids.len());
        self.computed = self.computed.max((end - again).min(self.sent));
        if end < self.ids.len() {
            taken.events.extend(self.progress(segment));
            return taken;
        }
        if !self.prompt_done {
            self.prompt_is_done(&mut taken);
            if self.request.prompt_rows == PromptRows::All {
                taken.events.push(GenerateEvent::Prompt(std::mem::take(&mut self.prompt_rows)));
            }
        }
        let drafted = self.drafting.take_drafted();
        if drafted.is_empty() {
            // Of a scored prompt's rows only the last one continues it.
            rows.drain(..rows.len().saturating_sub(1));
        }
        self.take_tokens(now, rows, &drafted, &mut taken);
        taken
    }

    /// How far the prompt is with a segment in its middle that came back. It is for people only: a stage that took the segment out
    /// answers alike.
    pub(crate) fn progress(&self, segment: &Segment) -> Option<GenerateEvent> {
        let end = segment.position as usize + segment.rows as usize;
        let cached_tokens = self.cached.unwrap_or(0);
        // A prompt that starts over has less than was there at first.
        let computed_tokens = end.max(cached_tokens);
        let unfinished = !self.prompt_done && self.pool.is_none() && computed_tokens < self.ids.len();
        unfinished.then_some(GenerateEvent::Progress { cached_tokens, computed_tokens })
    }

    fn prompt_is_done(&mut self, taken: &mut Taken) {
        self.prompt_done = true;
        taken.prompt_tokens = self.request.ids.len() as u64;
        let cached_tokens = self.cached.unwrap_or(0);
        taken.cached = cached_tokens as u64;
        taken.events.push(GenerateEvent::Prefilled { cached_tokens });
    }

    /// Takes in the token of the first row, and those of the rows behind drafts as far as the drafts were right.
    fn take_tokens(&mut self, now: Instant, rows: Vec<Sampled>, drafted: &[u32], taken: &mut Taken) {
        let mut right = 0;
        for (row, draft) in rows.into_iter().zip(drafted.iter().map(Some).chain([None])) {
            let token = row.token;
            self.take_token(now, row, taken);
            if self.phase == Phase::Ending || Some(&token) != draft {
                break;
            }
            right += 1;
        }
        self.sent += right;
        self.computed = self.computed.max(self.sent);
        taken.verified = self.drafting.verified(&self.ids, drafted.len(), right);
    }

    fn take_token(&mut self, now: Instant, row: Sampled, taken: &mut Taken) {
        let mut ended = false;
        if self.request.max_tokens > 0 {
            taken.generated += 1;
            self.first_token.get_or_insert(now);
            if let Some(Err(error)) = self.walk.as_mut().map(|walk| walk.advance(row.token)) {
                // What follows now would be another text than the one that was asked for.
                taken.events.push(GenerateEvent::Failed(GenerateError::Grammar(error)));
                self.phase = Phase::Ending;
                return;
            }
            ended = self.request.ends.contains(&row.token);
            self.ids.push(row.token);
            taken.events.push(GenerateEvent::Token(row));
        }
        let full = self.ids.len() >= self.max_positions;
        if ended || full {
            let reason = if ended { FinishReason::End } else { FinishReason::Length };
            taken.events.push(GenerateEvent::Finished(self.finish(now, reason)));
            self.phase = Phase::Ending;
        }
    }

    fn finish(&self, now: Instant, reason: FinishReason) -> Finish {
        let prompt_tokens = self.request.ids.len();
        let first = self.first_token.unwrap_or(now);
        Finish {
            reason,
            prompt_tokens,
            generated_tokens: self.ids.len().saturating_sub(prompt_tokens),
            prefill: first.saturating_duration_since(self.started),
            decode: now.checked_duration_since(first).unwrap_or(Duration::ZERO),
        }
    }
}

/// Whether the stages had the ids that were sent, up to the end of a segment that came back.
pub(crate) fn agree(sent: &Trails, segment: &Segment) -> bool {
    sent.after(segment.position as usize + segment.rows as usize) == Some(segment.trail)
}

/// Tokens drafted for a sequence at a time.
pub const DRAFTS_MOST: usize = 15;
/// The same where each of them takes a mask, which takes its time.
const DRAFTS_MASKED: usize = 7;
const _: () = assert!(DRAFTS_MOST < ROLLBACK_ROWS, "layers with a state can take drafts back");
/// Positions that are set aside for a sequence beyond its ids. Room that is set aside and not used keeps others out, and room
/// that comes to lack makes somebody start over.
const ROOM_AHEAD: usize = PAGE_POSITIONS;
/// Rows of a prompt that is over soon.
const SHORT_ROWS: usize = 128;

/// Positions and rows fit: a context is bounded far below 2³².
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
