//! A mesh on this machine for the time of one command: the coordinator here, workers in processes of their own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_models::{bytes::ByteCount, pull::Progress as _};
use tokio::time::timeout;

use super::{opened::Opened, room::Room};
use crate::{
    cli::{Failure, SplitArgs, WorkloadArgs},
    local::LocalWorkers,
    mesh::{
        Formation, Measuring, Mesh, MeshHandle, Workers,
        status::{MeshState, MeshStatus, StagePhase, StageStatus},
    },
    plan::{self, Capacity, Experts, PlanInput, machine::Machine},
    render::{count, progress::Progress},
};

/// A mesh with its workers; dropping it ends them.
pub(super) struct LocalMesh {
    mesh: Mesh,
    workers: LocalWorkers,
}

impl LocalMesh {
    /// Starts the workers and waits until they hold the model, with progress on standard error.
    ///
    /// # Errors
    /// What keeps the mesh from becoming ready: no room, a worker that ended, no progress for a long time.
    pub(super) async fn start(opened: &Opened, split: &SplitArgs) -> Result<Self, Failure> {
        let mut local = Self::spawn(opened, split).await?;
        local.wait_until_ready().await?;
        Ok(local)
    }

    /// The way in for requests.
    pub(super) fn handle(&self) -> MeshHandle {
        self.mesh.handle()
    }

    /// The status once the workers' counters of all steps so far are in: they come about once a second.
    pub(super) async fn measured(&self) -> Arc<MeshStatus> {
        let handle = self.mesh.handle();
        let mut status = handle.watch();
        // After this time what is published knows of all steps that came back by now.
        drop(timeout(PUBLISHED, status.changed()).await);
        let steps = status.borrow().steps.count;
        let counted = |status: &Arc<MeshStatus>| status.stages.iter().all(|stage| stage.steps >= steps);
        match timeout(COUNTERS, status.wait_for(counted)).await {
            Ok(Ok(status)) => Arc::clone(&status),
            // Older counters are better than none.
            Ok(Err(_)) | Err(_) => handle.status(),
        }
    }

    /// The command that lets another worker in.
    pub(super) fn join_command(&self) -> String {
        self.mesh.join_command()
    }

    /// Says goodbye to the workers and waits for them to leave.
    pub(super) async fn stop(self) {
        self.mesh.stop().await;
        self.workers.stop().await;
    }

    async fn spawn(opened: &Opened, split: &SplitArgs) -> Result<Self, Failure> {
        let machine = Machine::measure();
        check_plan(opened, split, machine)?;
        let count = split.worker_count();
        let WorkloadArgs { workload, goal, no_measure, .. } = split.workload;
        let experts = split.workload.experts();
        // One worker alone gets everything, however fast it is.
        let measuring = if count > 1 && split.cut.is_none() && !no_measure { Measuring::On } else { Measuring::Off };
        let cut = split.cut.clone();
        let formation =
            Formation { cut, workload, goal, experts, measuring, ..Formation::new(Workers::Exactly(count)) };
        let mesh = Mesh::start(opened.mesh(formation, &split.pipeline)).await?;
        let threads = split.threads.unwrap_or_else(|| machine.threads_each(count) as usize);
        let workers = LocalWorkers::spawn(mesh.ticket(), count, threads, opened.model.folder())?;
        Ok(Self { mesh, workers })
    }

    async fn wait_until_ready(&mut self) -> Result<(), Failure> {
        let mut status = self.mesh.handle().watch();
        let mut loading = Loading::default();
        let (mut mark, mut since) = (None, Instant::now());
        loop {
            let now = Arc::clone(&status.borrow_and_update());
            match now.state {
                MeshState::Ready => {
                    loading.finish();
                    return Ok(());
                }
                MeshState::Failed | MeshState::Stopping => return Err(Failure::failed(now.text.clone())),
                MeshState::Waiting | MeshState::Loading => loading.show(&now),
            }
            if let Some((number, exit)) = self.workers.ended() {
                let text = format!("worker local-{number} ended ({exit}) before the model was loaded");
                return Err(Failure::failed(text).with_advice("RUST_LOG=info shows what it said"));
            }
            let reached = Some((now.state, now.workers.len(), loaded_bytes(&now)));
            if mark != reached {
                (mark, since) = (reached, Instant::now());
            } else if since.elapsed() >= PATIENCE {
                return Err(Failure::failed(format!("no progress for {} s: {}", PATIENCE.as_secs(), now.text)));
            }
            // Not every end of a worker changes the status, so look around in any case.
            if let Ok(Err(_)) = timeout(LOOK_AROUND, status.changed()).await {
                return Err(Failure::failed("the mesh ended while the model was loading"));
            }
        }
    }
}

