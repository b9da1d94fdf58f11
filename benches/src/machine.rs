//! The machine that figures are measured on.

use anyhow::Result;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Restricts this process, its threads and llama.cpp to `cpus`; no CPU means no restriction.
///
/// # Errors
/// There is no such CPU, or the system cannot pin.
#[cfg(target_os = "linux")]
pub fn pin(cpus: &[usize]) -> Result<()> {
    use anyhow::Context;
    use nix::{
        sched::{CpuSet, sched_setaffinity},
        unistd::Pid,
    };
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu).with_context(|| format!("--pin {cpu}: no such CPU"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("--pin {cpus:?}: cannot run there"))
}

/// Restricts this process to `cpus`, which only Linux can.
///
/// # Errors
/// Always, unless `cpus` is empty.
#[cfg(not(target_os = "linux"))]
pub fn pin(cpus: &[usize]) -> Result<()> {
    anyhow::ensure!(cpus.is_empty(), "--pin needs Linux");
    Ok(())
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
