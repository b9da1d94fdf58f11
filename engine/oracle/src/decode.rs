//! From a tensor's bytes in the file to f32 elements: by candle where it knows the type, else by the format's definition.

mod bits;
mod codebooks;
mod tables;

use std::borrow::Cow;

use candle_core::{
    DType, Device, Result, Tensor,
    quantized::{GgmlDType, QStorage, QTensor},
};
use qmesh_models::tensor::TensorType;

/// Elements of whole rows: (rows, cols) of f32 on `device`. `bytes` are as long as rows of `dtype` are.
pub(crate) fn decode(dtype: TensorType, bytes: &[u8], (rows, cols): (usize, usize), device: &Device) -> Result<Tensor> {
    let floats = |dtype| Tensor::from_raw_buffer(bytes, dtype, &[rows, cols], &Device::Cpu)?.to_dtype(DType::F32);
    let blocks = |dtype| {
        let storage = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, dtype)?;
        QTensor::new(storage, (rows, cols))?.dequantize(&Device::Cpu)
    };
    let table = |elements| Tensor::from_vec(elements, (rows, cols), &Device::Cpu);
    let elements = match dtype {
        TensorType::F32 => floats(DType::F32),
        TensorType::F16 => floats(DType::F16),
        TensorType::BF16 => floats(DType::BF16),
        TensorType::Q4_0 => blocks(GgmlDType::Q4_0),
        TensorType::Q4_1 => blocks(GgmlDType::Q4_1),
        TensorType::Q5_0 => blocks(GgmlDType::Q5_0),
        TensorType::Q5_1 => blocks(GgmlDType::Q5_1),
        TensorType::Q8_0 => blocks(GgmlDType::Q8_0),
        TensorType::Q2K => blocks(GgmlDType::Q2K),
        TensorType::Q3K => blocks(GgmlDType::Q3K),
        TensorType::Q4K => blocks(GgmlDType::Q4K),
        TensorType::Q5K => blocks(GgmlDType::Q5K),
        TensorType::Q6K => blocks(GgmlDType::Q6K),
        TensorType::IQ4NL => table(tables::iq4_nl(bytes)),
        TensorType::IQ4XS => table(tables::iq4_xs(bytes)),
        TensorType::MXFP4 => table(tables::mxfp4(bytes)),
        TensorType::IQ1S => table(codebooks::iq1_s(bytes)),
        TensorType::IQ1M => table(codebooks::iq1_m(bytes)),
        TensorType::IQ2XXS => table(codebooks::iq2_xxs(bytes)),
        TensorType::IQ2XS => table(codebooks::iq2_xs(bytes)),
        TensorType::IQ2S => table(codebooks::iq2_s(bytes)),
        TensorType::IQ3XXS => table(codebooks::iq3_xxs(bytes)),
        TensorType::IQ3S => table(codebooks::iq3_s(bytes)),
        TensorType::NVFP4 => table(tables::nvfp4(bytes)),
        TensorType::TQ1_0 => table(bits::tq1_0(bytes)),
        TensorType::TQ2_0 => table(bits::tq2_0(bytes)),
        TensorType::Q1_0 => table(bits::q1_0(bytes)),
        TensorType::Q2_0 => table(bits::q2_0(bytes)),
    };
    elements?.to_device(device)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// One row of one block, of all zeros but for the bytes at these places.
    fn block(dtype: TensorType, bytes: &[(usize, u8)]) -> Vec<f32> {
        let mut block = vec![0; dtype.block_bytes()];
        bytes.iter().for_each(|(at, byte)| block[*at] = *byte);
        let row = decode(dtype, &block, (1, dtype.block_len()), &Device::Cpu).unwrap();
        assert_eq!((row.dims(), row.dtype()), (&[1, dtype.block_len()][..], DType::F32));
        row.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn floats_are_widened() {
        assert_eq!(block(TensorType::F32, &[(2, 0x40), (3, 0x40)]), [3.0]);
        assert_eq!(block(TensorType::F16, &[(1, 0xc0)]), [-2.0]);
        assert_eq!(block(TensorType::BF16, &[(0, 0xc0), (1, 0x3f)]), [1.5]);
    }

    #[test]
    fn every_blocked_type_scales_its_steps() {
        let [low, high] = f16::from_f32(0.5).to_le_bytes();
        // Where the block's scale stands, and what its first element is when nothing but the scale is set.
        let cases = [
            (TensorType::Q4_0, 0, -8.0 * 0.5),
            (TensorType::Q5_0, 0, -16.0 * 0.5),
            (TensorType::Q4_1, 2, 0.5),
            (TensorType::Q5_1, 2, 0.5),
            (TensorType::Q8_0, 0, 0.0),
            (TensorType::IQ4NL, 0, -127.0 * 0.5),
            (TensorType::IQ4XS, 0, -32.0 * -127.0 * 0.5),
        ];
        for (dtype, at, expected) in cases {
            let row = block(dtype, &[(at, low), (at + 1, high)]);
            assert!(row.iter().all(|x| *x == expected), "{dtype}: {row:?}");
        }
        let q8 = block(TensorType::Q8_0, &[(0, low), (1, high), (2, 3), (33, 0xff)]);
        assert_eq!((q8[0], q8[1], q8[31]), (1.5, 0.0, -0.5));
        // A scale of one sixteenth of the block's own, and one step of an element.
        let q6 = block(TensorType::Q6K, &[(208, low), (209, high), (192, 4), (0, 1)]);
        assert_eq!((q6[0], q6[1]), (0.5 * 4.0 * (1.0 - 32.0), 0.5 * 4.0 * -32.0));
    }
}
