//! The attention half of a block: norm, q, k and v, rotation, cache, attention, output product and residual.

use candle_core::{Result, Tensor};
use qmesh_models::spec::AttentionSpec;
use rayon::prelude::*;

use crate::{
    cache::{Cache, Pages},
    kernel::{
        attend::{Attend, Query},
        lanes::Simd,
        rope::RopeTable,
    },
    linear::{Linear, Norm, project, project_add},
    ops,
};

/// Weights and shape of one layer's attention half.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) spec: AttentionSpec,
    /// Which of the shard's layers this is: its place in the cache.
    pub(crate) layer: usize,
    /// Which of the shard's RoPE tables it uses.
    pub(crate) rope: usize,
    pub(crate) norm: Norm,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    /// On each head of q, and of k.
    pub(crate) qk_norms: Option<[Norm; 2]>,
    pub(crate) output: Linear,
    pub(crate) post_norm: Option<Norm>,
}

/// The rows of a step as its layers see them.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) simd: Simd,
    pub(crate) cache: &'a Cache,
    /// One per kind of RoPE in the shard, with a row per row of the step.
    pub(crate) ropes: Vec<RopeTable>,
    pub(crate) slices: Vec<Slice>,
}

/// Consecutive rows of one session.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) pages: Pages,
    /// Row of the step where it begins.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    /// Position of the first row.
    pub(crate) position: usize,
}

/// Queries of one KV head and slice that are computed together: rows `first..first + rows` of the slice.
struct Task<'a> {
    slice: &'a Slice,
    head: usize,
    first: usize,
    rows: usize,
}

/// Queries that share the widening of a page; more would leave the L2 cache.
const TASK_QUERIES: usize = 32;

impl Attention {
    /// x (rows, hidden) → (rows, hidden); the rows' keys and values are in the cache afterwards.
    pub(crate) fn forward(&self, x: &Tensor, batch: &mut Batch<'_>) -> Result<Tensor> {
        let simd = batch.simd;
        let qkv = project(simd, x, Some(&self.norm), &[&self.q, &self.k, &self.v])?; // (rows, heads + 2 kv_heads, head_dim)
        ops::update("rotate", &qkv, |qkv| self.rotate(batch, qkv))?;
        ops::read(&qkv, |qkv| self.append(batch, qkv))?;
        let attended = ops::map("attend", &qkv, |qkv| self.attend(batch, qkv))?; // (rows, heads, head_dim)
        project_add(simd, &attended, &self.output, self.post_norm.as_ref(), x)
    }

    /// Elements of q, of k and of v in a row.
    fn widths(&self) -> (usize, usize) {
        (self.spec.heads * self.spec.head_dim, self.spec.kv_heads * self.spec.head_dim)
    }

    /// Normalises and rotates the heads of q and k.
    fn rotate(&self, batch: &Batch<'_>, qkv: &mut [f32]) {
        let (q_width, k_width) = self.widths();
        let rows = qkv.par_chunks_mut(q_width + 2 * k_width).with_min_len(8).enumerate();
        rows.for_each(|(row, qkv)| {
            let (q, kv) = qkv.split_at_mut(q_width);
            let k = &mut kv[..k_width];
            if let Some([q_norm, k_norm]) = &self.qk_norms {
                q_norm.apply(batch.simd, q);
                k_norm.apply(batch.simd, k);
            }
            let heads = q.chunks_exact_mut(self.spec.head_dim).chain(k.chunks_exact_mut(self.spec.head_dim));
            heads.for_each(|head| batch.ropes[self.rope].rotate(row, head));
        });
    }

    fn append(&self, batch: &mut Batch<'_>, qkv: &[f32]) {
        let (q_width, k_width) = self.widths();
        let mut rows = qkv.chunks_exact(q_width + 2 * k_width);
        for slice in &mut batch.slices {
            for (position, row) in (slice.position..slice.position + slice.rows).zip(&mut rows) {
                let (keys, values) = row[q_width..].split_at(k_width);
                batch.cache.write(self.layer, &mut slice.pages, position, keys, values);
            }
        }
    }

    fn attend(&self, batch: &Batch<'_>, qkv: &[f32]) -> Vec<f32> {
        let group = self.spec.heads / self.spec.kv_heads;
        let tile = (TASK_QUERIES / group).max(1);
        let mut tasks = Vec::new();
        for slice in &batch.slices {
            for head in 0..self.spec.kv_heads {
                let tiles = (0..slice.rows).step_by(tile);
                tasks.extend(tiles.map(|first| Task { slice, head, first, rows: tile.min(slice.rows - first) }));
            }
        }
        let results = tasks.par_iter().with_max_len(1).map(|task| self.attend_task(batch, task, qkv));
        let results: Vec<Vec<f32>> = results.collect();

        let (width, part) = (self.widths().0, group * self.spec.head_dim);
        let rows = batch.slices.iter().map(|s| s.rows).sum::<usize>();
        let mut out = vec![0.0; rows * width];
        for (task, result) in tasks.iter().zip(results) {
            for (row, result) in (task.slice.first + task.first..).zip(result.chunks_exact(part)) {
                out[row * width + task.head * part..][..part].copy_from_slice(result);
            }
        }
        out
    }

