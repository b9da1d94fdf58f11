//! Arguments of the commands about models: `pull`, `list`, `inspect`.

use clap::Args;
use qmesh_models::{catalog, pull::ModelRef};

/// The model, where it may be left out.
#[derive(Args, Clone, Debug)]
pub struct ModelArg {
    /// A catalog name, a GGUF file, `hf:org/repo[:QUANT]` or a URL
    #[arg(value_name = "MODEL", env = "QMESH_MODEL", default_value = catalog::DEFAULT)]
    pub model: ModelRef,
}

/// Arguments of `pull`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator pull smollm2-135m
  coordinator pull hf:Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M

A pull that was interrupted goes on from where it stopped. HF_ENDPOINT and HF_TOKEN are honoured.")]
pub struct PullArgs {
    /// Catalog names, `hf:org/repo[:QUANT]` or URLs
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<ModelRef>,
}

/// Arguments of `list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator inspect smollm2-135m
  coordinator inspect model.gguf --tensors
  coordinator inspect model.gguf --json | jq .types

A model that cannot be run is described as far as its header goes.")]
pub struct InspectArgs {
    /// A catalog name, a GGUF file, `hf:org/repo[:QUANT]` or a URL
    pub model: ModelRef,
    /// Print JSON
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
    /// List every tensor
    #[arg(long, env = "QMESH_TENSORS")]
    pub tensors: bool,
}
