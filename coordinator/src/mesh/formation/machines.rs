//! What workers of one machine share is counted once: its CPUs, its memory and its speed.

use std::collections::BTreeMap;

use qmesh_net::MachineShare;

use super::worker::{Joined, WorkerId};
use crate::plan::{Capacity, Speed};

/// Workers whose threads would compute on CPUs that are taken by those before them, each with the name of one of these. A
/// model that is dealt to both is no faster than with one of them: both would wait for the same cores.
pub(super) fn crowded<'a>(workers: impl IntoIterator<Item = (WorkerId, &'a Joined)>) -> BTreeMap<WorkerId, &'a str> {
    let mut placed: Vec<(&MachineShare, &Joined)> = Vec::new();
    let mut crowded = BTreeMap::new();
    for (id, worker) in workers {
        let Some(share) = worker.share.as_ref().filter(|share| !share.cpus.is_empty()) else { continue };
        let neighbours = || placed.iter().filter(|(other, _)| other.machine == share.machine && meet(other, share));
        let threads: u32 = neighbours().map(|(_, other)| other.threads).sum();
        let cpus = neighbours().fold(share.cpus.clone(), |all, (other, _)| union(&all, &other.cpus));
        match neighbours().next() {
            Some((_, other)) if threads + worker.threads > count(&cpus) => {
                crowded.insert(id, other.name.as_str());
            }
            Some(_) | None => placed.push((share, worker)),
        }
    }
    crowded
}

/// Lowers what workers offer where they offer more together than the memory that they share has.
pub(super) fn share_memory(workers: &[&Joined], capacities: &mut [Capacity]) {
    let mut pools: BTreeMap<[u8; 32], Vec<usize>> = BTreeMap::new();
    for (number, worker) in workers.iter().enumerate() {
        if let Some(share) = &worker.share {
            pools.entry(share.memory).or_default().push(number);
        }
    }
    for members in pools.into_values() {
        let share = |&number: &usize| workers[number].share.as_ref().map(|share| share.memory_bytes);
        // Who joined later has seen less of it, by the shards that were loaded meanwhile.
        let has = u128::from(members.iter().filter_map(share).max().unwrap_or(u64::MAX));
        let offered: u128 = members.iter().map(|&number| u128::from(capacities[number].memory_bytes)).sum();
        if offered > has {
            for number in members {
                let part = u128::from(capacities[number].memory_bytes) * has / offered;
                capacities[number].memory_bytes = u64::try_from(part).unwrap_or(u64::MAX);
            }
        }
    }
}

/// Gives workers that are alike, on the same machine, the same speed: an equal cut must not depend on what else the machine did
/// while one of them measured. One that differs by much has less of its machine than it seems.
pub(super) fn even_out(workers: &[&Joined], capacities: &mut [Capacity]) {
    let kind =
        |worker: &Joined| Some((worker.share.as_ref()?.machine, worker.threads, count(&worker.share.as_ref()?.cpus)));
    let measured: Vec<Option<Speed>> = capacities.iter().map(|capacity| capacity.speed.clone()).collect();
    for (number, worker) in workers.iter().enumerate() {
        let (Some(speed), Some(own)) = (&measured[number], kind(worker)) else { continue };
        let group = measured.iter().zip(workers).filter(|(_, other)| kind(other) == Some(own));
        let near: Vec<Speed> =
            group.filter_map(|(other, _)| other.clone()).filter(|other| speed.is_within(other, ALIKE)).collect();
        capacities[number].speed = Some(speed.mean(&near));
    }
}

fn meet(one: &MachineShare, other: &MachineShare) -> bool {
    one.cpus.iter().zip(&other.cpus).any(|(a, b)| a & b != 0)
}

fn union(one: &[u64], other: &[u64]) -> Vec<u64> {
    let word = |cpus: &[u64], at: usize| cpus.get(at).copied().unwrap_or(0);
    (0..one.len().max(other.len())).map(|at| word(one, at) | word(other, at)).collect()
}

fn count(cpus: &[u64]) -> u32 {
    cpus.iter().map(|word| word.count_ones()).sum()
}

