//! A mesh of so many workers under the harness's hand: the coordinator in this process, workers as processes pinned to
//! CPUs and joined over loopback, or as tasks in this process on a network in memory.

use std::{
    future::{Future, pending},
    net::Ipv4Addr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use qmesh_coordinator::{
    drafter::Drafter,
    local::worker_command,
    mesh::{
        DRAFTS_MOST, Formation, Measuring, Mesh, MeshConfig, MeshHandle, PrefixReuse, Speculation, TicketSource,
        Workers,
        status::{DraftState, MeshState, MeshStatus},
    },
    model::Model as ServedModel,
    plan::Workload,
};
use qmesh_engine::{
    backend::{Backend, cpu::CpuBackend},
    shard::PAGE_POSITIONS,
    worker::{self, Audience, MeasuredBy, Search, Stay, WayIn, WorkerConfig, WorkerEnd, WorkerError},
};
use qmesh_net::{
    Admission, Identity, JoinRight, Strangers, Ticket,
    memory::{Faults, Network},
};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::timeout,
};

use crate::{
    children::Children,
    clients::{Load, RunningRequest, Stream},
    emulation::Emulation,
    machine::{cpus, cpus_of_worker},
    model::{BenchModel, Cost},
    throttled::Throttled,
};

/// What a pipeline is made of, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// What it computes.
    pub model: &'a BenchModel,
    /// Workers, a stage each.
    pub stages: usize,
    /// Compute threads of each.
    pub threads: usize,
    /// Positions of a session.
    pub context: usize,
    /// Sessions at once.
    pub sessions: usize,
    /// Whether tokens are drafted.
    pub speculation: Speculation,
    /// The file of a small model that drafts, too.
    pub drafter: Option<&'a Path>,
    /// What its cut is good for.
    pub workload: Workload,
}

/// A mesh that is ready; dropping it ends its workers.
#[derive(Debug)]
pub struct ReadyMesh {
    mesh: Mesh,
    crew: Crew,
    // Last, so that what runs on it goes before.
    runtime: Runtime,
    /// Of the workers that are processes: where they keep what they keep, and of the others.
    folder: TempDir,
}

/// What came of a load.
#[derive(Clone, Debug)]
pub struct LoadRun {
    /// One per client.
    pub streams: Vec<Stream>,
    /// The steps meanwhile.
    pub steps: Steps,
}

/// Steps of some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Steps {
    /// Mean time of a step computing, over all stages.
    pub compute_ms: f64,
    /// Mean time computing on the slowest stage.
    pub slowest_ms: f64,
    /// Mean time neither computing nor waiting for a stage.
    pub hops_ms: f64,
    /// Tokens drafted.
    pub drafted: u64,
    /// Of those, the right ones.
    pub accepted: u64,
}

#[derive(Debug)]
enum Crew {
    Processes(Children),
    Tasks { network: Network, tasks: JoinSet<Result<WorkerEnd, WorkerError>> },
}

impl ReadyMesh {
    /// Starts `shard-worker` processes, each on CPUs of its own, and waits until they are ready.
    ///
    /// # Errors
    /// A worker cannot be started or ends, or no plan is possible.
    pub fn processes(layout: &Layout<'_>) -> Result<Self> {
        let (runtime, folder) = (runtime()?, TempDir::new()?);
        let (model, config) = layout.config()?;
        let mesh = runtime.block_on(Mesh::start(config))?;
        let mut children = Children::default();
        for number in 0..layout.stages {
            let name = worker_name(number);
            let mut command = worker_command(mesh.ticket(), &name, layout.threads, model.folder());
            command.arg("--cache").arg(folder.path().join(&name));
            children.spawn(&mut command, &cpus_of_worker(&cpus(), number, layout.threads))?;
        }
        Self { mesh, crew: Crew::Processes(children), runtime, folder }.ready(layout)
    }

    /// Starts workers as tasks in this process, joined by a network in memory without faults so far.
    ///
    /// # Errors
    /// No plan is possible, or the system gives no thread.
    pub fn tasks(layout: &Layout<'_>) -> Result<Self> {
        let threads = NonZeroUsize::new(layout.threads).context("no threads")?;
        let backends = vec![Arc::new(CpuBackend::new(threads)) as Arc<dyn Backend>; layout.stages];
        Self::tasks_on(layout, backends, layout.formation(), Faults::default())
    }

