//! Where the bytes of a group go.

use qmesh_arithmetic::tensor::TensorType;
use qmesh_kernels::matrix::Matrix;
use qmesh_team::Team;

#[test]
fn words_go_to_lanes_and_the_lone_half_goes_last() {
    // Two blocks of Q4_0 a row; each byte says where it comes from.
    let byte = |row: usize, at: usize| (row * 36 + at) as u8;
    let mut group: Vec<u8> = (0..16).flat_map(|row| (0..36).map(move |at| byte(row, at))).collect();
    Matrix::pack(&Team::new(1).unwrap(), TensorType::Q4_0, 36, &mut group);
    assert_eq!(group[288 + 64 * 2 + 4 * 5..][..4], [0, 1, 2, 3].map(|i| byte(5, 18 + 2 + 8 + i)));
    assert_eq!(group[288 + 256 + 2 * 7..][..2], [byte(7, 18), byte(7, 19)]);
}
