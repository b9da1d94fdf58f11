//! The one list of tensors: what the layers need against what the file holds. Both missing and left over are errors.

use std::collections::HashSet;

use super::{ModelError, metadata::Metadata};
use crate::{
    gguf::{Gguf, OptionalKey, TensorEntry},
    spec::{
        AttentionSpec, Bias, Ffn, HeadMatrix, LayerIndex, LayerSpec, LayerTensor, NormPlacement, QkNorm, RopeScaling,
        Sinks, TensorRole, TensorSpec,
    },
    tensor::TensorType,
};

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const OUTPUT: &str = "output.weight";
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Rows of the embedding, which the vocabulary must agree with.
pub(super) fn vocab(m: &Metadata<'_>) -> Result<usize, ModelError> {
    let missing = || ModelError::TensorsMissing { missing: vec![EMBEDDING.to_owned()] };
    let rows = m.gguf().tensor(EMBEDDING).ok_or_else(missing)?.ne.get(1).copied().unwrap_or(1);
    let rows = usize::try_from(rows).unwrap_or(usize::MAX);
    let tokens = match m.gguf().strings("tokenizer.ggml.tokens").optional()? {
        Some(tokens) => tokens.len(),
        None => m.count_or("vocab_size", rows, 1..=usize::MAX)?,
    };
    if tokens != rows { Err(ModelError::Vocabulary { tokens, rows }) } else { Ok(rows) }
}

/// Every tensor of the model in file order.
pub(super) fn list(
    gguf: &Gguf,
    hidden: usize,
    vocab: usize,
    layers: &[LayerSpec],
    matrix: HeadMatrix,
) -> Result<Vec<TensorSpec>, ModelError> {
    let mut expected = vec![
        Expected::one(EMBEDDING, TensorRole::Embedding, vocab, hidden),
        Expected::one("output_norm.weight", TensorRole::OutputNorm, 1, hidden),
    ];
    if matrix == HeadMatrix::Own {
        expected.push(Expected::one(OUTPUT, TensorRole::Output, vocab, hidden));
    }
    if let Some(layer) = layers.iter().find(|l| l.attention.rope.scaling == RopeScaling::Factors) {
        expected.push(Expected::one(ROPE_FACTORS, TensorRole::RopeFactors, 1, layer.attention.rope.dims / 2));
    }
    for (index, layer) in layers.iter().enumerate() {
        Block { gguf, hidden, index, expected: &mut expected }.layer(layer);
    }
    resolve(gguf, &expected)
}

/// A tensor that the model needs: its rows, all of `cols` elements, serve one role or, where it is fused, several.
struct Expected {
    name: String,
    cols: usize,
    pieces: Vec<(TensorRole, usize)>,
}

impl Expected {
    fn one(name: impl Into<String>, role: TensorRole, rows: usize, cols: usize) -> Self {
        Self { name: name.into(), cols, pieces: vec![(role, rows)] }
    }

    fn rows(&self) -> usize {
        self.pieces.iter().map(|(_, rows)| rows).sum()
    }

    /// One spec per piece, where the file's tensor is as it should be.
    fn specs(&self, entry: &TensorEntry) -> Result<Vec<TensorSpec>, ModelError> {
        let shape = [self.cols as u64, self.rows() as u64];
        let expected = if shape[1] == 1 { vec![shape[0]] } else { shape.to_vec() };
        let axes = entry.ne.iter().rposition(|&n| n != 1).map_or(1, |last| last + 1);
        if entry.ne[..axes] != expected {
            return Err(ModelError::Shape { tensor: self.name.clone(), expected, found: entry.ne.clone() });
        }
        let unsupported = || ModelError::TensorType {
            tensor: self.name.clone(),
            found: entry.kind.to_string(),
            supported: TensorType::ALL.map(|t| t.to_string()).join(", "),
        };
        let dtype = entry.kind.tensor_type().ok_or_else(unsupported)?;
        let row_bytes = dtype.row_bytes(self.cols).ok_or_else(unsupported)? as u64;
        let mut offset = entry.offset;
        let spec = |&(role, rows): &(TensorRole, usize)| {
            let bytes = rows as u64 * row_bytes;
            let start = offset;
            offset += bytes;
            TensorSpec {
                role,
                name: self.name.clone(),
                rows,
                cols: self.cols,
                dtype,
                part: entry.part,
                offset: start,
                bytes,
            }
        };
        Ok(self.pieces.iter().map(spec).collect())
    }
}

/// Collects the tensors of one layer.
struct Block<'a> {
    gguf: &'a Gguf,
    hidden: usize,
    index: usize,
    expected: &'a mut Vec<Expected>,
}

