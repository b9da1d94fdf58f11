//! What this machine's kernels make of fixed inputs, as one number: who has another one computes other bits.
//!
//! Every kernel that a token's bits go through takes part, at shapes that reach each of its paths. It takes some
//! milliseconds.

use std::sync::Arc;

use qmesh_kernels::{
    attend::{Attend, Gathered, HeadLayout, Normalise, PAGE_POSITIONS, Queries, ScoreRule, Target, Write},
    buffer::{Buffer, Bytes},
    convolution::Convolve,
    delta::{DeltaOutput, DeltaRow, DeltaUpdate, LinearOutput, decay, sigmoid, softplus},
    lanes::{LANES, Simd},
    math::{Exponentials, GatedActivation, Sigmoid, SoftCap, SumExponentials},
    matrix::Matrix,
    norm::{LayerNorm, RmsNorm},
    product::{Inputs, Product},
    quantize::{BLOCK, QuantBlock, Quantize, QuantizeTwice},
    rope::Frequencies,
};
use qmesh_models::{
    spec::{Activation, Rope, RopePairing, RopeScaling, Window},
    tensor::TensorType,
};
use qmesh_team::Team;

use crate::{error::EngineError, noise::Noise};

/// The digest of the instruction set that this process computes with.
pub(crate) fn digest() -> Result<u64, EngineError> {
    digest_of(Simd::choose()?)
}

