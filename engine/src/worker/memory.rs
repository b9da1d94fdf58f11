//! How much memory this process may take, and how much it has taken.

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use qmesh_models::bytes::ByteCount;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

/// What keeps a worker from using more memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Bound {
    /// The user's own limit.
    Flag,
    /// Free memory of the machine.
    Machine,
    /// The control group (container) it runs in.
    ControlGroup,
    /// A resource limit of the process (`ulimit -v`, `ulimit -d`).
    ResourceLimit,
}

/// Memory that this process may have resident, what it has already included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Allowance {
    /// How much.
    pub(crate) bytes: ByteCount,
    /// What sets it.
    pub(crate) bound: Bound,
}

impl Allowance {
    /// Measures: the least of what the user allows (`flag`), what the machine and the control group have free beside what
    /// the process has, and what its resource limits leave it. What cannot be measured does not bind.
    pub(crate) fn measure(flag: Option<ByteCount>) -> Self {
        let bounds = [(flag.map(|bytes| bytes.0), Bound::Flag)].into_iter().chain(measured());
        let (bytes, bound) = bounds
            .filter_map(|(bytes, bound)| Some((bytes?, bound)))
            .min_by_key(|&(bytes, _)| bytes)
            .unwrap_or((u64::MAX, Bound::Machine));
        Self { bytes: ByteCount(bytes), bound }
    }

    /// What a user can do about an allowance that is too small.
    pub(crate) fn remedy(&self) -> &'static str {
        match self.bound {
            Bound::Flag => "add a worker, or raise --memory",
            Bound::Machine => "add a worker, or free memory on this machine",
            Bound::ControlGroup => "add a worker, or raise the memory limit of its control group",
            Bound::ResourceLimit => "add a worker, or raise its ulimit",
        }
    }
}

/// The memory that this process shares with others, a container's where that is the less, and what processes could have of
/// it now; `None` where it cannot be measured.
pub(crate) fn pool() -> Option<(u64, Bound)> {
    let shared = |bound: &(Option<u64>, Bound)| matches!(bound.1, Bound::Machine | Bound::ControlGroup);
    let bounds = measured().into_iter().filter(shared).filter_map(|(bytes, bound)| Some((bytes?, bound)));
    bounds.min_by_key(|&(bytes, _)| bytes)
}

/// The most memory the process ever had resident, in bytes; 0 where the system does not say.
pub(crate) fn peak_bytes() -> u64 {
    // Linux counts in KiB, macOS in bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    let usage = || u64::try_from(getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss()).ok().map(|n| n * unit);
    // Linux lets `max_rss` survive an exec, and so counts what the parent once had.
    process_status("VmHWM:").or_else(usage).unwrap_or(0)
}

/// Address space that resource limits count and that is never resident: stacks of threads that are still to come, and what
/// aligns the weights.
const STACK_SPACE_BYTES: u64 = 24 << 20;

/// A size of this process as Linux states it, in bytes.
fn process_status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What the process may have by each bound that can be measured.
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
    let resident_bytes = process.map_or(0, |p| p.memory());
    // The group's cached files are not free, but give way.
    let group = group.map(|limits| limits.total_memory.saturating_sub(limits.rss));
    let own = process_status("RssAnon:").unwrap_or(resident_bytes);
    let left = |resource, used: u64| match getrlimit(resource) {
        Ok((soft, _)) if soft != nix::sys::resource::RLIM_INFINITY => {
            Some(soft.saturating_sub(used.saturating_add(STACK_SPACE_BYTES)).saturating_add(resident_bytes))
        }
        Ok(_) | Err(_) => None,
    };
    let available = Some(system.available_memory()).filter(|&bytes| bytes > 0);
    [
        (available.map(|bytes| bytes.saturating_add(resident_bytes)), Bound::Machine),
        (group.map(|bytes| bytes.saturating_add(own)), Bound::ControlGroup),
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
        let held = process_status("VmRSS:").unwrap_or(0);
        assert!(free.bytes.0 >= held, "what it has does not count against it: {free:?}, {held}");
        let tight = Allowance::measure(Some(ByteCount(1)));
        assert_eq!(tight, Allowance { bytes: ByteCount(1), bound: Bound::Flag });
        assert!(tight.remedy().contains("--memory"));
        assert!(peak_bytes() > 1 << 20);
    }
}
