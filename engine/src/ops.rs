//! Our fused operations as custom ops of the tensor framework: closures over the rows of f32 matrices.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

/// A new matrix from the elements of `x` (rows, cols): `f` returns the elements, with as many rows.
pub(crate) fn map(name: &'static str, x: &Tensor, f: impl Fn(&[f32]) -> Vec<f32>) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Map { name, f })
}

/// A new matrix from the elements of `x` and `y`, with as many rows.
pub(crate) fn map2(
    name: &'static str,
    x: &Tensor,
    y: &Tensor,
    f: impl Fn(&[f32], &[f32]) -> Vec<f32>,
) -> Result<Tensor> {
    x.apply_op2_no_bwd(y, &Map { name, f })
}

/// Reads the elements of `x` without copying them.
pub(crate) fn read<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => elements(storage, layout).map(f),
        candle_core::Storage::Cuda(_) | candle_core::Storage::Metal(_) => candle_core::bail!("not on the CPU"),
    }
}

struct Map<F> {
    name: &'static str,
    f: F,
}

impl<F: Fn(&[f32]) -> Vec<f32>> CustomOp1 for Map<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        matrix((self.f)(elements(storage, layout)?), layout)
    }
}

impl<F: Fn(&[f32], &[f32]) -> Vec<f32>> CustomOp2 for Map<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_at: &Layout, y: &CpuStorage, y_at: &Layout) -> Result<(CpuStorage, Shape)> {
        matrix((self.f)(elements(x, x_at)?, elements(y, y_at)?), x_at)
    }
}

fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = contiguous(layout)?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

fn contiguous(layout: &Layout) -> Result<(usize, usize)> {
    layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("the rows are not contiguous".into()))
}

fn matrix(values: Vec<f32>, like: &Layout) -> Result<(CpuStorage, Shape)> {
    let rows = like.dims()[0];
    let cols = values.len() / rows;
    Ok((CpuStorage::F32(values), (rows, cols).into()))
}
