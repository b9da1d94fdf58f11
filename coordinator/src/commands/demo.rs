//! `demo`: everything once, from the download to the measured stages.

use qmesh_models::{chat::Message, tokenizer::PretokenizerChoice};

use super::{
    answer::{self, Prompt},
    block_on,
    local_mesh::LocalMesh,
    opened::Opened,
};
use crate::{
    cli::{DemoArgs, Failure, PipelineArgs, RoomArgs, SplitArgs, WorkloadArgs},
    render::{count, note, report},
};

pub(super) fn demo(args: &DemoArgs) -> Result<(), Failure> {
    let room = RoomArgs { context: None, chunk_rows: CHUNK_ROWS };
    let (workload, draft) = (WorkloadArgs::default(), args.draft.clone());
    let pipeline = PipelineArgs { draft, ..PipelineArgs::default() };
    let split = SplitArgs { workers: Some(WORKERS), cut: None, threads: None, room, workload, pipeline };
    let opened = Opened::open(&args.model.model, PretokenizerChoice::FromModel, room, 1)?.with_drafter(&args.draft)?;
    let text = opened.text()?;
    let prompt = Prompt::of_chat(&text, &[Message::new("user", QUESTION)])?;
    block_on(async {
        let local = LocalMesh::start(&opened, &split).await?;
        let model = &opened.model;
        let layers = count(model.spec.layers.len(), "layer");
        note(format_args!("\n{}: {layers} over {} on this machine", model.name, count(WORKERS, "worker")));
        note(report::stages(&local.handle().status()));
        note("\nA worker joins with this line, for as long as the demo runs (`coordinator serve` keeps it open):");
        note(local.join_command());
        note(format_args!("\n> {QUESTION}"));
        // The likeliest tokens: the same answer for everybody.
        let drawn = (MAX_TOKENS, Default::default());
        let answer = answer::stream(&text, &local.handle(), prompt, drawn, &mut String::new()).await?;
        note(format_args!("\n{}", answer.rates()));
        let status = local.measured().await;
        answer.compared(status.prediction.as_ref()).into_iter().for_each(note);
        note(report::stages_measured(&status));
        local.stop().await;
        Ok(())
    })
}

/// Small models answer it well.
const QUESTION: &str = "What is the capital of France, and what is it known for?";
const MAX_TOKENS: usize = 160;
const WORKERS: usize = 2;
const CHUNK_ROWS: usize = 256;
