//! Matrices that are turned round when they are loaded.
//!
//! Files from before April 2025 hold what makes a head's keys of the latent. Queries go to the latent instead, and need the
//! same elements with rows and columns exchanged. Blocks lie along the rows, so these elements are held as floats.

use std::sync::Arc;

use half::{bf16, f16};
use qmesh_kernels::{
    Cpu,
    buffer::{Buffer, Bytes},
    matrix::Matrix,
};
use qmesh_models::{footprint::turned_type, tensor::TensorType};

use crate::error::EngineError;

/// One matrix below the other, each turned: of `matrices`, which all have as many rows and columns, to as many of columns
/// by rows. `None` where their elements cannot be packed.
pub(super) fn turned(cpu: Cpu<'_>, matrices: &[Matrix]) -> Result<Option<Matrix>, EngineError> {
    let Some(Matrix { dtype, rows, cols, .. }) = matrices.first() else { return Ok(None) };
    let (dtype, rows, cols) = (turned_type(*dtype), matrices.len() * cols, *rows);
    let packed = dtype.row_bytes(cols).and_then(|row| Some((row, Matrix::packed_len(dtype, rows, row)?)));
    let Some((row_bytes, len)) = packed.filter(|(_, len)| *len > 0) else { return Ok(None) };
    let out_of_memory = || EngineError::OutOfMemory { needed: len as u64, tensor: "a matrix that is turned".into() };
    let mut buffer = Buffer::new(len).ok_or_else(out_of_memory)?;
    let places = buffer.bytes_mut()[..rows * row_bytes].chunks_exact_mut(rows / matrices.len() * row_bytes);
    cpu.team.each(matrices.iter().zip(places).collect(), |(matrix, place): (&Matrix, &mut [u8])| {
        // Dimensions are held far below 2^32.
        let ids: Vec<u32> = (0..matrix.rows as u32).collect();
        let mut elements = vec![0.0; matrix.rows * matrix.cols];
        matrix.look_up(cpu.simd, &ids, &mut elements);
        for (column, row) in place.chunks_exact_mut(row_bytes).enumerate() {
            let elements = elements[column..].iter().step_by(matrix.cols);
            for (x, bytes) in elements.zip(row.chunks_exact_mut(dtype.block_bytes())) {
                write(dtype, *x, bytes);
            }
        }
    });
    Matrix::pack(cpu.team, dtype, row_bytes, &mut buffer.bytes_mut()[..len]);
    Ok(Some(Matrix { dtype, rows, cols, bytes: Bytes::new(Arc::new(buffer), 0..len) }))
}

/// An element as the type has it; of other types than those of [`turned_type`] there is none.
fn write(dtype: TensorType, x: f32, bytes: &mut [u8]) {
    if dtype == TensorType::F32 {
        bytes.copy_from_slice(&x.to_le_bytes());
    } else if dtype == TensorType::BF16 {
        bytes.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
    } else {
        bytes.copy_from_slice(&f16::from_f32(x).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use qmesh_kernels::lanes::Simd;
    use qmesh_team::Team;

    use super::*;
    use crate::random::random_matrix;

    #[test]
    fn rows_become_columns_and_floats_stay_what_they_are() {
        let team = Team::new(2).unwrap();
        let cpu = Cpu { simd: Simd::available()[0], team: &team };
        for (dtype, held) in [
            (TensorType::F32, TensorType::F32),
            (TensorType::BF16, TensorType::BF16),
            (TensorType::F16, TensorType::F16),
            (TensorType::Q4_0, TensorType::F16),
            (TensorType::Q6K, TensorType::F16),
        ] {
            let (matrix, weight) = random_matrix(dtype, 2 * 48, 256);
            let weight = weight.to_vec2::<f32>().unwrap();
            let turned = turned(cpu, &matrix.stacked(2).unwrap()).unwrap().unwrap();
            assert_eq!((turned.dtype, turned.rows, turned.cols), (held, 2 * 256, 48));
            let mut elements = vec![0.0; 2 * 256 * 48];
            turned.look_up(cpu.simd, &(0..512).collect::<Vec<_>>(), &mut elements);
            for (at, x) in elements.iter().enumerate() {
                let (row, of_head) = (at / 48, at % 48);
                let expected = weight[row / 256 * 48 + of_head][row % 256];
                let error = (x - expected).abs();
                assert!(
                    error <= 1e-3 * expected.abs() && (dtype != held || error == 0.0),
                    "{dtype}: {x} for {expected}"
                );
            }
        }
    }
}
