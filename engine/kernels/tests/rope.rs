//! Rotations against the tensor framework, and how frequencies are scaled.

use candle_core::{Device, Tensor};
use qmesh_arithmetic::{Rope, RopePairing, RopeScaling};
use qmesh_kernels::{lanes::Simd, rope::Frequencies};
use qmesh_team::Team;

use crate::random::noise;

fn rope(pairing: RopePairing, dims: usize, scaling: RopeScaling) -> Rope {
    Rope { pairing, dims, base: 10_000.0, scaling, magnitude: 1.0 }
}

#[test]
fn both_pairings_rotate_as_the_framework_does_on_every_tier() {
    let (rows, dims) = (35, 40);
    let positions: Vec<usize> = (0..rows).map(|r| 100 * r + 3).collect();
    for pairing in [RopePairing::Interleaved, RopePairing::Halves] {
        let frequencies = Frequencies::new(&rope(pairing, dims, RopeScaling::None), &[]);
        let table = frequencies.table(&Team::new(3).unwrap(), &positions);
        let alone = frequencies.table(&Team::new(1).unwrap(), &positions[7..8]);
        assert_eq!(alone.row(0), table.row(7));
        let x = noise(rows * dims, 4);
        let angles = |f: fn(f64) -> f64| {
            let values = positions.iter().flat_map(|p| {
                (0..dims / 2).map(move |i| f(*p as f64 * 10_000_f64.powf(-2.0 * i as f64 / dims as f64)) as f32)
            });
            Tensor::from_vec(values.collect::<Vec<f32>>(), (rows, dims / 2), &Device::Cpu).unwrap()
        };
        let tensor = Tensor::from_slice(&x, (1, 1, rows, dims), &Device::Cpu).unwrap();
        let (cos, sin) = (angles(f64::cos), angles(f64::sin));
        let expected = match pairing {
            RopePairing::Interleaved => candle_nn::rotary_emb::rope_i(&tensor, &cos, &sin),
            RopePairing::Halves => candle_nn::rotary_emb::rope(&tensor, &cos, &sin),
        };
        let expected: Vec<f32> = expected.unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let tiers: Vec<Vec<f32>> = Simd::available()
            .into_iter()
            .map(|simd| {
                let mut y = x.clone();
                let rows = y.chunks_mut(dims).enumerate();
                rows.for_each(|(row, head)| table.rotate(simd, row, head, dims));
                y
            })
            .collect();
        assert!(tiers.iter().all(|y| *y == tiers[0]), "{pairing:?}");
        assert!(tiers[0].iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{pairing:?}");
    }
}

#[test]
fn yarn_divides_slow_frequencies_only() {
    let scaling = RopeScaling::Yarn { factor: 4.0, original: 512, beta_fast: 32.0, beta_slow: 1.0 };
    let scaled = Rope { magnitude: 1.5, ..rope(RopePairing::Halves, 64, scaling) };
    let plain = Frequencies::new(&rope(RopePairing::Halves, 64, RopeScaling::None), &[]);
    let yarn = Frequencies::new(&scaled, &[]);
    let ratio = |i: usize| plain.angles()[i] / yarn.angles()[i];
    // 32 turns in 512 positions: pair 64·ln(512 / 64π) / (2·ln 10000) = 3.2; one turn: pair 15.3.
    assert_eq!((ratio(3), ratio(16), ratio(31)), (1.0, 4.0, 4.0));
    assert!((1.0..4.0).contains(&ratio(4)) && ratio(4) < ratio(5) && ratio(15) < 4.0);
    let table = yarn.table(&Team::new(1).unwrap(), &[0, 7]);
    let (cos, sin) = table.row(0);
    assert_eq!((cos[0], sin[0]), (1.5, 0.0));
    let (cos, sin) = table.row(1);
    assert!((cos[0].hypot(sin[0]) - 1.5).abs() < 1e-6);
}

#[test]
fn scalings_divide_the_frequencies_and_other_elements_stay() {
    let halved = Frequencies::new(&rope(RopePairing::Halves, 4, RopeScaling::Linear(2.0)), &[]);
    let factored = Frequencies::new(&rope(RopePairing::Halves, 4, RopeScaling::Factors), &[1.0, 8.0]);
    assert!((halved.angles()[1] - 0.005).abs() < 1e-15 && (factored.angles()[1] - 0.00125).abs() < 1e-15);
    assert_eq!((halved.angles()[0], factored.angles()[0]), (0.5, 1.0));
    let mut heads = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].repeat(2);
    halved.table(&Team::new(1).unwrap(), &[9]).rotate(Simd::available()[0], 0, &mut heads, 6);
    assert_eq!((heads[4..6].to_vec(), &heads[..6]), (vec![5.0, 6.0], &heads[6..]));
    assert_ne!(heads[..4], [1.0, 2.0, 3.0, 4.0]);
}