    /// Starts such workers on links with `faults`, each of which computes for only its share of the time, and lets them find
    /// out how fast they are; with a cut, the layers are dealt by it, else as the planner likes.
    ///
    /// # Errors
    /// No plan is possible, or the system gives no thread.
    pub fn measured(layout: &Layout<'_>, shares: &[f64], cut: Option<Vec<usize>>, faults: Faults) -> Result<Self> {
        let threads = NonZeroUsize::new(layout.threads).context("no threads")?;
        let backend = |&share: &f64| -> Arc<dyn Backend> { Arc::new(Throttled::new(CpuBackend::new(threads), share)) };
        let formation = Formation { cut, measuring: Measuring::On, ..layout.formation() };
        Self::tasks_on(layout, shares.iter().map(backend).collect(), formation, faults)
    }

    /// Starts such workers, whose steps take as long as `emulation` says and mean nothing.
    ///
    /// # Errors
    /// No plan is possible, or the system gives no thread.
    pub fn emulated(layout: &Layout<'_>, emulation: Emulation) -> Result<Self> {
        let backends = vec![Arc::new(emulation) as Arc<dyn Backend>; layout.stages];
        Self::tasks_on(layout, backends, layout.formation(), Faults::default())
    }

    /// The same, where another worker makes the plan a longer one: see [`Self::grow`].
    ///
    /// # Errors
    /// No plan is possible, or the system gives no thread.
    pub fn growing(layout: &Layout<'_>, emulation: Emulation) -> Result<Self> {
        let backends = vec![Arc::new(emulation) as Arc<dyn Backend>; layout.stages];
        let formation = Formation { workers: Workers::AtLeast(layout.stages), ..layout.formation() };
        Self::tasks_on(layout, backends, formation, Faults::default())
    }

    /// One more worker joins, which has nothing of the model; its name. Its steps take as long as `emulation` says.
    ///
    /// # Errors
    /// The workers are processes.
    pub fn grow(&mut self, emulation: Emulation) -> Result<String> {
        let Crew::Tasks { network, tasks } = &mut self.crew else { bail!("only a mesh of tasks grows") };
        let name = worker_name(self.mesh.handle().status().workers.len());
        let seat = Seat {
            ticket: self.mesh.ticket(),
            folder: self.folder.path(),
            model_folders: Vec::new(),
            name: name.clone(),
        };
        let _runtime = self.runtime.enter();
        seat.take(network, tasks, Arc::new(emulation))?;
        Ok(name)
    }

    /// What happens to packets from now on, between workers that are tasks.
    pub fn faults(&self, faults: Faults) {
        match &self.crew {
            Crew::Processes(_) => {}
            Crew::Tasks { network, .. } => network.faults(faults),
        }
    }

    /// The way in for requests.
    pub fn handle(&self) -> MeshHandle {
        self.mesh.handle()
    }

    /// Each stage's share of the weights that a step of `model` reads, in order: what it takes of a step's time.
    pub fn shares(&self, model: &BenchModel) -> Vec<f64> {
        let all = Cost::of(model.spec()).weight_bytes as f64;
        let status = self.handle().status();
        let stages = status.stages.iter().map(|s| Cost::of_stage(model.spec(), s.first_layer..s.end_layer));
        stages.map(|cost| cost.weight_bytes as f64 / all).collect()
    }

    /// The clients of `load` at once, each with a prompt of its own, to the last token.
    ///
    /// # Errors
    /// A request fails, or stops short of its tokens.
    pub fn load(&self, model: &BenchModel, load: Load) -> Result<LoadRun> {
        let prompts = (0..load.clients as u64).map(|client| model.prompt(client, load.prompt)).collect();
        let run = self.run(prompts, load.tokens, &Arc::from([]))?;
        let short = run.streams.iter().find(|s| s.ids.len() != load.tokens);
        ensure!(short.is_none(), "a stream ended short of {} tokens", load.tokens);
        Ok(run)
    }

    /// A client for each of `prompts`, up to `tokens` tokens or one of `ends`.
    ///
    /// # Errors
    /// A request fails.
    pub fn run(&self, prompts: Vec<Vec<u32>>, tokens: usize, ends: &Arc<[u32]>) -> Result<LoadRun> {
        let handle = self.handle();
        self.block_on(async {
            let before = handle.status();
            let clients = (0..).zip(prompts).map(|(client, prompt)| {
                let running = RunningRequest::submit(&handle, client, prompt, tokens, Arc::clone(ends))?;
                Ok(tokio::spawn(running.finish()))
            });
            let clients = clients.collect::<Result<Vec<_>>>()?;
            let mut streams = Vec::with_capacity(clients.len());
            for client in clients {
                streams.push(client.await??);
            }
            let generated: usize = streams.iter().map(|s| s.ids.len()).sum();
            let after = counted(&handle, before.generated_tokens + generated as u64).await;
            Ok(LoadRun { streams, steps: Steps::between(&before, &after) })
        })
    }

