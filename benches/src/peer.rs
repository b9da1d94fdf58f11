//! llama.cpp's `llama-bench` and `llama-batched-bench`, run beside.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;

use crate::{clients::Load, rpc::RpcServers};

/// One build of llama.cpp.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The name of the build's folder.
    pub label: String,
    /// Its `llama-bench`.
    pub program: PathBuf,
    /// Commit and number, as it says itself; known after the first run.
    pub build: Option<String>,
}

/// What a peer is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Test {
    /// Tokens one by one, after a prompt.
    Decode {
        /// Tokens of the prompt, which are not timed.
        prompt: usize,
        /// Tokens to time.
        tokens: usize,
    },
    /// A prompt.
    Prefill {
        /// Its tokens.
        rows: usize,
    },
}

/// How a peer is run. Which setting is the fastest one depends on the model, the test and the length of the context.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Setting {
    /// Rows of a micro-batch (`-ub`).
    pub ubatch: usize,
    /// Its attention (`-fa`).
    pub attention: PeerAttention,
}

/// The two ways in which llama.cpp computes attention.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "ReportedAttention")]
pub enum PeerAttention {
    /// All scores of a row, then their softmax, then the values (`-fa 0`).
    InSteps,
    /// In one pass over the keys, known as flash attention (`-fa 1`).
    Fused,
}

/// What we read of the report; it has one entry per test.
#[derive(Debug, Deserialize)]
struct BenchEntry {
    build_commit: String,
    build_number: u64,
    n_threads: usize,
    n_ubatch: usize,
    flash_attn: PeerAttention,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    avg_ns: f64,
}

/// What we read of a line of `llama-batched-bench`.
#[derive(Debug, Deserialize)]
struct BatchedEntry {
    flash_attn: PeerAttention,
    pp: usize,
    tg: usize,
    pl: usize,
    t_tg: f64,
}

/// How a report says which attention ran: as a truth value in older builds, as a number in newer ones.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ReportedAttention {
    Flag(bool),
    Number(i64),
}

/// The slowest test we know of takes a minute.
const DEADLINE: Duration = Duration::from_secs(900);

impl Peer {
    /// The build whose programs are in `folder`.
    ///
    /// # Errors
    /// There is no `llama-bench` in it.
    pub fn find(folder: &Path) -> Result<Self> {
        let program = folder.join("llama-bench");
        ensure!(program.is_file(), "{}: no llama-bench there; see benches/peers.md", folder.display());
        // The folder itself is called `bin` in every build.
        let path = folder.canonicalize().with_context(|| format!("{}: cannot read", folder.display()))?;
        let name = path.iter().rev().find(|name| *name != "bin").unwrap_or_default();
        Ok(Self { label: name.to_string_lossy().into_owned(), program, build: None })
    }

    /// Its `ggml-rpc-server`, where it was built.
    pub fn rpc_server(&self) -> Option<PathBuf> {
        Some(self.program.with_file_name("ggml-rpc-server")).filter(|program| program.is_file())
    }

    /// Seconds per token of one sample of `test` in one process.
    ///
    /// # Errors
    /// It fails, says something else than asked, or takes longer than any test should.
    pub fn sample(&mut self, model: &Path, threads: usize, test: Test, setting: Setting) -> Result<f64> {
        self.bench(model, threads, test, setting, &[])
    }

    /// Seconds per token of one sample of `test` with all layers on `servers`.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn sample_split(
        &mut self,
        servers: &RpcServers,
        model: &Path,
        threads: usize,
        test: Test,
        setting: Setting,
    ) -> Result<f64> {
        self.bench(model, threads, test, setting, &["--rpc", &servers.addresses(), "-ngl", "99"])
    }

    /// Seconds per token of all clients together, decoding with all layers on `servers`.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn sample_clients(
        &mut self,
        servers: &RpcServers,
        model: &Path,
        threads: usize,
        load: Load,
        setting: Setting,
    ) -> Result<f64> {
        let Load { clients, prompt, tokens } = load;
        if clients == 1 {
            return self.sample_split(servers, model, threads, Test::Decode { prompt, tokens }, setting);
        }
        let program = self.program.with_file_name("llama-batched-bench");
        let mut command = Command::new(&program);
        command.arg("-m").arg(model).args(["--rpc", &servers.addresses(), "-ngl", "99", "--output-format", "jsonl"]);
        let numbers = [("-npp", prompt), ("-ntg", tokens), ("-npl", clients), ("-c", clients * (prompt + tokens))];
        for (flag, value) in numbers.into_iter().chain([("-t", threads)]) {
            command.arg(flag).arg(value.to_string());
        }
        command.args(setting.arguments());
        let seconds = run(&mut command).and_then(|output| parse_batched(&output, load, setting.attention));
        Ok(seconds.with_context(|| program.display().to_string())? / (clients * tokens) as f64)
    }

    fn bench(&mut self, model: &Path, threads: usize, test: Test, setting: Setting, more: &[&str]) -> Result<f64> {
        let (prompt, tokens, depth) = test.counts();
        let mut command = Command::new(&self.program);
        command.arg("-m").arg(model).args(["-r", "1", "-o", "json"]).args(more).args(setting.arguments());
        for (flag, value) in [("-t", threads), ("-p", prompt), ("-n", tokens), ("-d", depth)] {
            command.arg(flag).arg(value.to_string());
        }
        let output = run(&mut command).with_context(|| self.program.display().to_string())?;
        let entry = parse(&output, threads, test, setting).with_context(|| self.program.display().to_string())?;
        self.build = Some(format!("{} ({})", entry.build_commit, entry.build_number));
        Ok(entry.avg_ns / 1e9 / (prompt + tokens) as f64)
    }
}

