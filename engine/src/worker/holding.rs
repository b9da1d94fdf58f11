//! What a loaded shard holds, by content: a shard that is loaded beside it takes over what is the same.

use std::{collections::HashMap, sync::Arc};

use blake3::Hash;
use qmesh_models::spec::{TensorRole, TensorSpec};

use super::{assignment::Assignment, memory::ByteCount};
use crate::shard::{PackedTensor, PackedTensors};

/// The tensors of a shard, and the assignment that says what they were made of. They stay in memory as long as it does.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    pub(super) assignment: Arc<Assignment>,
    pub(super) tensors: PackedTensors,
}

impl Holding {
    /// Bytes of its tensors, as they are in the file.
    pub(super) fn bytes(&self) -> ByteCount {
        let held = self.assignment.spec.tensors.iter().filter(|tensor| self.tensors.contains_key(&tensor.role));
        ByteCount(held.map(|tensor| tensor.bytes).sum())
    }
}

/// The tensors of `wanted` that one of `holdings` has already.
pub(super) fn take_over<'a>(wanted: &Assignment, holdings: impl Iterator<Item = &'a Holding>) -> PackedTensors {
    let mut taken = PackedTensors::new();
    for Holding { assignment, tensors } in holdings {
        let contents = contents(assignment);
        let same = contents_in_order(wanted).filter(|(role, content)| contents.get(role) == Some(content));
        taken.extend(same.filter_map(|(role, _)| Some((role, PackedTensor::clone(tensors.get(&role)?)))));
    }
    taken
}

/// Memory that `new` and the shards `beside` it need together. A tensor that two of them hold counts once.
pub(super) fn needed_together<'a>(new: &'a Assignment, beside: impl Iterator<Item = &'a Assignment>) -> ByteCount {
    let mut counted = contents(new);
    let mut needed = new.needed_bytes();
    for other in beside {
        let shared = |tensor: &&TensorSpec, hash| counted.get(&tensor.role) == Some(&Content::of(tensor, hash));
        let tensors = other.spec.tensors.iter().zip(&other.hashes);
        let shared: u64 = tensors.filter(|(tensor, hash)| shared(tensor, **hash)).map(|(tensor, _)| tensor.bytes).sum();
        needed.0 = needed.0.saturating_add(other.needed_bytes().0.saturating_sub(shared));
        counted.extend(contents_in_order(other));
    }
    needed
}

/// What decides the packed bytes of a tensor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Content {
    hash: Hash,
    dtype: qmesh_models::tensor::TensorType,
    rows: usize,
    cols: usize,
}

impl Content {
    fn of(tensor: &TensorSpec, hash: Hash) -> Self {
        let TensorSpec { dtype, rows, cols, .. } = *tensor;
        Self { hash, dtype, rows, cols }
    }
}

fn contents(assignment: &Assignment) -> HashMap<TensorRole, Content> {
    contents_in_order(assignment).collect()
}

fn contents_in_order(assignment: &Assignment) -> impl Iterator<Item = (TensorRole, Content)> {
    let tensors = assignment.spec.tensors.iter().zip(&assignment.hashes);
    tensors.map(|(tensor, &hash)| (tensor.role, Content::of(tensor, hash)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::tests::load_shard;

    fn assignment(epoch: u32, layers: std::ops::Range<u32>) -> Arc<Assignment> {
        Arc::new(Assignment::try_from(load_shard(epoch, layers)).unwrap())
    }

    fn holding(assignment: &Arc<Assignment>) -> Holding {
        let tensors = assignment.spec.tensors.iter().map(|tensor| (tensor.role, PackedTensor::vector(&[0.0])));
        Holding { assignment: Arc::clone(assignment), tensors: tensors.collect() }
    }

    #[test]
    fn only_the_same_content_in_the_same_role_is_taken_over() {
        let (first, whole) = (assignment(1, 0..1), assignment(2, 0..3));
        let taken = take_over(&whole, [holding(&first)].iter());
        assert_eq!(taken.len(), first.spec.tensors.len());
        assert_eq!(take_over(&first, [holding(&whole)].iter()).len(), first.spec.tensors.len());
        let mut other = Assignment::clone(&whole);
        other.hashes[0] = blake3::hash(b"other bytes");
        other.spec.tensors[1].rows += 1;
        assert_eq!(take_over(&other, [holding(&whole)].iter()).len(), whole.spec.tensors.len() - 2);
        assert_eq!(holding(&first).bytes().0, first.weight_bytes());
    }

    #[test]
    fn tensors_that_two_shards_hold_count_once() {
        let (whole, same, first, rest) =
            (assignment(1, 0..3), assignment(2, 0..3), assignment(3, 0..1), assignment(4, 1..3));
        let together = |new: &Assignment, beside: &[&Assignment]| needed_together(new, beside.iter().copied()).0;
        let alone = |one: &Assignment| one.needed_bytes().0;
        assert_eq!(together(&whole, &[]), alone(&whole));
        assert_eq!(together(&same, &[&whole]), 2 * alone(&whole) - whole.weight_bytes());
        assert_eq!(together(&first, &[&whole]), alone(&first) + alone(&whole) - first.weight_bytes());
        assert_eq!(together(&first, &[&rest]), alone(&first) + alone(&rest));
        assert_eq!(together(&whole, &[&first, &rest]), together(&whole, &[&rest, &first]));
    }
}
