//! Real processes: the project's own binaries, built once, run with deadlines and never left behind.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::root;

/// The folder of this build's binaries; builds `coordinator` and `shard-worker` first, once.
///
/// # Panics
/// When they do not build.
pub fn binaries() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        // target/PROFILE/deps/this-test
        let exe = std::env::current_exe().expect("a test knows its own path");
        let folder = exe.parent().and_then(|p| p.parent()).expect("a test lies in target/PROFILE/deps").to_owned();
        let mut build = Command::new(env!("CARGO"));
        // With `--tests` the dependencies are those that `cargo test` has built already.
        build.current_dir(root()).args(["build", "--quiet", "--locked", "--workspace", "--bins", "--tests"]);
        // What cargo tells a test about its package would let build scripts that read the same variables run again, and all
        // that depends on them be built a second time.
        let told = std::env::vars_os().map(|(name, _)| name).filter(|name| {
            let name = name.to_string_lossy();
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        told.for_each(|name| _ = build.env_remove(name));
        if folder.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the binaries do not build");
        folder
    })
}

/// A command of ours, with its output to be read and colours off.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(binaries().join(name));
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a process said and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

/// Runs `coordinator` with these arguments to its end.
///
/// # Panics
/// When it has not ended by the deadline.
pub fn coordinator<S: AsRef<OsStr>>(arguments: &[S], deadline: Duration) -> Output {
    let mut command = command("coordinator");
    command.args(arguments);
    finish(Running::start(command), deadline)
}

/// Waits for a process to end by itself.
///
/// # Panics
/// When it has not ended by the deadline.
pub fn finish(mut running: Running, deadline: Duration) -> Output {
    let until = Instant::now() + deadline;
    let status = loop {
        if let Some(status) = running.child.try_wait().expect("a child can be waited for") {
            break status;
        }
        assert!(Instant::now() < until, "still running after {deadline:?}; it said:\n{}", running.said());
        thread::sleep(Duration::from_millis(10));
    };
    let (stdout, stderr) = running.rest();
    Output { status, stdout, stderr }
}

/// A process whose lines are read as they come; dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Receiver<Line>,
    stdout: String,
    stderr: String,
}

#[derive(Debug)]
enum Line {
    Out(String),
    Err(String),
}

impl Running {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (sender, lines) = channel();
        let out = child.stdout.take().map(|pipe| (pipe, sender.clone()));
        let err = child.stderr.take().map(|pipe| (pipe, sender));
        // The readers end with the pipes.
        out.map(|(pipe, sender)| thread::spawn(move || each_line(pipe, |l| sender.send(Line::Out(l)).is_ok())));
        err.map(|(pipe, sender)| thread::spawn(move || each_line(pipe, |l| sender.send(Line::Err(l)).is_ok())));
        Self { child, lines, stdout: String::new(), stderr: String::new() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line, on either output, for which `wanted` has an answer.
    ///
    /// # Panics
    /// When no such line came by the deadline.
    pub fn wait_for<T>(&mut self, deadline: Duration, what: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        let until = Instant::now() + deadline;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("{what} did not come in {deadline:?}; it said:\n{}", self.said());
            };
            let text = self.keep(line);
            if let Some(found) = wanted(&text) {
                return found;
            }
        }
    }

    /// Sends it a signal by name, as `kill` knows it.
    ///
    /// # Panics
    /// When `kill` cannot be run.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(status.expect("kill runs").success(), "kill -s {name}");
    }

    /// Everything that it has said so far.
    pub fn said(&mut self) -> String {
        while let Ok(line) = self.lines.try_recv() {
            self.keep(line);
        }
        format!("--- stdout\n{}--- stderr\n{}", self.stdout, self.stderr)
    }

    fn rest(&mut self) -> (String, String) {
        while let Ok(line) = self.lines.recv() {
            self.keep(line);
        }
        (std::mem::take(&mut self.stdout), std::mem::take(&mut self.stderr))
    }

    fn keep(&mut self, line: Line) -> String {
        let (kept, text) = match line {
            Line::Out(text) => (&mut self.stdout, text),
            Line::Err(text) => (&mut self.stderr, text),
        };
        kept.push_str(&text);
        kept.push('\n');
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn each_line(pipe: impl Read, mut give: impl FnMut(String) -> bool) {
    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
        if !give(line) {
            return;
        }
    }
}
