//! One layer: its two halves. Every family's layers are this block, driven by their `LayerSpec`.

use candle_core::{Result, Tensor};

use crate::{
    attention::{Attention, Batch},
    ffn::FeedForward,
};

/// The code and weights that compute one layer.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention: Attention,
    pub(crate) ffn: FeedForward,
}

impl Block {
    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, x: &Tensor, batch: &mut Batch<'_>) -> Result<Tensor> {
        let attended = self.attention.attended(x, batch)?;
        self.finish(batch, &attended, x)
    }

    /// As [`Block::forward`], but only `rows`, in increasing order, come out: of the others only keys and values matter.
    pub(crate) fn forward_rows(&self, x: &Tensor, batch: &mut Batch<'_>, rows: &[usize]) -> Result<Tensor> {
        let attended = self.attention.attended(x, batch)?;
        if rows.is_empty() {
            return x.narrow(0, 0, 0);
        }
        let rows = Tensor::from_iter(rows.iter().map(|row| *row as i64), x.device())?;
        let (attended, x) = (attended.index_select(&rows, 0)?, x.index_select(&rows, 0)?);
        self.finish(batch, &attended, &x)
    }

    /// What follows the attention: nothing of it knows other rows.
    fn finish(&self, batch: &Batch<'_>, attended: &Tensor, x: &Tensor) -> Result<Tensor> {
        let x = self.attention.output(batch.cpu, attended, x)?;
        self.ffn.forward(batch.cpu, &x)
    }
}
