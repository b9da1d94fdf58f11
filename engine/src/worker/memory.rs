//! How much memory a shard may take here, and how much the process has taken.

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use qmesh_models::bytes::ByteCount;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

/// What keeps a worker from using more memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Bound {
    /// The user's own limit.
    Flag,
    /// Free memory of the machine.
    Machine,
    /// The control group (container) it runs in.
    ControlGroup,
    /// A resource limit of the process (`ulimit -v`, `ulimit -d`).
    ResourceLimit,
}

/// Memory that a shard may take now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Allowance {
    /// How much.
    pub(super) bytes: ByteCount,
    /// What sets it.
    pub(super) bound: Bound,
}

impl Allowance {
    /// Measures: the least of what the user allows (`flag`), what the machine and the control group have free, and what
    /// the process's resource limits leave. What cannot be measured does not bind.
    pub(super) fn measure(flag: Option<ByteCount>) -> Self {
        let bounds = [(flag.map(|bytes| bytes.0), Bound::Flag)].into_iter().chain(measured());
        let (bytes, bound) = bounds
            .filter_map(|(bytes, bound)| Some((bytes?, bound)))
            .min_by_key(|&(bytes, _)| bytes)
            .unwrap_or((u64::MAX, Bound::Machine));
        Self { bytes: ByteCount(bytes), bound }
    }

    /// What a user can do about an allowance that is too small.
    pub(super) fn remedy(&self) -> &'static str {
        match self.bound {
            Bound::Flag => "add a worker, or raise --memory",
            Bound::Machine => "add a worker, or free memory on this machine",
            Bound::ControlGroup => "add a worker, or raise the memory limit of its control group",
            Bound::ResourceLimit => "add a worker, or raise its ulimit",
        }
    }
}

/// The most memory the process ever had resident, in bytes; 0 where the system does not say.
pub(super) fn peak_bytes() -> u64 {
    // Linux counts in KiB, macOS in bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    let usage = || u64::try_from(getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss()).ok().map(|n| n * unit);
    // Linux lets `max_rss` survive an exec, and so counts what the parent once had.
    process_status("VmHWM:").or_else(usage).unwrap_or(0)
}

/// A size of this process as Linux states it, in bytes.
fn process_status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Free bytes by each bound that can be measured.
fn measured() -> [(Option<u64>, Bound); 4] {
    let Ok(mut system) = System::new() else {
        return [(None, Bound::Machine); 4];
    };
    system.refresh_memory();
    let pid = sysinfo::get_current_pid().ok();
    if let Some(pid) = pid {
        let memory = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, memory);
    }
    let process = pid.and_then(|pid| system.process(pid));
    let group = process.and_then(|p| p.cgroup_limits()).or_else(|| system.cgroup_limits());
    let left = |resource, used: u64| match getrlimit(resource) {
        Ok((soft, _)) if soft != nix::sys::resource::RLIM_INFINITY => Some(soft.saturating_sub(used)),
        Ok(_) | Err(_) => None,
    };
    [
        (Some(system.available_memory()).filter(|&bytes| bytes > 0), Bound::Machine),
        (group.map(|limits| limits.free_memory), Bound::ControlGroup),
        (left(Resource::RLIMIT_AS, process.map_or(0, |p| p.virtual_memory())), Bound::ResourceLimit),
        (left(Resource::RLIMIT_DATA, process_status("VmData:").unwrap_or(0)), Bound::ResourceLimit),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_bound_wins_and_names_its_remedy() {
        let free = Allowance::measure(None);
        assert!(free.bytes.0 > 0 && free.bytes.0 < u64::MAX, "{free:?}");
        let tight = Allowance::measure(Some(ByteCount(1)));
        assert_eq!(tight, Allowance { bytes: ByteCount(1), bound: Bound::Flag });
        assert!(tight.remedy().contains("--memory"));
        assert!(peak_bytes() > 1 << 20);
    }
}
