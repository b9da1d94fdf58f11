//! The delta rule against f64, row after row.

use qmesh_kernels::{
    delta::{DeltaOutput, DeltaRow, DeltaUpdate, LinearOutput, decay, sigmoid, softplus},
    lanes::Simd,
};

use crate::random::noise;

const ROWS: usize = 40;

/// One row of a head.
struct Row {
    decay: Vec<f32>,
    key: Vec<f32>,
    query: Vec<f32>,
    value: Vec<f32>,
    beta: f32,
}

fn rows(keys: usize, values: usize) -> Vec<Row> {
    let unit = |x: Vec<f32>| {
        let length = x.iter().map(|x| x * x).sum::<f32>().sqrt();
        x.into_iter().map(|x| x / length).collect()
    };
    let row = |seed| Row {
        decay: noise(keys, seed).iter().map(|x| 1.0 - 0.5 * x.abs()).collect(),
        key: unit(noise(keys, seed + 1)),
        query: unit(noise(keys, seed + 2)),
        value: noise(values, seed + 3),
        beta: noise(1, seed + 4)[0].abs(),
    };
    (0..ROWS as u64).map(|i| row(5 * i + 1)).collect()
}

/// What each row puts out.
fn ours(simd: Simd, keys: usize, values: usize) -> Vec<Vec<f32>> {
    let mut state = vec![0.0; keys * values];
    let outputs = rows(keys, values).into_iter().map(|Row { decay, key, query, mut value, beta }| {
        let (row, mut out) = (DeltaRow { decay: &decay, key: &key }, vec![f32::NAN; values]);
        DeltaOutput { state: &state, row, query: &query, beta, value: &mut value, out: &mut out }.run(simd);
        DeltaUpdate { state: &mut state, row, correction: &value }.run(simd);
        out
    });
    outputs.collect()
}

/// The same by the formula: forget, correct, ask.
fn exact(keys: usize, values: usize) -> Vec<Vec<f64>> {
    let mut state = vec![vec![0.0; values]; keys];
    let ask = |state: &[Vec<f64>], by: &[f32], j: usize| -> f64 {
        state.iter().zip(by).map(|(row, by)| row[j] * f64::from(*by)).sum()
    };
    let outputs = rows(keys, values).into_iter().map(|row| {
        for (state, decay) in state.iter_mut().zip(&row.decay) {
            state.iter_mut().for_each(|x| *x *= f64::from(*decay));
        }
        let corrections: Vec<f64> =
            (0..values).map(|j| f64::from(row.beta) * (f64::from(row.value[j]) - ask(&state, &row.key, j))).collect();
        for (state, key) in state.iter_mut().zip(&row.key) {
            state.iter_mut().zip(&corrections).for_each(|(x, correction)| *x += f64::from(*key) * correction);
        }
        (0..values).map(|j| ask(&state, &row.query, j)).collect()
    });
    outputs.collect()
}

#[test]
fn every_tier_gives_the_same_bits_close_to_f64() {
    for (keys, values) in [(16, 16), (128, 128), (24, 80), (8, 112)] {
        let expected = exact(keys, values);
        let results: Vec<_> = Simd::available().into_iter().map(|simd| ours(simd, keys, values)).collect();
        assert!(results.iter().all(|result| *result == results[0]));
        for (y, e) in results[0].iter().flatten().zip(expected.iter().flatten()) {
            assert!((f64::from(*y) - e).abs() < 1e-5, "{keys} keys, {values} values: {y} for {e}");
        }
        let largest = expected.iter().flatten().fold(0.0, |a: f64, b| a.max(b.abs()));
        assert!(largest > 0.1, "there is something to see: {largest}");
    }
}

#[test]
fn a_linear_output_is_what_the_state_answers_after_the_row() {
    for (keys, values) in [(16, 16), (128, 64), (24, 80)] {
        let (mut state, results) = (vec![0.0; keys * values], rows(keys, values));
        for Row { decay, key, query, value, .. } in &results {
            let row = DeltaRow { decay, key };
            let outs = Simd::available().into_iter().map(|simd| {
                let mut out = vec![f32::NAN; values];
                LinearOutput { state: &state, row, query, correction: value, out: &mut out }.run(simd);
                out
            });
            let outs: Vec<_> = outs.collect();
            assert!(outs.iter().all(|out| *out == outs[0]));
            DeltaUpdate { state: &mut state, row, correction: value }.run(Simd::available()[0]);
            for (j, y) in outs[0].iter().enumerate() {
                let exact: f64 = (0..keys).map(|i| f64::from(state[i * values + j]) * f64::from(query[i])).sum();
                assert!((f64::from(*y) - exact).abs() < 1e-5, "{y} for {exact}");
            }
        }
    }
}

#[test]
fn gates_are_the_formulas_and_keep_nan() {
    for x in [-700.0, -90.0, -3.0, -0.1, 0.0, 0.4, 2.0, 19.9, 20.1, 50.0, 800.0_f32] {
        let (wide, softplus) = (f64::from(x), if x > 100.0 { f64::from(x) } else { f64::from(x).exp().ln_1p() });
        assert!((f64::from(decay(-0.3, x)) - (f64::from(-0.3_f32) * softplus).exp()).abs() < 1e-7, "{x}");
        assert!((f64::from(self::softplus(x)) - softplus).abs() <= 1e-7 * softplus.max(1.0), "{x}");
        assert!((f64::from(sigmoid(x)) - 1.0 / (1.0 + (-wide).exp())).abs() < 1e-7, "{x}");
    }
    assert!(decay(-0.3, f32::NAN).is_nan() && decay(f32::NAN, 1.0).is_nan() && sigmoid(f32::NAN).is_nan());
    assert_eq!((decay(-1.0, f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (0.0, 0.0));
}
