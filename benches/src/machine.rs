//! The machine that figures are measured on.

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
#[cfg(target_os = "linux")]
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde_json::{Value, json};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Restricts this process, its threads and llama.cpp to `cpus`; no CPU means no restriction.
///
/// # Errors
/// There is no such CPU, or the system cannot pin.
pub fn pin(cpus: &[usize]) -> Result<()> {
    pin_process(0, cpus).with_context(|| format!("--pin {cpus:?}"))
}

/// Restricts process `id` and the threads that it starts from now on to `cpus`; 0 is the calling thread, and no CPU means
/// no restriction.
///
/// # Errors
/// There is no such CPU or process, or the system cannot pin.
#[cfg(target_os = "linux")]
pub fn pin_process(id: u32, cpus: &[usize]) -> Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu).with_context(|| format!("CPU {cpu}: no such CPU"))?;
    }
    sched_setaffinity(Pid::from_raw(i32::try_from(id)?), &set)
        .with_context(|| format!("CPUs {cpus:?}: cannot run there"))
}

/// Restricts a process to `cpus`, which only Linux can.
///
/// # Errors
/// Always, unless `cpus` is empty.
#[cfg(not(target_os = "linux"))]
pub fn pin_process(_id: u32, cpus: &[usize]) -> Result<()> {
    anyhow::ensure!(cpus.is_empty(), "pinning needs Linux");
    Ok(())
}

/// The CPUs that the calling thread may run on; none where the system cannot pin.
#[cfg(target_os = "linux")]
pub fn cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect()
}

/// The CPUs that the calling thread may run on; none where the system cannot pin.
#[cfg(not(target_os = "linux"))]
pub fn cpus() -> Vec<usize> {
    Vec::new()
}

/// Does `work` with the calling thread on `cpus` (none: where it is), and the threads that it starts meanwhile.
///
/// # Errors
/// There is no such CPU, or the work's own.
pub fn on_cpus<T>(cpus: &[usize], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = if cpus.is_empty() { Vec::new() } else { self::cpus() };
    pin_process(0, cpus)?;
    let done = work();
    pin_process(0, &before)?;
    done
}

/// Which of `cpus` the worker of this number gets for its threads: its own, as long as there are enough.
pub fn cpus_of_worker(cpus: &[usize], number: usize, threads: usize) -> Vec<usize> {
    let own = cpus.iter().cycle().skip(number * threads).take(threads.min(cpus.len()));
    own.copied().collect()
}

/// Processes that wanted a CPU in the last minute, on average; 0 where the system does not say.
pub fn load_average() -> f64 {
    System::load_average().map_or(0.0, |load| load.one)
}

/// The most memory that this process has had at once, in MiB; `None` where the system does not say.
pub fn peak_memory_mib() -> Option<f64> {
    let peak = getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss();
    // Linux counts KiB, macOS bytes.
    Some(peak as f64 / if cfg!(target_os = "macos") { 1_048_576.0 } else { 1024.0 })
}

/// CPU, cores, memory and system, for receipts.
pub fn describe() -> Value {
    let wanted =
        RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(wanted).ok();
    let cpu = system.as_ref().and_then(|s| s.cpus().first().map(|cpu| cpu.brand().trim().to_owned()));
    json!({
        "cpu": cpu,
        "physical_cores": System::physical_core_count().ok(),
        "logical_cores": system.as_ref().map(|s| s.cpus().len()),
        "memory_bytes": system.as_ref().map(System::total_memory),
        "os": System::long_os_version().ok(),
        "kernel": System::kernel_version().ok(),
        "architecture": std::env::consts::ARCH,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_get_cpus_of_their_own() {
        assert_eq!([0, 1].map(|worker| cpus_of_worker(&[4, 5, 6, 7], worker, 2)), [[4, 5], [6, 7]]);
        assert_eq!(cpus_of_worker(&[0, 1], 2, 1), [0], "shared where there are too few");
        assert_eq!(cpus_of_worker(&[0, 1], 1, 4), [0, 1]);
        assert_eq!(cpus_of_worker(&[], 1, 1), [0usize; 0]);
    }
}
