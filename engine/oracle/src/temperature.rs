//! Queries that grow with their position.

use candle_core::{Result, Tensor};
use qmesh_models::spec::Temperature;

/// x (heads, rows, …), queries or their scores, whose first row is at `first_position`, with each row as large as its position
/// makes it.
pub(crate) fn tempered(x: &Tensor, temperature: Option<Temperature>, first_position: usize) -> Result<Tensor> {
    let Some(Temperature { scale, offset, length }) = temperature else { return Ok(x.clone()) };
    let rows = x.dim(1)?;
    let factor = |position: usize| 1.0 + f64::from(scale) * (((position + offset) / length) as f64).ln_1p();
    let factors = (first_position..first_position + rows).map(|position| factor(position) as f32);
    x.broadcast_mul(&Tensor::from_iter(factors, x.device())?.reshape((1, rows, 1))?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn rows_grow_with_the_logarithm_of_their_step() {
        let ones = Tensor::ones((1, 4, 1), DType::F32, &Device::Cpu).unwrap();
        let grown = |offset| {
            let temperature = Some(Temperature { scale: 0.5, offset, length: 3 });
            tempered(&ones, temperature, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let second = 1.0 + 0.5 * 2_f32.ln();
        assert_eq!((grown(0), grown(1)), (vec![1.0, 1.0, second, second], vec![1.0, second, second, second]));
    }
}
