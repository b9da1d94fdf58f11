//! When a small model is asked what may follow, and what becomes of its answers.
//!
//! A sequence that has got its tokens and decodes may wait for a draft before its next step, or go on. It waits where that is
//! expected to give it more tokens a second, by what a drafted token takes and how many of them were right, than what is looked
//! up in its text, or than no draft at all. Where it does not pay, the model is asked now and then all the same and nobody waits:
//! what it says is compared with the text when that is there, so that drafting begins again where it has come to pay.

use std::time::{Duration, Instant};

use qmesh_net::{DraftAnswer, DraftOrder, ORDER_IDS, SessionId};

use super::Scheduler;
use crate::mesh::{
    config::Speculation,
    scheduling::{
        action::Action,
        draft_model::{DraftModel, DraftModelState},
        drafting::{DraftSource, NEAR, Waiting},
        pace::Prompts,
        sequence::Sequence,
    },
};

/// What a sequence asks the model for.
#[derive(Clone, Copy, Debug)]
struct Question {
    session: SessionId,
    most: usize,
    waiting: Waiting,
}

impl Scheduler {
    /// What is known of the model that drafts, if there is one.
    pub(crate) fn draft_model(&self) -> Option<&DraftModel> {
        self.draft_model.as_ref()
    }

    /// The model's process has ended: nothing more comes of it.
    pub(crate) fn draft_model_gone(&mut self) {
        if let Some(model) = &mut self.draft_model {
            model.state = DraftModelState::Gone;
            model.open.clear();
        }
        self.sequences.values_mut().for_each(|sequence| sequence.drafting.model_gone());
    }

    /// The model says something.
    pub(crate) fn draft_answered(&mut self, now: Instant, answer: DraftAnswer) {
        let Some(model) = &mut self.draft_model else { return };
        match answer {
            DraftAnswer::Ready => model.state = DraftModelState::Ready,
            DraftAnswer::Drafted { session, at, mut ids, token_us } => {
                let Some(Sequence { drafting, ids: known, .. }) = self.sequences.get_mut(&session) else { return };
                let foreign = ids.iter().position(|id| *id as usize >= self.limits.vocab);
                ids.truncate(foreign.unwrap_or(ids.len()));
                let waited_s = drafting.answered(now, known, at as usize, ids);
                // Where nobody waited it has read much, or others were before it: its own time tells more.
                let own_s = Some(f64::from(token_us) / 1e6).filter(|seconds| *seconds > 0.0);
                if let Some(token_s) = waited_s.or(own_s) {
                    model.learn(token_s);
                }
            }
            DraftAnswer::Failed { session, text } => {
                tracing::warn!("nothing more is drafted for session {session}: {text}");
                if let Some(sequence) = self.sequences.get_mut(&session) {
                    sequence.drafting.refuse();
                }
            }
        }
    }

    /// Asks the model for drafts, for all sequences that are about to go on.
    pub(super) fn ask_for_drafts(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.close_drafts();
        let Some(model) = self.draft_model.as_ref().filter(|model| model.state == DraftModelState::Ready) else {
            return actions;
        };
        if self.limits.speculation == Speculation::Off {
            return actions;
        }
        let (limits, token_s) = (model.limits, model.token_s());
        let decoding = self.sequences.values().filter(|s| s.is_decoding()).count();
        let groups = self.pace.groups(decoding, Prompts::None);
        let rows = decoding.div_ceil(groups);
        let mut questions = Vec::new();
        for (&session, sequence) in &mut self.sequences {
            let room = limits.context.saturating_sub(sequence.ids.len()).min(sequence.draft_room());
            // The prompt is read when the first token is there: nothing is in that token's way.
            let may = sequence.is_ready() && sequence.is_decoding() && sequence.is_answering();
            let Sequence { drafting, ids, .. } = sequence;
            if !may || room == 0 || !drafting.may_ask(ids, limits.vocab) {
                continue;
            }
            let known = token_s.filter(|_| drafting.behind(ids) <= NEAR);
            let by_model = known.map(|token_s| {
                let share = drafting.share(DraftSource::Model);
                (token_s, self.pace.drafts(rows, groups, share, limits.most.min(room), token_s))
            });
            let text_most = if drafting.finds(ids) { room } else { 0 };
            let by_text = self.pace.drafts(rows, groups, drafting.share(DraftSource::Text), text_most, 0.0);
            let trial = Question { session, most: TRIAL_TOKENS, waiting: Waiting::Never };
            match by_model {
                None => questions.push(trial),
                Some((token_s, drafts)) if drafts.tokens > 0 && drafts.rate > WORTH * by_text.rate => {
                    let patience = Duration::from_secs_f64(PATIENCE * token_s * drafts.tokens as f64);
                    let waiting = Waiting::UpTo(patience + PATIENCE_LEAST);
                    questions.push(Question { session, most: drafts.tokens, waiting });
                }
                Some(_) if drafting.since_asked(ids) >= TRIAL_AFTER => questions.push(trial),
                Some(_) => {}
            }
        }
        actions.extend(questions.into_iter().flat_map(|question| self.ask(now, question)));
        actions
    }

    fn ask(&mut self, now: Instant, question: Question) -> Vec<Action> {
        let Question { session, most, waiting } = question;
        let (Some(model), Some(sequence)) = (&mut self.draft_model, self.sequences.get_mut(&session)) else {
            return Vec::new();
        };
        let mut orders = Vec::new();
        if model.open.insert(session) {
            orders.push(DraftOrder::Open { session, sampling: sequence.request.sampling.clone() });
        }
        let Sequence { drafting, ids, .. } = sequence;
        let (mut from, new) = drafting.ask(now, ids, waiting);
        let parts = new.chunks(ORDER_IDS).count().max(1);
        for part in 0..parts {
            let ids = new.chunks(ORDER_IDS).nth(part).unwrap_or_default().to_vec();
            let most = if part + 1 == parts { count(most) } else { 0 };
            let told = ids.len();
            orders.push(DraftOrder::Draft { session, from: count(from), ids, most });
            from += told;
        }
        orders.into_iter().map(Action::Draft).collect()
    }

    /// Tells the model of the sessions that are over.
    fn close_drafts(&mut self) -> Vec<Action> {
        let Some(model) = &mut self.draft_model else { return Vec::new() };
        let over: Vec<SessionId> = model.open.iter().filter(|s| !self.sequences.contains_key(s)).copied().collect();
        model.open.retain(|session| self.sequences.contains_key(session));
        over.into_iter().map(|session| Action::Draft(DraftOrder::Close { session })).collect()
    }
}

/// Positions and counts fit: a context is bounded far below 2³².
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// How many times as many tokens a second a draft must promise that is waited for.
const WORTH: f64 = 1.05;
/// How many times as long as usual a sequence waits for a draft, and how much longer in any case.
const PATIENCE: f64 = 2.0;
const PATIENCE_LEAST: Duration = Duration::from_millis(5);
/// Tokens after which the model is asked again that is not worth waiting for, and how many it is asked for.
const TRIAL_AFTER: usize = 32;
const TRIAL_TOKENS: usize = 4;