    /// Runs what `future` does on this pipeline's runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Says goodbye to the workers and waits a little for them to leave.
    pub fn stop(self) {
        let Self { mesh, crew, runtime, folder: _folder } = self;
        runtime.block_on(mesh.stop());
        match crew {
            Crew::Processes(children) => children.stop(),
            Crew::Tasks { mut tasks, .. } => {
                let all = async { while tasks.join_next().await.is_some() {} };
                // Whoever stays goes with the runtime.
                let _stayed = runtime.block_on(async { timeout(LEAVING, all).await });
            }
        }
    }

    /// Workers that are tasks, which compute with `backends`.
    fn tasks_on(
        layout: &Layout<'_>,
        backends: Vec<Arc<dyn Backend>>,
        formation: Formation,
        faults: Faults,
    ) -> Result<Self> {
        let (runtime, folder, network) = (runtime()?, TempDir::new()?, Network::on_system_clock(SEED));
        network.faults(faults);
        let (model, config) = layout.config()?;
        let config = MeshConfig { formation, ..config };
        let mut tasks = JoinSet::new();
        let mesh = runtime.block_on(async {
            let (identity, secret) = (Identity::ephemeral(), JoinRight::random());
            let endpoint = network.endpoint(&identity, Admission::anyone())?;
            let mesh = Mesh::start_on(endpoint, &identity, secret, config).await?;
            for (number, backend) in backends.into_iter().enumerate() {
                let (name, model_folders) = (worker_name(number), vec![model.folder().to_owned()]);
                let seat = Seat { ticket: mesh.ticket(), folder: folder.path(), model_folders, name };
                seat.take(&network, &mut tasks, backend)?;
            }
            anyhow::Ok(mesh)
        })?;
        Self { mesh, crew: Crew::Tasks { network, tasks }, runtime, folder }.ready(layout)
    }

    /// Waits until a token went through.
    fn ready(mut self, layout: &Layout<'_>) -> Result<Self> {
        let until = Instant::now() + STARTING;
        loop {
            let status = self.handle().status();
            match status.state {
                MeshState::Ready if !drafts(&status) => {}
                MeshState::Ready => {
                    let (stages, wanted) = (status.stages.len(), layout.stages);
                    ensure!(stages == wanted, "{} has {stages} stages, not {wanted}", layout.model.name);
                    return Ok(self);
                }
                MeshState::Failed | MeshState::Stopping => bail!("{}", status.text),
                MeshState::Waiting | MeshState::Loading => {}
            }
            match &mut self.crew {
                Crew::Processes(children) => children.check()?,
                Crew::Tasks { tasks, .. } => {
                    ensure!(tasks.try_join_next().is_none(), "a worker ended: {}", status.text)
                }
            }
            ensure!(Instant::now() < until, "not ready after {} s: {}", STARTING.as_secs(), status.text);
            thread::sleep(POLL);
        }
    }
}

/// A place in the mesh for a worker that is a task.
struct Seat<'a> {
    ticket: &'a Ticket,
    /// Where it may keep what it fetches.
    folder: &'a Path,
    model_folders: Vec<PathBuf>,
    name: String,
}

impl Seat<'_> {
    /// Starts the worker. Call it within a runtime.
    fn take(
        self,
        network: &Network,
        tasks: &mut JoinSet<Result<WorkerEnd, WorkerError>>,
        backend: Arc<dyn Backend>,
    ) -> Result<()> {
        let endpoint = network.endpoint(&Identity::ephemeral(), Admission::only([]))?;
        let config = WorkerConfig {
            ticket_file: None,
            search: Search::default(),
            way_in: WayIn::Ticket(self.ticket.clone()),
            cache: self.folder.join(&self.name),
            name: self.name,
            memory: None,
            cache_size: None,
            model_folders: self.model_folders,
            stay: Stay::Once,
            audience: Audience::Nobody,
            backend,
            measured_by: MeasuredBy::ThisProcess,
        };
        tasks.spawn(worker::run(config, endpoint, pending()));
        Ok(())
    }
}

