//! `inspect`: what a model is made of, as far as its header can be read.

use qmesh_models::gguf::Gguf;

use super::fetch;
use crate::{
    cli::{Failure, InspectArgs},
    render::{
        model::{Description, TensorList},
        output,
    },
};

pub(super) fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let gguf = Gguf::open(fetch(&args.model)?).map_err(|e| Failure::failed(e.to_string()))?;
    let list = if args.tensors { TensorList::Full } else { TensorList::Brief };
    let description = Description::new(&gguf, list);
    if args.json {
        output::json(&serde_json::to_string_pretty(&description).map_err(anyhow::Error::from)?)?;
    } else {
        output::text(description.text())?;
    }
    Ok(())
}
