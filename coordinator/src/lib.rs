//! *When*: plans, schedules and serves. It handles text, token ids and plans, and links no tensor library.
//!
//! # Who computes what
//! Workers join and say how much memory and how many threads they have. The planner ([`plan`]) cuts the model's layers into as
//! many ranges as there are stages, so that every range fits its worker and the slowest stage is as fast as it can be. It is
//! a function: what it is given decides what it returns.
//!
//! The roster carries a plan out: each worker is told to load its layers, then to link to its neighbours, and a probe token
//! goes through the new pipeline before it serves. Each plan has an epoch, a number by which words about older plans are told
//! apart. When a worker is lost, a new plan is made of those that are left; when a better one joins, the new pipeline comes up
//! beside the old one, and the sequences move over.
//!
//! # Which rows travel next
//! A request becomes a sequence of ids. The scheduler decides what goes into the next step: the last token of each sequence
//! that decodes, dealt into groups so that all stages are busy; rows of prompts beside them, as many as those who decode can
//! bear; and drafts, where guessing pays. It learns from the times that come back with every step, and has no clock.
//!
//! Drafts are looked up in the text so far, or come of a small model ([`drafter`]) that runs in a process beside this one.
//!
//! Roster, scheduler and planner are state machines or functions without IO. The task around them ([`mesh`]) moves
//! messages and frames, and all of it runs in simulations too, under a seed.
//!
//! # From a request to an answer
//! [`api`] takes requests over HTTP in OpenAI's form, [`text`] makes ids of a prompt and text of ids, and
//! [`mesh::MeshHandle`] is the way from one to the other: token ids in, token ids out. [`cli`], [`commands`] and
//! [`render`] are the command line.
//!
//! `examples/plan.rs` plans a model over workers that are only described.

pub mod api;
pub mod cli;
pub mod commands;
pub mod drafter;
pub mod generate;
pub mod grammar;
pub mod invitation;
pub mod local;
pub mod mesh;
pub mod model;
pub mod plan;
pub mod render;
pub mod text;
