//! Arguments of the commands that move models: `pull` and `share`.

use std::net::SocketAddr;

use clap::Args;
use qmesh_models::pull::ModelRef;

use super::{model_ref, reach::advertised};
use crate::plan::offer;

/// Arguments of `pull`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator pull smollm2-135m
  coordinator pull hf:Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M
  coordinator pull qmesh:ab3d…          a link of `coordinator share`: from all machines that have it at once
  coordinator pull qmesh:ab3d… --give   the same, and give it on until Ctrl-C

A pull that was interrupted goes on from where it stopped. HF_ENDPOINT and HF_TOKEN are honoured.")]
pub struct PullArgs {
    /// Catalog names, `hf:org/repo[:QUANT]`, URLs or `qmesh:` links
    #[arg(required = true, value_name = "MODEL", value_parser = model_ref())]
    pub models: Vec<ModelRef>,
    /// Give what is here of a shared model to others, while it comes and then until Ctrl-C
    #[arg(long, env = "QMESH_GIVE")]
    pub give: bool,
    /// Address for those others (UDP) [default: any port on all networks]
    #[arg(long, value_name = "IP:PORT", env = "QMESH_LISTEN", requires = "give")]
    pub listen: Option<SocketAddr>,
    /// Give at most so much a second, in all: 10MB/s
    #[arg(long, value_name = "RATE", env = "QMESH_RATE", requires = "give", value_parser = rate)]
    pub rate: Option<u64>,
}

/// Arguments of `share`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator share qwen2.5-coder-1.5b
  coordinator share model.gguf --listen 0.0.0.0:5000 --advertise home.example:5000 --rate 5MB/s

Whoever has the link that this prints can read the model, and nothing else; the link does not let anybody join a mesh. It stays
good until --new-link. The link vouches for every byte of the model, whoever brings it. It proves who shares the model, and
nothing about who made it.")]
pub struct ShareArgs {
    /// A catalog name, a GGUF file, `hf:org/repo[:QUANT]`, a URL or a `qmesh:` link
    #[arg(value_parser = model_ref())]
    pub model: ModelRef,
    /// Address for readers (UDP)
    #[arg(long, value_name = "IP:PORT", env = "QMESH_LISTEN", default_value = "0.0.0.0:4434")]
    pub listen: SocketAddr,
    /// Address to write into the link, as readers reach it; may be repeated
    #[arg(long, value_name = "HOST:PORT", env = "QMESH_ADVERTISE", value_delimiter = ',', value_parser = advertised)]
    pub advertise: Vec<String>,
    /// Give at most so much a second, in all: 10MB/s
    #[arg(long, value_name = "RATE", env = "QMESH_RATE", value_parser = rate)]
    pub rate: Option<u64>,
    /// Make a new link: the ones that were given out before let nobody read any more
    #[arg(long, env = "QMESH_NEW_LINK")]
    pub new_link: bool,
    /// Say nothing on the local network
    #[arg(long, env = "QMESH_NO_MDNS")]
    pub no_mdns: bool,
}

fn rate(text: &str) -> Result<u64, String> {
    offer::rate(text).map(|rate| rate as u64)
}
