//! The whole mesh in one process, over a network in memory: delay, loss, and workers that die, by seed.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_coordinator::{
    generate::{ClientId, GenerateEvent, GenerateRequest, Generation, Pooling, PromptRows},
    mesh::{
        Formation, Mesh, MeshConfig, MeshHandle, PrefixReuse, Speculation, TicketSource, Workers,
        status::{MeshState, MeshStatus},
    },
    model::Model,
};
use qmesh_engine::{
    backend::cpu::CpuBackend,
    worker::{self, Audience, MeasuredBy, Search, Stay, WayIn, WorkerConfig},
};
use qmesh_models::weights::ModelFile;
use qmesh_net::{
    Admission, Digest, Identity, JoinRight, Sampling, Strangers, Ticket,
    memory::{Faults, Network},
};
use qmesh_tests::golden_file;
use tempfile::TempDir;

/// With keys and values alone, and with states beside them.
const MODELS: [&str; 2] = ["tiny/llama.gguf", "tiny/qwen35.gguf"];

#[tokio::test]
async fn delay_and_loss_change_no_bit() {
    for model in MODELS {
        let calm = Simulation::start(model, 1, Faults::default(), 1).await;
        let reference = calm.generate(sampling(0.0)).await;
        let seeded = calm.generate(sampling(0.9)).await;
        calm.stop().await;
        assert_ne!(reference, seeded);
        for seed in 2..6 {
            let faults =
                Faults { delay: Duration::from_millis(3), jitter: Duration::from_millis(2), loss: 0.02, rate: 0 };
            let rough = Simulation::start(model, seed, faults, 3).await;
            assert_eq!(rough.generate(sampling(0.0)).await, reference, "{model}, seed {seed}, greedy");
            assert_eq!(rough.generate(sampling(0.9)).await, seeded, "{model}, seed {seed}, seeded");
            rough.stop().await;
        }
    }
}

#[tokio::test]
async fn a_worker_that_dies_changes_no_bit() {
    for model in MODELS {
        let calm = Simulation::start(model, 1, Faults::default(), 1).await;
        let reference = calm.generate(sampling(0.9)).await;
        calm.stop().await;
        for victim in 0..3 {
            let seed = 10 + victim as u64;
            let faults = Faults { delay: Duration::from_millis(2), ..Faults::default() };
            let mesh = Simulation::start(model, seed, faults, 3).await;
            let rows = mesh.generate_but_for(victim).await;
            assert_eq!(rows, reference, "{model}, seed {seed}, stage {victim} died");
            assert_eq!(mesh.handle.status().stages.len(), 2, "{model}, seed {seed}: two stages remain");
            mesh.stop().await;
        }
    }
}

#[tokio::test]
async fn weights_travel_once_and_only_what_changes_hands() {
    // The first and the last stage both want the embedding table, since the head is tied to it.
    let model = "tiny/mistral-tied.gguf";
    let whole = distinct_bytes(model);
    let mut mesh = Simulation::begin(30, config(model, Workers::AtLeast(3)), TempDir::new().unwrap()).await;
    for number in 0..3 {
        mesh.join(number).await;
    }
    mesh.wait_ready(3).await;
    let first = mesh.handle.status();
    let wanted: u64 = first.stages.iter().map(|stage| stage.weight_bytes).sum();
    assert!(wanted > whole, "the stages have something in common: {wanted} of {whole}");
    let sent = first.weight_bytes_sent;
    assert_eq!(sent, whole, "the coordinator sends each byte once");

    // A worker is lost: the others get what was its own, and nothing that one of them has.
    mesh.network.kill(mesh.workers[1]);
    mesh.wait_ready(2).await;
    let second = mesh.handle.status();
    let moved = second.weight_bytes_sent - sent;
    assert!(moved <= first.stages[1].weight_bytes, "{moved} of {}", first.stages[1].weight_bytes);

    // Whoever takes its place has all from its peers.
    mesh.join(3).await;
    mesh.wait_ready(3).await;
    let third = mesh.handle.status();
    assert_eq!(third.weight_bytes_sent, second.weight_bytes_sent, "the coordinator sends nothing");
    let newcomer = third.stages.iter().find(|stage| stage.worker == "w3").unwrap();
    assert_eq!(newcomer.coordinator_bytes, 0, "{newcomer:?}");
    assert!(newcomer.peer_bytes > 0 && newcomer.peer_bytes <= newcomer.weight_bytes, "{newcomer:?}");

    // After a second start everybody has its own.
    let folder = mesh.stop().await;
    let mut again = Simulation::begin(31, config(model, Workers::AtLeast(3)), folder).await;
    for number in [0, 2, 3] {
        again.join(number).await;
    }
    again.wait_ready(3).await;
    let status = again.handle.status();
    let layers = |s: &MeshStatus| s.stages.iter().map(|g| (g.worker.clone(), g.first_layer)).collect::<Vec<_>>();
    assert_eq!(layers(&status), layers(&third), "the same cut");
    let from_peers: u64 = status.stages.iter().map(|stage| stage.peer_bytes).sum();
    assert_eq!((status.weight_bytes_sent, from_peers), (0, 0));
    again.stop().await;
}

