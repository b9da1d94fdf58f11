//! How fast this machine reads memory: the limit that a decode step is held against.

use std::{
    collections::HashMap,
    hint::black_box,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

/// Measured read bandwidths, by bytes and threads, so that each is measured once.
#[derive(Debug, Default)]
pub struct Bandwidths(HashMap<(usize, usize), f64>);

impl Bandwidths {
    /// GB/s that `threads` threads read together, over and over, from `bytes` bytes split among them: the best of
    /// several attempts with plain vectorised loads. Kernels that prefetch may exceed it where the hardware's own
    /// prefetcher is weak.
    pub fn read(&mut self, bytes: usize, threads: usize) -> f64 {
        *self.0.entry((bytes, threads)).or_insert_with(|| measure(bytes, threads))
    }
}

/// One line of memory.
type Line = [u64; 8];
/// Consecutive lines that one thread reads before it goes on to the next of its streams.
const TURN: usize = 8;
/// Streams of one thread. Hardware prefetchers follow several at a time; which number is best differs.
const STREAMS: [usize; 3] = [1, 2, 4];
const ATTEMPT: Duration = Duration::from_millis(40);
const ATTEMPTS: usize = 3;

fn measure(bytes: usize, threads: usize) -> f64 {
    let lines = (bytes / size_of::<Line>() / threads).max(TURN * 4);
    // Not zeros: those would all be one page of the system's.
    let memory: Vec<Line> = vec![[1; 8]; lines * threads];
    let attempts = (0..ATTEMPTS).flat_map(|_| STREAMS).map(|streams| attempt(&memory, threads, streams));
    attempts.fold(0.0, f64::max)
}

/// GB/s of one attempt: each thread reads its own part for a while, and the parts add up.
fn attempt(memory: &[Line], threads: usize, streams: usize) -> f64 {
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        let readers =
            memory.chunks_exact(memory.len() / threads).map(|part| scope.spawn(|| read(part, streams, &barrier)));
        let readers: Vec<_> = readers.collect();
        // A reader does nothing that could panic.
        readers.into_iter().map(|reader| reader.join().unwrap_or_default()).sum()
    })
}

fn read(part: &[Line], streams: usize, barrier: &Barrier) -> f64 {
    black_box(sum(part, streams));
    barrier.wait();
    let started = Instant::now();
    let mut passes = 0;
    while passes == 0 || started.elapsed() < ATTEMPT {
        black_box(sum(black_box(part), streams));
        passes += 1;
    }
    (size_of_val(part) * passes) as f64 / started.elapsed().as_secs_f64() / 1e9
}

fn sum(part: &[Line], streams: usize) -> u64 {
    let parts: Vec<&[Line]> = part.chunks_exact(part.len() / streams).collect();
    let turns = part.len() / streams / TURN;
    let mut sums = [0u64; 16];
    for turn in 0..turns {
        for part in &parts {
            for pair in part[turn * TURN..(turn + 1) * TURN].as_chunks::<2>().0 {
                let words = pair.as_flattened();
                sums.iter_mut().zip(words).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
            }
        }
    }
    sums.iter().fold(0, |total, sum| total.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read() {
        let lines = vec![[1; 8]; TURN * 8];
        for streams in STREAMS {
            assert_eq!(sum(&lines, streams), lines.len() as u64 * 8);
        }
        assert!(Bandwidths::default().read(1 << 16, 2) > 0.0);
    }
}
