//! The memory that a thread computes outputs in, product after product: to clear it each time takes long beside a product of few
//! columns.

use std::cell::RefCell;

use qmesh_kernels::lanes::LANES;

thread_local! {
    static TILES: RefCell<Vec<[f32; LANES]>> = const { RefCell::new(Vec::new()) };
}

/// Gives `work` so many tiles that hold anything. It must not ask for tiles itself.
pub(super) fn with_tiles<R>(count: usize, work: impl FnOnce(&mut [[f32; LANES]]) -> R) -> R {
    TILES.with_borrow_mut(|tiles| {
        if tiles.len() < count {
            // No more than is asked for, and never the old ones beside the new ones: the plan counts one product's.
            *tiles = Vec::new();
            *tiles = vec![[0.0; LANES]; count];
        }
        work(&mut tiles[..count])
    })
}
