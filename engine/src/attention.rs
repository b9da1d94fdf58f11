//! The attention half of a block: norm, q, k and v, rotation, cache, attention, output product and residual.

pub(crate) mod tasks;

use std::{ops::Range, sync::Arc};

use candle_core::{Result, Tensor};
use qmesh_kernels::{
    Cpu,
    attend::{HeadLayout, PAGE_POSITIONS, ScoreRule, Write},
    math::Sigmoid,
    rope::RopeTable,
};
use qmesh_models::{
    footprint::QUERIES_LEAST,
    spec::{AttentionSpec, OutputGate, QkNorm},
};

use self::tasks::Heads;
use crate::{
    batch::{Append, Batch},
    blocks::BlockIndexer,
    linear::{Linear, Norm, Residual, experts::sigmoids, project, project_add},
    ops, temperature,
};

/// Weights and shape of one layer's attention half.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) spec: AttentionSpec,
    /// Which of the shard's layers has the keys and values in the cache: itself, or an earlier one.
    pub(crate) layer: usize,
    /// Which of the shard's RoPE tables it uses, if any.
    pub(crate) rope: Option<usize>,
    pub(crate) norm: Option<Norm>,
    pub(crate) q: Linear,
    /// Nothing where keys and values are those of an earlier layer.
    pub(crate) k: Option<Linear>,
    /// Nothing where values are keys, either.
    pub(crate) v: Option<Linear>,
    /// On each head of the values.
    pub(crate) value_norm: Option<Norm>,
    /// Of q and of k, where the layer makes it: on each head, or on all of a row together.
    pub(crate) qk_norms: [Option<Norm>; 2],
    /// What makes a gate for each head of what it attends, where something does.
    pub(crate) head_gates: Option<Linear>,
    /// What chooses blocks of positions, where something does.
    pub(crate) indexer: Option<Box<BlockIndexer>>,
    /// A score per query head that belongs to no position, or nothing.
    pub(crate) sinks: Arc<[f32]>,
    pub(crate) output: Linear,
    pub(crate) residual: Residual,
}

impl Attention {
    /// softmax(scale · q·k)·v of x (rows, hidden): (rows, heads · head_dim). The rows' keys and values are in the cache
    /// afterwards.
    pub(crate) fn attended(&self, x: &Tensor, batch: &mut Batch<'_>) -> Result<Tensor> {
        let of_indexer = self.indexer.iter().flat_map(|indexer| [&indexer.queries, &indexer.key]);
        let linears = [&self.q].into_iter().chain(&self.k).chain(&self.v).chain(&self.head_gates).chain(of_indexer);
        let linears: Vec<&Linear> = linears.collect();
        // (rows, q and its gates, k, v if there is one, heads' gates if there are some, an indexer's queries and key)
        let mut qkv = project(batch.cpu, x, self.norm.as_ref(), &linears)?;
        if self.spec.qk_norm == QkNorm::AllHeads {
            qkv = ops::map("qk_norm", &qkv, |qkv| self.normed(batch.cpu, qkv))?;
        }
        if self.k.is_some() {
            ops::read(&qkv, |qkv| self.append(batch, qkv))?;
        }
        ops::map("attend", &qkv, |qkv| {
            let mut out = vec![0.0; qkv.len() / self.row_width() * self.spec.heads * self.spec.head_dim];
            let heads = self.heads(batch, qkv);
            match self.indexer.as_ref().filter(|indexer| indexer.chooses(batch)) {
                Some(indexer) => indexer.attend(&heads, batch, |row| self.of_indexer(qkv, row).0, &mut out),
                None => tasks::attend(&heads, batch, &mut out),
            }
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
        let AttentionSpec { heads, head_dim, output_gate, .. } = self.spec;
        if output_gate == OutputGate::None {
            return;
        }
        let rows = qkv.chunks_exact(self.row_width()).zip(out.chunks_exact_mut(heads * head_dim)).collect();
        cpu.team.each(rows, |(qkv, out): (&[f32], &mut [f32])| match output_gate {
            OutputGate::None => {}
            OutputGate::WithQuery => {
                for (with_gate, x) in qkv.chunks_exact(2 * head_dim).zip(out.chunks_exact_mut(head_dim)) {
                    Sigmoid { x, gate: &with_gate[head_dim..] }.run(cpu.simd);
                }
            }
            OutputGate::PerHead => {
                let mut gates = qkv[self.gates_start()..][..heads].to_vec();
                sigmoids(cpu.simd, &mut gates);
                let heads = out.chunks_exact_mut(head_dim).zip(gates);
                heads.for_each(|(x, gate)| x.iter_mut().for_each(|x| *x *= gate));
            }
        });
    }

    /// The query of head `head` in a row.
    fn query<'a>(&self, row: &'a [f32], head: usize) -> &'a [f32] {
        let head_dim = self.spec.head_dim;
        let stride = match self.spec.output_gate {
            OutputGate::None | OutputGate::PerHead => head_dim,
            OutputGate::WithQuery => 2 * head_dim,
        };
        &row[head * stride..][..head_dim]
    }

