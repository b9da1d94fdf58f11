//! Convolutions against f64.

use qmesh_kernels::{convolution::Convolve, lanes::Simd};

use crate::random::noise;

#[test]
fn channels_are_convolved_by_themselves_with_the_same_bits_on_every_tier() {
    for channels in [16, 24, 100] {
        let (taps, rows) = (noise(4 * channels, 1), noise(4 * channels, 2));
        for first in 0..4 {
            let terms: Vec<(&[f32], &[f32])> = taps.chunks(channels).zip(rows.chunks(channels)).skip(first).collect();
            let results: Vec<Vec<f32>> = Simd::available()
                .into_iter()
                .map(|simd| {
                    let mut out = vec![f32::NAN; channels];
                    Convolve { terms: &terms, out: &mut out }.run(simd);
                    out
                })
                .collect();
            assert!(results.iter().all(|r| *r == results[0]));
            for (channel, y) in results[0].iter().enumerate() {
                let sum: f64 = terms.iter().map(|(t, x)| f64::from(t[channel]) * f64::from(x[channel])).sum();
                let exact = sum / (1.0 + (-sum).exp());
                assert!((f64::from(*y) - exact).abs() < 1e-6, "{y} for {exact}");
            }
        }
    }
}
