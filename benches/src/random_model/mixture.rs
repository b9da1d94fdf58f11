//! Which type each tensor of a quantised file has, as llama.cpp's quantiser chooses it.

use std::{fmt, str::FromStr};

use qmesh_models::{spec::HeadMatrix, tensor::TensorType};

use super::dimensions::{Dimensions, RandomFamily};

/// What a file is quantised to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TypeMixture {
    /// Q4_K, with Q6_K where it pays: the head, and v and down of about half of the layers.
    Q4KM,
    /// Experts in MXFP4, all other matrices in Q8_0.
    Mxfp4Experts,
    /// Every matrix of one type.
    Pure(TensorType),
}

/// A tensor to choose a type for.
#[derive(Clone, Copy, Debug)]
pub struct Unquantised<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Elements along each dimension, the innermost first.
    pub ne: &'a [u64],
}

impl TypeMixture {
    /// The type of `tensor` in a model of these dimensions.
    pub fn type_of(self, tensor: Unquantised<'_>, family: RandomFamily, dimensions: &Dimensions) -> TensorType {
        if !tensor.is_quantised() {
            return TensorType::F32;
        }
        let wanted = match self {
            Self::Pure(dtype) => dtype,
            Self::Mxfp4Experts if tensor.name.ends_with("_exps.weight") => TensorType::MXFP4,
            Self::Mxfp4Experts => TensorType::Q8_0,
            Self::Q4KM => q4_k_m(tensor, family, dimensions),
        };
        fitting(wanted, tensor.ne[0])
    }

    /// llama.cpp's number for `general.file_type`, where it has one.
    pub fn file_type(self) -> Option<u32> {
        match self {
            Self::Q4KM => Some(15),
            Self::Mxfp4Experts => Some(38),
            Self::Pure(TensorType::F32) => Some(0),
            Self::Pure(TensorType::F16) => Some(1),
            Self::Pure(TensorType::Q4_0) => Some(2),
            Self::Pure(TensorType::Q4_1) => Some(3),
            Self::Pure(TensorType::Q8_0) => Some(7),
            Self::Pure(TensorType::Q5_0) => Some(8),
            Self::Pure(TensorType::Q5_1) => Some(9),
            Self::Pure(TensorType::Q2K) => Some(10),
            Self::Pure(TensorType::Q6K) => Some(18),
            Self::Pure(TensorType::IQ2XXS) => Some(19),
            Self::Pure(TensorType::IQ2XS) => Some(20),
            Self::Pure(TensorType::IQ3XXS) => Some(23),
            Self::Pure(TensorType::IQ1S) => Some(24),
            Self::Pure(TensorType::IQ4NL) => Some(25),
            Self::Pure(TensorType::IQ3S) => Some(26),
            Self::Pure(TensorType::IQ2S) => Some(28),
            Self::Pure(TensorType::IQ4XS) => Some(30),
            Self::Pure(TensorType::IQ1M) => Some(31),
            Self::Pure(TensorType::BF16) => Some(32),
            Self::Pure(TensorType::TQ1_0) => Some(36),
            Self::Pure(TensorType::TQ2_0) => Some(37),
            Self::Pure(TensorType::NVFP4) => Some(39),
            Self::Pure(TensorType::Q1_0) => Some(40),
            Self::Pure(TensorType::Q2_0) => Some(41),
            // Its numbers stand for mixtures of these.
            Self::Pure(TensorType::Q3K | TensorType::Q4K | TensorType::Q5K | TensorType::MXFP4) => None,
        }
    }
}

impl Unquantised<'_> {
    /// Vectors, biases, norms and routers stay F32.
    fn is_quantised(self) -> bool {
        let matrix = self.ne.len() > 1 && self.name.ends_with(".weight");
        matrix && !self.name.ends_with("_norm.weight") && !self.name.ends_with("ffn_gate_inp.weight")
    }

    /// Its layer and what follows it in the name.
    fn place(&self) -> Option<(usize, &str)> {
        let (layer, place) = self.name.strip_prefix("blk.")?.split_once('.')?;
        Some((layer.parse().ok()?, place))
    }
}

