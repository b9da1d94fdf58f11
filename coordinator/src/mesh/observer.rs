//! What two statuses in a row tell: another phase, progress in loading, rates. A state machine without IO or clock.

use std::{
    mem,
    time::{Duration, Instant},
};

use super::{
    events::MeshEvent,
    status::{MeshState, MeshStatus, StageStatus},
};

/// Turns statuses into events. Two equal statuses make none.
#[derive(Debug)]
pub(crate) struct Observer {
    phase: Option<(MeshState, u32, String)>,
    /// The plan to come that was announced last.
    announced: u32,
    /// The stages that load, under their epoch.
    loading: (u32, Vec<StageStatus>),
    counted: Counted,
}

/// Tokens counted up to a time.
#[derive(Clone, Copy, Debug)]
struct Counted {
    at: Instant,
    prompt: u64,
    generated: u64,
    /// Whether the last rates were zero.
    still: bool,
}

impl Observer {
    pub(crate) fn new(now: Instant) -> Self {
        let counted = Counted { at: now, prompt: 0, generated: 0, still: true };
        Self { phase: None, announced: 0, loading: (0, Vec::new()), counted }
    }

    /// What has happened since the status before.
    pub(crate) fn observe(&mut self, now: Instant, status: &MeshStatus) -> Vec<MeshEvent> {
        let mut events = Vec::new();
        events.extend(self.phase(status));
        events.extend(self.change(status));
        self.progress(status, &mut events);
        events.extend(self.rates(now, status));
        events
    }

    fn phase(&mut self, status: &MeshStatus) -> Option<MeshEvent> {
        let phase = Some((status.state, status.epoch, status.text.clone()));
        if self.phase == phase {
            return None;
        }
        self.phase = phase;
        Some(MeshEvent::PhaseChanged { state: status.state, epoch: status.epoch, text: status.text.clone() })
    }

    fn change(&mut self, status: &MeshStatus) -> Option<MeshEvent> {
        let change = status.change.as_ref().filter(|change| change.epoch != self.announced)?;
        self.announced = change.epoch;
        Some(MeshEvent::ChangeAnnounced { epoch: change.epoch, text: change.text.clone() })
    }

    /// Of the plan that is being made ready: the one beside what serves, or else the only one.
    fn progress(&mut self, status: &MeshStatus, events: &mut Vec<MeshEvent>) {
        let (epoch, stages) = match &status.change {
            Some(change) => (change.epoch, &change.stages),
            None => (status.epoch, &status.stages),
        };
        let (before, known) = mem::replace(&mut self.loading, (epoch, stages.clone()));
        for stage in stages {
            let far = |s: &StageStatus| (s.phase, s.bytes_done, s.bytes_total);
            let earlier = known.get(stage.stage).filter(|_| before == epoch);
            if earlier.map(far) != Some(far(stage)) {
                events.push(MeshEvent::LoadProgress {
                    epoch,
                    stage: stage.stage,
                    worker: stage.worker.clone(),
                    phase: stage.phase,
                    bytes_done: stage.bytes_done,
                    bytes_total: stage.bytes_total,
                });
            }
        }
    }

    fn rates(&mut self, now: Instant, status: &MeshStatus) -> Option<MeshEvent> {
        let Counted { at, prompt, generated, still } = self.counted;
        let time = now.saturating_duration_since(at);
        if time < RATES_EVERY {
            return None;
        }
        let (prompts, tokens) = (status.prompt_tokens - prompt, status.generated_tokens - generated);
        let is_still = prompts + tokens == 0;
        let (prompt, generated) = (status.prompt_tokens, status.generated_tokens);
        self.counted = Counted { at: now, prompt, generated, still: is_still };
        let per_s = |tokens: u64| tokens as f64 / time.as_secs_f64();
        (!(still && is_still)).then(|| MeshEvent::TokenRates {
            prompt_per_s: per_s(prompts),
            generated_per_s: per_s(tokens),
            running: status.running,
            waiting: status.waiting,
        })
    }
}

/// Rates are means over at least this long.
const RATES_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mesh::status::{ChangeStatus, StagePhase},
        text::fake::mesh_status,
    };

    fn stage(phase: StagePhase, bytes_done: u64) -> StageStatus {
        StageStatus {
            stage: 0,
            worker: "a".to_owned(),
            first_layer: 0,
            end_layer: 3,
            weight_bytes: 10,
            planned_bytes: 20,
            kv_bytes: 4,
            kv_bytes_used: 0,
            peak_bytes: 0,
            phase,
            bytes_done,
            bytes_total: 10,
            coordinator_bytes: 0,
            peer_bytes: 0,
            steps: 0,
            compute_ms: 0.0,
            recent: None,
            hop_ms: 0.0,
            link: None,
        }
    }

    #[test]
    fn the_same_status_again_tells_nothing() {
        let now = Instant::now();
        let mut observer = Observer::new(now);
        let mut status = mesh_status(MeshState::Loading);
        status.stages = vec![stage(StagePhase::Fetching, 1)];
        let first = observer.observe(now, &status);
        assert!(matches!(&first[..], [MeshEvent::PhaseChanged { .. }, MeshEvent::LoadProgress { bytes_done: 1, .. }]));
        for seconds in 0..5 {
            assert_eq!(observer.observe(now + Duration::from_secs(seconds), &status), []);
        }
        status.stages = vec![stage(StagePhase::Fetching, 4)];
        let progress = observer.observe(now, &status);
        assert!(matches!(&progress[..], [MeshEvent::LoadProgress { bytes_done: 4, .. }]), "{progress:?}");
    }

    #[test]
    fn a_change_is_announced_once_and_its_stages_are_followed() {
        let now = Instant::now();
        let mut observer = Observer::new(now);
        let mut status = mesh_status(MeshState::Ready);
        observer.observe(now, &status);
        let stages = vec![stage(StagePhase::Asked, 0)];
        status.change = Some(ChangeStatus { epoch: 2, text: "soon".to_owned(), stages: stages.clone() });
        let events = observer.observe(now, &status);
        assert!(
            matches!(
                &events[..],
                [MeshEvent::ChangeAnnounced { epoch: 2, .. }, MeshEvent::LoadProgress { epoch: 2, .. }]
            ),
            "{events:?}"
        );
        status.change = Some(ChangeStatus { epoch: 2, text: "sooner".to_owned(), stages });
        assert_eq!(observer.observe(now, &status), []);
    }

    #[test]
    fn rates_are_told_while_tokens_flow_and_once_after() {
        let now = Instant::now();
        let mut observer = Observer::new(now);
        let mut status = mesh_status(MeshState::Ready);
        observer.observe(now, &status);
        (status.prompt_tokens, status.generated_tokens) = (30, 10);
        assert_eq!(observer.observe(now + Duration::from_millis(900), &status), []);
        let rates = |prompt_per_s, generated_per_s| {
            vec![MeshEvent::TokenRates { prompt_per_s, generated_per_s, running: 0, waiting: 0 }]
        };
        assert_eq!(observer.observe(now + Duration::from_secs(2), &status), rates(15.0, 5.0));
        assert_eq!(observer.observe(now + Duration::from_secs(3), &status), rates(0.0, 0.0));
        assert_eq!(observer.observe(now + Duration::from_secs(4), &status), []);
    }
}
