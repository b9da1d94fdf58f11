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
use qmesh_net::PlanEpoch;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    children::Children,
    machine::cpus,
    pipeline::{Layout, STARTING, runtime, worker_name},
};

/// Starts one `shard-worker` process that has nothing of the model yet: how many bytes it gets from the coordinator, and in
/// how many seconds, from the plan to the last one.
///
/// # Errors
/// The worker cannot be started or ends, or no plan is possible.
pub fn cold(layout: &Layout<'_>) -> Result<(u64, f64)> {
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
    let fetched = runtime.block_on(async { timeout(STARTING, fetched(&mut events, PlanEpoch(1))).await });
    let fetched = fetched.context("nothing was fetched in time")??;
    runtime.block_on(mesh.stop());
    children.stop();
    Ok((fetched.bytes, (fetched.to - fetched.from).as_secs_f64()))
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

/// Waits until the stage of the plan of this epoch that lacks tensors has them; only one may.
///
/// # Errors
/// The mesh ends, or nothing had to be fetched.
pub async fn fetched(events: &mut EventReader, plan: PlanEpoch) -> Result<Fetched> {
    let (mut from, mut fetching) = (None, None);
    loop {
        let event = match events.next().await.context("the mesh has ended")? {
            Heard::Event(event) => event,
            Heard::Lost(_) => continue,
        };
        let now = Instant::now();
        if let MeshEvent::PlanMade { epoch, .. } = *event
            && epoch == plan.0
        {
            from = Some(now);
        } else if let MeshEvent::LoadProgress { epoch, stage, phase, bytes_total, .. } = *event
            && epoch == plan.0
        {
            match (phase, fetching) {
                // Whoever has all of its tensors fetches nothing.
                (StagePhase::Fetching, _) if bytes_total > 0 => fetching = Some((stage, bytes_total)),
                (StagePhase::Loading | StagePhase::Ready, Some((fetched, bytes))) if fetched == stage => {
                    return Ok(Fetched { from: from.context("nobody has made this plan")?, to: now, bytes });
                }
                (StagePhase::Failed, _) => bail!("a stage of plan {} cannot be loaded", plan.0),
                (StagePhase::Asked | StagePhase::Fetching | StagePhase::Loading | StagePhase::Ready, _) => {}
            }
        }
    }
}