fn q4_k_m(tensor: Unquantised<'_>, family: RandomFamily, dimensions: &Dimensions) -> TensorType {
    let Some((layer, place)) = tensor.place() else {
        // A tied head is the embedding table.
        let head = tensor.name == "output.weight" || dimensions.head == HeadMatrix::Tied;
        return if head { TensorType::Q6K } else { TensorType::Q4K };
    };
    let eight_experts = dimensions.experts.is_some_and(|experts| experts.count == 8);
    let usual = if has_more_bits(layer, dimensions.layers) { TensorType::Q6K } else { TensorType::Q4K };
    match place {
        "attn_k.weight" | "attn_v.weight" if eight_experts => TensorType::Q8_0,
        "attn_v.weight" if usual == TensorType::Q4K && shares_values_widely(family, dimensions) => TensorType::Q5K,
        "attn_v.weight" | "ffn_down.weight" | "ffn_down_exps.weight" => usual,
        "attn_output.weight" if eight_experts => TensorType::Q5K,
        _ => TensorType::Q4K,
    }
}

/// The first and the last eighth of the layers, and every third between.
fn has_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// What llama.cpp takes for a model of 70 billion parameters: there v is small, and more bits for it cost little.
fn shares_values_widely(family: RandomFamily, dimensions: &Dimensions) -> bool {
    let grouped = dimensions.heads != dimensions.kv_heads;
    let dense = dimensions.experts.is_none();
    dimensions.layers == 80
        && match family {
            RandomFamily::Llama => dense && grouped,
            RandomFamily::Qwen2 => true,
            RandomFamily::Qwen3
            | RandomFamily::Qwen3moe
            | RandomFamily::GptOss
            | RandomFamily::Deepseek2
            | RandomFamily::Deepseek32 => false,
        }
}

/// `wanted`, or the next larger type whose blocks divide a row of `cols` elements.
fn fitting(wanted: TensorType, cols: u64) -> TensorType {
    let fits = |dtype: TensorType| cols.is_multiple_of(dtype.block_len() as u64);
    if fits(wanted) {
        return wanted;
    }
    let smaller_blocks = match wanted {
        TensorType::Q2K | TensorType::Q3K | TensorType::TQ1_0 | TensorType::TQ2_0 => TensorType::Q4_0,
        TensorType::Q1_0 | TensorType::Q2_0 | TensorType::NVFP4 => TensorType::Q4_0,
        TensorType::Q4K => TensorType::Q5_0,
        TensorType::Q5K => TensorType::Q5_1,
        TensorType::Q6K => TensorType::Q8_0,
        TensorType::IQ1S | TensorType::IQ1M | TensorType::IQ2XXS | TensorType::IQ2XS => TensorType::IQ4NL,
        TensorType::IQ2S | TensorType::IQ3XXS | TensorType::IQ3S | TensorType::IQ4XS => TensorType::IQ4NL,
        TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::Q4_0 | TensorType::Q4_1 => TensorType::F16,
        TensorType::Q5_0 | TensorType::Q5_1 | TensorType::Q8_0 | TensorType::IQ4NL | TensorType::MXFP4 => {
            TensorType::F16
        }
    };
    if fits(smaller_blocks) { smaller_blocks } else { TensorType::F16 }
}

impl FromStr for TypeMixture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Q4KM, Self::Mxfp4Experts].into_iter().chain(TensorType::ALL.map(Self::Pure));
        let named = all.clone().find(|mixture| mixture.to_string().eq_ignore_ascii_case(text));
        named.ok_or_else(|| {
            let known: Vec<String> = all.map(|mixture| mixture.to_string()).collect();
            format!("no such type; known: {}", known.join(", "))
        })
    }
}

