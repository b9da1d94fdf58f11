//! How many positions sessions get.

use qmesh_models::spec::ModelSpec;

use crate::cli::{Failure, RoomArgs};

/// The room for sessions, checked against the model.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Room {
    /// The most positions of one session.
    pub(super) context: usize,
    /// KV positions of all sessions together.
    pub(super) kv_positions: usize,
    /// The most rows of one step.
    pub(super) chunk_rows: usize,
}

impl Room {
    /// Room for `parallel` sessions of the context asked for; 0 asks for the model's.
    ///
    /// # Errors
    /// A usage failure when that is more than the model was trained for, or more than can be counted.
    pub(super) fn new(args: RoomArgs, parallel: usize, spec: &ModelSpec) -> Result<Self, Failure> {
        let trained = spec.context;
        let context = match args.context {
            None => CONTEXT_DEFAULT.min(trained),
            Some(0) => trained,
            Some(context) if context <= trained => context,
            Some(context) => {
                let text = format!("--ctx-size {context} is more than the {trained} positions of {}", spec.name);
                return Err(Failure::usage(text).with_advice(format!("--ctx-size {trained} or less")));
            }
        };
        let kv_positions = context.checked_mul(parallel).filter(|&positions| u32::try_from(positions).is_ok());
        let too_many = || Failure::usage(format!("{parallel} sessions of {context} positions are too many"));
        Ok(Self { context, kv_positions: kv_positions.ok_or_else(too_many)?, chunk_rows: args.chunk_rows })
    }
}

/// Enough for a conversation, and its KV is small beside the weights.
const CONTEXT_DEFAULT: usize = 4096;
