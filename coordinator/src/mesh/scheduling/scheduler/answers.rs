//! Whether what comes back is what was asked for, and in time.

use std::time::{Duration, Instant};

use qmesh_net::{Frame, PlanEpoch, Segment, StepId};

use super::{Limits, Scheduler};
use crate::mesh::scheduling::{
    action::Action,
    sequence::agree,
    step::{Answer, BadAnswer},
};

impl Scheduler {
    /// Whether a frame of samples is the answer to a step that is under way.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check_answer(&self, frame: &Frame, answer: &Answer) -> Result<(), BadAnswer> {
        let steps = match self.successor.as_ref().filter(|_| self.is_next(frame.epoch)) {
            Some(successor) => &successor.steps,
            None if self.is_current(frame.epoch) => &self.steps,
            None => return Ok(()),
        };
        let Limits { vocab, hidden, .. } = self.limits;
        let summed = frame.segments.iter().filter(|s| s.wants.is_sum()).count();
        let widths = (0..summed).map(|at| answer.sums.get(at).map_or(0, |sum| sum.0.len()));
        if let Some(width) = widths.into_iter().find(|width| *width != hidden) {
            return Err(BadAnswer::SumWidth { width, hidden });
        }
        if let Some(row) = answer.rows.iter().find(|row| row.token as usize >= vocab) {
            return Err(BadAnswer::Token { token: row.token, vocab });
        }
        // A step whose sessions have all failed is forgotten, and may still come back.
        let Some(step) = steps.get(&frame.step) else {
            let sent = frame.step < StepId(if self.is_next(frame.epoch) { u32::MAX } else { self.next_step });
            return if sent { Ok(()) } else { Err(BadAnswer::Step(frame.step)) };
        };
        let answers = |answer: &Segment| {
            step.segments.iter().any(|s| {
                s.session == answer.session
                    && answer.rows <= s.rows
                    && answer.position >= s.position
                    && answer.position + answer.rows <= s.position + s.rows
                    && (!answer.wants.is_sum() || (answer.wants, answer.position) == (s.wants, s.position + s.rows))
            })
        };
        let known = |answer: &Segment| !self.sequences.contains_key(&answer.session) || answers(answer);
        let unknown = frame.segments.iter().find(|answer| !known(answer));
        unknown.map_or(Ok(()), |answer| Err(BadAnswer::Rows(answer.session)))
    }

    /// The pipeline that has owed an answer for so long that it will not come, and for how long.
    pub(crate) fn overdue(&self, now: Instant) -> Option<(PlanEpoch, Duration)> {
        let current = self.pipeline.map(|p| (p.epoch, &self.steps, self.returned));
        let next = self.successor.as_ref().map(|s| (s.pipeline.epoch, &s.steps, Some(s.returned)));
        current.into_iter().chain(next).find_map(|(epoch, steps, returned)| {
            let since = Some(steps.values().map(|step| step.sent).min()?).max(returned)?;
            let waited = now.saturating_duration_since(since);
            (waited > self.patience()).then_some((epoch, waited))
        })
    }

    /// How long an answer may take: many times what steps were measured to take.
    pub(crate) fn patience(&self) -> Duration {
        let measured = self.pace.step_time(self.limits.chunk_rows);
        measured.map_or(PATIENCE_UNMEASURED, |seconds| PATIENCE_LEAST + Duration::from_secs_f64(PATIENCE * seconds))
    }

    /// Fails the sequences that the last stage has other ids of: what it sampled would be another text.
    pub(super) fn fail_strays(&mut self, frame: &Frame) -> Vec<Action> {
        let strays = |s: &&Segment| {
            let sequence = self.sequences.get(&s.session).filter(|q| q.is_on_stages() && !q.spoiled);
            sequence.is_some_and(|sequence| !agree(sequence.trails(), s))
        };
        let strays: Vec<_> = frame.segments.iter().filter(strays).copied().collect();
        let last = self.pipeline.map_or(0, |pipeline| pipeline.stages.saturating_sub(1));
        let text = |s: &Segment| {
            let (session, positions) = (s.session, s.position + s.rows);
            format!("the coordinator and stage {last} disagree about the first {positions} ids of session {session}")
        };
        strays.iter().flat_map(|s| self.failed(frame.epoch, s.session, &text(s))).collect()
    }
}

/// An answer may take so many times as long as a step of the most rows usually takes, and so much longer in any case.
const PATIENCE: f64 = 10.0;
const PATIENCE_LEAST: Duration = Duration::from_secs(5);
/// Where nothing was measured yet.
const PATIENCE_UNMEASURED: Duration = Duration::from_secs(300);
