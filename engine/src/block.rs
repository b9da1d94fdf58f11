//! One layer: its two halves. Every family's layers are this block, driven by their `LayerSpec`.

use candle_core::Tensor;
use qmesh_kernels::Cpu;

use crate::{
    attention::Attention, batch::Batch, error::EngineError, ffn::FeedForward, gated_delta::GatedDelta,
    latent::LatentAttention, layer_input::LayerInput, linear::Norm, ops, state_space::StateSpace,
};

/// The code and weights that compute one layer, one of whose halves may be missing.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) mixer: Option<BlockMixer>,
    pub(crate) ffn: Option<FeedForward>,
    /// Where it takes in a row of the token's, if it does.
    pub(crate) input: Option<LayerInput>,
    /// Factor on all that comes out, where there is one.
    pub(crate) scale: Option<f32>,
}

/// The code and weights of a layer's first half. Each kind goes two steps: what knows other rows, then what does not.
#[derive(Debug)]
pub(crate) enum BlockMixer {
    Attention(Attention),
    GatedDelta(GatedDelta),
    Latent(LatentAttention),
    StateSpace(StateSpace),
}

impl Block {
    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, x: &Tensor, batch: &mut Batch<'_>) -> Result<Tensor, EngineError> {
        let mixed = self.mixer.as_ref().map(|mixer| mixer.mixed(x, batch)).transpose()?;
        self.finish(batch, mixed.as_ref(), x, None)
    }

    /// As [`Block::forward`], but only `rows` come out, in their order: of the others only what later rows take in matters.
    pub(crate) fn forward_rows(
        &self,
        x: &Tensor,
        batch: &mut Batch<'_>,
        rows: &[usize],
    ) -> Result<Tensor, EngineError> {
        let mixed = self.mixer.as_ref().map(|mixer| mixer.mixed(x, batch)).transpose()?;
        if rows.is_empty() {
            return Ok(x.narrow(0, 0, 0)?);
        }
        let places = Tensor::from_iter(rows.iter().map(|row| *row as i64), x.device())?;
        let mixed = mixed.map(|mixed| mixed.index_select(&places, 0)).transpose()?;
        self.finish(batch, mixed.as_ref(), &x.index_select(&places, 0)?, Some(rows))
    }

    /// What follows once rows are mixed, of all rows of the step or of those of `rows`: nothing of it knows other rows.
    fn finish(
        &self,
        batch: &Batch<'_>,
        mixed: Option<&Tensor>,
        x: &Tensor,
        rows: Option<&[usize]>,
    ) -> Result<Tensor, EngineError> {
        let sum = match (&self.mixer, mixed) {
            (Some(mixer), Some(mixed)) => mixer.output(batch.cpu, mixed, x)?,
            (None, _) | (_, None) => x.clone(),
        };
        let out = match &self.ffn {
            Some(ffn) => ffn.forward(batch.cpu, x, &sum)?,
            None => sum,
        };
        let out = match &self.input {
            Some(input) => input.take_in(batch.cpu, &out, &batch.layer_inputs, rows)?,
            None => out,
        };
        match self.scale {
            Some(scale) => Ok(ops::map("scale", &out, |out| out.iter().map(|x| x * scale).collect())?),
            None => Ok(out),
        }
    }
}

impl BlockMixer {
    /// The norm that it begins with, if any.
    pub(crate) fn norm(&self) -> Option<&Norm> {
        match self {
            Self::Attention(attention) => attention.norm.as_ref(),
            Self::GatedDelta(delta) => delta.norm.as_ref(),
            Self::Latent(latent) => latent.norm.as_ref(),
            Self::StateSpace(space) => space.norm.as_ref(),
        }
    }

    /// What each row of x (rows, hidden) takes in of itself and of the rows before it: (rows, width). Later steps find of
    /// the rows what they need in the cache.
    fn mixed(&self, x: &Tensor, batch: &mut Batch<'_>) -> candle_core::Result<Tensor> {
        match self {
            Self::Attention(attention) => attention.attended(x, batch),
            Self::GatedDelta(delta) => delta.mixed(x, batch),
            Self::Latent(latent) => latent.attended(x, batch),
            Self::StateSpace(space) => space.mixed(x, batch),
        }
    }

    /// x with what was mixed added to it, row by row: (rows, hidden).
    fn output(&self, cpu: Cpu<'_>, mixed: &Tensor, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Attention(attention) => attention.output(cpu, mixed, x),
            Self::GatedDelta(delta) => delta.output(cpu, mixed, x),
            Self::Latent(latent) => latent.output(cpu, mixed, x),
            Self::StateSpace(space) => space.output(cpu, mixed, x),
        }
    }
}
