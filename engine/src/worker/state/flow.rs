//! The links of the stages and the frames on them: what may come in, in which order it is computed, and what goes on.

use std::time::{Duration, Instant};

use qmesh_net::{Fault, FaultCode, Frame, FrameKind, LinkWay, Message, Passage, PeerWays, Route, Sections, Upstream};

use super::{
    Arrival, FRAMES_HELD, WorkerState,
    event::Action,
    stage::{Downlink, Readiness, Stage},
};
use crate::worker::{
    compute::{Command, ShardState, Stepped},
    links::{LinkId, LinkNews},
    turn::Turn,
};

/// Links from upstream that may wait for their route.
const ARRIVALS_HELD: usize = 4;
/// Steps that the compute thread has at once: one that it computes, and one to go on with. The others wait here, so that
/// plans take turns and a plan that goes takes its frames with it.
const STEPS_AHEAD: usize = 2;

impl WorkerState {
    /// Whether another frame of this turn may be taken in.
    pub(crate) fn has_room(&self, turn: Turn) -> bool {
        let held = self.stages.iter().find(|stage| stage.turn == turn).map_or(0, Stage::frames_held);
        !self.leaving && held < FRAMES_HELD
    }

    /// Frames of all turns between `Frame` and `Sent`.
    #[cfg(feature = "simulation")]
    pub(crate) fn frames_held(&self) -> usize {
        self.stages.iter().map(Stage::frames_held).sum()
    }

    /// Commands that the compute thread has not been given yet.
    pub(crate) fn queued(&self) -> usize {
        self.stages.iter().map(|stage| stage.queue.len()).sum()
    }

    pub(super) fn link_news(&mut self, news: LinkNews) {
        match news {
            LinkNews::Arrived { link, peer, epoch } => self.arrived(Arrival { link, peer, epoch }),
            LinkNews::UpstreamBroken { link, text } => self.upstream_broken(link, &text),
            LinkNews::DownstreamStands { turn, way } => self.downstream_stands(turn, way),
            LinkNews::Sent { turn, bytes, took } => self.sent(turn, bytes, took),
            LinkNews::DownstreamBroken { turn, text } => self.downstream_broken(turn, &text),
        }
    }

    pub(super) fn route(&mut self, route: Route) {
        let epoch = route.epoch;
        let Some(stage) = self.of_epoch(epoch).filter(|stage| stage.assignment.stage == route.stage) else {
            return tracing::warn!(%epoch, stage = %route.stage, "ignored a Route of another plan or stage");
        };
        if stage.route.is_some() {
            return tracing::warn!(%epoch, "ignored a second Route");
        }
        let ways = match ways_of(&route.sections) {
            Ok(ways) => ways,
            Err(text) => {
                let fault = stage.fault(FaultCode::Link, text);
                return self.act(fault);
            }
        };
        let turn = stage.turn;
        stage.route = Some(route.clone());
        self.act(Action::Link { turn, route, ways });
        self.review_arrivals();
    }

    /// An incoming link is read, kept for a route to come, or refused.
    fn arrived(&mut self, arrival: Arrival) {
        let Arrival { link, peer, epoch } = arrival;
        let (coordinator, newest) = (self.coordinator, self.newest);
        match self.of_epoch(epoch) {
            Some(stage) => {
                if let Some(route) = &stage.route {
                    let expected = match route.upstream {
                        Upstream::Coordinator => coordinator,
                        Upstream::Worker(peer) => Some(peer),
                    };
                    // Frames have come on the link that stands: a second one could only repeat or reorder them.
                    if expected != Some(peer) || stage.last_step.is_some() {
                        return self.act(Action::Refuse(link));
                    }
                    stage.uplink = Some(link);
                    let turn = stage.turn;
                    self.act(Action::Read { turn, link });
                    return self.tell_linked(turn);
                }
            }
            // Of a plan that is no more.
            None if newest.is_some_and(|newest| epoch <= newest) => return self.act(Action::Refuse(link)),
            None => {}
        }
        self.arrivals.push_back(arrival);
        if self.arrivals.len() > ARRIVALS_HELD
            && let Some(oldest) = self.arrivals.pop_front()
        {
            self.act(Action::Refuse(oldest.link));
        }
    }

    /// Decides anew on links that wait.
    pub(super) fn review_arrivals(&mut self) {
        for arrival in std::mem::take(&mut self.arrivals) {
            self.arrived(arrival);
        }
    }

    fn downstream_stands(&mut self, turn: Turn, way: Option<LinkWay>) {
        if let Some(stage) = self.in_turn(turn) {
            stage.downlink = Downlink::Standing;
            stage.link_way = way;
            self.tell_linked(turn);
        }
    }

    pub(super) fn tell_linked(&mut self, turn: Turn) {
        let Some(stage) = self.in_turn(turn) else { return };
        let stands = stage.downlink == Downlink::Standing && stage.uplink.is_some();
        if stands && stage.readiness == Readiness::Ready && !stage.linked_told {
            stage.linked_told = true;
            let (epoch, index, stages) = (stage.epoch(), stage.assignment.stage, stage.assignment.stages);
            let (mut sections, mut relayed) = (Sections::default(), "");
            if let Some(way) = stage.link_way {
                // Two numbers are never too long for a section.
                let _ = way.put(&mut sections);
                relayed = match way.passage {
                    Passage::Direct => "",
                    Passage::Relayed => ", its link to the next one relayed",
                };
            }
            self.tell(Message::Linked { epoch, sections });
            self.act(Action::Say(format!("ready as stage {index} of {stages}{relayed}")));
        }
    }

