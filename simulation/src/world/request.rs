//! Requests, and whether what comes of them is the text that one process computes.

use std::{sync::Arc, time::Duration};

use qmesh_coordinator::generate::{
    ClientId, Finish, FinishReason, GenerateError, GenerateEvent, GenerateRequest, Pooling, PromptRows,
};
use qmesh_net::{Digest, Sampled, Sampling, SessionId};

use super::World;
use crate::{
    agenda::Happening,
    model::{self, Drawing, OneProcess, VOCAB},
};

/// A request that was taken.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: GenerateRequest,
    pub(super) at: Duration,
    /// Whether its last event came, or it was cancelled.
    pub(super) is_over: bool,
    is_cancelled: bool,
    expected: OneProcess,
    tokens: usize,
    has_prompt: bool,
    has_vector: bool,
}

impl World {
    pub(super) fn request(&mut self) {
        if self.to_ask == 0 {
            return;
        }
        let request = self.draw_request();
        let drawing = Drawing::from(&request.sampling);
        let (layers, context) = (self.scenario.mesh.spec.layers.len(), self.scenario.mesh.context);
        let most = match request.prompt_rows {
            PromptRows::Pooled(_) => 0,
            PromptRows::Last | PromptRows::All => request.max_tokens.min(context - request.ids.len()),
        };
        match self.coordinator.submit(self.instant(), request.clone()) {
            Ok(session) => {
                self.to_ask -= 1;
                let (prompt, tokens) = (request.ids.len(), request.max_tokens);
                self.story.tell(format!("session {session} asks for {tokens} tokens after {prompt}"));
                let expected = model::text(layers, &request.ids, most, &request.ends, &drawing);
                let (at, is_over, is_cancelled) = (self.now, false, false);
                let (tokens, has_prompt, has_vector) = (0, false, false);
                let asked = Asked { request, at, is_over, is_cancelled, expected, tokens, has_prompt, has_vector };
                self.asked.insert(session, asked);
                if self.random.percent(12) {
                    let at = self.now + self.random.millis(0..3000);
                    self.agenda.enter(at, Happening::Cancel(session));
                }
                let gap = self.random.millis(self.scenario.request_gap_ms.clone());
                self.agenda.enter(self.now + gap, Happening::Request);
            }
            Err(GenerateError::NotReady { .. } | GenerateError::QueueFull { .. }) => {
                let gap = self.random.millis(300..2000);
                self.agenda.enter(self.now + gap, Happening::Request);
            }
            Err(error) => self.find(format!("a good request is not taken: {error}")),
        }
        self.carry_out();
    }

    fn draw_request(&mut self) -> GenerateRequest {
        let context = self.scenario.mesh.context;
        let own = self.random.within(1..40) as usize;
        let mut ids = Vec::new();
        if self.random.percent(60) {
            let beginning = &self.beginnings[self.random.within(0..3) as usize];
            let shared = self.random.within(60..context as u64 - 45) as usize;
            ids.extend_from_slice(&beginning[..shared]);
        }
        ids.extend((0..own).map(|_| self.random.within(0..VOCAB as u64) as u32));
        let prompt_rows = match self.random.within(0..100) {
            0..15 => PromptRows::All,
            15..20 => PromptRows::Pooled(Pooling::Mean),
            20..25 => PromptRows::Pooled(Pooling::Last),
            25 => PromptRows::Pooled(Pooling::First),
            _ => PromptRows::Last,
        };
        let scores_only = prompt_rows == PromptRows::All && self.random.percent(50);
        let temperature = if self.random.percent(50) { 0.8 } else { 0.0 };
        let seed = self.random.within(0..1000);
        let sampling = Sampling { temperature, seed, digest: Digest::On, ..Sampling::default() };
        let ends: Arc<[u32]> = if self.random.percent(30) { Arc::new([7, 33]) } else { Arc::new([]) };
        let max_tokens = if scores_only { 0 } else { self.random.within(1..50) as usize };
        let (grammar, client) = (None, ClientId(self.random.within(0..3)));
        GenerateRequest { ids, max_tokens, sampling, ends, grammar, prompt_rows, client, key: None }
    }

    pub(super) fn cancel(&mut self, session: SessionId) {
        let Some(asked) = self.asked.get_mut(&session).filter(|asked| !asked.is_over) else { return };
        (asked.is_over, asked.is_cancelled) = (true, true);
        self.story.tell(format!("nobody listens to session {session} any more"));
        self.story.totals.cancelled += 1;
        self.coordinator.cancel(self.instant(), session);
        self.carry_out();
    }