    /// Normalises each row's q and its k, all heads together.
    fn normed(&self, cpu: Cpu<'_>, qkv: &[f32]) -> Vec<f32> {
        let (q_width, k_width) = self.widths();
        let mut normed = qkv.to_vec();
        for row in normed.chunks_exact_mut(self.row_width()) {
            let parts = [0..q_width, q_width..q_width + k_width];
            for (norm, part) in self.qk_norms.iter().flatten().zip(parts) {
                norm.apply(cpu, &mut row[part]);
            }
        }
        normed
    }

    /// Normalises heads of q (0) or k (1), where each is normalised on its own before it is rotated.
    fn normalize_heads(&self, cpu: Cpu<'_>, which: usize, heads: &mut [f32]) {
        if let (QkNorm::PerHead, Some(norm)) = (self.spec.qk_norm, &self.qk_norms[which]) {
            norm.apply(cpu, heads);
        }
    }

    /// Rotates heads of q (0) or k (1) of row `row` of the step, and normalises each where that is done afterwards.
    fn rotate(&self, cpu: Cpu<'_>, ropes: &[RopeTable], row: usize, which: usize, heads: &mut [f32]) {
        if let Some(rope) = self.rope {
            ropes[rope].rotate(cpu.simd, row, heads, self.spec.head_dim);
        }
        match (self.spec.qk_norm, &self.qk_norms[which]) {
            (QkNorm::PerHeadRotated | QkNorm::PerHeadRotatedBare, Some(norm)) => norm.apply(cpu, heads),
            (QkNorm::None | QkNorm::PerHead | QkNorm::AllHeads, _) | (_, None) => {}
        }
    }

    /// Elements of q, with the gates beside it, and of k or v in a row, as far as they are made.
    fn widths(&self) -> (usize, usize) {
        (self.spec.query_outputs(), self.spec.own_kv_heads() * self.spec.head_dim)
    }

    /// Where heads' gates begin in a row, if there are some: behind q, k and v.
    fn gates_start(&self) -> usize {
        let (q_width, k_width) = self.widths();
        q_width + if self.v.is_some() { 2 * k_width } else { k_width }
    }

    /// Elements of all that is projected of a row.
    fn row_width(&self) -> usize {
        let of_indexer = self.indexer.as_ref().map_or(0, |indexer| indexer.spec.row_len(self.spec.kv_heads));
        self.gates_start() + self.spec.head_gates() + of_indexer
    }

    /// What was projected of row `row` of the step for an indexer's queries, and for its key.
    fn of_indexer<'a>(&self, qkv: &'a [f32], row: usize) -> (&'a [f32], &'a [f32]) {
        let start = self.gates_start() + self.spec.head_gates();
        let key_dim = self.indexer.as_ref().map_or(0, |indexer| indexer.spec.head_dim);
        qkv[row * self.row_width()..][start..self.row_width()].split_at(self.spec.kv_heads * key_dim)
    }

    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.spec.heads / self.spec.kv_heads
    }

    fn scoring(&self) -> ScoreRule {
        ScoreRule { scale: self.spec.scale, soft_cap: self.spec.soft_cap, window: self.spec.window }
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
            let (k, v) = qkv[row * self.row_width() + q_width..].split_at(k_width);
            keys.copy_from_slice(k);
            self.normalize_heads(cpu, 1, &mut keys);
            self.rotate(cpu, ropes, row, 1, &mut keys);
            values.copy_from_slice(if self.v.is_some() { &v[..k_width] } else { k });
            if let Some(norm) = &self.value_norm {
                norm.apply(cpu, &mut values);
            }
            let rows = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
            let (pages, index_page) = append.part.split_at_mut(self.spec.kv_heads * layout.page_len());
            let slot = position % PAGE_POSITIONS;
            for (page, (key, value)) in pages.chunks_exact_mut(layout.page_len()).zip(rows) {
                Write { layout, page, slot, key, value }.run(cpu.simd);
            }
            if let Some(indexer) = &self.indexer {
                indexer.append(cpu, ropes, row, self.of_indexer(qkv, row).1, (index_page, slot));
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
mod tests;
