//! Products against the tensor framework, against each other, and against the order written down.

use candle_core::{DType, Device, Tensor};
use qmesh_arithmetic::tensor::TensorType;
use qmesh_kernels::{
    lanes::{LANES, Simd},
    matrix::Matrix,
    product::{Inputs, Product},
    quantize::{BLOCK, QuantBlock, Quantize},
};

use crate::random::{noise, packed, random_file, random_matrix};

fn quantized(simd: Simd, x: &[f32]) -> Vec<QuantBlock> {
    let mut blocks = vec![QuantBlock::default(); x.len() / BLOCK];
    Quantize { x, blocks: &mut blocks }.run(simd);
    blocks
}

/// (rows, outputs), in shares of `share` groups as threads would compute them.
fn product(simd: Simd, matrix: &Matrix, x: &[f32], share: usize) -> Vec<f32> {
    let (rows, cols) = (x.len() / matrix.cols, matrix.cols);
    let blocks = if matrix.dtype.block_len() > 1 { quantized(simd, x) } else { Vec::new() };
    let x = Inputs { rows, cols, floats: x, blocks: &blocks };
    // Whatever was there is gone afterwards.
    let mut tiles = vec![[f32::NAN; LANES]; matrix.groups() * rows];
    for (i, out) in tiles.chunks_mut(share * rows).enumerate() {
        let groups = share * i..share * i + out.len() / rows;
        Product { matrix, groups, x, out }.run(simd);
    }
    let at = |row: usize, output: usize| tiles[output / LANES * rows + row][output % LANES];
    (0..rows).flat_map(|row| (0..matrix.rows).map(move |output| at(row, output))).collect()
}

/// Relative to the largest output; int8 activations are good for about half a per cent.
fn assert_close(matrix: &Matrix, dequantized: &Tensor, x: &[f32], y: &[f32]) {
    let x = Tensor::from_slice(x, (x.len() / matrix.cols, matrix.cols), &Device::Cpu).unwrap();
    let weights = dequantized.to_dtype(DType::F64).unwrap().t().unwrap();
    let exact = x.to_dtype(DType::F64).unwrap().matmul(&weights).unwrap();
    let exact: Vec<f64> = exact.flatten_all().unwrap().to_vec1().unwrap();
    let largest = exact.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let tolerance = if matrix.dtype.block_len() == 1 { 1e-5 } else { 2e-2 };
    for (a, b) in y.iter().zip(&exact) {
        assert!((f64::from(*a) - b).abs() <= tolerance * largest, "{matrix:?}: {a} for {b}");
    }
}

#[test]
fn every_type_and_tier_gives_the_scalar_bits_for_any_number_of_rows() {
    for dtype in TensorType::ALL {
        let unit = dtype.block_len().max(32);
        for (outputs, cols) in [(1, unit), (37, 3 * unit), (48, 576_usize.next_multiple_of(unit)), (16, 11 * unit)] {
            let cols = if dtype.block_len() == 1 { cols + 6 } else { cols };
            let (matrix, dequantized) = random_matrix(dtype, outputs, cols);
            let x = noise(70 * cols, 7);
            let tiers = Simd::available();
            let expected = product(tiers[tiers.len() - 1], &matrix, &x, 1);
            assert_close(&matrix, &dequantized, &x, &expected);
            for simd in tiers {
                for (rows, share) in [(1, 3), (2, 1), (3, 2), (4, 3), (5, 3), (8, 1), (9, 3), (16, 2), (17, 2), (70, 3)]
                {
                    let y = product(simd, &matrix, &x[..rows * cols], share);
                    assert_eq!(y, expected[..rows * outputs], "{matrix:?} {} {rows} rows", simd.name());
                }
            }
        }
    }
}

/// The widths of real models, which end panels in different places, and up to 300 rows.
#[test]
fn wide_matrices_and_many_rows_give_the_bits_of_one_row() {
    let simd = Simd::available()[0];
    for (dtype, cols) in [
        (TensorType::Q5_0, 640),
        (TensorType::Q8_0, 896),
        (TensorType::Q2K, 2048),
        (TensorType::Q4K, 8960),
        (TensorType::Q6K, 2048),
        (TensorType::MXFP4, 2880),
        (TensorType::IQ1M, 2048),
        (TensorType::IQ2XXS, 7168),
        (TensorType::IQ3S, 1536),
        (TensorType::NVFP4, 2880),
        (TensorType::Q1_0, 640),
    ] {
        let (matrix, _) = random_matrix(dtype, 35, cols);
        let x = noise(300 * cols, 9);
        let alone: Vec<f32> = x.chunks(cols).flat_map(|x| product(simd, &matrix, x, 3)).collect();
        for rows in [6, 12, 14, 63, 64, 300] {
            assert_eq!(product(simd, &matrix, &x[..rows * cols], 3), alone[..rows * 35], "{matrix:?} {rows} rows");
        }
    }
}

/// The order of docs/ARCHITECTURE.md written out for one type, from the bytes of the file.
#[test]
fn the_canonical_order_is_the_one_written_down() {
    let (file, _) = random_file(TensorType::Q4_1, 3, 96);
    let x = noise(96, 3);
    let blocks = quantized(Simd::available()[0], &x);
    let expected: Vec<f32> = file
        .chunks(60)
        .map(|row| {
            row.chunks(20).zip(&blocks).fold(0.0, |sum: f32, (w, a)| {
                let q = |k: usize| if k < 16 { w[4 + k] & 15 } else { w[4 + k - 16] >> 4 };
                let dot: i32 = (0..32).map(|k| i32::from(q(k)) * activation(a, k)).sum();
                let sum = (half(w) * a.scale).mul_add(dot as f32, sum);
                half(&w[2..]).mul_add(a.scaled_sum, sum)
            })
        })
        .collect();
    assert_eq!(product(Simd::available()[0], &packed(TensorType::Q4_1, 3, 96, &file), &x, 1), expected);
}

/// The same for the type that has a scale and a minimum for every sixteen elements.
#[test]
fn the_canonical_order_of_sixteens_is_the_one_written_down() {
    let (file, _) = random_file(TensorType::Q2K, 3, 512);
    let x = noise(512, 3);
    let blocks = quantized(Simd::available()[0], &x);
    let sixteen = |w: &[u8], a: &QuantBlock, part: usize, sum: f32| {
        let q = |k: usize| w[16 + 32 * (part / 8) + 16 * (part % 2) + k] >> (2 * (part / 2 % 4)) & 3;
        let dot: i32 = (0..16).map(|k| i32::from(q(k)) * activation(a, 16 * (part % 2) + k)).sum();
        let (scale, minimum) = (half(&w[80..]) * f32::from(w[part] & 15), -half(&w[82..]) * f32::from(w[part] >> 4));
        let sum = (scale * a.scale).mul_add(dot as f32, sum);
        minimum.mul_add(a.scale * a.sums[part % 2] as f32, sum)
    };
    let expected: Vec<f32> = file
        .chunks(168)
        .map(|row| {
            row.chunks(84)
                .zip(blocks.chunks(8))
                .fold(0.0, |sum, (w, a)| (0..16).fold(sum, |sum, part| sixteen(w, &a[part / 2], part, sum)))
        })
        .collect();
    assert_eq!(product(Simd::available()[0], &packed(TensorType::Q2K, 3, 512, &file), &x, 1), expected);
}

fn half(bytes: &[u8]) -> f32 {
    half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn activation(block: &QuantBlock, k: usize) -> i32 {
    i32::from(block.words[k / 4][k % 4].cast_signed())
}
