//! Norms against the tensor framework and f64.

use candle_core::{Device, Tensor};
use qmesh_kernels::{
    lanes::Simd,
    norm::{LayerNorm, RmsNorm},
};

use crate::random::noise;

#[test]
fn every_tier_gives_the_same_bits_close_to_the_framework() {
    for width in [16, 64, 100, 576] {
        let (x, gain) = (noise(3 * width, 1), noise(width, 2));
        let tensor = Tensor::from_slice(&x, (3, width), &Device::Cpu).unwrap();
        let weight = Tensor::from_slice(&gain, width, &Device::Cpu).unwrap();
        let expected = candle_nn::ops::rms_norm(&tensor, &weight, 1e-5).unwrap();
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let results: Vec<Vec<f32>> = Simd::available()
            .into_iter()
            .map(|simd| {
                let mut x = x.clone();
                RmsNorm { x: &mut x, gain: &gain, eps: 1e-5 }.run(simd);
                x
            })
            .collect();
        assert!(results.iter().all(|r| *r == results[0]));
        for (y, e) in results[0].iter().zip(expected) {
            assert!((y - e).abs() < 1e-5, "width {width}: {y} for {e}");
        }
    }
}

#[test]
fn layer_norms_are_the_same_on_every_tier_and_close_to_f64() {
    for width in [16, 64, 100, 576] {
        // A mean far from zero shows whether the padding counts.
        let x: Vec<f32> = noise(3 * width, 1).iter().map(|x| x + 3.0).collect();
        let (gain, bias) = (noise(width, 2), noise(width, 3));
        let results: Vec<Vec<f32>> = Simd::available()
            .into_iter()
            .map(|simd| {
                let mut x = x.clone();
                LayerNorm { x: &mut x, gain: &gain, bias: &bias, eps: 1e-5 }.run(simd);
                x
            })
            .collect();
        assert!(results.iter().all(|r| *r == results[0]));
        for (row, ours) in x.chunks(width).zip(results[0].chunks(width)) {
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
            let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
            for (i, y) in ours.iter().enumerate() {
                let normed = (f64::from(row[i]) - mean) / (variance + 1e-5).sqrt();
                let exact = normed * f64::from(gain[i]) + f64::from(bias[i]);
                assert!((f64::from(*y) - exact).abs() < 1e-5, "width {width}: {y} for {exact}");
            }
        }
    }
}
