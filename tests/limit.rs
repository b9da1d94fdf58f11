//! Memory that the system limits: a control group where one can be made, else a limit on writable memory.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

/// A limit for one process, which is started inside it.
#[derive(Debug)]
pub enum MemoryLimit {
    /// A control group of its own, removed when this is dropped; the process must have ended by then.
    Group(PathBuf),
    /// `RLIMIT_DATA`.
    Writable(u64),
}

impl MemoryLimit {
    /// A limit that leaves a process `bytes` resident; `None`, said aloud, where the system lets us set none.
    ///
    /// # Panics
    /// Where the system lets us set none in CI, which must not skip anything.
    pub fn new(name: &str, bytes: u64) -> Option<Self> {
        if let Some(group) = group(name, bytes + KERNEL_BYTES) {
            return Some(Self::Group(group));
        }
        let prlimit = Command::new("prlimit").arg("--version").stdout(Stdio::null()).status();
        if prlimit.is_ok_and(|status| status.success()) {
            return Some(Self::Writable(bytes + UNTOUCHED_BYTES));
        }
        let skipped = "neither a control group nor `prlimit` to limit memory with";
        assert!(env::var_os("CI").is_none(), "{skipped}");
        eprintln!("SKIPPED: {skipped}");
        None
    }

    /// A command that starts `program` inside the limit.
    pub fn command(&self, program: &Path) -> Command {
        match self {
            Self::Group(group) => {
                let mut command = Command::new("sh");
                command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs")).arg(program);
                command
            }
            Self::Writable(bytes) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--data={bytes}")).arg(program);
                command
            }
        }
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        if let Self::Group(group) = self {
            // The group is busy until the kernel has done with its last process.
            for _ in 0..100 {
                if fs::remove_dir(&*group).is_ok() {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// A new group with this limit, of the first hierarchy that lets us make one.
fn group(name: &str, bytes: u64) -> Option<PathBuf> {
    let hierarchies = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
    hierarchies.into_iter().find_map(|(hierarchy, limit)| {
        let group = Path::new(hierarchy).join(format!("qmesh-test-{}-{name}", std::process::id()));
        fs::create_dir(&group).ok()?;
        // Without the file the memory of this hierarchy's groups is not controlled.
        let limited = group.join(limit).exists() && fs::write(group.join(limit), bytes.to_string()).is_ok();
        if !limited {
            fs::remove_dir(&group).ok()?;
        }
        limited.then_some(group)
    })
}

/// What the kernel charges a group beside what is resident: page tables, sockets, stacks.
const KERNEL_BYTES: u64 = 16 << 20;
/// What counts as writable and is never touched: stacks and receive buffers.
const UNTOUCHED_BYTES: u64 = 64 << 20;
