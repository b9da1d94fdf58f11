//! The attention half of a block: norm, q, k and v, rotation, cache, attention, output product and residual.

pub(crate) mod tasks;

use std::{ops::Range, sync::Arc};

use candle_core::{Result, Tensor};
use qmesh_kernels::{
    Cpu,
    attend::{HeadLayout, PAGE_POSITIONS, Scoring, Write},
    math::Sigmoid,
    rope::RopeTable,
};
use qmesh_models::{
    footprint::QUERIES_LEAST,
    spec::{AttentionSpec, OutputGate, QkNorm},
};

use self::tasks::Heads;
use crate::{
    cache::{Cache, Pages},
    indexer::Chosen,
    linear::{Linear, Norm, Residual, project, project_add},
    ops,
    states::States,
    temperature,
};

/// Weights and shape of one layer's attention half.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) spec: AttentionSpec,
    /// Which of the shard's layers this is: its place in the cache.
    pub(crate) layer: usize,
    /// Which of the shard's RoPE tables it uses, if any.
    pub(crate) rope: Option<usize>,
    pub(crate) norm: Option<Norm>,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    /// Nothing where values are keys.
    pub(crate) v: Option<Linear>,
    /// On each head of the values.
    pub(crate) value_norm: Option<Norm>,
    /// Of q and of k: on each head, or on all of a row together.
    pub(crate) qk_norms: Option<[Norm; 2]>,
    /// A score per query head that belongs to no position, or nothing.
    pub(crate) sinks: Arc<[f32]>,
    pub(crate) output: Linear,
    pub(crate) residual: Residual,
}

/// The rows of a step as its layers see them.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) cpu: Cpu<'a>,
    pub(crate) cache: &'a Cache,
    /// One per kind of RoPE in the shard, with a row per row of the step.
    pub(crate) ropes: Vec<RopeTable>,
    pub(crate) slices: Vec<Slice>,
    /// What each row attends to by the last layer that has chosen it; nothing before one has.
    pub(crate) chosen: Vec<Chosen>,
}

/// Consecutive rows of one session.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) pages: Pages,
    pub(crate) states: States,
    /// Row of the step where it begins.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    /// Position of the first row.
    pub(crate) position: usize,
}

/// Rows that go into one page.
pub(crate) struct Append<'a> {
    /// The first row, of the step.
    pub(crate) row: usize,
    pub(crate) positions: Range<usize>,
    /// The layer's part of the page.
    pub(crate) part: &'a mut [u16],
}

/// Rows from which on the team appends them.
const APPEND_TOGETHER: usize = 32;

impl Batch<'_> {
    /// The position of each row.
    pub(crate) fn positions(&self) -> Vec<usize> {
        self.slices.iter().flat_map(|slice| slice.position..slice.position + slice.rows).collect()
    }

    /// Gives `append` each row of the step in its pages, in the cache's part of `layer`.
    pub(crate) fn append(&mut self, layer: usize, append: impl Fn(&[RopeTable], Append<'_>) + Sync) {
        let Batch { cpu, cache, ropes, slices, chosen: _ } = self;
        let rows: usize = slices.iter().map(|s| s.rows).sum();
        let mut tasks = Vec::new();
        for Slice { pages, first, rows, position, .. } in slices {
            let parts = cache.parts_mut(layer, pages, *position..*position + *rows);
            tasks.extend(parts.map(|(positions, part)| Append {
                row: *first + positions.start - *position,
                positions,
                part,
            }));
        }
        let work = |task: Append<'_>| append(ropes, task);
        if rows < APPEND_TOGETHER {
            tasks.into_iter().for_each(work);
        } else {
            cpu.team.each(tasks, work);
        }
    }
}

impl Attention {
    /// softmax(scale · q·k)·v of x (rows, hidden): (rows, heads · head_dim). The rows' keys and values are in the cache
    /// afterwards.
    pub(crate) fn attended(&self, x: &Tensor, batch: &mut Batch<'_>) -> Result<Tensor> {
        let linears: Vec<&Linear> = [&self.q, &self.k].into_iter().chain(&self.v).collect();
        let mut qkv = project(batch.cpu, x, self.norm.as_ref(), &linears)?; // (rows, q and gates, k, v if there is one)
        if let (QkNorm::AllHeads, Some(norms)) = (self.spec.qk_norm, &self.qk_norms) {
            qkv = ops::map("qk_norm", &qkv, |qkv| self.normed(batch.cpu, qkv, norms))?;
        }
        ops::read(&qkv, |qkv| self.append(batch, qkv))?;
        ops::map("attend", &qkv, |qkv| {
            let mut out = vec![0.0; qkv.len() / self.row_width() * self.spec.heads * self.spec.head_dim];
            tasks::attend(&self.heads(batch, qkv), batch, &mut out);
            self.gate(batch.cpu, qkv, &mut out);
            out
        })
    }

