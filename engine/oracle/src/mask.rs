//! Which keys a query sees.

use candle_core::{Device, Result, Tensor};
use qmesh_models::spec::Window;

/// What is added to scores: 0 where the query of a row sees the key of a position, −∞ where it does not.
/// (rows, positions), where the first of the rows is at `first_position` and the last one at the last of the positions.
pub(crate) fn mask(rows: usize, first_position: usize, window: Window, device: &Device) -> Result<Tensor> {
    let positions = first_position + rows;
    let sees = |query: usize, key: usize| match window {
        Window::Full => key <= query,
        Window::Sliding(width) => key <= query && query - key < width,
        Window::Chunked(width) => key <= query && query / width == key / width,
    };
    let queries = first_position..positions;
    let added =
        queries.flat_map(|query| (0..positions).map(move |key| if sees(query, key) { 0.0 } else { f32::NEG_INFINITY }));
    Tensor::from_vec(added.collect::<Vec<f32>>(), (rows, positions), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_sees_itself_and_what_came_before_it() {
        let seen = |rows, first, window| {
            let added = mask(rows, first, window, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            added.iter().map(|row| row.iter().map(|x| u8::from(*x == 0.0)).collect()).collect::<Vec<Vec<u8>>>()
        };
        assert_eq!(seen(2, 1, Window::Full), [[1, 1, 0], [1, 1, 1]]);
        assert_eq!(seen(3, 1, Window::Sliding(2)), [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]);
        assert_eq!(seen(1, 0, Window::Sliding(1)), [[1]]);
        assert_eq!(seen(3, 1, Window::Chunked(2)), [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]);
    }
}
