//! One layer: its two halves. Every family's layers are this block, driven by their `LayerSpec`.

use candle_core::{Result, Tensor};

use crate::{
    attention::{Attention, Batch},
    ffn::GatedFfn,
};

/// The code and weights that compute one layer.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention: Attention,
    pub(crate) ffn: GatedFfn,
}

impl Block {
    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, x: &Tensor, batch: &mut Batch<'_>) -> Result<Tensor> {
        let x = self.attention.forward(x, batch)?;
        self.ffn.forward(batch.simd, &x)
    }
}
