//! What runs through a pipeline: which rows travel next, for whom, and with how much room.
//!
//! `scheduler` decides, as a state machine, over the sequences (`sequence`), the steps under way (`step`), the books on
//! pages (`pages`), the measured times (`pace`), the drafts (`draft`) and the prompts that become vectors (`pool`). Where a next pipeline stands beside the
//! present one, `successor` is what is already computed there.

mod action;
mod draft;
mod kept;
mod pace;
mod pages;
mod pool;
mod scheduler;
mod sequence;
mod step;
mod successor;

pub(crate) use self::{
    action::Action,
    scheduler::{Limits, Scheduler, StepTotals},
    step::{Answer, BadAnswer},
};