    /// (rows of the task, heads of the KV head's group, head_dim)
    fn attend_task(&self, batch: &Batch<'_>, task: &Task<'_>, qkv: &[f32]) -> Vec<f32> {
        let (q_width, k_width) = self.widths();
        let part = q_width / self.spec.kv_heads;
        let mut queries = Vec::with_capacity(task.rows * part / self.spec.head_dim);
        for row in task.first..task.first + task.rows {
            let start = (task.slice.first + row) * (q_width + 2 * k_width) + task.head * part;
            let heads = qkv[start..start + part].chunks_exact(self.spec.head_dim);
            queries.extend(heads.map(|x| Query { x, position: task.slice.position + row }));
        }
        let end = task.slice.position + task.first + task.rows;
        batch.simd.run(Attend {
            layout: batch.cache.layout(self.layer),
            pages: &batch.cache.head(self.layer, &task.slice.pages, task.head, end),
            queries: &queries,
            scale: self.spec.scale,
            window: self.spec.window,
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};
    use qmesh_models::{
        spec::{Bias, QkNorm, Rope, RopePairing, RopeScaling, Window},
        tensor::TensorType,
    };

    use super::*;
    use crate::kernel::{
        matrix::tests::{noise, random_matrix},
        rope::Frequencies,
    };

    const HEADS: usize = 4;
    const KV_HEADS: usize = 2;
    const HEAD_DIM: usize = 16;
    const HIDDEN: usize = 64;

    fn spec(window: Window) -> AttentionSpec {
        let rope = Rope { pairing: RopePairing::Halves, dims: HEAD_DIM, base: 1e4, scaling: RopeScaling::None };
        let (qk_norm, qkv_bias) = (QkNorm::None, Bias::None);
        AttentionSpec {
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 0.25,
            window,
            rope,
            qk_norm,
            qkv_bias,
        }
    }

    /// (rows, heads · head_dim) → (1, heads, rows, head_dim), each KV head repeated, and rotated where asked.
    fn heads(x: &Tensor, repeat: usize, angles: Option<&(Tensor, Tensor)>) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let x = x.reshape((1, rows, width / HEAD_DIM, HEAD_DIM))?.transpose(1, 2)?.contiguous()?;
        let x = match angles {
            Some((cos, sin)) => candle_nn::rotary_emb::rope(&x, cos, sin)?,
            None => x,
        };
        Tensor::cat(&vec![x.unsqueeze(2)?; repeat], 2)?.reshape((1, width / HEAD_DIM * repeat, rows, HEAD_DIM))
    }

    #[test]
    fn the_half_is_what_plain_framework_operations_make_of_it() -> Result<()> {
        let (rows, simd) = (70, Simd::available()[0]);
        let linear = |outputs, inputs| {
            let (matrix, weight) = random_matrix(TensorType::F32, outputs, inputs);
            (Linear { matrix, bias: None }, weight.t().unwrap())
        };
        let (width, kv_width) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let x = Tensor::from_vec(noise(rows * HIDDEN, 1), (rows, HIDDEN), &Device::Cpu)?;
        let normed = candle_nn::ops::rms_norm(&x, &Tensor::ones(HIDDEN, candle_core::DType::F32, &Device::Cpu)?, 1e-5)?;
        let positions = Tensor::arange(0_f32, rows as f32, &Device::Cpu)?.reshape((rows, 1))?;
        let frequencies: Vec<f32> =
            (0..HEAD_DIM / 2).map(|i| 1e4_f32.powf(-2.0 * i as f32 / HEAD_DIM as f32)).collect();
        let angles = positions.matmul(&Tensor::from_vec(frequencies, (1, HEAD_DIM / 2), &Device::Cpu)?)?;
        let angles = (angles.cos()?, angles.sin()?);
        for (window, reach) in [(Window::Full, rows), (Window::Sliding(9), 9)] {
            let spec = spec(window);
            let ((q, q_t), (k, k_t), (v, v_t), (output, output_t)) =
                (linear(width, HIDDEN), linear(kv_width, HIDDEN), linear(kv_width, HIDDEN), linear(HIDDEN, width));
            let mut cache = Cache::new([&spec].into_iter(), rows);
            let mut pages = cache.reserve(rows).unwrap();
            cache.extend(&mut pages, rows).unwrap();
            let ropes = vec![Frequencies::new(&spec.rope, &[]).table(&(0..rows).collect::<Vec<_>>())];
            let slices = vec![Slice { pages, first: 0, rows, position: 0 }];
            let mut batch = Batch { simd, cache: &cache, ropes, slices };
            let norm = Norm { gain: vec![1.0; HIDDEN], eps: 1e-5 };
            let half = Attention { spec, layer: 0, rope: 0, norm, q, k, v, qk_norms: None, output, post_norm: None };
            let ours = half.forward(&x, &mut batch)?;

            let q = heads(&normed.matmul(&q_t)?, 1, Some(&angles))?;
            let k = heads(&normed.matmul(&k_t)?, HEADS / KV_HEADS, Some(&angles))?;
            let v = heads(&normed.matmul(&v_t)?, HEADS / KV_HEADS, None)?;
            let hidden = |i: usize, j: usize| if j <= i && i < j + reach { 0.0 } else { f32::NEG_INFINITY };
            let mask: Vec<f32> = (0..rows * rows).map(|at| hidden(at / rows, at % rows)).collect();
            let mask = Tensor::from_vec(mask, (rows, rows), &Device::Cpu)?;
            let scores = (q.matmul(&k.transpose(D::Minus1, D::Minus2)?)? * 0.25)?.broadcast_add(&mask)?;
            let attended = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
            let attended = attended.transpose(1, 2)?.contiguous()?.reshape((rows, width))?;
            let oracle = (attended.matmul(&output_t)? + &x)?;
            let error: f32 = (ours - &oracle)?.abs()?.max_all()?.to_scalar()?;
            let largest: f32 = oracle.abs()?.max_all()?.to_scalar()?;
            // The cache is f16.
            assert!(error < 1e-3 * largest, "{window:?}: {error} of {largest}");
        }
        Ok(())
    }
}
