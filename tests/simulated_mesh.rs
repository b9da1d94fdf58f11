//! The whole mesh in one process, over a network in memory: delay, loss, and workers that die, by seed.

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_coordinator::{
    generate::{ClientId, GenerateEvent, GenerateRequest, PromptRows},
    mesh::{
        Formation, Mesh, MeshConfig, MeshHandle, PrefixReuse, Speculation, TicketSource, Workers, status::MeshState,
    },
    model::Model,
    plan::Workload,
};
use qmesh_engine::{
    backend::cpu::CpuBackend,
    worker::{self, Audience, Stay, WorkerConfig},
};
use qmesh_net::{
    Admission, Digest, Identity, JoinRight, Sampling, Ticket,
    memory::{Faults, Network},
};
use qmesh_tests::golden_file;
use tempfile::TempDir;

#[tokio::test]
async fn delay_and_loss_change_no_bit() {
    let calm = Simulation::start(1, Faults::default(), 1).await;
    let reference = calm.generate(sampling(0.0)).await;
    let seeded = calm.generate(sampling(0.9)).await;
    calm.stop().await;
    assert_ne!(reference, seeded);
    for seed in 2..6 {
        let faults = Faults { delay: Duration::from_millis(3), jitter: Duration::from_millis(2), loss: 0.02, rate: 0 };
        let rough = Simulation::start(seed, faults, 3).await;
        assert_eq!(rough.generate(sampling(0.0)).await, reference, "seed {seed}, greedy");
        assert_eq!(rough.generate(sampling(0.9)).await, seeded, "seed {seed}, seeded");
        rough.stop().await;
    }
}

#[tokio::test]
async fn a_worker_that_dies_changes_no_bit() {
    let calm = Simulation::start(1, Faults::default(), 1).await;
    let reference = calm.generate(sampling(0.9)).await;
    calm.stop().await;
    for victim in 0..3 {
        let seed = 10 + victim as u64;
        let faults = Faults { delay: Duration::from_millis(2), ..Faults::default() };
        let mesh = Simulation::start(seed, faults, 3).await;
        let mut generation = mesh.handle.submit(request(sampling(0.9))).unwrap();
        let mut rows = vec![];
        while let Some(event) = generation.next().await {
            match event {
                GenerateEvent::Token(row) => rows.push((row.token, row.digest)),
                GenerateEvent::Finished(_) => break,
                GenerateEvent::Prompt(_) | GenerateEvent::Prefilled { .. } => {}
                GenerateEvent::Failed(error) => panic!("seed {seed}: {error}"),
            }
            if rows.len() == 5 {
                mesh.network.kill(mesh.workers[victim]);
            }
        }
        assert_eq!(rows, reference, "seed {seed}, stage {victim} died");
        assert_eq!(mesh.handle.status().stages.len(), 2, "seed {seed}: two stages remain");
        mesh.stop().await;
    }
}

struct Simulation {
    network: Network,
    mesh: Mesh,
    handle: MeshHandle,
    workers: Vec<SocketAddr>,
    /// Where the workers keep tensors; goes with the simulation.
    _folder: TempDir,
}

impl Simulation {
    async fn start(seed: u64, faults: Faults, workers: usize) -> Self {
        let network = Network::new(seed);
        let (identity, secret) = (Identity::ephemeral(), JoinRight::random());
        let endpoint = network.endpoint(&identity, Admission::anyone()).unwrap();
        let mesh = Mesh::start_on(endpoint, &identity, secret, config(workers)).await.unwrap();
        let folder = TempDir::new().unwrap();
        let mut addresses = vec![];
        for number in 0..workers {
            let endpoint = network.endpoint(&Identity::ephemeral(), Admission::only([])).unwrap();
            addresses.push(endpoint.local_addr());
            let config = worker_config(mesh.ticket().clone(), number, folder.path().join(number.to_string()));
            tokio::spawn(worker::run(config, endpoint, std::future::pending()));
            // One after another, so that worker and stage have the same number.
            wait_for(&mesh.handle(), "a worker", |s| s.workers.len() == number + 1).await;
        }
        network.faults(faults);
        let handle = mesh.handle();
        wait_for(&handle, "readiness", |s| s.state == MeshState::Ready).await;
        Self { network, mesh, handle, workers: addresses, _folder: folder }
    }

    /// Tokens and digests of their logits.
    async fn generate(&self, sampling: Sampling) -> Vec<(u32, u64)> {
        let mut generation = self.handle.submit(request(sampling)).unwrap();
        let mut rows = vec![];
        while let Some(event) = generation.next().await {
            match event {
                GenerateEvent::Token(row) => rows.push((row.token, row.digest)),
                GenerateEvent::Failed(error) => panic!("{error}"),
                GenerateEvent::Prompt(_) | GenerateEvent::Prefilled { .. } | GenerateEvent::Finished(_) => {}
            }
        }
        rows
    }

    async fn stop(self) {
        self.mesh.stop().await;
    }
}

async fn wait_for(handle: &MeshHandle, what: &str, met: impl Fn(&qmesh_coordinator::mesh::status::MeshStatus) -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !met(&handle.status()) {
        assert!(Instant::now() < until, "{what} did not come: {:?}", handle.status());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn config(workers: usize) -> MeshConfig {
    MeshConfig {
        model: Arc::new(Model::open(&golden_file("tiny/llama.gguf")).unwrap()),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        advertise: vec![],
        context: 256,
        kv_positions: 512,
        formation: Formation { workers: Workers::Exactly(workers), cut: None, workload: Workload::Mixed },
        chunk_rows: 8,
        ticket: TicketSource::Fresh,
        prefix_reuse: PrefixReuse::On,
        speculation: Speculation::On,
    }
}

fn worker_config(ticket: Ticket, number: usize, cache: PathBuf) -> WorkerConfig {
    WorkerConfig {
        ticket,
        name: format!("w{number}"),
        memory: None,
        cache,
        cache_size: None,
        model_folders: vec![],
        stay: Stay::Once,
        audience: Audience::Nobody,
        backend: Arc::new(CpuBackend::new(NonZeroUsize::MIN)),
    }
}

fn sampling(temperature: f32) -> Sampling {
    Sampling { temperature, seed: 42, digest: Digest::On, ..Sampling::default() }
}

fn request(sampling: Sampling) -> GenerateRequest {
    GenerateRequest {
        ids: (1..30).collect(),
        max_tokens: 24,
        sampling,
        ends: Arc::new([]),
        prompt_rows: PromptRows::Last,
        client: ClientId(1),
    }
}
