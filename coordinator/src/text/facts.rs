//! What is told of a model to those who ask what it is.

use std::collections::BTreeMap;

use qmesh_models::gguf::Gguf;

use crate::model::Model;

/// What a model's file says of the model.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ModelFacts {
    /// BLAKE3 in hexadecimal digits that tells models apart; zeros where the file could not be read for it.
    pub digest: String,
    /// How many numbers the model is.
    pub parameters: u64,
    /// How most of them are stored, in llama.cpp's words.
    pub quantization: String,
    /// Whether it is made for vectors of texts.
    pub for_vectors: bool,
}

impl ModelFacts {
    /// The facts of a model. Reads some megabytes of its file.
    pub fn of(model: &Model) -> Self {
        let gguf = model.file.gguf();
        Self {
            digest: model.file.id().map_or_else(|_| "0".repeat(64), |id| id.to_string()),
            parameters: parameters(gguf),
            quantization: quantization(gguf),
            for_vectors: gguf.value(&format!("{}.pooling_type", model.spec.family)).is_some(),
        }
    }

    /// How many numbers the model is, as people say it: "134.52M", "1.5B".
    pub fn parameter_size(&self) -> String {
        let count = self.parameters as f64;
        match self.parameters {
            1_000_000_000.. => format!("{:.1}B", count / 1e9),
            1_000_000.. => format!("{:.2}M", count / 1e6),
            1_000.. => format!("{:.0}K", count / 1e3),
            few => few.to_string(),
        }
    }
}

fn parameters(gguf: &Gguf) -> u64 {
    let elements = |ne: &[u64]| ne.iter().copied().fold(1, u64::saturating_mul);
    gguf.tensors().iter().map(|tensor| elements(&tensor.ne)).fold(0, u64::saturating_add)
}

/// The name of the mixture that the file says it is of; where it does not say, the type of most of its bytes.
fn quantization(gguf: &Gguf) -> String {
    let said = gguf.unsigned("general.file_type").ok();
    if let Some((_, name)) = MIXTURES.iter().find(|(number, _)| Some(*number) == said) {
        return (*name).to_owned();
    }
    let mut by_type: BTreeMap<_, u64> = BTreeMap::new();
    for tensor in gguf.tensors() {
        *by_type.entry(tensor.kind).or_default() += tensor.bytes.unwrap_or(0);
    }
    by_type
        .into_iter()
        .max_by_key(|(_, bytes)| *bytes)
        .map_or_else(|| "unknown".to_owned(), |(kind, _)| kind.to_string())
}

/// llama.cpp's numbers for mixtures of types.
const MIXTURES: [(u64, &str); 35] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
    (39, "NVFP4"),
    (40, "Q1_0"),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_file_says_what_it_is() {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny/llama.gguf");
        let facts = ModelFacts::of(&Model::open(&tiny).unwrap());
        assert_eq!((facts.digest.len(), facts.for_vectors), (64, false));
        assert!(facts.digest.bytes().all(|digit| digit.is_ascii_hexdigit()) && facts.digest.contains(|c| c != '0'));
        assert!(facts.parameters > 1000 && !facts.quantization.is_empty(), "{facts:?}");
    }

    #[test]
    fn parameters_are_counted_as_people_do() {
        for (parameters, size) in
            [(134_515_008, "134.52M"), (7_615_616_512, "7.6B"), (70_000, "70K"), (12, "12"), (1_543_714_304, "1.5B")]
        {
            assert_eq!(ModelFacts { parameters, ..ModelFacts::default() }.parameter_size(), size);
        }
    }
}