/// Bytes of the model's tensors, equal ones once.
fn distinct_bytes(model: &str) -> u64 {
    let file = ModelFile::open(golden_file(model)).unwrap();
    let tensors = &file.spec().tensors;
    let hashes = file.hashes(tensors).unwrap();
    hashes.iter().zip(tensors).map(|(hash, tensor)| (*hash, tensor.bytes)).collect::<BTreeMap<_, _>>().values().sum()
}

#[tokio::test]
async fn prompts_become_the_same_vectors_on_one_worker_on_three_and_when_one_dies() {
    for model in MODELS {
        let calm = Simulation::start(model, 1, Faults::default(), 1).await;
        let mut expected = Vec::new();
        for pooling in [Pooling::Mean, Pooling::Last] {
            expected.push((pooling, vector(calm.pooled(pooling)).await.expect("nothing fails")));
        }
        calm.stop().await;
        assert_ne!(expected[0].1, expected[1].1);
        for victim in 0..3 {
            let faults = Faults { delay: Duration::from_millis(20), ..Faults::default() };
            let mut rough = Simulation::start(model, 5, faults, 3).await;
            rough.join(3).await;
            for (pooling, expected) in &expected {
                assert_eq!(vector(rough.pooled(*pooling)).await.as_ref(), Some(expected), "{model}, {pooling:?}");
            }
            // Many, so that some of them are under way.
            let waiting: Vec<_> =
                (0..6).flat_map(|_| &expected).map(|(p, vector)| (rough.pooled(*p), vector)).collect();
            tokio::time::sleep(Duration::from_millis(70)).await;
            rough.network.kill(rough.workers[victim]);
            for (generation, expected) in waiting {
                assert_eq!(vector(generation).await.as_ref(), Some(expected), "{model} without worker {victim}");
            }
            rough.stop().await;
        }
    }
}

/// What a prompt has become.
async fn vector(mut generation: Generation) -> Option<Vec<f32>> {
    let mut vector = None;
    while let Some(event) = generation.next().await {
        match event {
            GenerateEvent::Pooled(pooled) => vector = Some(pooled),
            GenerateEvent::Finished(_) | GenerateEvent::Progress { .. } | GenerateEvent::Prefilled { .. } => {}
            GenerateEvent::Failed(error) => panic!("{error}"),
            GenerateEvent::Prompt(_) | GenerateEvent::Token(_) => panic!("not asked for"),
        }
    }
    vector
}

struct Simulation {
    network: Network,
    mesh: Mesh,
    handle: MeshHandle,
    workers: Vec<SocketAddr>,
    /// Where the workers keep tensors; goes with the simulation.
    folder: TempDir,
}

impl Simulation {
    async fn start(model: &str, seed: u64, faults: Faults, workers: usize) -> Self {
        let config = config(model, Workers::Exactly(workers));
        let mut begun = Self::begin(seed, config, TempDir::new().unwrap()).await;
        for number in 0..workers {
            begun.join(number).await;
        }
        begun.network.faults(faults);
        begun.wait_ready(workers).await;
        begun
    }

    /// A coordinator without workers, whose workers will keep their tensors in this folder.
    async fn begin(seed: u64, config: MeshConfig, folder: TempDir) -> Self {
        let network = Network::new(seed);
        let (identity, secret) = (Identity::ephemeral(), JoinRight::random());
        let endpoint = network.endpoint(&identity, Admission::anyone()).unwrap();
        let mesh = Mesh::start_on(endpoint, &identity, secret, config).await.unwrap();
        let handle = mesh.handle();
        Self { network, mesh, handle, workers: vec![], folder }
    }

