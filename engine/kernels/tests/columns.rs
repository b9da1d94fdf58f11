//! Parts of a matrix by columns.

use qmesh_kernels::columns::Columns;

#[test]
fn parts_cover_the_matrix_once() {
    let mut matrix = vec![0; 3 * 7];
    for (i, mut part) in Columns::split(&mut matrix, &[2, 0, 4, 1]).into_iter().enumerate() {
        for row in 0..3 {
            part.row(row).iter_mut().for_each(|x| *x += 10 * row + i);
        }
    }
    let rows: Vec<&[usize]> = matrix.chunks(7).collect();
    assert_eq!(rows[0], [0, 0, 2, 2, 2, 2, 3]);
    assert_eq!(rows[2], [20, 20, 22, 22, 22, 22, 23]);
}