fn digest_of(simd: Simd) -> Result<u64, EngineError> {
    let team = Team::new(1)?;
    let mut results = Results { simd, hasher: blake3::Hasher::new() };
    for dtype in TensorType::ALL {
        results.products(&team, dtype)?;
    }
    results.attention(
        HeadLayout::Apart { head_dim: 64 },
        ScoreRule { scale: 0.7, soft_cap: None, window: Window::Full },
        &[],
    );
    let capped = ScoreRule { scale: 0.7, soft_cap: Some(2.0), window: Window::Sliding(70) };
    results.attention(HeadLayout::Apart { head_dim: 40 }, capped, &[1.0, -0.5, -40.0]);
    let plain = ScoreRule { scale: 0.7, soft_cap: None, window: Window::Full };
    results.attention(HeadLayout::Shared { key_dim: 90, value_dim: 70 }, plain, &[]);
    results.delta();
    results.rows();
    results.rotations(&team);
    results.sampling();
    let hash = results.hasher.finalize();
    Ok(u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes")))
}

/// Fixed numbers that look like chance.
struct Sequence(u64);

/// What has been computed so far.
struct Results {
    simd: Simd,
    hasher: blake3::Hasher,
}

impl Results {
    fn add(&mut self, values: &[f32]) {
        debug_assert!(values.iter().all(|value| value.is_finite()), "a NaN's bits are no part of the arithmetic");
        for value in values {
            self.hasher.update(&value.to_bits().to_le_bytes());
        }
    }

    /// Products of one type with one row, a few and many, and rows looked up.
    fn products(&mut self, team: &Team, dtype: TensorType) -> Result<(), EngineError> {
        let cols = if dtype.block_len() == 1 { 70 } else { 2 * dtype.block_len().max(64) };
        let matrix = matrix(team, dtype, cols)?;
        let x = Sequence(u64::from(dtype.ggml_id())).floats(ROW_COUNTS[ROW_COUNTS.len() - 1] * cols);
        let mut blocks = vec![QuantBlock::default(); x.len() / BLOCK];
        if dtype.block_len() > 1 {
            Quantize { x: &x, blocks: &mut blocks }.run(self.simd);
        }
        for rows in ROW_COUNTS {
            let blocks = if dtype.block_len() > 1 { &blocks[..rows * cols / BLOCK] } else { &[] };
            let x = Inputs { rows, cols, floats: &x[..rows * cols], blocks };
            let mut out = vec![[0.0; LANES]; matrix.groups() * rows];
            Product { matrix: &matrix, groups: 0..matrix.groups(), x, out: &mut out }.run(self.simd);
            self.add(out.as_flattened());
        }
        let mut looked_up = vec![0.0; 2 * cols];
        matrix.look_up(self.simd, &[0, OUTPUTS as u32 - 1], &mut looked_up);
        self.add(&looked_up);
        Ok(())
    }

    /// Attention over three pages, of a few queries and of many.
    fn attention(&mut self, layout: HeadLayout, scoring: ScoreRule, sinks: &[f32]) {
        let (key_dim, value_dim, positions) = (layout.key_dim(), layout.value_dim(), 2 * PAGE_POSITIONS + 9);
        let mut sequence = Sequence(key_dim as u64);
        let mut pages = vec![vec![0; layout.page_len()]; positions.div_ceil(PAGE_POSITIONS)];
        for position in 0..positions {
            let (key, value) = (sequence.floats(key_dim), sequence.floats(value_dim));
            let (page, slot) = (&mut pages[position / PAGE_POSITIONS][..], position % PAGE_POSITIONS);
            Write { layout, page, slot, key: &key, value: &value }.run(self.simd);
        }
        for rows in [1, 7] {
            let position = positions - rows;
            let x = sequence.floats(rows * HEADS * key_dim);
            let queries = Queries { x: &x, heads: HEADS, position };
            let range = scoring.pages(position..positions);
            let run: Vec<&[u16]> = pages[range.clone()].iter().map(Vec::as_slice).collect();
            let mut gathered = Gathered::start(layout, rows * HEADS, sinks);
            let into = Target::Merged(&mut gathered);
            Attend { layout, scoring, queries, pages: &run, first_page: range.start, into }.gather(self.simd);
            let mut out = vec![0.0; rows * HEADS * value_dim];
            let mut outs: Vec<&mut [f32]> = out.chunks_mut(HEADS * value_dim).collect();
            Normalise { gathered: &gathered, out: &mut outs, value_dim }.run(self.simd);
            self.add(&out);
        }
    }

    /// A few rows through a state, and what comes before and after.
    fn delta(&mut self) {
        const KEYS: usize = 24;
        const VALUES: usize = 80;
        let (mut state, mut sequence) = (vec![0.0; KEYS * VALUES], Sequence(4));
        for _ in 0..3 {
            let (taps, rows) = (sequence.floats(4 * KEYS), sequence.floats(4 * KEYS));
            let terms: Vec<_> = taps.chunks(KEYS).zip(rows.chunks(KEYS)).collect();
            let mut key = vec![0.0; KEYS];
            Convolve { terms: &terms, out: &mut key }.run(self.simd);
            let (query, mut value) = (sequence.floats(KEYS), sequence.floats(VALUES));
            let gates = sequence.floats(2);
            let decays = [decay(-0.5, gates[0]); KEYS];
            let (row, mut out) = (DeltaRow { decay: &decays, key: &key }, vec![0.0; VALUES]);
            let (beta, state_before) = (sigmoid(gates[1]), &state);
            DeltaOutput { state: state_before, row, query: &query, beta, value: &mut value, out: &mut out }
                .run(self.simd);
            DeltaUpdate { state: &mut state, row, correction: &value }.run(self.simd);
            Sigmoid { x: &mut out, gate: &value }.run(self.simd);
            self.add(&out);
            LinearOutput { state: &state, row, query: &query, correction: &value, out: &mut out }.run(self.simd);
            self.add(&out);
            self.add(&[softplus(gates[0])]);
        }
        self.add(&state);
    }

    /// What is done to rows element by element, or over a row.
    fn rows(&mut self) {
        let mut sequence = Sequence(3);
        let (x, gain, bias) = (sequence.floats(300), sequence.floats(100), sequence.floats(100));
        let simd = self.simd;
        let mut changed = |change: &dyn Fn(&mut [f32])| {
            let mut x = x.clone();
            change(&mut x);
            self.add(&x);
        };
        changed(&|x| RmsNorm { x, gain: &gain, eps: 1e-5 }.run(simd));
        changed(&|x| LayerNorm { x, gain: &gain, bias: &bias, eps: 1e-5 }.run(simd));
        changed(&|x| SoftCap { x, cap: 0.5 }.run(simd));
        changed(&|x| Exponentials { x, largest: 1.0 }.run(simd));
        for activation in Activation::ALL {
            changed(&|x| GatedActivation { activation, gate: &mut x[..100], up: Some(&gain) }.run(simd));
        }
        let sum = SumExponentials(&x).run(simd);
        self.add(&[sum.largest, sum.sum, sum.log_sum]);
        let [mut first, mut second] = [(); 2].map(|()| vec![QuantBlock::default(); 9]);
        QuantizeTwice { x: &x[..9 * BLOCK], first: &mut first, second: &mut second }.run(simd);
        for block in first.iter().chain(&second) {
            self.hasher.update(block.words.as_flattened());
            self.add(&[block.scale, block.scaled_sum]);
        }
    }

    fn rotations(&mut self, team: &Team) {
        for pairing in [RopePairing::Interleaved, RopePairing::Halves] {
            let rope = Rope { pairing, dims: 32, base: 10_000.0, scaling: RopeScaling::None, magnitude: 1.0 };
            let table = Frequencies::new(&rope, &[]).table(team, &[0, 1, 4095, 100_000]);
            for row in 0..4 {
                let mut heads = Sequence(row as u64).floats(2 * 40);
                table.rotate(self.simd, row, &mut heads, 40);
                self.add(&heads);
            }
        }
    }

    fn sampling(&mut self) {
        for id in 0..8 {
            let noise = Noise { seed: 1 << 40 | 7, sequence: 2, position: 3 + id }.gumbel(id);
            self.hasher.update(&noise.to_bits().to_le_bytes());
        }
    }
}

impl Sequence {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1, each exact.
    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| ((self.next() >> 40) as f32 - 8_388_608.0) / 8_388_608.0).collect()
    }
}

