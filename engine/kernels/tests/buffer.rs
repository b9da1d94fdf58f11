//! Memory of weights: zeroed, apart, and given back piece by piece.

use qmesh_kernels::buffer::Buffer;

const HUGE_PAGE: usize = 2 << 20;
/// The smallest page of any system.
const LEAST_PAGE: usize = 4 << 10;

#[test]
fn adjacent_buffers_are_zeroed_apart_and_freed_one_by_one() {
    let lens = [100, 3 << 20, 0, 70_000];
    let mut buffers = Buffer::adjacent(&lens).unwrap();
    assert_eq!(buffers.iter().map(|buffer| buffer.len()).collect::<Vec<_>>(), lens);
    assert!(buffers.iter().all(|buffer| buffer.iter().all(|byte| *byte == 0)));
    assert_eq!(buffers[0].as_ptr().addr() % HUGE_PAGE, 0);
    for (mark, buffer) in (1..).zip(&mut buffers) {
        assert_eq!(buffer.as_ptr().addr() % LEAST_PAGE, 0);
        buffer.bytes_mut().fill(mark);
    }
    drop(buffers.remove(1));
    for (mark, buffer) in [1, 3, 4].iter().zip(&buffers) {
        assert!(buffer.iter().all(|byte| byte == mark));
    }
    assert!(Buffer::adjacent(&[]).unwrap().is_empty());
    assert!(Buffer::new(usize::MAX).is_none() && Buffer::adjacent(&[usize::MAX / 2; 3]).is_none());
}