/// By how much two measurements on one machine may differ that other work there disturbs: a core shared with one other process
/// gives half its speed.
const ALIKE: f64 = 0.5;

#[cfg(test)]
mod tests {
    use qmesh_net::PeerId;

    use super::*;
    use crate::plan::SpeedPoint;

    fn worker(name: &str, machine: u8, cpus: u64, threads: u32) -> Joined {
        let share =
            MachineShare { machine: [machine; 32], cpus: vec![cpus], memory: [machine; 32], memory_bytes: 1000 };
        let address = ([127, 0, 0, 1], 1).into();
        let plain = Joined::new(name.to_owned(), PeerId([machine; 32]), address, 800, threads);
        Joined { share: Some(share), ..plain }
    }

    fn capacity(worker: &Joined, ps: f64) -> Capacity {
        let point = |rows, ps| SpeedPoint { rows, layers_ps_per_byte: ps, head_ps_per_byte: ps };
        let speed = Speed::measured(vec![point(1, ps), point(256, 50.0 * ps)]);
        let Joined { ref name, memory_bytes, threads, .. } = *worker;
        Capacity { name: name.clone(), memory_bytes, threads, speed }
    }

    fn names(workers: &[Joined]) -> Vec<(u64, &str)> {
        let numbered = workers.iter().enumerate().map(|(number, worker)| (WorkerId(number as u64), worker));
        crowded(numbered).into_iter().map(|(id, host)| (id.0, host)).collect()
    }

    #[test]
    fn who_finds_no_cores_left_is_named_with_whoever_has_them() {
        let both = [worker("a", 1, 0b1111, 4), worker("b", 1, 0b1111, 4), worker("c", 2, 0b1111, 4)];
        assert_eq!(names(&both), [(1, "a")]);
        let halves = [worker("a", 1, 0b1111, 2), worker("b", 1, 0b1111, 2), worker("c", 1, 0b1111, 1)];
        assert_eq!(names(&halves), [(2, "a")]);
        let pinned = [worker("a", 1, 0b0011, 2), worker("b", 1, 0b1100, 2)];
        assert_eq!(names(&pinned), []);
        let mut unknown = [worker("a", 1, 0b1, 1), worker("b", 1, 0b1, 1)];
        unknown[1].share = None;
        assert_eq!(names(&unknown), []);
    }

    #[test]
    fn memory_is_counted_once() {
        let workers = [worker("a", 1, 1, 1), worker("b", 1, 1, 1), worker("c", 2, 1, 1)];
        let workers: Vec<&Joined> = workers.iter().collect();
        let mut capacities: Vec<Capacity> = workers.iter().map(|worker| capacity(worker, 1.0)).collect();
        share_memory(&workers, &mut capacities);
        assert_eq!(capacities.iter().map(|c| c.memory_bytes).collect::<Vec<_>>(), [500, 500, 800]);
        // What fits together stays as it was said.
        let mut less: Vec<Capacity> =
            capacities.iter().map(|capacity| Capacity { memory_bytes: 400, ..capacity.clone() }).collect();
        share_memory(&workers, &mut less);
        assert!(less.iter().all(|capacity| capacity.memory_bytes == 400));
    }

    #[test]
    fn equal_workers_of_a_machine_are_equally_fast() {
        let workers =
            [worker("a", 1, 0b11, 1), worker("b", 1, 0b11, 1), worker("c", 1, 0b11, 1), worker("d", 2, 0b11, 1)];
        let workers: Vec<&Joined> = workers.iter().collect();
        let speeds = [10.0, 14.0, 40.0, 14.0];
        let mut capacities: Vec<Capacity> =
            workers.iter().zip(speeds).map(|(worker, ps)| capacity(worker, ps)).collect();
        even_out(&workers, &mut capacities);
        let found: Vec<f64> = capacities.iter().filter_map(|c| Some(c.speed.as_ref()?.layers(1.0))).collect();
        assert_eq!(found, [12.0, 12.0, 40.0, 14.0]);
    }
}