/// A matrix of arbitrary bytes, whose scales are small numbers.
fn matrix(team: &Team, dtype: TensorType, cols: usize) -> Result<Matrix, EngineError> {
    let needed = |bytes: usize| EngineError::OutOfMemory { needed: bytes as u64, tensor: "the digest".into() };
    let row_bytes = dtype.row_bytes(cols).ok_or_else(|| needed(0))?;
    let len = Matrix::packed_len(dtype, OUTPUTS, row_bytes).ok_or_else(|| needed(0))?;
    let mut buffer = Buffer::new(len).ok_or_else(|| needed(len))?;
    let mut sequence = Sequence(100 + u64::from(dtype.ggml_id()));
    for block in buffer.bytes_mut()[..OUTPUTS * row_bytes].chunks_exact_mut(dtype.block_bytes()) {
        fill(dtype, block, &mut sequence);
    }
    Matrix::pack(team, dtype, row_bytes, &mut buffer.bytes_mut()[..len]);
    Ok(Matrix { dtype, rows: OUTPUTS, cols, bytes: Bytes::new(Arc::new(buffer), 0..len) })
}

fn fill(dtype: TensorType, block: &mut [u8], sequence: &mut Sequence) {
    block.iter_mut().for_each(|byte| *byte = (sequence.next() >> 32) as u8);
    // Where numbers of their own stand: f16 but for the last types.
    let scales: &[usize] = match dtype {
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 | TensorType::IQ4NL | TensorType::IQ4XS => &[0],
        TensorType::IQ1S | TensorType::IQ2XXS | TensorType::IQ2XS | TensorType::IQ2S => &[0],
        TensorType::IQ3XXS | TensorType::IQ3S | TensorType::Q1_0 | TensorType::Q2_0 => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => &[0, 2],
        TensorType::Q2K => &[80, 82],
        TensorType::Q3K => &[108],
        TensorType::Q6K => &[208],
        TensorType::TQ1_0 => &[52],
        TensorType::TQ2_0 => &[64],
        TensorType::F16 => &[0],
        // The upper byte of its f16 is in the nibbles of two others.
        TensorType::IQ1M => {
            block[55] = block[55] & 0x8f | 0x20;
            block[53] &= 0x3f;
            &[]
        }
        // Any byte is a number here.
        TensorType::NVFP4 => &[],
        TensorType::MXFP4 => {
            block[0] = 120 + block[0] % 8;
            &[]
        }
        TensorType::BF16 | TensorType::F32 => {
            // The upper half of an f32 of about one.
            let upper = block.len() - 2;
            block[upper] &= 0x7f;
            block[upper + 1] = block[upper + 1] & 0x80 | 0x3f;
            &[]
        }
    };
    for &at in scales {
        // An f16 of about a hundredth.
        block[at + 1] = block[at + 1] & 0x83 | 0x20;
    }
}

const OUTPUTS: usize = 19;
/// Query heads that share a KV head.
const HEADS: usize = 3;
/// One row, a few, what large tiles still take at once, and enough for a panel.
const ROW_COUNTS: [usize; 4] = [1, 3, 9, 17];

#[cfg(test)]
mod tests {
    use qmesh_models::numerics::{DIGEST, VERSION};

    use super::*;

    /// If it fails on one tier, that tier computes other bits. If it fails on all, the arithmetic has changed: raise
    /// `VERSION` in `models/src/numerics.rs`, and put the new digest there.
    #[test]
    fn every_tier_has_the_digest_that_coordinators_expect() {
        for simd in Simd::available() {
            let found = digest_of(simd).unwrap();
            assert_eq!(found, DIGEST, "arithmetic {VERSION} on {}: {found:#018x}", simd.name());
        }
    }
}
