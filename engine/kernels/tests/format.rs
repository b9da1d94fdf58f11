//! The formats that the tensor framework does not know, against their descriptions.

use qmesh_arithmetic::tensor::TensorType;
use qmesh_kernels::lanes::Simd;

use crate::random::{packed, random_blocks};

#[test]
fn looked_up_values_are_exact() {
    for dtype in [TensorType::IQ4NL, TensorType::IQ4XS, TensorType::MXFP4] {
        let (file, values) = random_blocks(dtype, 19 * 3);
        let matrix = packed(dtype, 19, 3 * dtype.block_len(), &file);
        let ids: Vec<u32> = (0..19).collect();
        for simd in Simd::available() {
            let mut rows = vec![0.0; values.len()];
            matrix.look_up(simd, &ids, &mut rows);
            assert_eq!(rows, values, "{dtype} {}", simd.name());
        }
    }
}
