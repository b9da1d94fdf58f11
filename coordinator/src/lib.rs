//! *When*: plans, schedules and serves. It handles text, token ids and plans, and links no tensor library.

pub mod api;
pub mod cli;
pub mod commands;
pub mod generate;
pub mod invitation;
pub mod local;
pub mod mesh;
pub mod model;
pub mod plan;
pub mod render;
pub mod text;
