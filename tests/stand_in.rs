//! A model that stands in for the default one where no real ones are asked for: its shapes, types and size, and random weights. What
//! it says makes no sense, and takes as long as sense would.

use std::{
    fs::{self, File},
    io::{BufWriter, Read, Write},
    path::PathBuf,
    sync::OnceLock,
};

use flate2::read::GzDecoder;
use qmesh_models::{
    gguf::{Declared, Gguf, GgufWriter},
    tensor::TensorType,
};

use crate::{golden_file, process};

/// The file, which has the default model's name; it is written once and kept in the build's folder.
///
/// # Panics
/// When it cannot be written.
pub fn file() -> PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let folder = process::binaries().join("stand-in");
        let path = folder.join(format!("{NAME}.gguf"));
        if !path.exists() {
            fs::create_dir_all(&folder).expect("a folder");
            // Another process may be writing it too.
            let unfinished = folder.join(format!("{}.partial", std::process::id()));
            write(&mut BufWriter::new(File::create(&unfinished).expect("a file"))).expect("room on the disk");
            fs::rename(unfinished, &path).expect("a file");
        }
        path
    })
    .clone()
}

/// Its name, and that of the model for which it stands.
pub const NAME: &str = "smollm2-135m";

fn write(out: &mut impl Write) -> std::io::Result<()> {
    let mut random = 1_u64;
    let fill = |tensor: &Declared, into: &mut [u8]| {
        for bytes in into.chunks_mut(8) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.copy_from_slice(&(random ^ random >> 31).to_le_bytes()[..bytes.len()]);
        }
        if tensor.dtype == TensorType::F32 {
            // Gains near 1, each tensor's its own: equal tensors would be one to whoever keeps them by their hash.
            let gain = |bytes: &[u8]| 1.0 + f32::from(bytes[0]) / 4096.0;
            return into.chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&gain(x).to_le_bytes()));
        }
        // Scales, and minima, that leave the weights small and without a mean.
        let is_q4_1 = tensor.dtype == TensorType::Q4_1;
        let head: &[u16] = if is_q4_1 { &[F16_1_64, F16_MINUS_15_128] } else { &[F16_1_1024] };
        let head: Vec<u8> = head.iter().flat_map(|half| half.to_le_bytes()).collect();
        into.chunks_exact_mut(tensor.dtype.block_bytes()).for_each(|block| block[..head.len()].copy_from_slice(&head));
    };
    shapes(vocabulary()).write(out, fill)
}

/// SmolLM2 135M's, with somebody else's vocabulary of the same size.
fn shapes(mut writer: GgufWriter) -> GgufWriter {
    let numbers: [(&str, u32); 8] = [
        ("block_count", LAYERS),
        ("context_length", 8192),
        ("embedding_length", HIDDEN as u32),
        ("feed_forward_length", INNER as u32),
        ("attention.head_count", 9),
        ("attention.head_count_kv", 3),
        ("rope.dimension_count", 64),
        ("vocab_size", VOCABULARY as u32),
    ];
    for (key, number) in numbers {
        writer = writer.set(&format!("llama.{key}"), number);
    }
    writer = writer.set("llama.attention.layer_norm_rms_epsilon", 1e-5_f32).set("llama.rope.freq_base", 100_000_f32);
    writer = writer.set("tokenizer.chat_template", CHAT_TEMPLATE);
    writer = writer.tensor("token_embd.weight", &[HIDDEN, VOCABULARY], TensorType::Q8_0);
    for layer in 0..LAYERS {
        let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
        for norm in ["attn_norm", "ffn_norm"] {
            writer = writer.tensor(&name(norm), &[HIDDEN], TensorType::F32);
        }
        for (matrix, cols, rows) in [
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", HIDDEN, KV),
            ("attn_v", HIDDEN, KV),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", HIDDEN, INNER),
            ("ffn_up", HIDDEN, INNER),
            ("ffn_down", INNER, HIDDEN),
        ] {
            writer = writer.tensor(&name(matrix), &[cols, rows], TensorType::Q4_1);
        }
    }
    writer.tensor("output_norm.weight", &[HIDDEN], TensorType::F32)
}

/// A llama with StarCoder's tokens.
fn vocabulary() -> GgufWriter {
    let mut bytes = Vec::new();
    let packed = File::open(golden_file("vocab/ggml-vocab-starcoder.gguf.gz")).expect("a file");
    GzDecoder::new(packed).read_to_end(&mut bytes).expect("a packed file");
    let gguf = Gguf::parse(&bytes, bytes.len() as u64).expect("a vocabulary");
    let entries = gguf.entries().filter(|(key, _)| key.starts_with("tokenizer."));
    entries.fold(GgufWriter::new("llama"), |writer, (key, value)| writer.set(key, value.clone()))
}

const LAYERS: u32 = 30;
const HIDDEN: u64 = 576;
const INNER: u64 = 1536;
/// Outputs of three heads' keys.
const KV: u64 = 192;
const VOCABULARY: u64 = 49_152;
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}\
    {% if add_generation_prompt %}assistant: {% endif %}";

const F16_1_64: u16 = 0x2400;
const F16_MINUS_15_128: u16 = 0xaf80;
const F16_1_1024: u16 = 0x1400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_tensors_of_the_default_model() {
        let header = shapes(vocabulary());
        assert_eq!(header.tensors().len(), 272);
        let bytes: u64 = header.tensors().iter().map(|tensor| tensor.bytes).sum();
        assert_eq!(bytes, 96_576_768);
        assert_eq!([F16_1_64, F16_MINUS_15_128, F16_1_1024].map(half), [1.0 / 64.0, -15.0 / 128.0, 1.0 / 1024.0]);
    }

    /// The value of normal f16 bits.
    fn half(bits: u16) -> f32 {
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let exponent = i32::from(bits >> 10 & 31) - 15;
        sign * 2_f32.powi(exponent) * (1.0 + f32::from(bits & 1023) / 1024.0)
    }
}
