//! This machine as the planner sees it: memory and cores.

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use super::Capacity;

/// Memory and cores of this machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Machine {
    /// Memory that new processes could have now, a cgroup's limit heeded; boundless where the system does not say.
    pub memory_bytes: u64,
    /// Physical cores, or what the process may use of them.
    pub cores: u32,
}

impl Machine {
    /// Asks the operating system.
    pub fn measure() -> Self {
        let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
        let memory_bytes = System::new_with_specifics(memory).map_or(BOUNDLESS, |system| {
            let limit = system.cgroup_limits().map_or(BOUNDLESS, |limits| limits.free_memory);
            let available = Some(system.available_memory()).filter(|&bytes| bytes > 0);
            available.unwrap_or(BOUNDLESS).min(limit)
        });
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        let physical = System::physical_core_count().unwrap_or(allowed);
        Self { memory_bytes, cores: u32::try_from(allowed.min(physical).max(1)).unwrap_or(u32::MAX) }
    }

    /// `count` equal workers that share this machine.
    pub fn shared_by(self, count: usize) -> Vec<Capacity> {
        let memory_bytes = self.memory_bytes / count.max(1) as u64;
        let threads = self.threads_each(count);
        (0..count)
            .map(|worker| Capacity { name: format!("worker-{worker}"), memory_bytes, threads, speed: None })
            .collect()
    }

    /// Threads of each of `count` workers that share this machine; at least 1.
    pub fn threads_each(self, count: usize) -> u32 {
        (self.cores / u32::try_from(count.max(1)).unwrap_or(u32::MAX)).max(1)
    }
}

/// An exabyte: more than there is, and sums of it do not overflow.
const BOUNDLESS: u64 = 1_000_000_000_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_the_machine() {
        let machine = Machine { memory_bytes: 1000, cores: 5 };
        let workers = machine.shared_by(2);
        assert_eq!(workers.iter().map(|w| (w.memory_bytes, w.threads)).collect::<Vec<_>>(), [(500, 2), (500, 2)]);
        assert_eq!(machine.threads_each(9), 1);
        let here = Machine::measure();
        assert!((1..BOUNDLESS).contains(&here.memory_bytes) && here.cores > 0, "{here:?}");
    }
}
