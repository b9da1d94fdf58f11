//! How sequences get from one pipeline to the next without a pause: their ids are computed there again, beside the
//! tokens that still come from the old one; when all are there, the last steps are waited for, and the next token comes
//! from the new pipeline.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use qmesh_net::{Frame, OpenSession, PlanEpoch, Segment, SessionId, StepId, Trails, Wants, limits::FRAME_SEGMENTS};

use super::{FIRST_STEP, Scheduler, StepTotals};
use crate::mesh::{
    config::PrefixReuse,
    scheduling::{
        action::Action,
        kept::{make_more_room, make_room},
        pace::Pace,
        pages::PageLedger,
        phase::Phase,
        sequence::{Sequence, agree},
        step::{Pipeline, StepUnderWay, empty_frame},
        successor::{Follower, Successor},
    },
};

impl Scheduler {
    /// A second pipeline stands: whoever runs shall follow there. `Action::Followed` says when all have.
    pub(crate) fn successor_up(&mut self, now: Instant, epoch: PlanEpoch, stages: usize) {
        self.successor = Some(Successor {
            pipeline: Pipeline { epoch, stages },
            steps: BTreeMap::new(),
            pace: Pace::new(stages),
            returned: now,
            next_step: FIRST_STEP,
            pages: PageLedger::new(self.limits.kv_positions, self.limits.sessions),
            followers: BTreeMap::new(),
            kept: BTreeMap::new(),
            since: now,
            draining: false,
        });
    }

    /// The second pipeline is gone before the sequences have moved there.
    pub(crate) fn successor_down(&mut self, epoch: PlanEpoch) {
        self.successor.take_if(|s| s.pipeline.epoch == epoch);
    }

    /// How many sequences have followed, and how many there are to follow.
    pub(crate) fn following(&self) -> Option<(usize, usize)> {
        let successor = self.successor.as_ref()?;
        let running = self.sequences.iter().filter(|(_, s)| s.has_begun());
        let (mut all, mut there) = (0, 0);
        for (session, sequence) in running {
            all += 1;
            there += usize::from(successor.followers.get(session).is_some_and(|f| f.is_near(sequence)));
        }
        Some((there, all))
    }

    /// Whether the old pipeline gets no more steps.
    pub(super) fn is_draining(&self) -> bool {
        self.successor.as_ref().is_some_and(|s| s.draining)
    }

    /// Whether new sequences shall wait for the next pipeline, so that the last one comes to an end.
    pub(super) fn is_closing(&self, now: Instant) -> bool {
        self.successor.as_ref().is_some_and(|s| s.draining || now - s.since > OPEN_MOST)
    }

    /// Opens followers, computes their ids, and lets the sequences move when all are there.
    pub(super) fn pump_successor(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.dismiss_followers();
        actions.extend(self.grow_followers());
        actions.extend(self.open_followers());
        while let Some(frame) = self.follow_step(now) {
            actions.push(Action::Frame(frame));
        }
        let Some(successor) = &mut self.successor else { return actions };
        if !successor.draining {
            let near = |(session, sequence): (&SessionId, &Sequence)| {
                !sequence.has_begun()
                    || successor.followers.get(session).is_some_and(|f| f.failed || f.is_near(sequence))
            };
            successor.draining = self.sequences.iter().all(near) || now - successor.since > FOLLOW_MOST;
        }
        let leaving = successor.followers.keys().any(|session| !self.sequences.contains_key(session));
        if successor.draining && self.steps.is_empty() && !leaving {
            actions.extend(self.move_over(now));
        }
        actions
    }

    pub(super) fn follower_opened(&mut self, session: SessionId) {
        let followers = self.successor.as_mut().map(|s| &mut s.followers);
        if let Some(follower) = followers.and_then(|f| f.get_mut(&session)) {
            follower.phase = follower.phase.answered();
        }
    }

    /// A stage of the next pipeline has failed the session, which took its rows out of the steps.
    pub(super) fn follower_failed(&mut self, session: SessionId) -> Vec<Action> {
        let Some(successor) = &mut self.successor else { return Vec::new() };
        successor.steps.retain(|_, step| step.forget(session));
        let Some(follower) = successor.followers.get_mut(&session).filter(|f| !f.failed) else { return Vec::new() };
        follower.failed = true;
        follower.in_flight = 0;
        successor.pages.keep(session, 0);
        vec![Action::Close(successor.pipeline.epoch, session)]
    }

