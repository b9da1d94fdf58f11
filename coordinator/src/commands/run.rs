//! `run`: one prompt, one answer.

use qmesh_models::{chat::Message, pull::ModelRef, tokenizer::Specials};
use qmesh_net::Sampling;

use super::{
    answer::{self, Prompt, remote, remote::RemoteRequest},
    block_on,
    local_mesh::LocalMesh,
    opened::Opened,
};
use crate::{
    cli::{CoordinatorArgs, Failure, RunArgs},
    render::{note, report},
    text::TextModel,
};

/// Livelier than the likeliest token each time, and still to the point.
pub(super) const TEMPERATURE: f32 = 0.7;

pub(super) fn run(args: &RunArgs) -> Result<(), Failure> {
    let whom = args.remote.coordinator(args.model.as_ref(), &args.split)?;
    match (&args.model, whom) {
        (_, Some(coordinator)) => there(args, &coordinator),
        (Some(model), None) => here(args, model),
        (None, None) => Err(Failure::usage("neither a MODEL nor the --url of a coordinator")),
    }
}

/// By a coordinator that runs already.
fn there(args: &RunArgs, coordinator: &CoordinatorArgs) -> Result<(), Failure> {
    let sampling = args.sampling.sampling(TEMPERATURE, random_seed());
    let request = if args.raw { RemoteRequest::raw(&args.prompt) } else { RemoteRequest::chat(&messages(args)) };
    let request = request.drawn(args.length.max_tokens, &sampling, &args.dry);
    block_on(async {
        let answer = remote::stream(coordinator, request, &mut String::new()).await?;
        note(format_args!("\n{}, seed {}", answer.rates(), sampling.seed));
        Ok(())
    })
}

/// By workers on this machine.
fn here(args: &RunArgs, model: &ModelRef) -> Result<(), Failure> {
    let opened = Opened::open(model, args.tokenizer.choice(), args.split.room, 1)?;
    let opened = opened.with_drafter(&args.split.pipeline.draft)?;
    let text = opened.text()?;
    let prompt = prompt(&text, args)?;
    let dry = args.dry.read(&text)?.map(Box::new);
    let sampling = Sampling { dry, ..args.sampling.sampling(TEMPERATURE, random_seed()) };
    block_on(async {
        let local = LocalMesh::start(&opened, &args.split).await?;
        let seed = sampling.seed;
        let drawn = (args.length.max_tokens, sampling);
        let answer = answer::stream(&text, &local.handle(), prompt, drawn, &mut String::new()).await?;
        note(format_args!("\n{}, seed {seed}", answer.rates()));
        let status = local.measured().await;
        answer.compared(status.prediction.as_ref()).into_iter().for_each(note);
        note(report::stages_measured(&status));
        local.stop().await;
        Ok(())
    })
}

/// The prompt through the chat template, or as it is where it is wanted so or the model has none.
fn prompt(text: &TextModel, args: &RunArgs) -> Result<Prompt, Failure> {
    if args.raw || text.template.is_err() {
        if let (false, Err(reason)) = (args.raw, &text.template) {
            note(format_args!("note: {} cannot chat ({reason}): the prompt is continued as it is", text.name));
        }
        let ids = text.raw_prompt(&args.prompt, Specials::Plain).map_err(|e| Failure::failed(e.to_string()))?;
        return Ok(Prompt::raw(ids));
    }
    Prompt::of_chat(text, &messages(args))
}

fn messages(args: &RunArgs) -> Vec<Message> {
    let system = args.system.iter().map(|system| Message::new("system", system));
    system.chain([Message::new("user", &args.prompt)]).collect()
}

/// Another one each time.
pub(super) fn random_seed() -> u64 {
    // Short enough to be typed again.
    u64::from(getrandom::u32().expect("the system's random source, without which no TLS works either"))
}