impl Setting {
    /// Both ways to compute attention, with llama.cpp's usual micro-batch.
    pub const BOTH_ATTENTIONS: [Self; 2] = [
        Self { ubatch: USUAL_UBATCH, attention: PeerAttention::InSteps },
        Self { ubatch: USUAL_UBATCH, attention: PeerAttention::Fused },
    ];

    /// Both ways to compute attention with each of these micro-batches.
    pub fn each(ubatches: &[usize]) -> Vec<Self> {
        let both = |&ubatch: &usize| Self::BOTH_ATTENTIONS.map(|setting| Self { ubatch, ..setting });
        ubatches.iter().flat_map(both).collect()
    }

    /// What it is on the command line.
    pub fn arguments(self) -> [String; 4] {
        ["-fa".into(), self.attention.value().into(), "-ub".into(), self.ubatch.to_string()]
    }
}

/// llama.cpp's default.
const USUAL_UBATCH: usize = 512;

impl PeerAttention {
    /// The value of `-fa`.
    pub fn value(self) -> &'static str {
        match self {
            Self::InSteps => "0",
            Self::Fused => "1",
        }
    }
}

impl TryFrom<ReportedAttention> for PeerAttention {
    type Error = String;

    fn try_from(reported: ReportedAttention) -> Result<Self, String> {
        match reported {
            ReportedAttention::Flag(false) | ReportedAttention::Number(0) => Ok(Self::InSteps),
            ReportedAttention::Flag(true) | ReportedAttention::Number(1) => Ok(Self::Fused),
            // -1 leaves the choice to it: whatever ran then was not asked for.
            ReportedAttention::Number(other) => Err(format!("flash_attn is {other}, expected 0 or 1")),
        }
    }
}

impl Test {
    /// Tokens of prompt and of output that are timed, and the positions before them.
    fn counts(self) -> (usize, usize, usize) {
        match self {
            Self::Decode { prompt, tokens } => (0, tokens, prompt),
            Self::Prefill { rows } => (rows, 0, 0),
        }
    }
}

/// Runs to the end, or to the deadline.
fn run(command: &mut Command) -> Result<Vec<u8>> {
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = ended.recv_timeout(DEADLINE) else {
        kill(pid, Signal::SIGKILL)?;
        bail!("killed after {} s", DEADLINE.as_secs());
    };
    let Output { status, stdout, stderr } = output?;
    let said = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{status}: {}", said.lines().last().unwrap_or("it said nothing"));
    Ok(stdout)
}

fn parse(output: &[u8], threads: usize, test: Test, setting: Setting) -> Result<BenchEntry> {
    let entries: Vec<BenchEntry> =
        serde_json::from_slice(output).context("this llama-bench reports otherwise than we read")?;
    let [entry] = <[BenchEntry; 1]>::try_from(entries).ok().context("a report of not exactly one test")?;
    let counts = (entry.n_prompt, entry.n_gen, entry.n_depth);
    ensure!(counts == test.counts() && entry.n_threads == threads, "it ran another test than asked for: {entry:?}");
    let ran = Setting { ubatch: entry.n_ubatch, attention: entry.flash_attn };
    ensure!(ran == setting, "it ran with other settings than asked for: {entry:?}");
    ensure!(entry.avg_ns > 0.0, "a test that took no time");
    Ok(entry)
}

