//! Scores of positions against f64, the same bits on every tier, and the choice of the highest.

use half::f16;
use qmesh_kernels::{
    attend::PAGE_POSITIONS,
    index::{Products, Score, WriteKey, choose},
    lanes::Simd,
};

use crate::random::noise;

const KEY_DIM: usize = 40;

fn scores(simd: Simd, heads: usize) -> [f32; PAGE_POSITIONS] {
    let mut page = vec![f16::NAN.to_bits(); PAGE_POSITIONS * KEY_DIM];
    for (slot, key) in noise(PAGE_POSITIONS * KEY_DIM, 1).chunks(KEY_DIM).enumerate() {
        WriteKey { page: &mut page, slot, key }.run(simd);
    }
    let (queries, weights, mut scores) = (noise(heads * KEY_DIM, 2), noise(heads, 3), [f32::NAN; PAGE_POSITIONS]);
    Score { queries: &queries, weights: &weights, page: &page, scores: &mut scores }.run(simd);
    scores
}

#[test]
fn scores_are_those_of_f64_and_the_same_on_every_tier() {
    for heads in [1, 2, 5, 8] {
        let plain = scores(Simd::available()[0], heads);
        for simd in Simd::available() {
            assert_eq!(scores(simd, heads).map(f32::to_bits), plain.map(f32::to_bits), "{simd:?}, {heads} heads");
        }
        let (keys, queries, weights) = (noise(PAGE_POSITIONS * KEY_DIM, 1), noise(heads * KEY_DIM, 2), noise(heads, 3));
        for (key, score) in keys.chunks(KEY_DIM).zip(plain) {
            let of_head = |(query, weight): (&[f32], &f32)| {
                let held = |x: f32| f16::from_f32(x).to_f64();
                let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * held(*k)).sum();
                f64::from(*weight) * dot.max(0.0)
            };
            let expected: f64 = queries.chunks(KEY_DIM).zip(&weights).map(of_head).sum();
            assert!((f64::from(score) - expected).abs() < 1e-5, "{score} for {expected}");
        }
    }
}

#[test]
fn products_are_those_of_f64_and_the_same_on_every_tier() {
    let (heads, key_rows) = (3, noise(PAGE_POSITIONS * KEY_DIM, 1));
    let queries = noise(heads * KEY_DIM, 2);
    let products = |simd: Simd| {
        let mut page = vec![f16::NAN.to_bits(); PAGE_POSITIONS * KEY_DIM];
        for (slot, key) in key_rows.chunks(KEY_DIM).enumerate() {
            WriteKey { page: &mut page, slot, key }.run(simd);
        }
        let mut products = vec![[f32::NAN; PAGE_POSITIONS]; heads];
        Products { queries: &queries, page: &page, products: &mut products }.run(simd);
        products
    };
    let plain = products(Simd::available()[0]);
    for simd in Simd::available() {
        let bits = |products: &[[f32; PAGE_POSITIONS]]| {
            products.as_flattened().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(bits(&products(simd)), bits(&plain), "{simd:?}");
    }
    for (query, products) in queries.chunks(KEY_DIM).zip(&plain) {
        for (key, product) in key_rows.chunks(KEY_DIM).zip(products) {
            let terms = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f16::from_f32(*k).to_f64());
            let expected: f64 = terms.sum();
            assert!((f64::from(*product) - expected).abs() < 1e-5, "{product} for {expected}");
        }
    }
}

#[test]
fn the_highest_are_chosen_and_of_equal_ones_the_earlier() {
    assert_eq!(choose(&[3.0, 1.0], 2), [0, 1]);
    assert_eq!(choose(&[3.0, 1.0], 5), [0, 1]);
    assert_eq!(choose(&[-1.0, 2.0, -3.0, 5.0, 0.5], 3), [1, 3, 4]);
    assert_eq!(choose(&[0.0, -0.0, 1.0, 0.0, -0.0], 3), [0, 1, 2]);
    assert_eq!(choose(&[-0.0, 0.0, -2.0, -2.0], 3), [0, 1, 2]);
    let scores: Vec<f32> = noise(500, 7).iter().map(|x| (x * 20.0).round() + 0.0).collect();
    let mut expected: Vec<u32> = (0..500).collect();
    expected.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b)));
    for used in [1, 64, 499] {
        let mut first = expected[..used].to_vec();
        first.sort_unstable();
        assert_eq!(choose(&scores, used), first, "{used}");
    }
}
