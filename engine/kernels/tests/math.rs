//! Element-wise functions against f64 and the tensor framework.

use qmesh_arithmetic::Activation;
use qmesh_kernels::{
    lanes::Simd,
    math::{Exponentials, GatedActivation, Sigmoid, SoftCap, SumExponentials},
};

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn on_all_tiers<T: std::fmt::Debug + PartialEq>(f: impl Fn(Simd) -> T) -> T {
    let results: Vec<T> = Simd::available().into_iter().map(f).collect();
    assert!(results.iter().all(|r| *r == results[0]), "tiers differ: {results:?}");
    results.into_iter().next().unwrap()
}

fn exponentials(x: &[f32]) -> Vec<f32> {
    let words = on_all_tiers(|simd| {
        let mut x = x.to_vec();
        Exponentials { x: &mut x, largest: 0.0 }.run(simd);
        bits(&x)
    });
    words.into_iter().map(f32::from_bits).collect()
}

#[test]
fn exp_is_good_to_two_ulps_and_keeps_nan() {
    let x: Vec<f32> = (0..17_501).map(|i| i as f32 * 0.01 - 87.0).collect();
    for (x, y) in x.iter().zip(exponentials(&x)) {
        let exact = f64::from(*x).exp();
        assert!((f64::from(y) / exact - 1.0).abs() < 2.4e-7, "exp({x}) = {y}, not {exact}");
    }
    let edge = exponentials(&[0.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY]);
    assert!(edge[0] == 1.0 && edge[1].is_nan() && edge[2] < 2e-38 && edge[3] > 1e38);
}

#[test]
fn soft_caps_are_hyperbolic_tangents() {
    let x: Vec<f32> = (0..2003).map(|i| i as f32 * 0.3 - 300.0).collect();
    let words = on_all_tiers(|simd| {
        let mut x = x.clone();
        SoftCap { x: &mut x, cap: 30.0 }.run(simd);
        bits(&x)
    });
    for (x, y) in x.iter().zip(words) {
        let exact = 30.0 * (f64::from(*x) / 30.0).tanh();
        assert!((f64::from(f32::from_bits(y)) - exact).abs() < 8e-6, "{x}");
    }
    let mut nan = [f32::NAN];
    SoftCap { x: &mut nan, cap: 30.0 }.run(Simd::available()[0]);
    assert!(nan[0].is_nan());
}

#[test]
fn gates_are_those_of_the_framework() {
    let x: Vec<f32> = (0..1003).map(|i| i as f32 * 0.03 - 15.0).collect();
    let up: Vec<f32> = (0..1003).map(|i| ((i * 7) % 23) as f32 - 11.0).collect();
    let tensor = candle_core::Tensor::new(x.as_slice(), &candle_core::Device::Cpu).unwrap();
    let clamped = tensor.clamp(f32::NEG_INFINITY, 7.0).unwrap();
    let sigmoid = candle_nn::ops::sigmoid(&(&clamped * 1.702).unwrap()).unwrap();
    for (activation, expected) in [
        (Activation::Silu, tensor.silu().unwrap()),
        (Activation::GeluTanh, tensor.gelu().unwrap()),
        (Activation::SiluClamped, (clamped * sigmoid).unwrap()),
        (Activation::SiluLimited(4.0), tensor.silu().unwrap().clamp(f32::NEG_INFINITY, 4.0).unwrap()),
        (Activation::ReluSquared, tensor.relu().unwrap().sqr().unwrap()),
    ] {
        let factor = |up: f32| match activation {
            Activation::Silu | Activation::GeluTanh | Activation::ReluSquared => up,
            Activation::SiluClamped => up.clamp(-7.0, 7.0) + 1.0,
            Activation::SiluLimited(limit) => up.clamp(-limit, limit),
        };
        for up in [Some(&up), None] {
            let out = on_all_tiers(|simd| {
                let mut out = x.clone();
                GatedActivation { activation, gate: &mut out, up: up.map(Vec::as_slice) }.run(simd);
                bits(&out)
            });
            for (i, (y, e)) in out.into_iter().zip(expected.to_vec1::<f32>().unwrap()).enumerate() {
                let (y, e) = (f32::from_bits(y), e * up.map_or(1.0, |up| factor(up[i])));
                assert!((y - e).abs() <= 2e-6 * e.abs().max(10.0), "{activation:?}: {y} for {e}");
            }
        }
    }
}

#[test]
fn gates_of_a_half_by_itself_are_sigmoids() {
    let gate: Vec<f32> = (0..1003).map(|i| i as f32 * 0.03 - 15.0).collect();
    let words = on_all_tiers(|simd| {
        let mut x = vec![-3.0; gate.len()];
        Sigmoid { x: &mut x, gate: &gate }.run(simd);
        bits(&x)
    });
    for (gate, y) in gate.iter().zip(words) {
        let exact = -3.0 / (1.0 + f64::from(-gate).exp());
        assert!((f64::from(f32::from_bits(y)) - exact).abs() <= 1e-6, "{gate}");
    }
}

#[test]
fn log_probabilities_sum_to_one() {
    let x: Vec<f32> = (0..1000).map(|i| ((i * 37) % 113) as f32 * 0.2 - 9.0).collect();
    let sum = on_all_tiers(|simd| SumExponentials(&x).run(simd));
    assert_eq!(sum.largest, 112.0 * 0.2 - 9.0);
    let total: f64 = x.iter().map(|v| f64::from(sum.log_probability(*v)).exp()).sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
}
