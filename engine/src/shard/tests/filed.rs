//! Experts that are in memory some at a time: the same bits, however few there is room for.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::*;
use crate::backend::TensorFile;

/// A model file, most of whose experts stay where they are.
struct Filed {
    bytes: Arc<Vec<u8>>,
    each: NonZeroUsize,
    disk: Arc<Disk>,
}

/// What was asked of the disk, and whether it still answers.
#[derive(Debug, Default)]
struct Disk {
    bytes_read: AtomicU64,
    broken: AtomicBool,
}

#[derive(Debug)]
struct OnDisk {
    bytes: Arc<Vec<u8>>,
    start: usize,
    disk: Arc<Disk>,
}

impl TensorFile for OnDisk {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), EngineError> {
        if self.disk.broken.load(Ordering::Relaxed) {
            return Err(EngineError::Read { tensor: "an expert".into(), reason: "the disk is gone".into() });
        }
        self.disk.bytes_read.fetch_add(into.len() as u64, Ordering::Relaxed);
        into.copy_from_slice(&self.bytes[self.start + offset as usize..][..into.len()]);
        Ok(())
    }
}

impl TensorSource for Filed {
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        into.copy_from_slice(&self.bytes[tensor.offset as usize..][..into.len()]);
        Ok(())
    }

    fn experts_in_memory(&self) -> Option<NonZeroUsize> {
        Some(self.each)
    }

    fn open(&self, tensor: &TensorSpec) -> Result<Arc<dyn TensorFile>, EngineError> {
        let (bytes, start, disk) = (Arc::clone(&self.bytes), tensor.offset as usize, Arc::clone(&self.disk));
        Ok(Arc::new(OnDisk { bytes, start, disk }))
    }
}

fn filed(spec: &ModelSpec, file: &File, each: usize, threads: usize) -> (Shard, Arc<Disk>) {
    let disk = Arc::new(Disk::default());
    let source =
        Filed { bytes: Arc::new(file.0.clone()), each: NonZeroUsize::new(each).unwrap(), disk: Arc::clone(&disk) };
    let layers = 0..spec.layers.len();
    let shard = Shard::load_on(Simd::available()[0], spec, layers, 4096, threads, &source, &mut |_| {}).unwrap();
    (shard, disk)
}

/// The digests of a prompt in one step, and of tokens behind it in steps of their own.
fn digests(shard: Shard) -> Vec<u64> {
    let mut pipeline = Pipeline(vec![shard]);
    pipeline.open(1, &with_digest());
    let ids: Vec<u32> = (0..40).map(|i| (7 * i + 3) % 50).collect();
    let mut rows = pipeline.feed(1, 0, &ids[..24], Wants::All);
    (24..40).for_each(|position| rows.extend(pipeline.feed(1, position, &ids[position..=position], Wants::All)));
    rows.into_iter().map(|row| row.digest).collect()
}

/// Every tiny model with experts: the name, its experts and how many of them a row uses.
fn mixtures() -> Vec<(String, usize, usize)> {
    let found: Vec<_> = fs::read_dir(GOLDEN)
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".gguf")?.to_owned()))
        .filter_map(|name| {
            let (spec, _) = open_model(&name);
            let experts = spec.layers.iter().filter_map(LayerSpec::experts).next()?;
            let (count, used) = (experts.count, experts.used);
            Some((name, count, used))
        })
        .collect();
    assert!(found.len() > 5, "only {found:?} in {GOLDEN}");
    found
}

#[test]
fn experts_from_disk_give_the_same_bits_however_few_are_in_memory() {
    for (name, count, used) in mixtures() {
        let (spec, file) = open_model(&name);
        let whole = Shard::load_on(Simd::available()[0], &spec, 0..spec.layers.len(), 4096, 2, &file, &mut |_| {});
        let expected = digests(whole.unwrap());
        for (each, threads) in [(used, 1), (1, 2), (count - 1, 2)] {
            let (shard, disk) = filed(&spec, &file, each, threads);
            assert_eq!(digests(shard), expected, "{name}: {each} of {count} experts");
            assert!(disk.bytes_read.load(Ordering::Relaxed) > 0, "{name}: {each} of {count} experts");
        }
        let (shard, disk) = filed(&spec, &file, count, 1);
        assert_eq!(digests(shard), expected, "{name}: all {count} experts");
        assert_eq!(disk.bytes_read.load(Ordering::Relaxed), 0, "{name}: all are in memory");
    }
}

#[test]
fn what_is_in_memory_is_not_read_again() {
    let (name, count, used) = mixtures().into_iter().max_by_key(|(_, count, used)| count - used).unwrap();
    let (spec, file) = open_model(&name);
    let (shard, disk) = filed(&spec, &file, count - 1, 1);
    let mut pipeline = Pipeline(vec![shard]);
    pipeline.open(1, &with_digest());
    // The same row again, which uses the same experts: at most as many as there is room for.
    assert!(used < count, "{name}");
    pipeline.feed(1, 0, &[5], Wants::All);
    let read = disk.bytes_read.load(Ordering::Relaxed);
    pipeline.feed(1, 0, &[5], Wants::All);
    assert_eq!(disk.bytes_read.load(Ordering::Relaxed), read);
}

#[test]
fn a_disk_that_fails_fails_the_step_and_nothing_else() {
    // Layers with a state could not go on.
    let names = mixtures().into_iter().map(|(name, ..)| name);
    let (spec, file) = names.map(|name| open_model(&name)).find(|(spec, _)| !spec.has_states()).unwrap();
    let (mut shard, disk) = filed(&spec, &file, 1, 1);
    shard.open(1, 64, with_digest()).unwrap();
    let step = |position: usize, id: u32| Step {
        sequences: vec![SequenceRows { session: 1, position, rows: 1, wants: Wants::Last }],
        ids: vec![id],
        ..Step::default()
    };
    let digest = |output: StepOutput| match output {
        StepOutput::Sampled(samples) => samples.rows.into_iter().map(|row| row.unwrap().digest).collect::<Vec<_>>(),
        StepOutput::Hidden(_) => panic!("the last stage samples"),
    };
    shard.step(&step(0, 5)).unwrap();
    let expected = digest(shard.step(&step(1, 6)).unwrap());
    disk.broken.store(true, Ordering::Relaxed);
    let failed = (7..40).find_map(|id| shard.step(&step(1, id)).err()).expect("a row that needs another expert");
    assert!(matches!(&failed, EngineError::Read { reason, .. } if reason == "the disk is gone"), "{failed}");
    disk.broken.store(false, Ordering::Relaxed);
    assert_eq!(digest(shard.step(&step(1, 6)).unwrap()), expected);
}