    /// One more worker, with the cache of this number. They come one after another, so that worker and stage have the same
    /// number.
    async fn join(&mut self, number: usize) {
        let endpoint = self.network.endpoint(&Identity::ephemeral(), Admission::only([])).unwrap();
        self.workers.push(endpoint.local_addr());
        let cache = self.folder.path().join(number.to_string());
        let config = worker_config(self.mesh.ticket().clone(), number, cache);
        tokio::spawn(worker::run(config, endpoint, std::future::pending()));
        let name = format!("w{number}");
        wait_for(&self.handle, "a worker", |s| s.workers.iter().any(|worker| worker.name == name)).await;
    }

    async fn wait_ready(&self, stages: usize) {
        let met = |s: &MeshStatus| s.state == MeshState::Ready && s.stages.len() == stages && s.change.is_none();
        wait_for(&self.handle, "readiness", met).await;
    }

    /// A prompt of several chunks that is to become a vector.
    fn pooled(&self, pooling: Pooling) -> Generation {
        let prompt_rows = PromptRows::Pooled(pooling);
        self.handle.submit(GenerateRequest { prompt_rows, max_tokens: 0, ..request(sampling(0.0)) }).unwrap()
    }

    /// Tokens and digests of their logits.
    async fn generate(&self, sampling: Sampling) -> Vec<(u32, u64)> {
        let mut generation = self.handle.submit(request(sampling)).unwrap();
        let mut rows = vec![];
        while let Some(event) = generation.next().await {
            match event {
                GenerateEvent::Token(row) => rows.push((row.token, row.digest)),
                GenerateEvent::Failed(error) => panic!("{error}"),
                GenerateEvent::Prompt(_)
                | GenerateEvent::Pooled(_)
                | GenerateEvent::Progress { .. }
                | GenerateEvent::Prefilled { .. }
                | GenerateEvent::Finished(_) => {}
            }
        }
        rows
    }

    /// The same at a temperature, while a worker dies in the middle of it.
    async fn generate_but_for(&self, victim: usize) -> Vec<(u32, u64)> {
        let mut generation = self.handle.submit(request(sampling(0.9))).unwrap();
        let mut rows = vec![];
        while let Some(event) = generation.next().await {
            match event {
                GenerateEvent::Token(row) => rows.push((row.token, row.digest)),
                GenerateEvent::Finished(_) => break,
                GenerateEvent::Prompt(_)
                | GenerateEvent::Pooled(_)
                | GenerateEvent::Progress { .. }
                | GenerateEvent::Prefilled { .. } => {}
                GenerateEvent::Failed(error) => panic!("stage {victim}: {error}"),
            }
            if rows.len() == 5 {
                self.network.kill(self.workers[victim]);
            }
        }
        rows
    }

    /// The folder, which would else go with it.
    async fn stop(self) -> TempDir {
        self.mesh.stop().await;
        self.folder
    }
}

async fn wait_for(handle: &MeshHandle, what: &str, met: impl Fn(&MeshStatus) -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !met(&handle.status()) {
        assert!(Instant::now() < until, "{what} did not come: {:?}", handle.status());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn config(model: &str, workers: Workers) -> MeshConfig {
    MeshConfig {
        model: Arc::new(Model::open(&golden_file(model)).unwrap()),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        advertise: vec![],
        rendezvous: vec![],
        context: 256,
        kv_positions: 512,
        formation: Formation::new(workers),
        chunk_rows: 8,
        ticket: TicketSource::Fresh,
        strangers: Strangers::NeedTickets,
        prefix_reuse: PrefixReuse::On,
        speculation: Speculation::On,
        drafter: None,
    }
}

fn worker_config(ticket: Ticket, number: usize, cache: PathBuf) -> WorkerConfig {
    WorkerConfig {
        ticket_file: None,
        search: Search::default(),
        way_in: WayIn::Ticket(ticket),
        name: format!("w{number}"),
        memory: None,
        cache,
        cache_size: None,
        model_folders: vec![],
        stay: Stay::Once,
        measured_by: MeasuredBy::ThisProcess,
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
        grammar: None,
        prompt_rows: PromptRows::Last,
        client: ClientId(1),
        key: None,
    }
}
