//! Filling steps: which rows of which sequences travel together.

use std::time::Instant;

use qmesh_models::footprint::SUMMED_SEQUENCES;
use qmesh_net::{
    SessionId, StepId,
    limits::{FRAME_SEGMENTS, MASKS_UNDER_WAY},
};

use super::Scheduler;
use crate::mesh::{
    config::Speculation,
    scheduling::{
        drafting::DraftSource,
        pace::{Prompts, WaitingPrompts},
        sequence::{DRAFTS_MOST, Rows, Sequence},
        step::{Filled, Pipeline, StepUnderWay},
    },
};

impl Scheduler {
    /// The next step, if one may go: the tokens of a group of sequences that decode, and as many prompt rows as the
    /// time allows.
    pub(super) fn fill_step(&mut self, now: Instant, pipeline: Pipeline) -> Option<Filled> {
        let decoding = self.sequences.values().filter(|s| s.is_decoding()).count();
        let prompts = || self.sequences.values().filter(|s| s.is_ready() && !s.is_decoding());
        let (all, short) = (prompts().count(), prompts().filter(|s| s.is_short()).count());
        let groups = self.pace.groups(decoding, if all > 0 { Prompts::Waiting } else { Prompts::None });
        let group_rows = decoding.div_ceil(groups);
        if self.steps.len() >= self.pace.steps_most(groups, group_rows.max(1)) {
            return None;
        }
        let mut filled = Filled::new(pipeline, StepId(self.next_step));
        if self.steps.values().filter(|step| step.decodes).count() < groups {
            self.add_group(now, &mut filled, groups, group_rows);
        }
        let decodes = filled.rows() > 0;
        let room = self.limits.chunk_rows.saturating_sub(filled.rows());
        let rows = match (decoding, decodes) {
            (0, _) => self.pace.chunk_rows(self.prompt_rows(), room),
            // A step of prompt rows alone would come between two tokens of everybody, unless stages are idle in
            // between.
            (_, false) => {
                let (steps, rows) = self.pace.between(group_rows, groups, room);
                let under_way = self.steps.values().filter(|step| !step.decodes).count();
                if under_way < steps { rows } else { 0 }
            }
            (_, true) => {
                let each = |count: usize| count as f64 / decoding as f64;
                let waiting = WaitingPrompts { long: each(all - short), short: each(short) };
                self.pace.prompt_rows(filled.rows(), groups, waiting, if all > 0 { room } else { 0 })
            }
        };
        self.add_prompts(now, &mut filled, rows);
        if filled.rows() == 0 {
            return None;
        }
        let (segments, masks) = (filled.segments().to_vec(), filled.masks());
        self.steps.insert(StepId(self.next_step), StepUnderWay { segments, decodes, masks, sent: now });
        self.next_step = self.next_step.wrapping_add(1);
        Some(filled)
    }

    /// Adds the last tokens of up to `count` of the sequences that decode, with drafts where these pay. A group that would be whole
    /// but for sequences that wait for drafts waits with them: it would take as long without them.
    fn add_group(&mut self, now: Instant, filled: &mut Filled, groups: usize, count: usize) {
        let drafts_most = match self.limits.speculation {
            Speculation::Off => 0,
            Speculation::On => DRAFTS_MOST,
        };
        let under_way = self.masks_under_way();
        let ready = self.ready(|s| s.is_decoding() && !s.awaits_draft(now));
        if ready.len() < count.min(FRAME_SEGMENTS) && self.sequences.values().any(|s| s.awaits_draft(now)) {
            return;
        }
        for session in ready.into_iter().take(count.min(FRAME_SEGMENTS)) {
            let held = self.pages.held(session);
            let Some(sequence) = self.sequences.get_mut(&session) else { continue };
            let room = self.limits.chunk_rows.saturating_sub(filled.rows());
            if room == 0 {
                return;
            }
            // Nothing goes out for which no room is set aside on the stages.
            let Some(spare) = held.checked_sub(sequence.ids.len()) else { continue };
            let mut most = drafts_most.min(room - 1).min(spare);
            if sequence.is_masked() {
                let Some(left) = (MASKS_MOST - filled.masks()).checked_sub(under_way + 1) else { continue };
                most = most.min(left);
            }
            let drafts = match sequence.drafting.source(&sequence.ids) {
                // It was found to pay before it was waited for.
                DraftSource::Model => most,
                DraftSource::Text => {
                    let share = sequence.drafting.share(DraftSource::Text);
                    self.pace.drafts(count, groups, share, most.min(sequence.draft_room()), 0.0).tokens
                }
            };
            match sequence.drafted_rows(session, drafts) {
                Ok(rows) => self.add(filled, rows),
                Err(error) => self.lost.push((session, error)),
            }
        }
    }

    /// Adds up to `rows` rows of prompts.
    fn add_prompts(&mut self, now: Instant, filled: &mut Filled, rows: usize) {
        let mut left = rows;
        let under_way = self.masks_under_way();
        for session in self.ready(|s| !s.is_decoding()) {
            let Some(sequence) = self.sequences.get_mut(&session) else { continue };
            if left == 0 || filled.segments().len() == FRAME_SEGMENTS {
                return;
            }
            if sequence.is_masked() && under_way + filled.masks() >= MASKS_MOST {
                continue;
            }
            if sequence.is_pooled() && filled.sums() >= SUMMED_SEQUENCES {
                continue;
            }
            match sequence.next_rows(now, session, left) {
                Ok(rows) => {
                    left = left.saturating_sub(rows.ids.len());
                    self.add(filled, rows);
                }
                Err(error) => self.lost.push((session, error)),
            }
        }
    }

    fn add(&mut self, filled: &mut Filled, rows: Rows) {
        self.turn += 1;
        if let Some(sequence) = self.sequences.get_mut(&rows.segment.session) {
            sequence.turn = self.turn;
            *self.served.entry(sequence.request.client).or_default() += rows.ids.len() as u64;
        }
        filled.add(rows);
    }

    /// Masks whose steps have not come back.
    fn masks_under_way(&self) -> usize {
        self.steps.values().map(|step| step.masks).sum()
    }

    /// Sequences that have ids to send and are as wanted, in the order in which they go: those with short prompts
    /// before those with long ones, then by how little their client was served, then by how long ago they were.
    fn ready(&self, wanted: impl Fn(&Sequence) -> bool) -> Vec<SessionId> {
        let is_lost = |session: &SessionId| self.lost.iter().any(|(lost, _)| lost == session);
        let ready = self.sequences.iter().filter(|(session, s)| s.is_ready() && wanted(s) && !is_lost(session));
        let served = |s: &Sequence| self.served.get(&s.request.client).copied().unwrap_or_default();
        let mut ready: Vec<_> = ready.map(|(&session, s)| (!s.is_short(), served(s), s.turn, session)).collect();
        ready.sort_unstable();
        ready.into_iter().map(|(.., session)| session).collect()
    }

    /// Ids of all sequences that have some to send.
    fn prompt_rows(&self) -> usize {
        self.sequences.values().filter(|s| s.is_ready()).map(|s| s.ids.len()).sum()
    }
}

/// Masks under way on one pipeline. Workers take twice as many, since what a lost session leaves there may linger.
const MASKS_MOST: usize = MASKS_UNDER_WAY / 2;
