//! Shards that share tensors: one copy, the same bits, and freed with its last holder.

use std::cell::RefCell;

use qmesh_models::spec::{HeadMatrix, LayerIndex, TensorRole, TensorSpec};

use super::*;

/// A file beside a shard that has some of its tensors already.
struct Beside<'a> {
    file: &'a File,
    held: PackedTensors,
    read: RefCell<Vec<TensorRole>>,
}

impl TensorSource for Beside<'_> {
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        self.read.borrow_mut().push(tensor.role);
        self.file.read(tensor, into)
    }

    fn packed(&self, tensor: &TensorSpec) -> Option<PackedTensor> {
        self.held.get(&tensor.role).cloned()
    }
}

fn load(spec: &ModelSpec, layers: Range<usize>, source: &dyn TensorSource, progress: &mut dyn FnMut(u64)) -> Shard {
    let own = spec.shard(layers.clone());
    Shard::load_on(Simd::available()[0], &own, layers, 4096, 1, source, progress).unwrap()
}

fn digests(shards: Vec<Shard>) -> Vec<u64> {
    let mut pipeline = Pipeline(shards);
    pipeline.open(1, &with_digest());
    pipeline.feed(1, 0, &[5, 6, 7, 8], Wants::All).iter().map(|row| row.digest).collect()
}

#[test]
fn what_another_shard_holds_is_not_read_again_and_computes_the_same_bits() {
    let (spec, file) = &kind(|spec| spec.head.matrix == HeadMatrix::Own && spec.layers.len() > 2);
    let count = spec.layers.len();
    let whole = load(spec, 0..count, file, &mut |_| {});
    let cut = |held: &PackedTensors, layers: Range<usize>| {
        let source = Beside { file, held: held.clone(), read: RefCell::default() };
        let mut told = 0;
        let shard = load(spec, layers, &source, &mut |bytes| told = bytes);
        (shard, source.read.into_inner(), told)
    };
    let (last, read, told) = cut(whole.tensors(), 1..count);
    assert!(read.is_empty() && told == 0, "{read:?}");

    let without_second: PackedTensors =
        whole.tensors().clone().into_iter().filter(|(role, _)| !of_layer(*role, 1)).collect();
    let (again, read, told) = cut(&without_second, 1..count);
    assert!(!read.is_empty() && read.iter().all(|role| of_layer(*role, 1)), "{read:?}");
    let bytes = spec.tensors.iter().filter(|tensor| of_layer(tensor.role, 1)).map(|tensor| tensor.bytes);
    assert_eq!(told, bytes.sum::<u64>());

    let first = || cut(whole.tensors(), 0..1).0;
    let expected = [first(), last];
    let other = [first(), again];
    let alone = digests(vec![whole]);
    assert_eq!(digests(expected.into()), alone);
    assert_eq!(digests(other.into()), alone);
}

#[test]
fn what_only_one_shard_had_is_freed_with_it() {
    let (spec, file) = &kind(|spec| spec.head.matrix == HeadMatrix::Own && spec.layers.len() > 2);
    let count = spec.layers.len();
    let whole = load(spec, 0..count, file, &mut |_| {});
    let source = Beside { file, held: whole.tensors().clone(), read: RefCell::default() };
    let last = load(spec, 1..count, &source, &mut |_| {});
    let matrices: Vec<_> =
        whole.tensors().iter().filter_map(|(role, tensor)| Some((*role, tensor.buffer()?))).collect();
    drop((source, whole));
    for (role, buffer) in &matrices {
        let alone = *role == TensorRole::Embedding || of_layer(*role, 0);
        assert_eq!(buffer.strong_count() == 0, alone, "{role:?}");
    }
    drop(last);
    assert!(matrices.iter().all(|(_, buffer)| buffer.strong_count() == 0));
}

#[test]
fn another_tensor_of_the_same_role_is_refused() {
    let (spec, file) = &kind(|spec| spec.head.matrix == HeadMatrix::Own && spec.layers.len() > 2);
    let mut held = load(spec, 0..1, file, &mut |_| {}).tensors().clone();
    held.insert(TensorRole::Embedding, PackedTensor::vector(&[1.0]));
    let source = Beside { file, held, read: RefCell::default() };
    let error = Shard::load_on(Simd::available()[0], spec, 0..1, 64, 1, &source, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, EngineError::TensorShape { what, .. } if what.contains("not the same")), "{error}");
}

fn of_layer(role: TensorRole, layer: usize) -> bool {
    matches!(role, TensorRole::Layer(LayerIndex(index), _) if index == layer)
}
