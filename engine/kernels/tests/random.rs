//! Random matrices for tests, as a file holds them, packed, and dequantised by someone else.

use std::sync::Arc;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use half::f16;
use qmesh_arithmetic::tensor::TensorType;
use qmesh_kernels::{
    buffer::{Buffer, Bytes},
    lanes::Simd,
    matrix::Matrix,
};
use qmesh_team::Team;

/// Reproducible values in about -1..1, most of them small.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| 4.0 * next() * next()).collect()
}

/// The matrix that these bytes of a file are.
pub(crate) fn packed(dtype: TensorType, rows: usize, cols: usize, file: &[u8]) -> Matrix {
    let len = Matrix::packed_len(dtype, rows, file.len() / rows).unwrap();
    let mut buffer = Buffer::new(len).unwrap();
    buffer.bytes_mut()[..file.len()].copy_from_slice(file);
    Matrix::pack(&Team::new(1).unwrap(), dtype, file.len() / rows, &mut buffer.bytes_mut()[..len]);
    Matrix { dtype, rows, cols, bytes: Bytes::new(Arc::new(buffer), 0..len) }
}

/// A random matrix as bytes of a file, and dequantised by the tensor framework, or as the format says where the
/// framework does not know it.
pub(crate) fn random_file(dtype: TensorType, rows: usize, cols: usize) -> (Vec<u8>, Tensor) {
    let tensor = Tensor::from_vec(noise(rows * cols, rows as u64), (rows, cols), &Device::Cpu).unwrap();
    let ggml = match dtype {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::BF16 => GgmlDType::BF16,
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2K => GgmlDType::Q2K,
        TensorType::Q3K => GgmlDType::Q3K,
        TensorType::Q4K => GgmlDType::Q4K,
        TensorType::Q5K => GgmlDType::Q5K,
        TensorType::Q6K => GgmlDType::Q6K,
        TensorType::IQ4NL | TensorType::IQ4XS | TensorType::MXFP4 => {
            let (file, values) = random_blocks(dtype, rows * cols / dtype.block_len());
            return (file, Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap());
        }
        TensorType::IQ1S | TensorType::IQ1M | TensorType::IQ2XXS | TensorType::IQ2XS | TensorType::IQ2S => {
            return random_bytes(dtype, rows, cols);
        }
        TensorType::IQ3XXS | TensorType::IQ3S | TensorType::NVFP4 => return random_bytes(dtype, rows, cols),
        TensorType::TQ1_0 | TensorType::TQ2_0 | TensorType::Q1_0 | TensorType::Q2_0 => {
            return random_bytes(dtype, rows, cols);
        }
    };
    let quantized = QTensor::quantize(&tensor, ggml).unwrap();
    (quantized.data().unwrap().into_owned(), quantized.dequantize(&Device::Cpu).unwrap())
}

/// The matrix of [`random_file`], and the same one dequantised.
pub(crate) fn random_matrix(dtype: TensorType, rows: usize, cols: usize) -> (Matrix, Tensor) {
    let (file, tensor) = random_file(dtype, rows, cols);
    (packed(dtype, rows, cols, &file), tensor)
}

/// Random blocks, dequantised by the portable look-up, which `format` compares with the format's origin.
fn random_bytes(dtype: TensorType, rows: usize, cols: usize) -> (Vec<u8>, Tensor) {
    let file = finite_blocks(dtype, rows * cols / dtype.block_len(), rows as u64);
    let mut values = vec![0.0; rows * cols];
    let ids: Vec<u32> = (0..rows as u32).collect();
    packed(dtype, rows, cols, &file).look_up(Simd::named(Some("scalar".into())).unwrap(), &ids, &mut values);
    (file, Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap())
}

/// Blocks of any bytes, but that their scales are below 2.
pub(crate) fn finite_blocks(dtype: TensorType, count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut file: Vec<u8> = (0..count * dtype.block_bytes()).map(|_| next()).collect();
    if dtype == TensorType::NVFP4 {
        return file;
    }
    // Where the upper byte of the f16 is, or what takes its place.
    let elsewhere = [(TensorType::TQ1_0, 53), (TensorType::IQ1M, 55), (TensorType::TQ2_0, 65)];
    let scale = elsewhere.iter().find(|(other, _)| *other == dtype).map_or(1, |(_, at)| *at);
    file.chunks_mut(dtype.block_bytes()).for_each(|block| block[scale] &= 0xbf);
    file
}

/// What the nibbles of the IQ4 types stand for.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Random blocks of the formats that the framework does not know, as bytes of a file, with scales among them that are zero or too small to be
/// normal, and their values as the formats' descriptions have them.
pub(crate) fn random_blocks(dtype: TensorType, count: usize) -> (Vec<u8>, Vec<f32>) {
    let random = noise(count * dtype.block_bytes(), count as u64);
    let mut file: Vec<u8> = random.iter().map(|x| x.to_bits().to_le_bytes()[1]).collect();
    let mut values = Vec::new();
    for (i, block) in file.chunks_mut(dtype.block_bytes()).enumerate() {
        if dtype == TensorType::MXFP4 {
            block[0] = [120, 121, 122, 123, 124, 125, 0, 1, 2][i % 9];
        } else {
            let usual = f16::from_f32(random[i] / dtype.block_len() as f32).to_bits();
            let scale = [usual, usual, usual, usual, usual, usual, 0x0000, 0x0001, 0x83ff][i % 9];
            block[..2].copy_from_slice(&scale.to_le_bytes());
        }
        values.extend((0..dtype.block_len()).map(|k| value(dtype, block, k) as f32));
    }
    (file, values)
}

/// Element `k` of a block of the file.
fn value(dtype: TensorType, block: &[u8], k: usize) -> f64 {
    let nibble = |bytes: &[u8]| usize::from(if k % 32 < 16 { bytes[k % 16] & 15 } else { bytes[k % 16] >> 4 });
    let iq4 = |bytes: &[u8]| f64::from(IQ4[nibble(bytes)]);
    let d = f16::from_le_bytes([block[0], block[1]]).to_f64();
    if dtype == TensorType::MXFP4 {
        2f64.powi(i32::from(block[0]) - 127) * e2m1(nibble(&block[1..]))
    } else if dtype == TensorType::IQ4NL {
        d * iq4(&block[2..])
    } else {
        let sub = k / 32;
        let low = block[4 + sub / 2] >> (4 * (sub % 2)) & 15;
        let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * sub) & 3;
        d * (f64::from(low) + 16.0 * f64::from(high) - 32.0) * iq4(&block[8 + 16 * sub..])
    }
}

/// The float with this sign, two bits of exponent and one of mantissa.
fn e2m1(bits: usize) -> f64 {
    let (sign, exponent, mantissa) = (bits >> 3, bits >> 1 & 3, (bits & 1) as f64 / 2.0);
    let magnitude = if exponent == 0 { mantissa } else { (1.0 + mantissa) * f64::from(1 << (exponent - 1)) };
    if sign == 1 { -magnitude } else { magnitude }
}
