//! Weights unpacked: some blocks of sixteen rows as bytes and scales, in the L1 cache.

use qmesh_arithmetic::tensor::TensorType;

use super::{
    format::{Form, Format, Group, lines, with_format},
    lanes::{Kernel, LANES, Lanes},
    quantize::BLOCK,
};

/// Blocks of 32 that a panel holds: two panels of 768 values of K fill three quarters of the L1 cache.
pub(super) const PANEL_BLOCKS: usize = 24;

/// Sixteen rows of weights, unpacked: lane = row.
#[repr(align(64))]
pub(super) struct Panel {
    /// Four K of sixteen rows each; eight lines a block of 32.
    pub lines: [[[u8; 64]; 8]; PANEL_BLOCKS],
    /// One line a scale, `Form::scales` a block.
    pub scales: [[f32; LANES]; 2 * PANEL_BLOCKS],
    /// As many, of formats that have minima.
    pub minima: [[f32; LANES]; 2 * PANEL_BLOCKS],
}

impl Panel {
    /// A panel of zeros.
    pub(super) fn new() -> Self {
        Self { lines: [[[0; 64]; 8]; _], scales: [[0.0; LANES]; _], minima: [[0.0; LANES]; _] }
    }

    /// Unpacks `packed`, groups of a quantised type, and asks for `next`, which is about as long, to be near when its turn
    /// comes.
    #[inline(always)]
    pub(super) fn unpack<L: Lanes>(&mut self, l: L, dtype: TensorType, packed: &[u8], next: &[u8]) {
        with_format!(dtype, |F, B| {
            let groups = packed.as_chunks::<B>().0.as_chunks::<LANES>().0;
            l.call(Unpack::<F, B> { groups, next, panel: self, format: std::marker::PhantomData });
        });
    }
}

/// A function of its own for each format, so that all who unpack share it.
struct Unpack<'a, F, const B: usize> {
    groups: &'a [Group<B>],
    next: &'a [u8],
    panel: &'a mut Panel,
    format: std::marker::PhantomData<F>,
}

impl<F: Format<B>, const B: usize> Kernel for Unpack<'_, F, B> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        let Self { groups, next, panel, .. } = self;
        let Form { len, scales, .. } = Form::of::<F, B>();
        let subs = len / BLOCK;
        for (at, group) in groups.iter().enumerate() {
            // A few lines at a time: memory works while these are unpacked.
            next.chunks(LANES * B).nth(at).into_iter().flatten().step_by(64).for_each(|byte| l.prefetch(byte));
            let first = at * subs;
            F::scales(l, group, &mut panel.scales[first * scales..], &mut panel.minima[first * scales..]);
            for sub in 0..subs {
                for (line, to) in lines::<L, F, B>(l, group, sub).into_iter().zip(&mut panel.lines[first + sub]) {
                    l.store_bits(line, to);
                }
            }
        }
    }
}
