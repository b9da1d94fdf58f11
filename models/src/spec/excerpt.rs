//! A small model of the same kind as a large one: what a worker computes with to find out how fast it is.

use std::collections::{BTreeMap, BTreeSet};

use super::{KvSource, LayerIndex, LayerSpec, ModelSpec, TensorRole, TensorSpec};

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
        let spread = (0..kept).map(|new| new * layers / kept);
        // Whose keys and values a layer meets, that comes along.
        let old: BTreeSet<usize> = spread.flat_map(|layer| [Some(layer), self.source_of(layer)]).flatten().collect();
        let new: BTreeMap<usize, usize> = old.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let vocab = self.vocab.min(HEAD_ROWS);
        let tensor = |tensor: &TensorSpec| match tensor.role {
            TensorRole::Layer(layer, part) => {
                let role = TensorRole::Layer(LayerIndex(*new.get(&layer.0)?), part);
                Some(TensorSpec { role, ..tensor.clone() })
            }
            TensorRole::Embedding | TensorRole::Output => Some(cut(tensor, tensor.rows.min(vocab), tensor.cols)),
            TensorRole::LayerEmbeddings => Some(cut(tensor, tensor.rows.min(vocab), tensor.cols / layers * old.len())),
            TensorRole::LayerProjection => Some(cut(tensor, tensor.rows / layers * old.len(), tensor.cols)),
            TensorRole::LayerProjectionNorm
            | TensorRole::OutputNorm
            | TensorRole::OutputNormBias
            | TensorRole::RopeFactors
            | TensorRole::RopeFactorsLong
            | TensorRole::RopeFactorsShort => Some(tensor.clone()),
        };
        Self {
            vocab,
            layers: old.iter().map(|&layer| self.kept_layer(layer, &new)).collect(),
            tensors: self.tensors.iter().filter_map(tensor).collect(),
            name: self.name.clone(),
            family: self.family.clone(),
            head: self.head.clone(),
            ..*self
        }
    }

    /// The layer that has made the keys and values which this one meets, where that is another.
    fn source_of(&self, layer: usize) -> Option<usize> {
        match self.layers.get(layer)?.attention()?.source {
            KvSource::Own => None,
            KvSource::Layer(source) => Some(source.0),
        }
    }

    /// A layer of an excerpt whose layers have these places by their old ones.
    fn kept_layer(&self, layer: usize, places: &BTreeMap<usize, usize>) -> LayerSpec {
        let place = self.source_of(layer).and_then(|source| places.get(&source));
        let mut kept = self.layers[layer].clone();
        if let (Some(place), Some(attention)) = (place, kept.attention_mut()) {
            attention.source = KvSource::Layer(LayerIndex(*place));
        }
        kept
    }
}

/// The beginning of a tensor, as if it had no more rows and columns.
fn cut(tensor: &TensorSpec, rows: usize, cols: usize) -> TensorSpec {
    let (cols, row_bytes) = match tensor.dtype.row_bytes(cols) {
        Some(bytes) => (cols, bytes as u64),
        // No whole blocks.
        None => (tensor.cols, tensor.bytes / tensor.rows.max(1) as u64),
    };
    TensorSpec { rows, cols, bytes: row_bytes * rows as u64, ..tensor.clone() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{
        family,
        gguf::Gguf,
        spec::{HeadMatrix, KvSource, LayerIndex, TensorRole},
    };

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama.gguf");

    #[test]
    fn layers_bring_along_whose_keys_and_values_they_meet() {
        let path = TINY.replace("llama", "gemma4-e2b");
        let spec = family::spec(&Gguf::open(Path::new(&path)).unwrap()).unwrap();
        assert_eq!(spec.excerpt(u64::MAX).layers, spec.layers);
        let some = spec.excerpt(spec.shard_bytes(&(0..7)) / 7 * 2);
        // The first and the fourth are of the two; none of them needs another.
        assert_eq!(some.layers, [spec.layers[0].clone(), spec.layers[3].clone()]);
        let some = spec.excerpt(spec.shard_bytes(&(0..7)) / 7 * 3);
        let sources: Vec<_> = some.layers.iter().map(|layer| layer.attention().unwrap().source).collect();
        assert_eq!(
            sources,
            [KvSource::Own, KvSource::Own, KvSource::Layer(LayerIndex(1))],
            "the third comes with the fifth"
        );
        let inputs = some.tensors.iter().filter(|tensor| tensor.role == TensorRole::LayerEmbeddings);
        assert_eq!(inputs.map(|tensor| (tensor.rows, tensor.cols)).collect::<Vec<_>>(), [(spec.vocab, 3 * 16)]);
    }

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