    pub(super) fn frame(&mut self, now: Instant, link: LinkId, frame: Frame) {
        let Some(stage) = self.stages.iter_mut().find(|stage| stage.uplink == Some(link)) else { return };
        let (turn, current) = (stage.turn, stage.epoch());
        // That the link downstream broke was told: what still comes is no fault of who sends it.
        if frame.kind == FrameKind::End || frame.epoch < current || stage.downlink == Downlink::Broken {
            return;
        }
        let wrong = if frame.epoch > current {
            Some(format!("frame of plan {} on a link of plan {current}", frame.epoch))
        } else if stage.last_step.is_some_and(|last| frame.step <= last) {
            Some(format!("frame {} after frame {}", frame.step, stage.last_step.unwrap_or_default()))
        } else if stage.readiness != Readiness::Ready || stage.downlink != Downlink::Standing {
            Some(format!("frame {} before the stage was ready", frame.step))
        } else {
            None
        };
        if let Some(text) = wrong {
            let fault = stage.fault(FaultCode::Frame, text);
            return self.act(fault);
        }
        (stage.last_step, stage.last_frame) = (Some(frame.step), Some(now));
        stage.waiting += 1;
        let (masks, strays) = stage.claim_masks(&frame);
        stage.queue.push_back(Command::Step { turn, frame, masks, arrived: now });
        for session in strays {
            let (code, text) = (FaultCode::Mask, "a mask came for a row that does not wait for one".to_owned());
            self.tell(Message::Fault(Fault { epoch: current, session: Some(session), code, text }));
        }
        self.feed();
    }

    /// Puts a command behind the frames of its session.
    pub(super) fn command(&mut self, turn: Turn, command: Command) {
        if let Some(stage) = self.in_turn(turn) {
            stage.queue.push_back(command);
            self.feed();
        }
    }

    /// Gives the compute thread what it may have: the plans take turns, step by step.
    pub(super) fn feed(&mut self) {
        loop {
            let steps: usize = self.stages.iter().map(|stage| stage.computing).sum();
            let last_fed = self.last_fed;
            let may_go = |stage: &&mut Stage| match stage.queue.front() {
                Some(Command::Step { masks, .. }) => steps < STEPS_AHEAD && masks.is_complete(),
                Some(_) => true,
                None => false,
            };
            let waiting = self.stages.iter_mut().filter(may_go);
            let Some(stage) = waiting.min_by_key(|stage| (stage.turn <= last_fed, stage.turn)) else { return };
            let Some(command) = stage.queue.pop_front() else { return };
            if matches!(command, Command::Step { .. }) {
                stage.waiting -= 1;
                stage.computing += 1;
                self.last_fed = stage.turn;
            }
            self.act(Action::Compute(command));
        }
    }

    pub(super) fn stepped(&mut self, stepped: Stepped) {
        let Stepped { turn, frame, faults, rows, compute, waited, kv_positions_used, shard } = stepped;
        // The result of a plan that is no more goes nowhere.
        if let Some(stage) = self.in_turn(turn) {
            stage.computing = stage.computing.saturating_sub(1);
            if shard == ShardState::Lost {
                stage.lose_shard();
            }
            stage.report.steps += 1;
            stage.report.rows += rows;
            stage.report.compute_us += micros(compute);
            stage.recent.push(compute);
            stage.report.wait_us += micros(waited);
            stage.report.kv_positions_used = kv_positions_used;
            let frame = frame.filter(|_| stage.downlink == Downlink::Standing);
            stage.sending += usize::from(frame.is_some());
            self.actions.extend(faults.into_iter().map(|fault: Fault| Action::Tell(Message::Fault(fault))));
            self.actions.extend(frame.map(|frame| Action::Send { turn, frame }));
        }
        self.feed();
    }

    fn sent(&mut self, turn: Turn, bytes: u64, took: Duration) {
        if let Some(stage) = self.in_turn(turn) {
            stage.sending = stage.sending.saturating_sub(1);
            stage.report.bytes_sent += bytes;
            stage.report.hop_us += micros(took);
        }
    }

    fn upstream_broken(&mut self, link: LinkId, text: &str) {
        self.arrivals.retain(|waiting| waiting.link != link);
        let Some(stage) = self.stages.iter_mut().find(|stage| stage.uplink == Some(link)) else { return };
        stage.uplink = None;
        // Before the pipeline stands, the upstream dials again by itself.
        if stage.linked_told {
            let fault = stage.fault(FaultCode::Link, format!("the link from upstream broke: {text}"));
            self.act(fault);
        }
    }

    fn downstream_broken(&mut self, turn: Turn, text: &str) {
        if let Some(stage) = self.in_turn(turn) {
            stage.downlink = Downlink::Broken;
            stage.sending = 0;
            let fault = stage.fault(FaultCode::Link, format!("the link downstream broke: {text}"));
            self.act(fault);
        }
    }
}

/// Where the neighbours are, beside what the route itself says.
fn ways_of(sections: &Sections) -> Result<PeerWays, String> {
    sections.understood(&[PeerWays::TAG]).map_err(|error| format!("the route cannot be taken: {error}"))?;
    PeerWays::find(sections).map_err(|error| format!("the route: {error}"))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
