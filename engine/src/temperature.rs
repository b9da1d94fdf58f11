//! Queries that grow with their position.

use qmesh_kernels::real;
use qmesh_models::spec::Temperature;

/// What a query at `position` is multiplied by: 1 + scale · ln(1 + ⌊(position + offset) / length⌋).
pub(crate) fn factor(Temperature { scale, offset, length }: Temperature, position: usize) -> f32 {
    let step = position.saturating_add(offset) / length;
    (1.0 + f64::from(scale) * real::ln(1.0 + step as f64)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_grow_step_by_step() {
        let grown = |offset, position| factor(Temperature { scale: 0.1, offset, length: 8192 }, position);
        assert_eq!([grown(0, 0), grown(0, 8191), grown(1, 8190)], [1.0; 3]);
        let second = (1.0 + 0.1_f64 * 2_f64.ln()) as f32;
        assert_eq!([grown(0, 8192), grown(1, 8191), grown(1, 16_382)], [second; 3]);
        assert_eq!(grown(1, 16_383), (1.0 + 0.1_f64 * 3_f64.ln()) as f32);
    }
}
