//! What each layer takes in of a token beside the hidden state.

use serde::{Deserialize, Serialize};

use super::Activation;

/// Each layer takes in a row of its own for each token (Gemma 4 E2B and E4B: per-layer embeddings). These rows are made where tokens
/// are embedded, and travel with the hidden state up to the layer that takes them in.
///
/// The rows of all layers are (√width · t + norm(p)) / √2, where t is the token's row of `LayerEmbeddings`, p what `LayerProjection`
/// makes of its embedding, divided by the root of the embedding's width, and the norm an RMS norm over each layer's row
/// (`LayerProjectionNorm`). What comes out of both of a layer's halves is x; x + norm(`InputProjection` · (act(`InputGate` · x) · row))
/// is what comes out of the layer, where the norm is `InputNorm`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct LayerInputs {
    /// Elements of a layer's row.
    pub width: usize,
    /// The activation of the gate.
    pub activation: Activation,
    /// The ε of the norms.
    pub eps: f32,
}
