//! A small model of the same kind as a large one: what a worker computes with to find out how fast it is.

use std::collections::BTreeMap;

use super::{LayerIndex, ModelSpec, TensorRole, TensorSpec};

/// Rows of the head that an excerpt keeps, where the vocabulary has more: enough for several tasks for every thread.
const HEAD_ROWS: usize = 16 << 10;

impl ModelSpec {
    /// The same model with fewer layers, spread over all of it so that every kind has its share, and with the beginning of its
    /// vocabulary. Layers are taken as long as they have at most `bytes_most` together; at least one. The tensors lie nowhere:
    /// offsets mean nothing.
    pub fn excerpt(&self, bytes_most: u64) -> Self {
        let layers = self.layers.len().max(1);
        let layer_bytes = self.shard_bytes(&(0..self.layers.len())) / layers as u64;
        let kept = usize::try_from(bytes_most / layer_bytes.max(1)).unwrap_or(layers).clamp(1, layers);
        let old: Vec<usize> = (0..kept).map(|new| new * layers / kept).collect();
        let new: BTreeMap<usize, usize> = old.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let vocab = self.vocab.min(HEAD_ROWS);
        let tensor = |tensor: &TensorSpec| match tensor.role {
            TensorRole::Layer(layer, part) => {
                let role = TensorRole::Layer(LayerIndex(*new.get(&layer.0)?), part);
                Some(TensorSpec { role, ..tensor.clone() })
            }
            TensorRole::Embedding | TensorRole::Output => {
                let rows = tensor.rows.min(vocab);
                let bytes = tensor.bytes / tensor.rows.max(1) as u64 * rows as u64;
                Some(TensorSpec { rows, bytes, ..tensor.clone() })
            }
            TensorRole::OutputNorm
            | TensorRole::OutputNormBias
            | TensorRole::RopeFactors
            | TensorRole::RopeFactorsLong
            | TensorRole::RopeFactorsShort => Some(tensor.clone()),
        };
        Self {
            vocab,
            layers: old.iter().map(|&layer| self.layers[layer].clone()).collect(),
            tensors: self.tensors.iter().filter_map(tensor).collect(),
            name: self.name.clone(),
            family: self.family.clone(),
            head: self.head.clone(),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{family, gguf::Gguf, spec::HeadMatrix};

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama.gguf");

    #[test]
    fn an_excerpt_is_a_whole_model() {
        let spec = family::spec(&Gguf::open(Path::new(TINY)).unwrap()).unwrap();
        assert_eq!(spec.excerpt(u64::MAX).layers, spec.layers);
        let one = spec.excerpt(0);
        assert_eq!((one.layers.len(), one.vocab), (1, spec.vocab.min(super::HEAD_ROWS)));
        let held = one.tensors.iter().filter(|tensor| one.holds(&(0..1), tensor.role)).count();
        assert_eq!(held, one.tensors.len(), "nothing of other layers is left");
        assert!(one.shard_bytes(&(0..1)) < spec.shard_bytes(&(0..spec.layers.len())));
        assert!(matches!(one.head.matrix, HeadMatrix::Own | HeadMatrix::Tied));
    }
}
