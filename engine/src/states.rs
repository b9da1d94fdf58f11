//! What a shard's layers with a state hold of the sessions.
//!
//! A state is a sum over all rows before a position, so that a row cannot be taken out of it again. Therefore the rows at a
//! session's end are held beside the state, as many as may turn out wrong (`ROLLBACK_ROWS`), and become part of it when the
//! next step says that they were right. How rows are cut into steps changes no bit: each goes into the state by itself.

use qmesh_models::{
    footprint::ROLLBACK_ROWS,
    spec::{LayerSpec, Mixer},
};

use crate::error::EngineError;

/// What the layers of a shard hold of one session.
#[derive(Debug, Default)]
pub(crate) struct States {
    /// Rows that are part of the states.
    pub(crate) settled: usize,
    /// One for each layer of the shard; without elements where a layer has no state.
    pub(crate) layers: Vec<LayerState>,
}

/// What one layer holds of one session.
#[derive(Debug, Default)]
pub(crate) struct LayerState {
    /// The state after the settled rows.
    pub(crate) state: Vec<f32>,
    /// The last rows, settled or not, as far back as a row looks.
    pub(crate) rows: LastRows,
}

/// The last rows of a session in one layer, each in the place of the one that lies `capacity` positions before it.
#[derive(Debug, Default)]
pub(crate) struct LastRows {
    elements: Vec<f32>,
    row_len: usize,
    capacity: usize,
}

/// How much a layer holds of a session.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StateShape {
    /// Elements of the state.
    state_len: usize,
    /// Elements of a row.
    row_len: usize,
    /// Rows before it that a row looks at.
    reach: usize,
}

impl StateShape {
    /// What a layer holds.
    pub(crate) fn of(layer: &LayerSpec) -> Self {
        match &layer.mixer {
            Mixer::Attention(_) | Mixer::Latent(_) | Mixer::None => Self::default(),
            Mixer::GatedDelta(delta) => {
                Self { state_len: delta.state_len(), row_len: delta.row_len(), reach: delta.taps - 1 }
            }
            Mixer::StateSpace(space) => {
                Self { state_len: space.state_len(), row_len: space.row_len(), reach: space.taps - 1 }
            }
        }
    }

    fn is_empty(self) -> bool {
        self.state_len == 0
    }
}

impl States {
    /// Those of a session without rows. A state that nothing was put into is zero.
    pub(crate) fn new(shapes: &[StateShape]) -> Result<Self, EngineError> {
        let layer = |shape: &StateShape| -> Result<LayerState, EngineError> {
            let capacity = if shape.is_empty() { 0 } else { shape.reach + ROLLBACK_ROWS };
            let rows = LastRows { elements: zeros(capacity * shape.row_len)?, row_len: shape.row_len, capacity };
            Ok(LayerState { state: zeros(shape.state_len)?, rows })
        };
        Ok(Self { settled: 0, layers: shapes.iter().map(layer).collect::<Result<_, _>>()? })
    }

    /// Takes every row out: those of a session that begins again.
    pub(crate) fn clear(&mut self) {
        if self.settled > 0 {
            self.layers.iter_mut().for_each(|layer| layer.state.fill(0.0));
            self.settled = 0;
        }
    }

    /// Whether a step may begin at `position`: at the first one, or where no settled row would be left out.
    pub(crate) fn can_go_on_from(&self, position: usize) -> bool {
        position == 0 || position >= self.settled || !self.are_some()
    }

    /// Whether any layer has a state.
    pub(crate) fn are_some(&self) -> bool {
        self.layers.iter().any(|layer| !layer.state.is_empty())
    }
}

impl LastRows {
    /// What is held of the row at `position`.
    pub(crate) fn get(&self, position: usize) -> &[f32] {
        &self.elements[position % self.capacity * self.row_len..][..self.row_len]
    }

    /// Holds a row in place of an earlier one.
    pub(crate) fn put(&mut self, position: usize, row: &[f32]) {
        self.elements[position % self.capacity * self.row_len..][..self.row_len].copy_from_slice(row);
    }
}

/// Rows of a session that are settled after a step with its rows `position` to `end`.
pub(crate) fn settled_after(position: usize, end: usize) -> usize {
    position.max(end.saturating_sub(ROLLBACK_ROWS))
}

fn zeros(len: usize) -> Result<Vec<f32>, EngineError> {
    let mut elements = Vec::new();
    elements.try_reserve_exact(len).map_err(|_| EngineError::OutOfMemory {
        needed: (len * size_of::<f32>()) as u64,
        tensor: "the states of a session".into(),
    })?;
    elements.resize(len, 0.0);
    Ok(elements)
}
