//! What a loaded shard holds, by content: a shard that is loaded beside it takes over what is the same.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use blake3::Hash;
use qmesh_models::{
    bytes::ByteCount,
    footprint::Footprints,
    spec::{TensorRole, TensorSpec},
};

use crate::{backend::HeldTensors, worker::assignment::Assignment};

/// The tensors of a shard, and the assignment that says what they were made of. They stay in memory as long as it does.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    pub(crate) assignment: Arc<Assignment>,
    pub(crate) tensors: HeldTensors,
}

/// The tensors of `wanted` that one of `holdings` has already.
pub(crate) fn take_over<'a>(wanted: &Assignment, holdings: impl Iterator<Item = &'a Holding>) -> HeldTensors {
    let mut taken = HeldTensors::new();
    for Holding { assignment, tensors } in holdings {
        let contents = contents(assignment);
        let same = contents_in_order(wanted).filter(|(role, content)| contents.get(role) == Some(content));
        taken.extend(same.filter_map(|(role, _)| Some((role, tensors.get(&role)?.clone()))));
    }
    taken
}

/// Memory that `new` and the shards `beside` it need together on a worker with so many threads. A tensor that two of them
/// hold counts once.
pub(crate) fn needed_together<'a>(
    new: &'a Assignment,
    beside: impl Iterator<Item = &'a Assignment>,
    threads: usize,
) -> ByteCount {
    let (mut spec, mut demands, mut others) = (new.spec.clone(), vec![new.demand(threads)], 0_u64);
    for other in beside {
        if other.model_id != new.model_id {
            others = others.saturating_add(other.needed_bytes(threads).0);
            continue;
        }
        let roles: HashSet<TensorRole> = spec.tensors.iter().map(|tensor| tensor.role).collect();
        spec.tensors.extend(other.spec.tensors.iter().filter(|tensor| !roles.contains(&tensor.role)).cloned());
        demands.push(other.demand(threads));
    }
    ByteCount(Footprints::new(&spec).shards(&demands).total_bytes().saturating_add(others))
}

/// What decides how a shard holds a tensor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Content {
    hash: Hash,
    dtype: qmesh_models::tensor::TensorType,
    rows: usize,
    cols: usize,
    /// Whether it stays on disk, for experts of it to be read as they are needed.
    filed: bool,
}

impl Content {
    fn of(assignment: &Assignment, tensor: &TensorSpec, hash: Hash) -> Self {
        let TensorSpec { role, dtype, rows, cols, .. } = *tensor;
        Self { hash, dtype, rows, cols, filed: assignment.spec.stays_in_file(role, assignment.experts_in_memory) }
    }
}

fn contents(assignment: &Assignment) -> HashMap<TensorRole, Content> {
    contents_in_order(assignment).collect()
}

fn contents_in_order(assignment: &Assignment) -> impl Iterator<Item = (TensorRole, Content)> {
    let tensors = assignment.spec.tensors.iter().zip(&assignment.hashes);
    tensors.map(|(tensor, &hash)| (tensor.role, Content::of(assignment, tensor, hash)))
}

#[cfg(test)]
mod tests {
    use qmesh_models::footprint::PROCESS_BYTES;

    use super::*;
    use crate::{backend::HeldTensor, worker::tests::load_shard};

    fn assignment(epoch: u32, layers: std::ops::Range<u32>) -> Arc<Assignment> {
        Arc::new(Assignment::try_from(load_shard(epoch, layers)).unwrap())
    }

    fn holding(assignment: &Arc<Assignment>) -> Holding {
        let tensors = assignment.spec.tensors.iter().map(|tensor| (tensor.role, HeldTensor::new(())));
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
    }

    #[test]
    fn tensors_that_two_shards_hold_count_once() {
        let (whole, same, first, rest) =
            (assignment(1, 0..3), assignment(2, 0..3), assignment(3, 0..1), assignment(4, 1..3));
        let together = |new: &Assignment, beside: &[&Assignment]| needed_together(new, beside.iter().copied(), 2).0;
        let alone = |one: &Assignment| one.needed_bytes(2).0;
        assert_eq!(together(&whole, &[]), alone(&whole));
        // The process and the weights are there once, caches and buffers twice.
        let twice = 2 * (alone(&whole) - PROCESS_BYTES) + PROCESS_BYTES;
        assert!((alone(&whole) + 1..=twice - whole.weight_bytes()).contains(&together(&same, &[&whole])));
        assert!(together(&first, &[&whole]) <= alone(&first) + alone(&whole) - PROCESS_BYTES - first.weight_bytes());
        assert!(together(&first, &[&rest]) <= alone(&first) + alone(&rest) - PROCESS_BYTES);
        assert_eq!(together(&whole, &[&first, &rest]), together(&whole, &[&rest, &first]));
    }
}
