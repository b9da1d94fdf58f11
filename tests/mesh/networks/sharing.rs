//! Models that go from machine to machine: from two at once, from one that is killed, and from one that lies.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use qmesh_tests::{
    golden_file,
    process::{self, Running},
};
use tempfile::TempDir;

use super::{
    super::{STARTING, soak},
    lab::{Host, Lab},
};

/// How long a model may take here.
const PULLING: Duration = Duration::from_secs(240);
/// What each machine may send, in kilobits a second.
const UPLINK: u32 = 100_000;

/// A sharer, one that gives the model on, and one that gets it, each with an uplink of its own.
struct Sharing {
    sharer: Running,
    giver: Running,
    /// What the giver has.
    given: PathBuf,
    link: String,
    reader: Host,
    model: PathBuf,
    folder: TempDir,
    /// Outlives the processes.
    _lab: Lab,
}

/// A pull that ended well.
struct Fetched {
    seconds: f64,
    said: String,
}

impl Sharing {
    fn start() -> Option<Self> {
        let mut lab = Lab::new()?;
        let hosts = [10, 11, 12].map(|number| lab.host(number));
        let [shares, gives, reader] = hosts;
        [&shares, &gives].iter().for_each(|host| host.limit(UPLINK, 128));
        let folder = TempDir::new().unwrap();
        let model = folder.path().join("large.gguf");
        large_model(&model);
        let mut command = shares.command("coordinator");
        command.arg("share").arg(&model).args(["--listen", "198.51.100.10:4434", "--no-mdns"]);
        let mut sharer = Running::start(at_home(command, &folder.path().join("sharer")));
        let link = sharer.wait_for(STARTING, "the link", link_in);
        let mut command = gives.command("coordinator");
        command.args(["pull", &link, "--give", "--listen", "198.51.100.11:4434"]);
        let mut giver = Running::start(at_home(command, &folder.path().join("giver")));
        let given = giver.wait_for(PULLING, "the path", |line| line.ends_with(".gguf").then(|| PathBuf::from(line)));
        giver.wait_for(STARTING, "its link", link_in);
        Some(Self { sharer, giver, given, link, reader, model, folder, _lab: lab })
    }

    /// Begins to get the model into a cache of its own.
    fn pull(&self, name: &str) -> Running {
        let mut command = self.reader.command("coordinator");
        command.args(["pull", &self.link]);
        Running::start(at_home(command, &self.folder.path().join(name)))
    }

    fn fetched(&self, pull: Running, began: Instant) -> Fetched {
        let ended = process::finish(pull, PULLING);
        let seconds = began.elapsed().as_secs_f64();
        assert!(ended.status.success(), "{}", ended.stderr);
        assert!(fs::read(ended.stdout.trim()).unwrap() == fs::read(&self.model).unwrap(), "other bytes came");
        Fetched { seconds, said: ended.stderr }
    }
}

#[test]
fn a_model_comes_from_two_at_once_and_whoever_dies_or_lies_does_no_harm() {
    let Some(sharing) = Sharing::start() else { return };
    let began = Instant::now();
    let both = sharing.fetched(sharing.pull("both"), began);
    assert!(both.said.contains("from 2 machines"), "{}", both.said);

    // One bit in every chunk of what the giver has.
    let file = File::options().write(true).open(&sharing.given).unwrap();
    let bytes = file.metadata().unwrap().len();
    let content = fs::read(&sharing.model).unwrap();
    for at in (0..bytes).step_by(1 << 20) {
        file.write_all_at(&[content[at as usize] ^ 1], at).unwrap();
    }
    let lied = sharing.fetched(sharing.pull("lied"), Instant::now());
    assert_eq!(lied.said.matches("gave wrong bytes").count(), 1, "{}", lied.said);
    for at in (0..bytes).step_by(1 << 20) {
        file.write_all_at(&[content[at as usize]], at).unwrap();
    }

    let mut pull = sharing.pull("killed");
    pull.wait_for(PULLING, "some of it", |line| line.contains("fetching large: ").then_some(()));
    pull.wait_for(PULLING, "some of it", |line| line.contains("0 %").then_some(()));
    sharing.giver.signal("KILL");
    sharing.fetched(pull, Instant::now());

    let began = Instant::now();
    let alone = sharing.fetched(sharing.pull("alone"), began);
    assert!(alone.said.contains("from 1 machine:"), "{}", alone.said);
    let times = alone.seconds / both.seconds;
    println!(
        "{bytes} bytes: {:.1} s from one, {:.1} s from two: {times:.2} times as fast",
        alone.seconds, both.seconds
    );
    assert!(!soak() || times >= 1.7, "{times}");
    drop(sharing.sharer);
}

/// What a program keeps is kept there.
fn at_home(mut command: std::process::Command, folder: &Path) -> std::process::Command {
    command.env("XDG_DATA_HOME", folder.join("data")).env("QMESH_CACHE", folder.join("cache"));
    command
}

fn link_in(line: &str) -> Option<String> {
    line.strip_prefix("coordinator pull ").map(str::to_owned)
}

/// A model with bytes after its tensors that nobody reads: as large as the real one of 491 MB where tests are long.
fn large_model(path: &Path) {
    let megabytes: usize = if soak() { 491 } else { 24 };
    let mut content = fs::read(golden_file("tiny/llama.gguf")).unwrap();
    let mut random = 1_u64;
    content.extend((0..megabytes * 1_000_000).map(|_| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 56) as u8
    }));
    fs::write(path, content).unwrap();
}
