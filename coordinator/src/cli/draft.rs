//! Arguments about a small model that drafts, of every command that opens a mesh.

use clap::Args;
use qmesh_models::pull::ModelRef;

use super::{mesh::parse_count, model_ref};
use crate::mesh::DRAFTS_MOST;

/// A small model that drafts.
#[derive(Args, Clone, Debug, Default)]
pub struct DraftArgs {
    /// A small model with the same vocabulary that drafts on this machine what the workers then verify several tokens at a
    /// time, where that pays: the text stays the same
    #[arg(long, value_name = "MODEL", env = "QMESH_DRAFT_MODEL", value_parser = model_ref())]
    pub draft_model: Option<ModelRef>,
    /// Threads of the draft model [default: this machine's cores]
    #[arg(long, value_name = "N", env = "QMESH_DRAFT_THREADS", requires = "draft_model", value_parser = parse_count)]
    pub draft_threads: Option<usize>,
    /// Tokens that the draft model drafts at a time at most, up to 15 [default: 15]
    #[arg(long, value_name = "N", env = "QMESH_DRAFT_MAX", requires = "draft_model", value_parser = parse_drafts)]
    pub draft_max: Option<usize>,
}

fn parse_drafts(text: &str) -> Result<usize, String> {
    let drafts = text.parse().ok().filter(|drafts| (1..=DRAFTS_MOST).contains(drafts));
    drafts.ok_or_else(|| format!("a number from 1 to {DRAFTS_MOST} is needed"))
}
