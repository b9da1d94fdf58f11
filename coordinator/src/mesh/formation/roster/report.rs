//! What the roster says to people.

use std::time::Instant;

use qmesh_net::{FoundBy, LinkWay, Passage, PlanEpoch, RecentSteps, Sections, ShardPhase, WayFound, WeightOrigin};

use super::Roster;
use crate::{
    mesh::{
        events::{MeshEvent, PlannedStage},
        formation::{
            pipeline::{Pipeline, Stage, Standing},
            worker::{Worker, WorkerId},
        },
        status::{
            ChangeStatus, FoundStatus, FoundTier, LinkPassage, LinkStatus, MeshState, RecentStepsStatus, StagePhase,
            StageStatus, WorkerStatus,
        },
    },
    plan::{StagePlan, prediction::Prediction},
};

impl Roster {
    /// The plan that serves, or else the one that is being carried out.
    pub(crate) fn epoch(&self) -> PlanEpoch {
        self.shown().map_or(self.newest, |p| p.epoch)
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn state(&self) -> MeshState {
        match self.shown().map(|p| p.standing) {
            None if self.failed => MeshState::Failed,
            None => MeshState::Waiting,
            Some(Standing::Loading | Standing::Linking(_)) => MeshState::Loading,
            Some(Standing::Linked | Standing::Proved) => MeshState::Ready,
        }
    }

    pub(crate) fn prediction(&self) -> Option<Prediction> {
        self.shown()?.prediction.clone()
    }

    /// The stages of the pipeline that serves, or of the one that is being made ready.
    pub(crate) fn stage_status(&self) -> Vec<StageStatus> {
        self.shown().map(|p| self.stages_of(p)).unwrap_or_default()
    }

    /// The plan that is being made ready, as an event.
    pub(crate) fn plan_made(&self) -> Option<MeshEvent> {
        let next = self.next.as_ref()?;
        let stages = next.plan.stages.iter().zip(&next.stages).map(|(planned, stage)| PlannedStage {
            worker: self.name_of(stage.worker).to_owned(),
            first_layer: planned.layers.start,
            end_layer: planned.layers.end,
        });
        Some(MeshEvent::PlanMade { epoch: next.epoch.0, why: next.why, stages: stages.collect() })
    }

    /// The plan that is to take the place of the one that serves.
    pub(crate) fn change(&self, now: Instant) -> Option<ChangeStatus> {
        if let Some(at) = self.pause_at {
            let text =
                "not every worker has room for its new layers beside the old ones: answers wait while these are loaded";
            let in_s = at.saturating_duration_since(now).as_secs();
            return Some(ChangeStatus {
                epoch: self.newest.0 + 1,
                text: format!("in {in_s} s: {text}"),
                stages: Vec::new(),
            });
        }
        self.serving.as_ref()?;
        let next = self.next.as_ref()?;
        let text = match next.standing {
            Standing::Loading => "its layers are being loaded",
            Standing::Linking(_) => "its stages reach for each other",
            Standing::Linked => "a probe token is under way",
            Standing::Proved => "running answers are following",
        };
        let text = format!("{text}, for {} s", next.age(now).as_secs());
        Some(ChangeStatus { epoch: next.epoch.0, text, stages: self.stages_of(next) })
    }

    /// Every worker; round-trip times are the links' to know.
    pub(crate) fn worker_status(&self, now: Instant, rtt_ms: impl Fn(WorkerId) -> f64) -> Vec<WorkerStatus> {
        let chooser = self.chooser(now);
        let crowded = chooser.crowded();
        let one = |(&id, worker): (&WorkerId, &Worker)| {
            let stage = self.shown().and_then(|p| p.stage_of(id));
            WorkerStatus {
                name: worker.joined.name.clone(),
                peer: worker.joined.peer.short(),
                address: worker.joined.address.to_string(),
                memory_bytes: worker.joined.memory_bytes,
                threads: worker.joined.threads,
                rtt_ms: rtt_ms(id),
                stage,
                speed: self.speeds.of(&worker.joined),
                nat: worker.joined.nat.map(|nat| nat.to_string()),
                found: worker.joined.found.map(found_status),
                note: stage.is_none().then(|| self.why_idle(now, worker, crowded.get(&id).copied())).flatten(),
            }
        };
        self.workers.iter().map(one).collect()
    }

    /// Why a worker has no layers; `host` has the CPUs that it would compute on.
    fn why_idle(&self, now: Instant, worker: &Worker, host: Option<&str>) -> Option<String> {
        let peer = worker.joined.peer;
        if let Some(trouble) = self.troubles.of(now, peer) {
            let wait = trouble.until.saturating_duration_since(now).as_secs();
            return Some(format!("left out for {wait} s more: {}", trouble.why));
        }
        let others = self.workers.values().filter(|other| other.joined.peer != peer);
        let unreachable = others.filter_map(|other| {
            let there = self.troubles.between(now, peer, other.joined.peer);
            let back = self.troubles.between(now, other.joined.peer, peer);
            let (from, to, trouble) = match (there, back) {
                (Some(trouble), _) => (&worker.joined, &other.joined, trouble),
                (None, Some(trouble)) => (&other.joined, &worker.joined, trouble),
                (None, None) => return None,
            };
            Some(format!("{} cannot reach {}: {}", from.name, to.name, trouble.why))
        });
        let crowded = || {
            let host = host?;
            Some(format!("a standby: {host} computes on the same CPUs, so that both would be no faster"))
        };
        unreachable.into_iter().next().or_else(crowded).or_else(|| self.standby.clone())
    }

    fn shown(&self) -> Option<&Pipeline> {
        self.serving.as_ref().or(self.next.as_ref())
    }

    fn stages_of(&self, pipeline: &Pipeline) -> Vec<StageStatus> {
        let stages = pipeline.plan.stages.iter().zip(&pipeline.stages);
        stages.enumerate().map(|(i, (planned, stage))| self.one_stage(i, planned, stage)).collect()
    }

    fn one_stage(&self, index: usize, planned: &StagePlan, stage: &Stage) -> StageStatus {
        let report = &stage.report;
        let mean_ms = |us: u64| if report.steps == 0 { 0.0 } else { us as f64 / report.steps as f64 / 1e3 };
        // A worker that counts wrongly hurts nobody else.
        let said = stage.status.as_ref().and_then(|status| WeightOrigin::find(&status.sections).ok());
        let origin = said.unwrap_or_default();
        StageStatus {
            stage: index,
            worker: self.name_of(stage.worker).to_owned(),
            first_layer: planned.layers.start,
            end_layer: planned.layers.end,
            weight_bytes: planned.weight_bytes,
            planned_bytes: planned.memory_bytes,
            kv_bytes: planned.kv_bytes,
            // Whoever keeps the books on pages knows.
            kv_bytes_used: 0,
            peak_bytes: report.peak_memory_bytes,
            phase: stage.status.as_ref().map_or(StagePhase::Asked, |s| phase(s.phase)),
            bytes_done: stage.status.as_ref().map_or(0, |s| s.bytes_done),
            bytes_total: stage.status.as_ref().map_or(planned.weight_bytes, |s| s.bytes_total),
            coordinator_bytes: origin.coordinator_bytes,
            peer_bytes: origin.peer_bytes,
            steps: report.steps,
            compute_ms: mean_ms(report.compute_us),
            recent: recent_status(&report.sections),
            hop_ms: mean_ms(report.hop_us),
            link: stage.way.map(link_status),
        }
    }
}

fn link_status(way: LinkWay) -> LinkStatus {
    let passage = match way.passage {
        Passage::Direct => LinkPassage::Direct,
        Passage::Relayed => LinkPassage::Relayed,
    };
    LinkStatus { passage, rtt_ms: way.rtt_us as f64 / 1e3 }
}

/// What a stage says of its last steps; nonsense hurts nobody else.
fn recent_status(sections: &Sections) -> Option<RecentStepsStatus> {
    let RecentSteps { steps, p50_us, p95_us } = RecentSteps::find(sections).ok().flatten()?;
    Some(RecentStepsStatus { count: steps, p50_ms: f64::from(p50_us) / 1e3, p95_ms: f64::from(p95_us) / 1e3 })
}

fn found_status(found: WayFound) -> FoundStatus {
    let by = match found.by {
        FoundBy::Address => FoundTier::Address,
        FoundBy::LocalNetwork => FoundTier::LocalNetwork,
        FoundBy::Dht => FoundTier::Dht,
        FoundBy::Call => FoundTier::Call,
        FoundBy::Rendezvous => FoundTier::Rendezvous,
        FoundBy::Relay => FoundTier::Relay,
    };
    FoundStatus { by, ms: found.milliseconds }
}

fn phase(said: ShardPhase) -> StagePhase {
    match said {
        ShardPhase::Fetching => StagePhase::Fetching,
        ShardPhase::Loading => StagePhase::Loading,
        ShardPhase::Ready => StagePhase::Ready,
        ShardPhase::Failed => StagePhase::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stage_says_of_its_last_steps_is_shown() {
        let mut sections = Sections::default();
        assert_eq!(recent_status(&sections), None);
        RecentSteps { steps: 20, p50_us: 1500, p95_us: 2000 }.put(&mut sections).expect("three numbers");
        assert_eq!(recent_status(&sections), Some(RecentStepsStatus { count: 20, p50_ms: 1.5, p95_ms: 2.0 }));
        sections.set(RecentSteps::TAG, vec![0; 3]);
        assert_eq!(recent_status(&sections), None);
    }
}
