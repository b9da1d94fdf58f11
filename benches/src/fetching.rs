//! How long workers take to get tensors, by the events of the mesh.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use qmesh_coordinator::{
    local::worker_command,
    mesh::{
        Mesh,
        events::{EventReader, Heard, MeshEvent},
        status::StagePhase,
    },
};
use qmesh_models::spec::ModelSpec;
use qmesh_net::PlanEpoch;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    children::Children,
    machine::cpus,
    pipeline::{Layout, STARTING, runtime, worker_name},
};

/// Starts one `shard-worker` process that has nothing of the model yet, and waits until it has all of it from the coordinator.
///
/// # Errors
/// The worker cannot be started or ends, or no plan is possible.
pub fn cold(layout: &Layout<'_>) -> Result<Fetched> {
    let (runtime, folder) = (runtime()?, TempDir::new()?);
    let (_model, config) = layout.config()?;
    let mesh = runtime.block_on(Mesh::start(config))?;
    let mut events = mesh.handle().events();
    let mut children = Children::default();
    let name = worker_name(0);
    let mut command = worker_command(mesh.ticket(), &name, layout.threads, folder.path());
    // Neither what it has fetched before nor what was pulled on this machine.
    command.arg("--cache").arg(folder.path().join(&name)).env("XDG_CACHE_HOME", folder.path());
    children.spawn(&mut command, &cpus())?;
    let spec = layout.model.spec();
    let fetched = runtime.block_on(async { timeout(STARTING, fetched(&mut events, spec, PlanEpoch(1), &name)).await });
    let fetched = fetched.context("nothing was fetched in time")??;
    runtime.block_on(mesh.stop());
    children.stop();
    Ok(fetched)
}

/// What a plan's stages had to fetch, and when.
#[derive(Clone, Copy, Debug)]
pub struct Fetched {
    /// When the plan was made.
    pub from: Instant,
    /// When the last byte had come.
    pub to: Instant,
    /// How many came.
    pub bytes: u64,
}

impl Fetched {
    /// From the plan to the last byte.
    pub fn seconds(&self) -> f64 {
        (self.to - self.from).as_secs_f64()
    }
}

/// Waits until a worker that has nothing of the model has got what the plan of this epoch gives it.
///
/// # Errors
/// The mesh ends, the worker has no stage, or cannot load it.
pub async fn fetched(events: &mut EventReader, spec: &ModelSpec, plan: PlanEpoch, by: &str) -> Result<Fetched> {
    let mut begun = None;
    loop {
        let event = match events.next().await.context("the mesh has ended")? {
            Heard::Event(event) => event,
            Heard::Lost(_) => continue,
        };
        let now = Instant::now();
        if let MeshEvent::PlanMade { epoch, stages, .. } = &*event
            && *epoch == plan.0
        {
            let stage = stages.iter().find(|stage| stage.worker == by).with_context(|| format!("{by} has no stage"))?;
            begun = Some((now, spec.shard_bytes(&(stage.first_layer..stage.end_layer))));
        } else if let MeshEvent::LoadProgress { epoch, worker, phase, .. } = &*event
            && *epoch == plan.0
            && worker == by
        {
            match phase {
                StagePhase::Asked | StagePhase::Fetching => {}
                StagePhase::Loading | StagePhase::Ready => {
                    let (from, bytes) = begun.context("nobody has made this plan")?;
                    return Ok(Fetched { from, to: now, bytes });
                }
                StagePhase::Failed => bail!("{by} cannot load plan {}", plan.0),
            }
        }
    }
}
