//! The formats that the tensor framework does not know, against their descriptions.

use qmesh_arithmetic::tensor::TensorType;
use qmesh_kernels::lanes::Simd;

use crate::random::{finite_blocks, packed, random_blocks};

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

/// What ggml itself makes of the same blocks (and, but for the last two types, its Python package too): FNV-1a over the bits
/// of the elements, zeros without their sign.
#[test]
fn every_code_is_the_elements_that_it_stands_for_at_its_origin() {
    let digests = [
        (TensorType::IQ4NL, 0xbf9f_64b2_d108_df65_u64),
        (TensorType::IQ4XS, 0x4893_ac08_f491_f617),
        (TensorType::IQ1S, 0x8dde_cf13_dfee_abe5),
        (TensorType::IQ1M, 0xa09e_cc4e_4e14_9945),
        (TensorType::IQ2XXS, 0x33e0_1370_fb70_239d),
        (TensorType::IQ2XS, 0x8083_1ad6_7ad0_edc5),
        (TensorType::IQ2S, 0xfa12_79af_b4dd_24bd),
        (TensorType::IQ3XXS, 0x177d_8c09_6d20_7c25),
        (TensorType::IQ3S, 0x48fa_d13f_49a6_2925),
        (TensorType::NVFP4, 0xdc9d_cdf2_fdfa_2325),
        (TensorType::TQ1_0, 0x47c5_3014_b9f1_0325),
        (TensorType::TQ2_0, 0x1815_19b6_887f_4325),
        (TensorType::Q1_0, 0x2b9a_f6d5_6d8e_a325),
        (TensorType::Q2_0, 0x8038_91fb_10ce_8325),
    ];
    for (dtype, expected) in digests {
        let (rows, cols) = (64, 32 * dtype.block_len());
        let file = finite_blocks(dtype, rows * cols / dtype.block_len(), u64::from(dtype.ggml_id()));
        let matrix = packed(dtype, rows, cols, &file);
        let ids: Vec<u32> = (0..rows as u32).collect();
        for simd in Simd::available() {
            let mut values = vec![0.0; rows * cols];
            matrix.look_up(simd, &ids, &mut values);
            let digest = values.iter().fold(0xcbf2_9ce4_8422_2325, |digest: u64, value| {
                (digest ^ u64::from((value + 0.0).to_bits())).wrapping_mul(0x100_0000_01b3)
            });
            assert_eq!(digest, expected, "{dtype} {}: {digest:#018x}", simd.name());
        }
    }
}
