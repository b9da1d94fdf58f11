//! What runs through a pipeline: which rows travel next, for whom, and with how much room.
//!
//! `scheduler` decides, as a state machine, over the sequences (`sequence`), the steps under way (`step`), the books on
//! X

mod acceptance;
mod action;
mod draft_model;
mod drafting;
mod kept;
mod lookup;
mod pace;
mod pages;
mod phase;
mod pool;
mod scheduler;
mod sequence;
mod step;
mod successor;

pub use self::sequence::DRAFTS_MOST;
pub(crate) use self::{
    action::Action,
    draft_model::{DraftLimits, DraftModel, DraftModelState},
    scheduler::{Limits, Scheduler, StepTotals},
    step::{Answer, BadAnswer},
};
