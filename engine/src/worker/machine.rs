//! What of its machine this worker shares with others that run there, and where the machine is.

use std::{fs, io};

use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};
use qmesh_discovery::own_addresses;
use qmesh_net::{Endpoint, MachineShare, OwnAddresses, PeerId, Sections, machine_name};

use super::memory::{Bound, pool};

/// What a coordinator needs to know to count once what several workers share; `None` where the system does not say which
/// machine it is.
pub(super) fn share(coordinator: PeerId) -> Option<MachineShare> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let (memory_bytes, bound) = pool()?;
    let memory = match bound {
        Bound::ControlGroup => format!("{boot}{}", control_group().ok()?),
        Bound::Flag | Bound::Machine | Bound::ResourceLimit => boot.clone(),
    };
    Some(MachineShare {
        machine: machine_name(coordinator, boot.as_bytes()),
        cpus: cpus(),
        memory: machine_name(coordinator, memory.as_bytes()),
        memory_bytes,
    })
}

/// Says among the sections where this machine is, and returns it.
pub(super) fn say_where(endpoint: &Endpoint, sections: &mut Sections) -> OwnAddresses {
    let own = OwnAddresses { addresses: own_addresses(endpoint.local_addr()) };
    if let Err(error) = own.put(sections) {
        // Others then reach it where the coordinator sees it, or not at all.
        tracing::warn!(%error, "cannot say where this machine is");
    }
    own
}

/// Which control group this process is in: the path alone is `/` in every container.
fn control_group() -> io::Result<String> {
    let namespace = fs::read_link("/proc/self/ns/cgroup")?;
    Ok(format!("{}{}", namespace.display(), fs::read_to_string("/proc/self/cgroup")?))
}

/// The CPUs that this process may use, in words of 64.
fn cpus() -> Vec<u64> {
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    let mut words = vec![0; CpuSet::count().div_ceil(64)];
    for cpu in (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)) {
        words[cpu / 64] |= 1 << (cpu % 64);
    }
    let used = words.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1);
    words.truncate(used);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_of_a_machine_are_seen_to_share_it() {
        let here = || share(PeerId([1; 32])).unwrap();
        let (one, other) = (here(), here());
        assert_eq!((one.machine, one.memory, &one.cpus), (other.machine, other.memory, &other.cpus));
        assert_ne!(one.machine, share(PeerId([2; 32])).unwrap().machine);
        let threads = std::thread::available_parallelism().unwrap().get();
        let cpus: u32 = one.cpus.iter().map(|word| word.count_ones()).sum();
        assert!(cpus as usize >= threads && one.memory_bytes > 0, "{one:?}");
    }
}
