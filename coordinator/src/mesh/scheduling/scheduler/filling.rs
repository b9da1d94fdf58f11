//! Filling steps: which rows of which sequences travel together.

use std::time::Instant;

use qmesh_net::{Frame, Segment, SessionId, StepId, limits::FRAME_SEGMENTS};

use super::Scheduler;
use crate::mesh::{
    config::Speculation,
    scheduling::{
        pace::{Prompts, WaitingPrompts},
        sequence::Sequence,
        step::{Pipeline, StepUnderWay, empty_frame},
    },
};

impl Scheduler {
    /// The next step, if one may go: the tokens of a group of sequences that decode, and as many prompt rows as the
    /// time allows.
    pub(super) fn fill_step(&mut self, now: Instant, pipeline: Pipeline) -> Option<Frame> {
        let decoding = self.sequences.values().filter(|s| s.is_decoding()).count();
        let prompts = || self.sequences.values().filter(|s| s.is_ready() && s.unsent() > 1);
        let (all, short) = (prompts().count(), prompts().filter(|s| s.is_short()).count());
        let groups = self.pace.groups(decoding, if all > 0 { Prompts::Waiting } else { Prompts::None });
        let group_rows = decoding.div_ceil(groups);
        if self.steps.len() >= self.pace.steps_most(groups, group_rows.max(1)) {
            return None;
        }
        let mut frame = empty_frame(pipeline, StepId(self.next_step));
        if self.steps.values().filter(|step| step.decodes).count() < groups {
            self.add_group(&mut frame, groups, group_rows);
        }
        let decodes = !frame.ids.is_empty();
        let room = self.limits.chunk_rows.saturating_sub(frame.ids.len());
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
                self.pace.prompt_rows(frame.ids.len(), groups, waiting, if all > 0 { room } else { 0 })
            }
        };
        self.add_prompts(now, &mut frame, rows);
        if frame.segments.is_empty() {
            return None;
        }
        self.steps.insert(frame.step, StepUnderWay { segments: frame.segments.clone(), decodes, sent: now });
        self.next_step = self.next_step.wrapping_add(1);
        Some(frame)
    }

    /// Adds the last tokens of up to `count` of the sequences that decode, with drafts where these pay.
    fn add_group(&mut self, frame: &mut Frame, groups: usize, count: usize) {
        let drafts_most = match self.limits.speculation {
            Speculation::Off => 0,
            Speculation::On => DRAFTS_MOST,
        };
        for session in self.ready(|s| s.unsent() == 1).into_iter().take(count.min(FRAME_SEGMENTS)) {
            let Some(sequence) = self.sequences.get_mut(&session) else { continue };
            let room = self.limits.chunk_rows.saturating_sub(frame.ids.len());
            if room == 0 {
                return;
            }
            let drafts = self.pace.draft_rows(count, groups, sequence.acceptance(), drafts_most.min(room - 1));
            let (segment, ids) = sequence.drafted_segment(session, drafts);
            self.add(frame, segment, ids);
        }
    }

    /// Adds up to `rows` rows of prompts.
    fn add_prompts(&mut self, now: Instant, frame: &mut Frame, rows: usize) {
        let mut left = rows;
        for session in self.ready(|s| s.unsent() > 1) {
            let Some(sequence) = self.sequences.get_mut(&session) else { continue };
            if left == 0 || frame.segments.len() == FRAME_SEGMENTS {
                return;
            }
            let (segment, ids) = sequence.next_segment(now, session, left);
            left = left.saturating_sub(ids.len());
            self.add(frame, segment, ids);
        }
    }

    fn add(&mut self, frame: &mut Frame, segment: Segment, ids: Vec<u32>) {
        self.turn += 1;
        if let Some(sequence) = self.sequences.get_mut(&segment.session) {
            sequence.turn = self.turn;
            *self.served.entry(sequence.request.client).or_default() += ids.len() as u64;
        }
        frame.segments.push(segment);
        frame.ids.extend(ids);
    }

    /// Sequences that have ids to send and are as wanted, in the order in which they go: those with short prompts
    /// before those with long ones, then by how little their client was served, then by how long ago they were.
    fn ready(&self, wanted: impl Fn(&Sequence) -> bool) -> Vec<SessionId> {
        let ready = self.sequences.iter().filter(|(_, s)| s.is_ready() && wanted(s));
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

/// Tokens drafted for a sequence at a time.
const DRAFTS_MOST: usize = 15;