    /// A step of the next pipeline is back.
    pub(super) fn follower_stepped(&mut self, now: Instant, frame: &Frame) -> Vec<Action> {
        let Some(successor) = &mut self.successor else { return Vec::new() };
        let Some(step) = successor.steps.remove(&frame.step) else { return Vec::new() };
        successor.returned = now;
        successor.pace.learn(step.rows(), frame.times, now.saturating_duration_since(step.sent));
        for segment in &step.segments {
            if let Some(follower) = successor.followers.get_mut(&segment.session) {
                follower.in_flight = follower.in_flight.saturating_sub(1);
                follower.computed = follower.computed.max(segment.position as usize + segment.rows as usize);
            }
        }
        // What its stages hold of another text must not be gone on from.
        let followers = &successor.followers;
        let strays = frame.segments.iter().filter(|s| followers.get(&s.session).is_some_and(|f| !agree(&f.trails, s)));
        let strays: Vec<SessionId> = strays.map(|s| s.session).collect();
        strays.into_iter().flat_map(|session| self.follower_failed(session)).collect()
    }

    /// The old pipeline is lost: who has a follower goes on from where that is.
    pub(super) fn fall_over(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(successor) = &mut self.successor {
            let gone = successor.followers.keys().filter(|session| !self.sequences.contains_key(session));
            let gone: Vec<_> = gone.copied().collect();
            for session in gone {
                actions.extend(successor.leave(session));
            }
        }
        actions.extend(self.move_over(now));
        actions
    }

    /// Closes followers whose sequences are over, once no step carries their rows; what the old pipeline keeps of them is
    /// kept.
    fn dismiss_followers(&mut self) -> Vec<Action> {
        let Some(successor) = &mut self.successor else { return Vec::new() };
        let running = |session: &SessionId| self.sequences.get(session).is_some_and(Sequence::has_begun);
        // What is still being opened, or has failed, may be wanted again, and is not opened there twice.
        let over = |(session, f): &(&SessionId, &Follower)| {
            let settled = f.phase == Phase::Running && !f.failed;
            f.in_flight == 0 && !running(session) && (settled || !self.sequences.contains_key(session))
        };
        let over = successor.followers.iter().filter(over);
        let over: Vec<SessionId> = over.map(|(&session, _)| session).collect();
        let kept = &self.kept;
        over.into_iter().filter_map(|session| successor.end(session, kept.get(&session))).collect()
    }

    /// Sets room aside for followers whose sequences have grown; where there is none, they start over.
    fn grow_followers(&mut self) -> Vec<Action> {
        let Some(successor) = &mut self.successor else { return Vec::new() };
        let (mut actions, mut without) = (Vec::new(), Vec::new());
        for &session in successor.followers.iter().filter(|(_, f)| !f.failed).map(|(session, _)| session) {
            let Some(sequence) = self.sequences.get(&session) else { continue };
            let (ids, least, wanted) = (sequence.ids.len(), sequence.room_least(), sequence.room());
            if successor.pages.held(session) < least {
                let (_, freed) = make_more_room(&mut successor.pages, &mut successor.kept, session, wanted);
                actions.extend(freed.into_iter().map(|freed| freed.action(successor.pipeline.epoch)));
            }
            if successor.pages.held(session) < ids && !successor.pages.grow(session, ids) {
                without.push(session);
            }
        }
        actions.extend(without.into_iter().flat_map(|session| self.follower_failed(session)));
        actions
    }

    /// Opens sessions on the next pipeline for all that have their first token, as far as there is room.
    fn open_followers(&mut self) -> Vec<Action> {
        let Some(successor) = &mut self.successor else { return Vec::new() };
        let mut actions = Vec::new();
        for (&session, sequence) in self.sequences.iter().filter(|(_, s)| s.has_begun()) {
            if successor.followers.contains_key(&session) {
                continue;
            }
            let best = if self.limits.prefix_reuse == PrefixReuse::On {
                successor.longest_prefix(sequence, &self.sequences)
            } else {
                None
            };
            let positions = sequence.room();
            let (prefix, freed) = make_room(&mut successor.pages, &mut successor.kept, positions, best);
            actions.extend(freed.into_iter().map(|freed| freed.action(successor.pipeline.epoch)));
            let beginning = prefix.flatten().map_or(0, |p| p.positions as usize);
            let phase = Phase::Opening { missing: successor.pipeline.stages };
            let mut trails = Trails::default();
            trails.write(0, &sequence.ids[..beginning]);
            let failed = prefix.is_none();
            let follower = Follower { phase, sent: beginning, computed: beginning, in_flight: 0, trails, failed };
            let Some(prefix) = prefix else {
                // There will be room when those that have ended are off the stages.
                let running = |session| self.sequences.get(session).is_some_and(Sequence::has_begun);
                if successor.followers.keys().all(running) {
                    successor.followers.insert(session, follower);
                }
                continue;
            };
            successor.followers.insert(session, follower);
            successor.pages.open(session, positions, prefix.map(|p| (p.session, p.positions as usize)));
            actions.push(Action::Open(OpenSession {
                epoch: successor.pipeline.epoch,
                session,
                max_positions: count(sequence.max_positions),
                sampling: sequence.request.sampling.clone(),
                prefix,
            }));
        }
        actions
    }

