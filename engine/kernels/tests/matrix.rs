//! Packed matrices against the tensor framework.

use qmesh_arithmetic::tensor::TensorType;
use qmesh_kernels::{lanes::Simd, matrix::Matrix};

use crate::random::random_matrix;

#[test]
fn looked_up_rows_are_those_of_the_framework() {
    for dtype in TensorType::ALL {
        let cols = 3 * dtype.block_len().max(32) + if dtype.block_len() == 1 { 6 } else { 0 };
        let (matrix, expected) = random_matrix(dtype, 19, cols);
        let expected: Vec<Vec<f32>> = expected.to_vec2().unwrap();
        let ids: Vec<u32> = (0..19).chain([4, 4, 0]).collect();
        for simd in Simd::available() {
            let mut rows = vec![0.0; ids.len() * cols];
            matrix.look_up(simd, &ids, &mut rows);
            for (row, id) in rows.chunks(cols).zip(&ids) {
                for (x, y) in row.iter().zip(&expected[*id as usize]) {
                    assert!((x - y).abs() <= 1e-6, "{dtype} {} row {id}: {x} for {y}", simd.name());
                }
            }
        }
    }
}

#[test]
fn stacked_matrices_are_parted() {
    let (all, expected) = random_matrix(TensorType::Q8_0, 96, 64);
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    for (i, part) in all.stacked(3).unwrap().iter().enumerate() {
        let mut rows = vec![0.0; 32 * 64];
        part.look_up(Simd::available()[0], &(0..32).collect::<Vec<_>>(), &mut rows);
        assert_eq!(rows, expected[i * 32 * 64..][..32 * 64], "part {i}");
    }
    assert!(all.stacked(4).is_none() && all.stacked(5).is_none(), "24 rows, and 19.2");
}

#[test]
fn sizes_that_cannot_be_packed_are_refused() {
    assert_eq!(Matrix::packed_len(TensorType::Q4_0, 17, 36), Some(32 * 36));
    assert_eq!(Matrix::packed_len(TensorType::F16, 1, 6), None);
    assert_eq!(Matrix::packed_len(TensorType::F32, usize::MAX / 2, 8), None);
}