/// Refuses what cannot come about before anything is started. The workers share this machine, so their plan must fit it
/// as a whole.
fn check_plan(opened: &Opened, split: &SplitArgs, machine: Machine) -> Result<(), Failure> {
    let Opened { model, room, drafter } = opened;
    let workers = machine.shared_by(split.worker_count());
    let workers = match split.workload.experts() {
        Experts::InMemory => {
            workers.into_iter().map(|w| Capacity { memory_bytes: machine.memory_bytes, ..w }).collect()
        }
        // They take as much as there is.
        Experts::OnDisk => workers,
    };
    let Room { kv_positions, context, chunk_rows } = *room;
    let input = PlanInput {
        cut: split.cut.clone(),
        workload: split.workload.workload,
        experts: split.workload.experts(),
        ..PlanInput::new(&model.spec, workers, kv_positions, context, chunk_rows)
    };
    let drafting = drafter.as_ref().map_or(0, |drafter| drafter.memory_bytes(drafter.room(context, kv_positions)));
    let needed_bytes = drafting + plan::solve(&input)?.stages.iter().map(|stage| stage.memory_bytes).sum::<u64>();
    if needed_bytes > machine.memory_bytes {
        let (needed, free) = (ByteCount(needed_bytes), ByteCount(machine.memory_bytes));
        let with = drafter.as_ref().map(|drafter| format!(" with {} to draft", drafter.model.name)).unwrap_or_default();
        let workers = input.workers.len();
        let text = format!("{} needs {needed} on {workers} workers{with}, this machine has {free}", model.name);
        return Err(Failure::failed(text).with_advice("fewer --workers or a smaller --ctx-size"));
    }
    Ok(())
}

/// Progress of all shards together, by their weights: fetching is the first half of each, loading the second.
#[derive(Default)]
struct Loading {
    progress: Option<Progress>,
}

impl Loading {
    fn show(&mut self, status: &MeshStatus) {
        if status.stages.is_empty() {
            return;
        }
        let progress = self.progress.get_or_insert_with(|| {
            let mut progress = Progress::new();
            let total = status.stages.iter().map(|stage| stage.weight_bytes).sum();
            progress.begin(&format!("loading on {}", count(status.stages.len(), "worker")), Some(total));
            progress
        });
        progress.advance(loaded_bytes(status));
    }

    fn finish(mut self) {
        if let Some(progress) = &mut self.progress {
            progress.finish();
        }
    }
}

fn loaded_bytes(status: &MeshStatus) -> u64 {
    let done = |stage: &StageStatus| {
        let part = if stage.bytes_total == 0 { 0.0 } else { stage.bytes_done as f64 / stage.bytes_total as f64 };
        let share = match stage.phase {
            StagePhase::Ready => 1.0,
            StagePhase::Loading => 0.5 + part / 2.0,
            StagePhase::Asked | StagePhase::Fetching | StagePhase::Failed => part / 2.0,
        };
        (stage.weight_bytes as f64 * share) as u64
    };
    status.stages.iter().map(done).sum()
}

/// A status is published several times as often, if anything has changed.
const PUBLISHED: Duration = Duration::from_millis(400);
/// For the counters of the last steps to arrive.
const COUNTERS: Duration = Duration::from_secs(2);
/// How often to look whether a worker has ended.
const LOOK_AROUND: Duration = Duration::from_millis(500);
/// Longer than any pause of a worker that is alive: progress is reported several times a second.
const PATIENCE: Duration = Duration::from_secs(120);
