//! What chooses blocks of positions: a mask that leaves the query heads of each KV head those that were chosen for it.

use candle_core::{DType, Result, Tensor};
use qmesh_models::spec::{AttentionSpec, BlockIndexerSpec, LayerIndex, LayerTensor};

use crate::{
    cache::rounded,
    error::OracleError,
    linear::Linear,
    norm::Norm,
    rope::Rotation,
    rounding::CacheType,
    weights::{Weights, of_layer},
};

/// What chooses blocks in one layer.
#[derive(Clone, Debug)]
pub(crate) struct BlockIndexer {
    spec: BlockIndexerSpec,
    heads: usize,
    kv_heads: usize,
    queries: Linear,
    query_norm: Norm,
    key: Linear,
    key_norm: Norm,
    rotation: Option<Rotation>,
    cached_as: CacheType,
}

impl BlockIndexer {
    /// That of `layer`, whose norms have `eps`.
    pub(crate) fn open(
        weights: &Weights<'_>,
        layer: LayerIndex,
        attention: &AttentionSpec,
        spec: &BlockIndexerSpec,
        eps: f32,
    ) -> std::result::Result<Self, OracleError> {
        use LayerTensor::{IndexKey, IndexKeyNorm, IndexQueries, IndexQueryNorm};
        let (hidden, head_dim, kv_heads) = (weights.spec.hidden, spec.head_dim, attention.kv_heads);
        let linear = |tensor, shape| Linear::open(weights, of_layer(layer, tensor), None, shape);
        let norm = |tensor| Norm::rms(weights, of_layer(layer, tensor), head_dim, eps);
        let rope = attention.rope.as_ref();
        Ok(Self {
            heads: attention.heads,
            kv_heads,
            queries: linear(IndexQueries, [kv_heads * head_dim, hidden])?,
            query_norm: norm(IndexQueryNorm)?,
            key: linear(IndexKey, [head_dim, hidden])?,
            key_norm: norm(IndexKeyNorm)?,
            rotation: rope.map(|rope| Rotation::open(weights, rope, weights.spec.context)).transpose()?,
            cached_as: weights.rounding.cache,
            spec: spec.clone(),
        })
    }

    /// What is added to scores of attention: 0 where a query head of a row attends to a position, −∞ where it does not. (heads, rows,
    /// positions), of the last rows of `past`, which are all that have come into the layer (positions, hidden).
    pub(crate) fn mask(&self, past: &Tensor, rows: usize) -> Result<Tensor> {
        let (positions, head_dim) = (past.dim(0)?, self.spec.head_dim);
        let first_position = positions - rows;
        let keys = self.key_norm.forward(&self.key.forward(past)?)?.unsqueeze(0)?;
        let keys = rounded(&self.placed(keys, 0)?, self.cached_as)?.to_dtype(DType::F64)?;
        let queries = self.queries.forward(&past.narrow(0, first_position, rows)?)?;
        let queries = self.query_norm.forward(&queries.reshape((rows, self.kv_heads, head_dim))?)?;
        let queries = self.placed(queries.transpose(0, 1)?.contiguous()?, first_position)?.to_dtype(DType::F64)?;
        let keys = keys.broadcast_as((self.kv_heads, positions, head_dim))?.transpose(1, 2)?.contiguous()?;
        let products = queries.matmul(&keys)?.to_vec3::<f64>()?; // (kv_heads, rows, positions)
        let mut added = Vec::with_capacity(self.heads * rows * positions);
        for of_head in &products {
            let mask: Vec<f32> = (first_position..).zip(of_head).flat_map(|(at, row)| self.of_row(row, at)).collect();
            (0..self.heads / self.kv_heads).for_each(|_| added.extend_from_slice(&mask));
        }
        Tensor::from_vec(added, (self.heads, rows, positions), past.device())
    }

    /// The mask of the row at `position` by its products with all positions.
    fn of_row(&self, products: &[f64], position: usize) -> Vec<f32> {
        let BlockIndexerSpec { block, used, local, .. } = self.spec;
        let own = position / block;
        let scores: Vec<f64> = products[..=position]
            .chunks(block)
            .enumerate()
            .map(|(at, products)| match at + local > own {
                true => f64::INFINITY,
                false => products.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            })
            .collect();
        let mut order: Vec<usize> = (0..=own).collect();
        // The sort is stable: of equal ones the earlier stays in front.
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order.truncate(used);
        let sees = |at: usize| at <= position && order.contains(&(at / block));
        (0..products.len()).map(|at| if sees(at) { 0.0 } else { f32::NEG_INFINITY }).collect()
    }

    fn placed(&self, x: Tensor, first_position: usize) -> Result<Tensor> {
        match &self.rotation {
            Some(rotation) => rotation.forward(&x, first_position),
            None => Ok(x),
        }
    }
}
