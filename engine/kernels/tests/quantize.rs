//! How activations are quantised.

use qmesh_kernels::{
    lanes::Simd,
    quantize::{QuantBlock, Quantize, QuantizeTwice},
};

fn quantized(x: &[f32]) -> QuantBlock {
    let mut block = [QuantBlock::default()];
    Quantize { x, blocks: &mut block }.run(Simd::available()[0]);
    for simd in Simd::available() {
        let mut other = [QuantBlock::default()];
        Quantize { x, blocks: &mut other }.run(simd);
        assert_eq!(format!("{block:?}"), format!("{other:?}"), "{}", simd.name());
    }
    block[0]
}

#[test]
fn rounds_ties_to_even_and_sums_halves() {
    let mut x = [0.0; 32];
    (x[0], x[1], x[2], x[20]) = (-254.0, 3.0, 5.0, 7.0);
    x[24..].fill(40.0);
    let block = quantized(&x);
    assert_eq!(block.scale, 2.0);
    assert_eq!(block.words[0].map(u8::cast_signed), [-127, 2, 2, 0]);
    assert_eq!(block.sums, [-123, 4 + 160]);
    assert_eq!(block.scaled_sum, 82.0);
}

#[test]
fn the_nearer_one_of_two_scales_is_taken() {
    let mut x = [0.0; 32];
    x[0] = 126.0;
    x[1..20].fill(7.0);
    assert_eq!(quantized(&x).scale, 1.0);
    x[0] = 127.0;
    assert_eq!(quantized(&x).scale, 1.0);
}

#[test]
fn zeros_and_blocks_too_small_to_invert_become_zero() {
    assert_eq!(quantized(&[0.0; 32]), QuantBlock::default());
    assert_eq!(quantized(&[1e-40; 32]), QuantBlock::default());
}

#[test]
fn two_terms_leave_little() {
    let x: [f32; 32] = std::array::from_fn(|i| (i as f32 * 0.7).sin() * (1 + i % 5) as f32);
    let mut results = Vec::new();
    for simd in Simd::available() {
        let [mut first, mut second] = [[QuantBlock::default()]; 2];
        QuantizeTwice { x: &x, first: &mut first, second: &mut second }.run(simd);
        assert_eq!(first[0], quantized(&x));
        results.push([first[0], second[0]]);
    }
    assert!(results.iter().all(|result| *result == results[0]));
    let value =
        |block: &QuantBlock, i: usize| f64::from(block.scale) * f64::from(block.words.as_flattened()[i].cast_signed());
    for (i, x) in x.into_iter().enumerate() {
        let sum: f64 = results[0].iter().map(|block| value(block, i)).sum();
        assert!((sum - f64::from(x)).abs() <= f64::from(results[0][1].scale) * 0.501, "{x}: {sum}");
    }
}

#[test]
fn what_is_not_finite_stays_visible_in_the_scale() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = [1.0; 32];
        x[5] = bad;
        assert!(!quantized(&x).scale.is_finite());
    }
}
