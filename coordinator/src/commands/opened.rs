//! A model that is opened to be served, and what is made of it: its text side, and the mesh that computes it.

use std::sync::Arc;

use qmesh_models::{pull::ModelRef, tokenizer::PretokenizerChoice};
use qmesh_net::Strangers;

use super::{fetch, room::Room};
use crate::{
    cli::{DraftArgs, Failure, PipelineArgs, RoomArgs},
    drafter::Drafter,
    mesh::{DRAFTS_MOST, Formation, MeshConfig, TicketSource},
    model::Model,
    plan::machine::Machine,
    render::progress::HashingProgress,
    text::TextModel,
};

/// A model and the room for its sessions.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) model: Arc<Model>,
    pub(super) room: Room,
    /// What drafts for it, if there is something.
    pub(super) drafter: Option<Drafter>,
}

impl Opened {
    /// Opens a model, its file fetched where it is not there yet, with room for `parallel` sessions.
    ///
    /// # Errors
    /// The model cannot be had or used, or the room is more than it was trained for.
    pub(super) fn open(
        reference: &ModelRef,
        choice: PretokenizerChoice<'_>,
        room: RoomArgs,
        parallel: usize,
    ) -> Result<Self, Failure> {
        let mut model = Model::open_with(&fetch(reference)?, choice)?;
        // The planner's messages use the name that people gave.
        model.spec.name.clone_from(&model.name);
        let hashing = HashingProgress::new(&model.name);
        model.file.watch_hashing(move |done, total| hashing.advance(done, total));
        let room = Room::new(room, parallel, &model.spec)?;
        Ok(Self { model: Arc::new(model), room, drafter: None })
    }

    /// The same with the small model that drafts for it, where one is asked for.
    ///
    /// # Errors
    /// That cannot be had, or cannot draft for this model.
    pub(super) fn with_drafter(self, args: &DraftArgs) -> Result<Self, Failure> {
        let Some(reference) = &args.draft_model else { return Ok(self) };
        let draft = Model::open(&fetch(reference)?)?;
        let threads = args.draft_threads.unwrap_or_else(|| Machine::measure().cores as usize);
        let most = args.draft_max.unwrap_or(DRAFTS_MOST);
        let drafter = Drafter::new(draft, &self.model, threads, most).map_err(|error| {
            Failure::usage(format!("--draft-model: {error}")).with_advice("a smaller model of the same family")
        })?;
        Ok(Self { drafter: Some(drafter), ..self })
    }

    /// The model's text side.
    ///
    /// # Errors
    /// The model has no tokenizer.
    pub(super) fn text(&self) -> Result<TextModel, Failure> {
        Ok(TextModel::of(&self.model, self.room.context)?)
    }

    /// A mesh for this process alone: workers dial in over loopback, with a ticket that ends with it.
    pub(super) fn mesh(&self, formation: Formation, pipeline: &PipelineArgs) -> MeshConfig {
        let Room { context, kv_positions, chunk_rows } = self.room;
        MeshConfig {
            model: Arc::clone(&self.model),
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: Vec::new(),
            rendezvous: Vec::new(),
            context,
            kv_positions,
            formation,
            chunk_rows,
            ticket: TicketSource::Fresh,
            strangers: Strangers::NeedTickets,
            prefix_reuse: pipeline.prefix_reuse(),
            speculation: pipeline.speculation(),
            drafter: self.drafter.clone(),
        }
    }
}