impl Block<'_> {
    fn layer(&mut self, layer: &LayerSpec) {
        self.tensor("attn_norm.weight", LayerTensor::AttnNorm, 1, self.hidden);
        self.attention(&layer.attention);
        self.tensor("ffn_norm.weight", LayerTensor::FfnNorm, 1, self.hidden);
        match layer.ffn {
            Ffn::Gated { inner, .. } => self.gated(inner),
        }
        match layer.norms {
            NormPlacement::Pre => {}
            NormPlacement::PreAndPost => {
                self.tensor("post_attention_norm.weight", LayerTensor::PostAttnNorm, 1, self.hidden);
                self.tensor("post_ffw_norm.weight", LayerTensor::PostFfnNorm, 1, self.hidden);
            }
        }
    }

    fn attention(&mut self, a: &AttentionSpec) {
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let weights = [(LayerTensor::Q, q), (LayerTensor::K, kv), (LayerTensor::V, kv)];
        self.fusible("attn_qkv.weight", ["attn_q.weight", "attn_k.weight", "attn_v.weight"], weights);
        match a.qkv_bias {
            Bias::None => {}
            Bias::Present => {
                self.tensor("attn_q.bias", LayerTensor::QBias, 1, q);
                self.tensor("attn_k.bias", LayerTensor::KBias, 1, kv);
                self.tensor("attn_v.bias", LayerTensor::VBias, 1, kv);
            }
        }
        match a.qk_norm {
            QkNorm::None => {}
            QkNorm::PerHead => {
                self.tensor("attn_q_norm.weight", LayerTensor::QNorm, 1, a.head_dim);
                self.tensor("attn_k_norm.weight", LayerTensor::KNorm, 1, a.head_dim);
            }
        }
        match a.sinks {
            Sinks::None => {}
            Sinks::PerHead => self.tensor("attn_sinks.weight", LayerTensor::Sinks, 1, a.heads),
        }
        self.tensor("attn_output.weight", LayerTensor::AttnOutput, self.hidden, q);
    }

    fn gated(&mut self, inner: usize) {
        let weights = [(LayerTensor::Gate, inner), (LayerTensor::Up, inner)];
        self.fusible("ffn_up.weight", ["ffn_gate.weight", "ffn_up.weight"], weights);
        self.tensor("ffn_down.weight", LayerTensor::Down, self.hidden, inner);
    }

    /// Matrices that the file may hold as one, rows after rows; told by its shape, as its name may be one of theirs.
    fn fusible<const N: usize>(&mut self, fused: &str, single: [&str; N], weights: [(LayerTensor, usize); N]) {
        let pieces = weights.map(|(tensor, rows)| (self.role(tensor), rows)).to_vec();
        let fused = Expected { name: self.name(fused), cols: self.hidden, pieces };
        if self.gguf.tensor(&fused.name).is_some_and(|entry| entry.ne == [fused.cols as u64, fused.rows() as u64]) {
            self.expected.push(fused);
            return;
        }
        for (suffix, (tensor, rows)) in single.into_iter().zip(weights) {
            self.tensor(suffix, tensor, rows, self.hidden);
        }
    }

    fn tensor(&mut self, suffix: &str, tensor: LayerTensor, rows: usize, cols: usize) {
        self.expected.push(Expected::one(self.name(suffix), self.role(tensor), rows, cols));
    }

    fn name(&self, suffix: &str) -> String {
        format!("blk.{}.{suffix}", self.index)
    }

    fn role(&self, tensor: LayerTensor) -> TensorRole {
        TensorRole::Layer(LayerIndex(self.index), tensor)
    }
}

fn resolve(gguf: &Gguf, expected: &[Expected]) -> Result<Vec<TensorSpec>, ModelError> {
    let (mut tensors, mut missing) = (Vec::new(), Vec::new());
    for wanted in expected {
        match gguf.tensor(&wanted.name) {
            Some(entry) => tensors.extend(wanted.specs(entry)?),
            None => missing.push(wanted.name.clone()),
        }
    }
    if !missing.is_empty() {
        return Err(ModelError::TensorsMissing { missing });
    }
    let wanted: HashSet<_> = expected.iter().map(|e| e.name.as_str()).collect();
    let names = gguf.tensors().iter().map(|t| &t.name);
    let left_over: Vec<_> = names.filter(|name| !wanted.contains(name.as_str())).cloned().collect();
    if !left_over.is_empty() {
        return Err(ModelError::TensorsLeftOver { left_over });
    }
    tensors.sort_by_key(|t| (t.part, t.offset));
    Ok(tensors)
}
