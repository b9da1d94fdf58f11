//! `run`: one prompt, one answer.

use qmesh_models::{chat::Message, tokenizer::Specials};
use qmesh_net::Sampling;

use super::{
    answer::{self, Prompt},
    block_on,
    local_mesh::LocalMesh,
    opened::Opened,
};
use crate::{
    cli::{Failure, RunArgs},
    render::{note, report},
    text::TextModel,
};

/// Livelier than the likeliest token each time, and still to the point.
pub(super) const TEMPERATURE: f32 = 0.7;

pub(super) fn run(args: &RunArgs) -> Result<(), Failure> {
    let opened = Opened::open(&args.model, args.tokenizer.choice(), args.split.room, 1)?;
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
    let system = args.system.iter().map(|system| Message::new("system", system));
    let messages: Vec<_> = system.chain([Message::new("user", &args.prompt)]).collect();
    Prompt::of_chat(text, &messages)
}

/// Another one each time.
pub(super) fn random_seed() -> u64 {
    // Short enough to be typed again.
    u64::from(getrandom::u32().expect("the system's random source, without which no TLS works either"))
}
