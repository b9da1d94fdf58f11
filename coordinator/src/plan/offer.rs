//! Workers that nobody has yet, as people write them: `3`, or `8GB,16GB@200GB/s`.

use qmesh_models::bytes::ByteCount;

use super::{Capacity, Speed};

/// Whom to plan for.
#[derive(Clone, Debug, PartialEq)]
pub enum Offer {
    /// So many equal workers that share this machine.
    Here(usize),
    /// One for each entry.
    Listed(Vec<Capacity>),
}

/// Reads what `--workers` says.
///
/// # Errors
/// What is wrong with it, and what is right.
pub fn parse(text: &str) -> Result<Offer, String> {
    if text.chars().all(|c| c.is_ascii_digit()) {
        let count = text.parse().ok().filter(|count| (1..=WORKERS_MOST).contains(count));
        return count.map(Offer::Here).ok_or_else(|| format!("a number of workers from 1 to {WORKERS_MOST} is needed"));
    }
    let entries: Vec<&str> = text.split(',').map(str::trim).collect();
    if entries.len() > WORKERS_MOST {
        return Err(format!("{} workers, at most {WORKERS_MOST} are possible", entries.len()));
    }
    entries
        .into_iter()
        .enumerate()
        .map(|(number, entry)| worker(number, entry))
        .collect::<Result<_, _>>()
        .map(Offer::Listed)
}

/// Bytes a second: `200GB/s`.
///
/// # Errors
/// What is right.
pub fn rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is no rate: write it like 200GB/s or 100MB/s");
    let ByteCount(bytes) = text.strip_suffix("/s").ok_or_else(wrong)?.trim().parse().map_err(|_| wrong())?;
    if bytes == 0 { Err(wrong()) } else { Ok(bytes as f64) }
}

fn worker(number: usize, entry: &str) -> Result<Capacity, String> {
    let (memory, speed) = match entry.split_once('@') {
        Some((memory, bandwidth)) => (memory.trim(), Some(Speed::of_bandwidth(rate(bandwidth.trim())?))),
        None => (entry, None),
    };
    let wrong =
        || format!("`{entry}` is no worker: write its memory and, if you like, its bandwidth, as 8GB or 16GB@200GB/s");
    let ByteCount(memory_bytes) = memory.parse().map_err(|_| wrong())?;
    Ok(Capacity { name: format!("worker-{number}"), memory_bytes, threads: THREADS, speed })
}

/// More stages than any model has layers.
const WORKERS_MOST: usize = 1024;
/// Threads of a worker of which only the memory is said: they decide how much memory its buffers take.
const THREADS: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_means_this_machine_and_sizes_mean_others() {
        assert_eq!(parse("3"), Ok(Offer::Here(3)));
        let Ok(Offer::Listed(workers)) = parse("8GB, 16GB@200GB/s") else { panic!("two workers") };
        let shown: Vec<_> = workers.iter().map(|w| (w.name.as_str(), w.memory_bytes, w.speed.clone())).collect();
        let fast = Some(Speed::of_bandwidth(200e9));
        assert_eq!(shown, [("worker-0", 8_000_000_000, None), ("worker-1", 16_000_000_000, fast)]);
    }

    #[test]
    fn what_is_neither_is_refused() {
        for (text, part) in [
            ("0", "from 1 to"),
            ("8GB,", "`` is no worker"),
            ("lots", "`lots` is no worker"),
            ("8GB@fast", "`fast` is no rate"),
            ("8GB@0GB/s", "is no rate"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