    pub(super) fn told_no_more(&mut self, session: SessionId) {
        if self.asked.get(&session).is_some_and(|asked| !asked.is_over) {
            self.find(format!("session {session} was given up without a word"));
        }
    }

    pub(super) fn told(&mut self, session: SessionId, event: GenerateEvent) {
        let may_fail = self.has_refused_frames();
        let Some(asked) = self.asked.get_mut(&session) else {
            return self.find(format!("nobody asked for session {session}: {event:?}"));
        };
        if asked.is_over {
            if !asked.is_cancelled {
                self.find(format!("session {session} was over: {event:?}"));
            }
            return;
        }
        let wrong = match &event {
            GenerateEvent::Prompt(rows) => asked.prompt(rows),
            GenerateEvent::Pooled(vector) => asked.vector(vector),
            GenerateEvent::Progress { .. } | GenerateEvent::Prefilled { .. } => None,
            GenerateEvent::Token(row) => {
                self.story.totals.tokens += 1;
                asked.token(row)
            }
            GenerateEvent::Finished(finish) => {
                self.story.totals.texts += 1;
                asked.finished(finish)
            }
            GenerateEvent::Failed(error) => {
                self.story.totals.failures += 1;
                asked.is_over = true;
                let honest = matches!(error, GenerateError::WorkerLost { .. }) || may_fail;
                (!honest).then(|| format!("it failed for no good reason: {error}"))
            }
        };
        if let Some(wrong) = wrong {
            self.find(format!("session {session}: {wrong}"));
        }
        if let GenerateEvent::Finished(finish) = event {
            let tokens = finish.generated_tokens;
            self.story.tell(format!("session {session} has its text, {tokens} tokens: {:?}", finish.reason));
        } else if let GenerateEvent::Failed(error) = event {
            self.story.tell(format!("session {session} failed: {error}"));
        }
    }
}

impl Asked {
    fn prompt(&mut self, rows: &[Sampled]) -> Option<String> {
        if std::mem::replace(&mut self.has_prompt, true) || self.request.prompt_rows != PromptRows::All {
            return Some("rows of its prompt came and were not asked for".to_owned());
        }
        let expected = &self.expected.prompt;
        let same =
            rows.len() == expected.len() && rows.iter().zip(expected).all(|(row, expected)| agree(row, expected));
        (!same).then(|| format!("its prompt's rows are {rows:?}, one process has {expected:?}"))
    }

    fn vector(&mut self, vector: &[f32]) -> Option<String> {
        let PromptRows::Pooled(pooling) = self.request.prompt_rows else {
            return Some("a vector came and was not asked for".to_owned());
        };
        self.has_vector = true;
        let expected = self.expected.vector(pooling);
        (vector != expected).then(|| format!("its vector is {vector:?}, one process has {expected:?}"))
    }

    fn token(&mut self, row: &Sampled) -> Option<String> {
        let at = self.tokens;
        self.tokens += 1;
        match self.expected.tokens.get(at) {
            Some(expected) if (row.token, row.digest) == (expected.token, expected.digest) => None,
            expected => Some(format!("its token {at} is {row:?}, one process has {expected:?}")),
        }
    }

    fn finished(&mut self, finish: &Finish) -> Option<String> {
        self.is_over = true;
        let expected = &self.expected.tokens;
        let ended = expected.last().is_some_and(|last| self.request.ends.contains(&last.token));
        let reason = if ended { FinishReason::End } else { FinishReason::Length };
        let counted = (finish.generated_tokens, finish.prompt_tokens, finish.reason);
        let due = (expected.len(), self.request.ids.len(), reason);
        let (has_prompt, has_vector) = match self.request.prompt_rows {
            PromptRows::Last => (false, false),
            PromptRows::All => (true, false),
            PromptRows::Pooled(_) => (false, true),
        };
        let has_all = (self.tokens, self.has_prompt, self.has_vector) == (expected.len(), has_prompt, has_vector);
        (counted != due || !has_all)
            .then(|| format!("it ends after {} tokens with {counted:?}, one process has {due:?}", self.tokens))
    }
}

fn agree(row: &Sampled, expected: &Sampled) -> bool {
    let targets = (row.target_logprob, expected.target_logprob);
    let same_target = targets.0 == targets.1 || (targets.0.is_nan() && targets.1.is_nan());
    (row.token, row.digest) == (expected.token, expected.digest) && same_target
}
