//! A shard: a range of layers with the keys and values of its sessions.

use std::{collections::HashMap, ops::Range};

use candle_core::{Device, Tensor};
use candle_nn::{Embedding, Module};
use qmesh_models::{
    spec::{HeadMatrix, LayerIndex, ModelSpec, TensorRole},
    weights::ModelFile,
};

use crate::{
    cache::LayerCache, error::OracleError, head::Head, layer::Layer, layer_input::LayerInputMaker, rounding::Rounding,
    weights::Weights,
};

/// A contiguous range of a model's layers. It embeds where the range begins with the first layer, and has the head where
/// it ends with the last one.
#[derive(Debug)]
pub struct OracleShard {
    device: Device,
    hidden: usize,
    /// The first of the layers, and how many there are from there on.
    first: usize,
    to_end: usize,
    /// Elements that each layer takes in beside the hidden state.
    taken: usize,
    vocab: usize,
    embedding_scale: f32,
    embedding: Option<Embedding>,
    layer_inputs: Option<LayerInputMaker>,
    layers: Vec<Layer>,
    head: Option<Head>,
    sessions: HashMap<u64, Session>,
}

/// What goes into a shard: rows of one session at consecutive positions, at least one.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A token id for each row, where the shard embeds.
    Ids(&'a [u32]),
    /// The hidden state of each row and behind it what later layers take in, row after row, where it does not.
    Hidden(&'a [f32]),
}

/// What comes out, for every row that went in.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// The hidden state and behind it what later layers take in, row after row, from a shard without the head.
    Hidden(Vec<f32>),
    /// The logits, (rows, vocab) row after row, from the one that has it.
    Logits(Vec<f32>),
}

/// What a shard holds of a session.
#[derive(Debug)]
struct Session {
    positions: usize,
    /// One for each layer of the shard.
    layers: Vec<LayerCache>,
}

impl OracleShard {
    /// Reads the tensors of `layers` from `file` and dequantises them onto `device`. `spec` is the file's own, or one
    /// that lists at least the tensors of these layers; it may say other things of how they are used.
    ///
    /// # Errors
    /// The layers are no part of the model, a tensor is missing, has another shape or cannot be read, or candle refuses.
    pub fn open(
        spec: &ModelSpec,
        file: &ModelFile,
        layers: Range<usize>,
        device: &Device,
        rounding: Rounding,
    ) -> Result<Self, OracleError> {
        if layers.is_empty() || layers.end > spec.layers.len() {
            return Err(OracleError::Layers { range: layers, count: spec.layers.len() });
        }
        let weights = Weights { spec, file, device, rounding };
        let (first, last) = (layers.start == 0, layers.end == spec.layers.len());
        let tied = spec.head.matrix == HeadMatrix::Tied;
        let table = (first || (last && tied)).then(|| weights.matrix(TensorRole::Embedding, spec.vocab, spec.hidden));
        let table = table.transpose()?;
        let head = last.then(|| Head::open(&weights, table.as_ref())).transpose()?;
        let layer_inputs = spec.layer_inputs.filter(|_| first).map(|inputs| LayerInputMaker::open(&weights, inputs));
        let (start, to_end) = (layers.start, spec.layers.len() - layers.start);
        let layers = layers.map(|layer| Layer::open(&weights, LayerIndex(layer), &spec.layers[layer]));
        Ok(Self {
            device: device.clone(),
            hidden: spec.hidden,
            first: start,
            to_end,
            taken: spec.layer_inputs.map_or(0, |inputs| inputs.width),
            vocab: spec.vocab,
            embedding_scale: spec.embedding_scale,
            embedding: table.filter(|_| first).map(|table| Embedding::new(table, spec.hidden)),
            layer_inputs: layer_inputs.transpose()?,
            layers: layers.collect::<Result<_, _>>()?,
            head,
            sessions: HashMap::new(),
        })
    }