    /// Rows of followers, so few that tokens of the old pipeline wait little for them.
    fn follow_step(&mut self, now: Instant) -> Option<Frame> {
        let successor = self.successor.as_mut()?;
        if successor.steps.len() >= successor.pipeline.stages {
            return None;
        }
        let token = self.pace.step_time(1).map_or(CHUNK_TIME, |whole| whole.max(CHUNK_TIME));
        let rows = successor.pace.rows_within(token).clamp(CHUNK_LEAST, self.limits.chunk_rows.max(CHUNK_LEAST));
        let mut left = rows.min(self.limits.chunk_rows);
        let mut frame = empty_frame(successor.pipeline, StepId(successor.next_step));
        for (&session, follower) in &mut successor.followers {
            let Some(sequence) = self.sequences.get(&session).filter(|s| s.has_begun()) else { continue };
            let end = (sequence.ids.len() - 1).min(follower.sent + left);
            if follower.phase != Phase::Running || follower.failed || end <= follower.sent {
                continue;
            }
            let (position, rows) = (count(follower.sent), count(end - follower.sent));
            let ids = &sequence.ids[follower.sent..end];
            let trail = follower.trails.write(follower.sent, ids).unwrap_or_default();
            frame.ids.extend(ids);
            frame.segments.push(Segment { session, position, rows, wants: Wants::None, trail });
            left -= end - follower.sent;
            follower.sent = end;
            follower.in_flight += 1;
            if left == 0 || frame.segments.len() == FRAME_SEGMENTS {
                break;
            }
        }
        if frame.segments.is_empty() {
            return None;
        }
        successor.next_step = successor.next_step.wrapping_add(1);
        let step = StepUnderWay { segments: frame.segments.clone(), decodes: false, masks: 0, sent: now };
        successor.steps.insert(frame.step, step);
        Some(frame)
    }

    /// The next pipeline becomes the only one. Who has no follower there starts over.
    fn move_over(&mut self, now: Instant) -> Vec<Action> {
        let Some(mut successor) = self.successor.take() else { return Vec::new() };
        self.pipeline = Some(successor.pipeline);
        self.steps = successor.steps;
        self.next_step = successor.next_step;
        self.pages = successor.pages;
        self.pace = successor.pace;
        self.returned = Some(now);
        self.step_totals = StepTotals::default();
        self.kept = successor.kept;
        let mut waiting = Vec::new();
        for (&session, sequence) in &mut self.sequences {
            match successor.followers.remove(&session).filter(|f| !f.failed) {
                Some(Follower { phase, sent, computed, in_flight, trails, .. }) => {
                    sequence.follow(phase, sent, computed, in_flight, trails);
                    self.queue.retain(|&s| s != session);
                }
                None if sequence.phase == Phase::Waiting => {}
                None => {
                    sequence.restart(now);
                    waiting.push(session);
                }
            }
        }
        // They have waited before those who have not begun.
        waiting.into_iter().rev().for_each(|session| self.queue.push_front(session));
        vec![Action::Followed(successor.pipeline.epoch)]
    }
}

/// Positions fit: a context is bounded far below 2³².
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Seconds that a step of followers may take where tokens are quicker than that.
const CHUNK_TIME: f64 = 0.04;
/// Rows of a step of followers, at least: fewer cost nearly as much.
const CHUNK_LEAST: usize = 16;
/// For how long new sequences still come onto the old pipeline.
const OPEN_MOST: Duration = Duration::from_secs(90);
/// After that sequences move whether they have a follower or not.
const FOLLOW_MOST: Duration = Duration::from_secs(600);