    /// x + scale · norm(output(attended)): (rows, hidden).
    pub(crate) fn output(&self, cpu: Cpu<'_>, attended: &Tensor, x: &Tensor) -> Result<Tensor> {
        project_add(cpu, attended, &self.output, &self.residual, x)
    }

    /// Multiplies what each row's heads have attended, (rows, heads, head_dim), by their gates, where there are some.
    fn gate(&self, cpu: Cpu<'_>, qkv: &[f32], out: &mut [f32]) {
        match self.spec.output_gate {
            OutputGate::None => return,
            OutputGate::WithQuery => {}
        }
        let ((q_width, _), head_dim) = (self.widths(), self.spec.head_dim);
        let rows = qkv.chunks_exact(self.row_width()).zip(out.chunks_exact_mut(q_width / 2)).collect();
        cpu.team.each(rows, |(qkv, out): (&[f32], &mut [f32])| {
            for (with_gate, x) in qkv.chunks_exact(2 * head_dim).zip(out.chunks_exact_mut(head_dim)) {
                Sigmoid { x, gate: &with_gate[head_dim..] }.run(cpu.simd);
            }
        });
    }

    /// The query of head `head` in a row.
    fn query<'a>(&self, row: &'a [f32], head: usize) -> &'a [f32] {
        let head_dim = self.spec.head_dim;
        let stride = match self.spec.output_gate {
            OutputGate::None => head_dim,
            OutputGate::WithQuery => 2 * head_dim,
        };
        &row[head * stride..][..head_dim]
    }

    /// Normalises each row's q and its k, all heads together.
    fn normed(&self, cpu: Cpu<'_>, qkv: &[f32], [q_norm, k_norm]: &[Norm; 2]) -> Vec<f32> {
        let (q_width, k_width) = self.widths();
        let mut normed = qkv.to_vec();
        for row in normed.chunks_exact_mut(self.row_width()) {
            q_norm.apply(cpu, &mut row[..q_width]);
            k_norm.apply(cpu, &mut row[q_width..q_width + k_width]);
        }
        normed
    }

    /// Normalises heads of q (0) or k (1), where each is normalised on its own before it is rotated.
    fn normalize_heads(&self, cpu: Cpu<'_>, which: usize, heads: &mut [f32]) {
        if let (QkNorm::PerHead, Some(norms)) = (self.spec.qk_norm, &self.qk_norms) {
            norms[which].apply(cpu, heads);
        }
    }

    /// Rotates heads of q (0) or k (1) of row `row` of the step, and normalises each where that is done afterwards.
    fn rotate(&self, cpu: Cpu<'_>, ropes: &[RopeTable], row: usize, which: usize, heads: &mut [f32]) {
        if let Some(rope) = self.rope {
            ropes[rope].rotate(cpu.simd, row, heads, self.spec.head_dim);
        }
        match (self.spec.qk_norm, &self.qk_norms) {
            (QkNorm::PerHeadRotated | QkNorm::PerHeadRotatedBare, Some(norms)) => norms[which].apply(cpu, heads),
            (QkNorm::None | QkNorm::PerHead | QkNorm::AllHeads, _) | (_, None) => {}
        }
    }

    /// Elements of q, with the gates beside it, and of k or v in a row.
    fn widths(&self) -> (usize, usize) {
        (self.spec.query_outputs(), self.spec.kv_heads * self.spec.head_dim)
    }

    /// Elements of all that is projected of a row.
    fn row_width(&self) -> usize {
        let (q_width, k_width) = self.widths();
        q_width + if self.v.is_some() { 2 * k_width } else { k_width }
    }

    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.spec.heads / self.spec.kv_heads
    }

    fn scoring(&self) -> Scoring {
        Scoring { scale: self.spec.scale, soft_cap: self.spec.soft_cap, window: self.spec.window }
    }

    /// Writes the rows' keys, normalised and rotated, and their values to the cache.
    fn append(&self, batch: &mut Batch<'_>, qkv: &[f32]) {
        let cpu = batch.cpu;
        batch.append(self.layer, |ropes, append| self.append_to_page(cpu, ropes, append, qkv));
    }

    fn append_to_page(&self, cpu: Cpu<'_>, ropes: &[RopeTable], append: Append<'_>, qkv: &[f32]) {
        let ((q_width, k_width), head_dim) = (self.widths(), self.spec.head_dim);
        let layout = HeadLayout::Apart { head_dim };
        let [mut keys, mut values] = [(); 2].map(|()| vec![0.0; k_width]);
        for (row, position) in (append.row..).zip(append.positions) {
            let (k, v) = qkv[row * self.row_width()..][q_width..self.row_width()].split_at(k_width);
            keys.copy_from_slice(k);
            self.normalize_heads(cpu, 1, &mut keys);
            self.rotate(cpu, ropes, row, 1, &mut keys);
            values.copy_from_slice(if self.v.is_some() { v } else { k });
            if let Some(norm) = &self.value_norm {
                norm.apply(cpu, &mut values);
            }
            let rows = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
            for (page, (key, value)) in append.part.chunks_exact_mut(layout.page_len()).zip(rows) {
                Write { layout, page, slot: position % PAGE_POSITIONS, key, value }.run(cpu.simd);
            }
        }
    }

    /// What the team computes: KV heads that few rows leave too few of are cut into runs of pages.
    fn heads<'a>(&'a self, batch: &'a Batch<'_>, qkv: &'a [f32]) -> Heads<'a> {
        let AttentionSpec { kv_heads, .. } = self.spec;
        let (wanted, group) = (tasks::wanted(batch.cpu.team.threads()), self.group());
        let positions = self.spec.temperature.map_or_else(Vec::new, |_| batch.positions());
        let least = batch.slices.iter().map(|s| s.rows.div_ceil((QUERIES_LEAST / group).max(1)) * kv_heads).sum();
        Heads {
            layer: self.layer,
            scoring: self.scoring(),
            groups: kv_heads,
            group,
            runs: wanted.div_ceil(usize::max(least, 1)),
            sinks: &self.sinks,
            queries: Box::new(move |rows, kv_head| self.queries(batch, qkv, &positions, rows, kv_head)),
        }
    }

    /// Normalised, rotated and grown, of rows of the step, whose `positions` are there where they count: (rows, heads of the
    /// KV head, head_dim).
    fn queries(
        &self,
        batch: &Batch<'_>,
        qkv: &[f32],
        positions: &[usize],
        rows: Range<usize>,
        kv_head: usize,
    ) -> Vec<f32> {
        let part = self.group() * self.spec.head_dim;
        let mut queries = Vec::with_capacity(rows.len() * part);
        for row in rows.clone() {
            let (row, heads) = (&qkv[row * self.row_width()..], kv_head * self.group()..);
            heads.take(self.group()).for_each(|head| queries.extend_from_slice(self.query(row, head)));
        }
        self.normalize_heads(batch.cpu, 0, &mut queries);
        for (row, heads) in rows.zip(queries.chunks_exact_mut(part)) {
            self.rotate(batch.cpu, &batch.ropes, row, 0, heads);
            if let Some(temperature) = self.spec.temperature {
                let factor = temperature::factor(temperature, positions[row]);
                heads.iter_mut().for_each(|x| *x *= factor);
            }
        }
        queries
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};
    use qmesh_models::{
        spec::{Bias, Mixer, OutputGate, Rope, RopePairing, RopeScaling, Sinks, Values, Window},
        tensor::TensorType,
    };

    use qmesh_kernels::{lanes::Simd, rope::Frequencies, team::Team};

    use super::*;
    use crate::random::{noise, random_matrix};

    const HEADS: usize = 4;
    const KV_HEADS: usize = 2;
    const HEAD_DIM: usize = 16;
    const HIDDEN: usize = 64;

    fn spec(window: Window) -> AttentionSpec {
        let scaling = RopeScaling::None;
        let rope = Rope { pairing: RopePairing::Halves, dims: HEAD_DIM, base: 1e4, scaling, magnitude: 1.0 };
        AttentionSpec {
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 0.25,
            soft_cap: None,
            sinks: Sinks::None,
            window,
            rope: Some(rope),
            qk_norm: QkNorm::None,
            temperature: None,
            values: Values::Own,
            qkv_bias: Bias::None,
            output_bias: Bias::None,
            output_gate: OutputGate::None,
        }
    }

    fn norm(width: usize) -> Norm {
        Norm { gain: vec![1.0; width].into(), bias: None, eps: 1e-5 }
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
        let (rows, team) = (70, Team::new(2).unwrap());
        let cpu = Cpu { simd: Simd::available()[0], team: &team };
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
            let mut cache = Cache::new([&Mixer::Attention(spec.clone())].into_iter(), rows);
            let mut pages = Pages::default();
            cache.extend(&mut pages, rows).unwrap();
            let ropes =
                vec![Frequencies::new(spec.rope.as_ref().unwrap(), &[]).table(&team, &(0..rows).collect::<Vec<_>>())];
            let slices = vec![Slice { pages, states: States::default(), first: 0, rows, position: 0 }];
            let mut batch = Batch { cpu, cache: &cache, ropes, slices, chosen: Vec::new() };
            let half = Attention {
                spec,
                layer: 0,
                rope: Some(0),
                norm: Some(norm(HIDDEN)),
                q,
                k,
                v: Some(v),
                value_norm: None,
                qk_norms: None,
                sinks: Arc::default(),
                output,
                residual: Residual { norm: None, scale: 1.0 },
            };
            let attended = half.attended(&x, &mut batch)?;
            let ours = half.output(cpu, &attended, &x)?;

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

    /// What comes out for `rows`, cut into steps of so many rows, on a team of `threads`.
    fn attended(half: &Attention, x: &Tensor, steps: &[usize], threads: usize) -> Result<Vec<f32>> {
        let (rows, team) = (steps.iter().sum(), Team::new(threads).unwrap());
        let cpu = Cpu { simd: Simd::available()[0], team: &team };
        let mut cache = Cache::new([&Mixer::Attention(half.spec.clone())].into_iter(), rows);
        let mut pages = Pages::default();
        cache.extend(&mut pages, rows).unwrap();
        let (mut out, mut position) = (Vec::new(), 0);
        for rows in steps.iter().copied() {
            let positions: Vec<usize> = (position..position + rows).collect();
            let ropes = vec![Frequencies::new(half.spec.rope.as_ref().unwrap(), &[]).table(&team, &positions)];
            let slices = vec![Slice { pages, states: States::default(), first: 0, rows, position }];
            let mut batch = Batch { cpu, cache: &cache, ropes, slices, chosen: Vec::new() };
            out.extend(half.attended(&x.narrow(0, position, rows)?, &mut batch)?.flatten_all()?.to_vec1::<f32>()?);
            pages = batch.slices.remove(0).pages;
            position += rows;
        }
        Ok(out)
    }

    #[test]
    fn steps_and_threads_change_no_bit() -> Result<()> {
        let linear = |outputs| Linear { matrix: random_matrix(TensorType::F32, outputs, HIDDEN).0, bias: None };
        let (q, k, v) = (linear(HEADS * HEAD_DIM), linear(KV_HEADS * HEAD_DIM), linear(KV_HEADS * HEAD_DIM));
        let qk_norms = Some([norm(HEAD_DIM), norm(HEAD_DIM)]);
        let spec = AttentionSpec { qk_norm: QkNorm::PerHead, ..spec(Window::Full) };
        let (norm, output, residual) = (Some(norm(HIDDEN)), linear(HIDDEN), Residual { norm: None, scale: 1.0 });
        let mut half = Attention {
            spec,
            layer: 0,
            rope: Some(0),
            norm,
            q,
            k,
            v: Some(v),
            value_norm: None,
            qk_norms,
            sinks: Arc::default(),
            output,
            residual,
        };
        // Long enough for runs of pages to be tasks of their own.
        let x = Tensor::from_vec(noise(3000 * HIDDEN, 1), (3000, HIDDEN), &Device::Cpu)?;
        for window in [Window::Full, Window::Sliding(1100)] {
            half.spec.window = window;
            let whole = attended(&half, &x, &[3000], 1)?;
            for (steps, threads) in [([3000].as_slice(), 3), (&[2300, 300, 7, 1, 391, 1], 3), (&[2995, 1, 2, 1, 1], 2)]
            {
                let cut = attended(&half, &x, steps, threads)?;
                let same = whole.iter().map(|x| x.to_bits()).eq(cut.iter().map(|x| x.to_bits()));
                assert!(same, "{window:?}: {steps:?} on {threads} threads");
            }
        }
        Ok(())
    }
}