impl Layout<'_> {
    fn formation(&self) -> Formation {
        Formation { workload: self.workload, ..Formation::new(Workers::Exactly(self.stages)) }
    }

    pub(crate) fn config(&self) -> Result<(Arc<ServedModel>, MeshConfig)> {
        let model = Arc::new(ServedModel::open(&self.model.path)?);
        let session = self.context.next_multiple_of(PAGE_POSITIONS);
        let drafter = self
            .drafter
            .map(|path| anyhow::Ok(Drafter::new(ServedModel::open(path)?, &model, self.threads, DRAFTS_MOST)?));
        let drafter = drafter.transpose()?;
        let config = MeshConfig {
            model: Arc::clone(&model),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: Vec::new(),
            rendezvous: Vec::new(),
            context: self.context,
            // One more than there are clients, for the probe.
            kv_positions: session.saturating_mul(self.sessions + 1),
            formation: self.formation(),
            chunk_rows: CHUNK_ROWS,
            ticket: TicketSource::Fresh,
            strangers: Strangers::NeedTickets,
            prefix_reuse: PrefixReuse::Off,
            speculation: self.speculation,
            drafter,
        };
        Ok((model, config))
    }
}

impl Steps {
    fn between(before: &MeshStatus, after: &MeshStatus) -> Self {
        let (from, to) = (before.steps, after.steps);
        let count = to.count.saturating_sub(from.count) as f64;
        let mean = |from: f64, to: f64| if count > 0.0 { (to - from) / count } else { f64::NAN };
        Self {
            compute_ms: mean(from.compute_ms, to.compute_ms),
            slowest_ms: mean(from.slowest_ms, to.slowest_ms),
            hops_ms: mean(from.hops_ms, to.hops_ms),
            drafted: after.drafted_tokens.saturating_sub(before.drafted_tokens),
            accepted: after.accepted_tokens.saturating_sub(before.accepted_tokens),
        }
    }
}

/// Whether the model that drafts is ready, where there is one.
fn drafts(status: &MeshStatus) -> bool {
    status.draft_model.as_ref().is_none_or(|draft| draft.state == DraftState::Ready)
}

/// The status once `tokens` tokens are counted in it, or the last one after a while.
async fn counted(handle: &MeshHandle, tokens: u64) -> Arc<MeshStatus> {
    let mut status = handle.watch();
    let waited = timeout(COUNTERS, status.wait_for(|status| status.generated_tokens >= tokens)).await;
    match waited {
        Ok(Ok(status)) => Arc::clone(&status),
        Ok(Err(_)) | Err(_) => handle.status(),
    }
}

pub(crate) fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread().worker_threads(RUNTIME_THREADS).enable_all().build().context("cannot start a runtime")
}

pub(crate) fn worker_name(number: usize) -> String {
    format!("bench-{}", number + 1)
}

/// Of chances that no bench takes: nothing is lost or late by chance.
const SEED: u64 = 1;
/// Rows of a step: the coordinator's default.
pub const CHUNK_ROWS: usize = 256;
/// The coordinator, the network and the clients.
const RUNTIME_THREADS: usize = 2;
/// Workers load gigabytes, and the coordinator hashes them.
pub(crate) const STARTING: Duration = Duration::from_secs(300);
const LEAVING: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);
/// Counters come at least once a second.
const COUNTERS: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {

    use super::*;
    use crate::clients::digest;

    fn model() -> BenchModel {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama.gguf");
        BenchModel::open(Path::new(path)).unwrap()
    }

    fn layout(model: &BenchModel, stages: usize) -> Layout<'_> {
        Layout {
            model,
            stages,
            threads: 1,
            context: 40,
            sessions: 3,
            speculation: Speculation::Off,
            drafter: None,
            workload: Workload::Mixed,
        }
    }

    #[test]
    fn the_same_tokens_come_over_two_workers_and_slow_links() {
        let model = model();
        let load = Load { clients: 3, prompt: 20, tokens: 6 };
        let digests = [1, 2].map(|stages| {
            let pipeline = ReadyMesh::tasks(&layout(&model, stages)).unwrap();
            let shares = pipeline.shares(&model);
            assert!(shares.len() == stages && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{shares:?}");
            pipeline.faults(Faults { delay: Duration::from_millis(2), ..Faults::default() });
            let run = pipeline.load(&model, load).unwrap();
            assert!(run.steps.hops_ms > 2.0 && run.steps.compute_ms > 0.0, "{:?}", run.steps);
            pipeline.stop();
            digest(&run.streams)
        });
        assert_eq!(digests[0], digests[1]);
    }
}