    /// Computes rows of `session`, the first of which is at `first_position`. A session begins with its first rows; what
    /// it holds from `first_position` on is forgotten before.
    ///
    /// # Errors
    /// What came in is not what the shard takes, or the session holds fewer positions; nothing has changed then. Where
    /// candle refuses an operation, the session holds `first_position` positions.
    pub fn forward(&mut self, session: u64, input: Input<'_>, first_position: usize) -> Result<Output, OracleError> {
        let held = self.sessions.get(&session).map_or(0, |session| session.positions);
        if first_position > held {
            return Err(OracleError::Gap { session, held, position: first_position });
        }
        let (mut x, taken) = self.rows(input)?;
        let empty = || Session { positions: 0, layers: vec![LayerCache::default(); self.layers.len()] };
        let held = self.sessions.entry(session).or_insert_with(empty);
        held.positions = first_position;
        // What the last layer that chooses positions has chosen.
        let mut chosen = None;
        for (index, layer) in self.layers.iter().enumerate() {
            held.layers[index].keep(first_position)?;
            if let Some(source) = layer.source() {
                held.layers[index].keys_values = held.layers[source - self.first].keys_values.clone();
            }
            let row = taken.as_ref().map(|taken| taken.narrow(1, index, 1)?.squeeze(1)?.contiguous()).transpose()?;
            x = layer.forward(&x, first_position, &mut held.layers[index], &mut chosen, row.as_ref())?;
        }
        held.positions = first_position + x.dim(0)?;
        let elements = |x: Tensor| x.flatten_all()?.to_vec1::<f32>();
        Ok(match &self.head {
            Some(head) => Output::Logits(elements(head.forward(&x)?)?),
            None => {
                let later = |taken: Tensor| {
                    taken.narrow(1, self.layers.len(), self.to_end - self.layers.len())?.flatten_from(1)
                };
                let rows = match taken.map(later).transpose()? {
                    Some(later) => Tensor::cat(&[x, later], 1)?,
                    None => x,
                };
                Output::Hidden(elements(rows)?)
            }
        })
    }

    /// Forgets a session, where there is one.
    pub fn close(&mut self, session: u64) {
        self.sessions.remove(&session);
    }

    /// What goes into the first layer, (rows, hidden), and what layers take in beside, (rows, layers from the first on, width).
    fn rows(&self, input: Input<'_>) -> Result<(Tensor, Option<Tensor>), OracleError> {
        match (input, &self.embedding) {
            (Input::Ids(ids), Some(embedding)) => {
                if let Some(&id) = ids.iter().find(|id| **id as usize >= self.vocab) {
                    return Err(OracleError::OutsideVocabulary { id, vocab: self.vocab });
                }
                if ids.is_empty() {
                    return Err(OracleError::Rows { elements: 0, width: 1 });
                }
                let ids = Tensor::new(ids, &self.device)?;
                let rows = (embedding.forward(&ids)? * f64::from(self.embedding_scale))?;
                let taken = self.layer_inputs.as_ref().map(|maker| maker.make(&ids, &rows)).transpose()?;
                Ok((rows, taken))
            }
            (Input::Hidden(elements), None) => {
                let (len, width) = (elements.len(), self.hidden + self.to_end * self.taken);
                if len == 0 || !len.is_multiple_of(width) {
                    return Err(OracleError::Rows { elements: len, width });
                }
                let rows = Tensor::from_slice(elements, (len / width, width), &self.device)?;
                let taken = match self.taken {
                    0 => None,
                    each => {
                        let taken = rows.narrow(1, self.hidden, self.to_end * each)?;
                        Some(taken.reshape((len / width, self.to_end, each))?)
                    }
                };
                Ok((rows.narrow(1, 0, self.hidden)?.contiguous()?, taken))
            }
            (Input::Ids(_), None) => Err(OracleError::Input { embeds: false }),
            (Input::Hidden(_), Some(_)) => Err(OracleError::Input { embeds: true }),
        }
    }
}

#[cfg(test)]
mod tests;
