//! The half against plain framework operations, and the same bits however rows are cut.

use candle_core::{D, Device};
use qmesh_models::{
    spec::{Bias, KvSource, Mixer, OutputGate, Rope, RopePairing, RopeScaling, Sinks, Values, Window},
    tensor::TensorType,
};

use qmesh_kernels::{lanes::Simd, rope::Frequencies};
use qmesh_team::Team;

use super::*;
use crate::{
    batch::Slice,
    cache::{Cache, Pages},
    layer_input::LayerInputRows,
    random::{noise, random_matrix},
    states::States,
};

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
        source: KvSource::Own,
        values: Values::Own,
        blocks: None,
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
    let frequencies: Vec<f32> = (0..HEAD_DIM / 2).map(|i| 1e4_f32.powf(-2.0 * i as f32 / HEAD_DIM as f32)).collect();
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
        let mut batch =
            Batch { cpu, cache: &cache, ropes, slices, chosen: Vec::new(), layer_inputs: LayerInputRows::default() };
        let half = Attention {
            spec,
            layer: 0,
            rope: Some(0),
            norm: Some(norm(HIDDEN)),
            q,
            k: Some(k),
            v: Some(v),
            value_norm: None,
            qk_norms: [None, None],
            head_gates: None,
            indexer: None,
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
        let mut batch =
            Batch { cpu, cache: &cache, ropes, slices, chosen: Vec::new(), layer_inputs: LayerInputRows::default() };
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
    let qk_norms = [Some(norm(HEAD_DIM)), Some(norm(HEAD_DIM))];
    let spec = AttentionSpec { qk_norm: QkNorm::PerHead, ..spec(Window::Full) };
    let (norm, output, residual) = (Some(norm(HIDDEN)), linear(HIDDEN), Residual { norm: None, scale: 1.0 });
    let mut half = Attention {
        spec,
        layer: 0,
        rope: Some(0),
        norm,
        q,
        k: Some(k),
        v: Some(v),
        value_norm: None,
        qk_norms,
        head_gates: None,
        indexer: None,
        sinks: Arc::default(),
        output,
        residual,
    };
    // Long enough for runs of pages to be tasks of their own.
    let x = Tensor::from_vec(noise(3000 * HIDDEN, 1), (3000, HIDDEN), &Device::Cpu)?;
    for window in [Window::Full, Window::Sliding(1100)] {
        half.spec.window = window;
        let whole = attended(&half, &x, &[3000], 1)?;
        for (steps, threads) in [([3000].as_slice(), 3), (&[2300, 300, 7, 1, 391, 1], 3), (&[2995, 1, 2, 1, 1], 2)] {
            let cut = attended(&half, &x, steps, threads)?;
            let same = whole.iter().map(|x| x.to_bits()).eq(cut.iter().map(|x| x.to_bits()));
            assert!(same, "{window:?}: {steps:?} on {threads} threads");
        }
    }
    Ok(())
}
