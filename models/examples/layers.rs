//! Prints what a GGUF file is: its family, each layer, and the bytes that a shard of it has.
//!
//! cargo run -p qmesh-models --example layers -- tests/golden/tiny/llama.gguf

use std::{error::Error, path::PathBuf};

use qmesh_models::{
    bytes::ByteCount,
    family,
    gguf::Gguf,
    spec::{AttentionSpec, Ffn, LayerSpec, Mixer},
};

#[allow(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).ok_or("give the path of a GGUF file")?;
    // Reads the header only, however large the file is.
    let gguf = Gguf::open(&path)?;
    let spec = family::spec(&gguf)?;
    println!("{}: {}, {} layers of width {}", spec.name, spec.family, spec.layers.len(), spec.hidden);
    for (index, layer) in spec.layers.iter().enumerate() {
        // The tensors that a worker of this layer alone would hold; at both ends those of embedding and head as well.
        let bytes = ByteCount(spec.shard_bytes(&(index..index + 1)));
        println!("{index:>3}  {bytes:>8}  {}", described(layer));
    }
    Ok(())
}

fn described(layer: &LayerSpec) -> String {
    let mixer = match &layer.mixer {
        Mixer::Attention(attention) => {
            let AttentionSpec { heads, kv_heads, head_dim, .. } = attention;
            format!("{heads} query heads over {kv_heads} key/value heads of {head_dim}")
        }
        Mixer::GatedDelta(delta) => {
            format!("a state for each of {} value heads of {}", delta.value_heads, delta.head_dim)
        }
        Mixer::Latent(latent) => {
            format!("{} query heads over a latent of {} + {}", latent.heads, latent.latent_dim, latent.rope_dim)
        }
        Mixer::StateSpace(space) => format!("a state for each of {} heads of {}", space.heads, space.head_dim),
        Mixer::None => "rows apart".to_owned(),
    };
    let ffn = match &layer.ffn {
        Ffn::Gated { inner, .. } => format!("gated, {inner} wide"),
        Ffn::Plain { inner, .. } => format!("plain, {inner} wide"),
        Ffn::Experts(experts) => format!("{} of {} experts, {} wide", experts.used, experts.count, experts.inner),
        Ffn::Both { inner, experts } => {
            format!("gated, {inner} wide, beside {} of {} experts, {} wide", experts.used, experts.count, experts.inner)
        }
        Ffn::None => "no feed-forward half".to_owned(),
    };
    format!("{mixer}; {ffn}")
}
