//! Says which token a GGUF finds likeliest after some ids: `cargo run -p qmesh-oracle --example next_token -- MODEL 5 6 7`.

use std::{env, error::Error};

use qmesh_models::weights::ModelFile;
use qmesh_oracle::{Device, Input, OracleShard, Output, Rounding};

#[allow(clippy::print_stdout, reason = "the answer is what it is run for")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let path = arguments.next().ok_or("name a GGUF file, then token ids")?;
    let ids = arguments.map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;
    let file = ModelFile::open(path)?;
    let spec = file.spec();
    // Two shards, as on two machines: the first one's hidden rows go into the second.
    let cut = spec.layers.len() / 2;
    let open = |layers| OracleShard::open(spec, &file, layers, &Device::Cpu, Rounding::NONE);
    let mut hidden = None;
    for layers in [0..cut, cut..spec.layers.len()].into_iter().filter(|layers| !layers.is_empty()) {
        let input = hidden.as_deref().map_or(Input::Ids(&ids), Input::Hidden);
        match open(layers)?.forward(0, input, 0)? {
            Output::Hidden(rows) => hidden = Some(rows),
            Output::Logits(rows) => {
                let last = &rows[rows.len() - spec.vocab..];
                let likeliest = last.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
                println!("{likeliest:?}");
            }
        }
    }
    Ok(())
}