/// Seconds in which the clients of `load` decoded.
fn parse_batched(output: &[u8], load: Load, attention: PeerAttention) -> Result<f64> {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().find(|line| line.starts_with('{')).context("a report without a line of JSON")?;
    let entry: BatchedEntry =
        serde_json::from_str(line).context("this llama-batched-bench reports otherwise than we read")?;
    let counts = (entry.pl, entry.pp, entry.tg);
    ensure!(counts == (load.clients, load.prompt, load.tokens), "it ran another test than asked for: {entry:?}");
    ensure!(entry.flash_attn == attention, "it ran with another attention than asked for: {entry:?}");
    ensure!(entry.t_tg > 0.0, "a test that took no time");
    Ok(entry.t_tg)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_STEPS: Setting = Setting::BOTH_ATTENTIONS[0];
    const FUSED: Setting = Setting::BOTH_ATTENTIONS[1];

    /// What `llama-batched-bench -npp 8 -ntg 8 -npl 4 --output-format jsonl` printed, shortened.
    const BATCHED: &str = r#"
{"n_kv_max": 1024, "flash_attn": 1, "n_threads": 1, "pp": 8, "tg": 8, "pl": 4, "n_kv": 64, "t_pp": 0.381320, "t_tg": 0.490905, "t": 0.872225}

"#;

    /// What `llama-bench -p 0 -n 16 -d 32 -t 2 -r 1 -o json` printed, shortened by fields that we do not read.
    const REPORT: &str = r#"[
      {
        "build_commit": "unknown",
        "build_number": 0,
        "cpu_info": "Intel(R) Xeon(R) Processor",
        "backends": "CPU",
        "model_filename": "models/smollm2-135m.gguf",
        "model_size": 96576768,
        "n_ubatch": 512,
        "n_threads": 2,
        "cpu_mask": "0x0",
        "flash_attn": 0,
        "tensor_buft_overrides": "none",
        "n_prompt": 0,
        "n_gen": 16,
        "n_depth": 32,
        "test_time": "2026-11-22T13:54:47Z",
        "avg_ns": 252753511,
        "stddev_ns": 0,
        "avg_ts": 63.302780,
        "samples_ns": [ 252753511 ],
        "samples_ts": [ 63.3028 ]
      }
    ]"#;

    #[test]
    fn reports_are_read_and_checked() {
        let test = Test::Decode { prompt: 32, tokens: 16 };
        let entry = parse(REPORT.as_bytes(), 2, test, IN_STEPS).unwrap();
        assert_eq!((entry.avg_ns, entry.build_commit.as_str()), (252_753_511.0, "unknown"));
        assert!(parse(REPORT.as_bytes(), 1, test, IN_STEPS).is_err(), "other threads");
        assert!(parse(REPORT.as_bytes(), 2, Test::Prefill { rows: 16 }, IN_STEPS).is_err(), "another test");
        assert!(parse(b"[]", 2, test, IN_STEPS).is_err());
        assert!(parse(b"| model |", 2, test, IN_STEPS).is_err());
    }

    #[test]
    fn what_ran_with_other_settings_is_refused() {
        let (test, report) = (Test::Decode { prompt: 32, tokens: 16 }, |flash: &str| {
            REPORT.replace("\"flash_attn\": 0", &format!("\"flash_attn\": {flash}"))
        });
        let runs = |flash: &str, setting| parse(report(flash).as_bytes(), 2, test, setting).is_ok();
        assert!(runs("0", IN_STEPS) && runs("false", IN_STEPS) && runs("1", FUSED) && runs("true", FUSED));
        assert!(!runs("0", FUSED) && !runs("true", IN_STEPS), "another attention");
        assert!(!runs("-1", IN_STEPS) && !runs("-1", FUSED), "it chose by itself");
        assert!(!runs("0", Setting { ubatch: 128, ..IN_STEPS }), "another micro-batch");
    }

    #[test]
    fn every_micro_batch_meets_both_attentions() {
        let all: Vec<String> = Setting::each(&[128, 256]).iter().map(|s| s.arguments().join(" ")).collect();
        assert_eq!(all, ["-fa 0 -ub 128", "-fa 1 -ub 128", "-fa 0 -ub 256", "-fa 1 -ub 256"]);
        assert_eq!(Setting::each(&[512]), Setting::BOTH_ATTENTIONS);
    }

    #[test]
    fn reports_of_clients_are_read_and_checked() {
        let load = Load { clients: 4, prompt: 8, tokens: 8 };
        let fused = PeerAttention::Fused;
        assert_eq!(parse_batched(BATCHED.as_bytes(), load, fused).unwrap(), 0.490905);
        assert!(parse_batched(BATCHED.as_bytes(), Load { clients: 2, ..load }, fused).is_err(), "another test");
        assert!(parse_batched(BATCHED.as_bytes(), load, PeerAttention::InSteps).is_err(), "another attention");
        assert!(parse_batched(b"\n", load, fused).is_err());
    }

    #[test]
    fn a_folder_without_it_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = Peer::find(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no llama-bench") && error.contains(&*folder.path().to_string_lossy()), "{error}");
    }

    #[test]
    fn failures_say_what_the_program_said() {
        let error = run(Command::new("sh").args(["-c", "echo no such model >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("no such model"), "{error}");
    }
}