impl fmt::Display for TypeMixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Q4KM => f.write_str("Q4_K_M"),
            Self::Mxfp4Experts => f.write_str("MXFP4_MOE"),
            Self::Pure(dtype) => dtype.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_of(family: RandomFamily, size: &str, name: &str, ne: &[u64]) -> TensorType {
        TypeMixture::Q4KM.type_of(Unquantised { name, ne }, family, &family.size(size).unwrap())
    }

    #[test]
    fn q4_k_m_spends_more_bits_where_llama_cpp_does() {
        let more: Vec<usize> = (0..28).filter(|&layer| has_more_bits(layer, 28)).collect();
        assert_eq!(more, [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]);
        let qwen = |name, ne: &[u64]| type_of(RandomFamily::Qwen2, "7B", name, ne);
        assert_eq!(qwen("output.weight", &[3584, 152_064]), TensorType::Q6K);
        assert_eq!(qwen("token_embd.weight", &[3584, 152_064]), TensorType::Q4K);
        assert_eq!(qwen("blk.4.attn_v.weight", &[3584, 512]), TensorType::Q4K);
        assert_eq!(qwen("blk.5.attn_v.weight", &[3584, 512]), TensorType::Q6K);
        assert_eq!(qwen("blk.5.ffn_down.weight", &[18_944, 3584]), TensorType::Q6K);
        assert_eq!(qwen("blk.5.ffn_up.weight", &[3584, 18_944]), TensorType::Q4K);
        for (name, ne) in [("blk.5.attn_q.bias", [3584].as_slice()), ("blk.5.attn_norm.weight", &[3584])] {
            assert_eq!(qwen(name, ne), TensorType::F32);
        }
        assert_eq!(type_of(RandomFamily::Qwen2, "72B", "blk.11.attn_v.weight", &[8192, 1024]), TensorType::Q5K);
        assert_eq!(type_of(RandomFamily::Llama, "1B", "token_embd.weight", &[2048, 128_256]), TensorType::Q6K);
    }

    #[test]
    fn mixtures_and_odd_widths_have_their_own_rules() {
        let mixtral = |name, ne: &[u64]| type_of(RandomFamily::Llama, "8x7B", name, ne);
        assert_eq!(mixtral("blk.9.attn_k.weight", &[4096, 1024]), TensorType::Q8_0);
        assert_eq!(mixtral("blk.9.attn_v.weight", &[4096, 1024]), TensorType::Q8_0);
        assert_eq!(mixtral("blk.9.attn_output.weight", &[4096, 4096]), TensorType::Q5K);
        assert_eq!(mixtral("blk.9.ffn_gate_inp.weight", &[4096, 8]), TensorType::F32);
        assert_eq!(mixtral("blk.0.ffn_down_exps.weight", &[14_336, 4096, 8]), TensorType::Q6K);
        // 896 and 2880 are no multiples of 256.
        assert_eq!(type_of(RandomFamily::Qwen2, "0.5B", "blk.3.attn_q.weight", &[896, 896]), TensorType::Q5_0);
        assert_eq!(type_of(RandomFamily::Qwen2, "0.5B", "token_embd.weight", &[896, 151_936]), TensorType::Q8_0);
        assert_eq!(fitting(TensorType::Q4K, 40), TensorType::F16);
        let gpt = RandomFamily::GptOss.size("20B").unwrap();
        let experts = Unquantised { name: "blk.0.ffn_up_exps.weight", ne: &[2880, 2880, 32] };
        let output = Unquantised { name: "output.weight", ne: &[2880, 201_088] };
        let of = |tensor| TypeMixture::Mxfp4Experts.type_of(tensor, RandomFamily::GptOss, &gpt);
        assert_eq!((of(experts), of(output)), (TensorType::MXFP4, TensorType::Q8_0));
    }

    #[test]
    fn every_type_is_read_as_it_is_shown() {
        for text in ["Q4_K_M", "MXFP4_MOE", "Q8_0", "F16", "IQ4_XS"] {
            assert_eq!(text.parse::<TypeMixture>().unwrap().to_string(), text);
        }
        assert_eq!("q4_k_m".parse(), Ok(TypeMixture::Q4KM));
        assert!("Q4_K_L".parse::<TypeMixture>().unwrap_err().contains("Q4_K_M, MXFP4_MOE, F32"));
    }
}
