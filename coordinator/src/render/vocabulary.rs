//! A tokenizer described from a model's header, also one that cannot be used.

use std::collections::BTreeMap;

use qmesh_models::{
    gguf::Gguf,
    tokenizer::{PretokenizerChoice, Tokenizer, Vocabulary, pretokenizers},
};
use serde::Serialize;

use super::count;
use crate::model::tokenizer_model;

/// What a header says about its tokenizer.
#[derive(Debug, Serialize)]
pub(super) struct VocabularyDescription {
    model: String,
    pretokenizer: Option<Pretokenizer>,
    /// Why it cannot be used; `None` if it can.
    unsupported: Option<String>,
    tokens: usize,
    merges: usize,
    /// Tokens of each kind.
    kinds: BTreeMap<&'static str, usize>,
    bos: Option<Special>,
    eos: Option<Special>,
    eot: Option<Special>,
    /// Tokens after which a generation ends, those above among them.
    ends: Vec<Special>,
    adds_bos: bool,
    adds_eos: bool,
    chat_template_chars: Option<usize>,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_template_fault: Option<String>,
}

#[derive(Debug, Serialize)]
struct Pretokenizer {
    name: String,
    known: bool,
}

#[derive(Debug, Serialize)]
struct Special {
    id: u32,
    /// `None` where the id is no token's.
    text: Option<String>,
}

impl VocabularyDescription {
    /// `None` where there is no tokenizer.
    pub(super) fn new(gguf: &Gguf) -> Option<Self> {
        let model = tokenizer_model(gguf)?;
        let (vocabulary, unreadable) = match Vocabulary::from_gguf(gguf) {
            Ok(vocabulary) => (vocabulary, None),
            Err(error) => (Vocabulary::default(), Some(error.to_string())),
        };
        let name = vocabulary.pre.clone();
        let pretokenizer = name.map(|name| Pretokenizer { known: pretokenizers().any(|known| known == name), name });
        let special = |id: u32| Special { id, text: vocabulary.tokens.get(id as usize).cloned() };
        let tokenizer = match unreadable {
            None => Tokenizer::new(vocabulary.clone(), PretokenizerChoice::FromModel).map_err(|e| e.to_string()),
            Some(reason) => Err(reason),
        };
        let usable = tokenizer.as_ref().ok();
        let template = vocabulary.chat_template.as_ref();
        Some(Self {
            model: model.into_owned(),
            pretokenizer,
            tokens: vocabulary.tokens.len(),
            merges: vocabulary.merges.len(),
            kinds: vocabulary.kinds(),
            // Some kinds of tokenizer have one where the file does not say.
            bos: vocabulary.bos.or_else(|| usable?.bos()).map(special),
            eos: vocabulary.eos.or_else(|| usable?.eos()).map(special),
            eot: vocabulary.eot.map(special),
            ends: usable.iter().flat_map(|t| t.ends_of_generation()).map(|&id| special(id)).collect(),
            adds_bos: usable.is_some_and(|t| t.prefix().is_some()),
            adds_eos: usable.is_some_and(|t| t.suffix().is_some()),
            chat_template_chars: template.and_then(|source| Some(source.as_ref().ok()?.chars().count())),
            chat_template_fault: template.and_then(|source| Some(source.as_ref().err()?.to_string())),
            unsupported: tokenizer.err(),
        })
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let pretokenizer = self.pretokenizer.as_ref().map(|pre| {
            let remark = match (self.model.as_str(), pre.known) {
                ("gpt2", true) => "",
                ("gpt2", false) => ", which is not known",
                _ => ", which it does not use",
            };
            format!(", pre-tokenizer {}{remark}", pre.name)
        });
        let kinds: Vec<_> = self.kinds.iter().map(|(kind, tokens)| format!("{tokens} {kind}")).collect();
        let named = |name: &str, special: &Option<Special>, added: bool| {
            let special = special.as_ref().map_or_else(|| "none".to_owned(), Special::to_text);
            format!("{name} {special}{}", if added { " (added to texts)" } else { "" })
        };
        let marks = [
            named("BOS", &self.bos, self.adds_bos),
            named("EOS", &self.eos, self.adds_eos),
            named("EOT", &self.eot, false),
        ];
        let ends: Vec<_> = self.ends.iter().map(Special::to_text).collect();
        let template = self.chat_template_chars.map(|chars| format!("{chars} characters"));
        let template = template.or_else(|| self.chat_template_fault.as_ref().map(|fault| format!("unusable: {fault}")));
        let mut lines = vec![
            ("tokenizer", format!("{}{}", self.model, pretokenizer.unwrap_or_default())),
            ("tokens", format!("{} ({}), {}", self.tokens, kinds.join(", "), count(self.merges, "merge"))),
            ("begin and end", marks.join(", ")),
            ("ends an answer", if ends.is_empty() { "none".to_owned() } else { ends.join(", ") }),
            ("chat template", template.unwrap_or_else(|| "none: a base model".to_owned())),
        ];
        lines.extend(self.unsupported.clone().map(|reason| ("unusable", reason)));
        lines
    }
}

impl Special {
    fn to_text(&self) -> String {
        match &self.text {
            Some(text) => format!("{} {text:?}", self.id),
            None => format!("{}, which is no token", self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use qmesh_models::gguf::{GgufWriter, Strings, Value};

    use super::*;

    fn lines(writer: &GgufWriter) -> String {
        let bytes = writer.to_bytes(|_, _| ());
        let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
        let lines = VocabularyDescription::new(&gguf).unwrap().lines();
        lines.iter().map(|(name, text)| format!("{name}: {text}\n")).collect()
    }

    #[test]
    fn a_vocabulary_is_described_with_its_faults() {
        let writer = GgufWriter::new("llama")
            .set("tokenizer.ggml.model", "gpt2")
            .set("tokenizer.ggml.pre", "qwen2")
            .set("tokenizer.ggml.tokens", ["a", "b", "ab", "<|im_end|>"].into_iter().collect::<Strings>())
            .set("tokenizer.ggml.token_type", &[1, 1, 1, 3][..])
            .set("tokenizer.ggml.merges", ["a b"].into_iter().collect::<Strings>())
            .set("tokenizer.ggml.eos_token_id", 3_u32)
            .set("tokenizer.ggml.add_eos_token", true)
            .set("tokenizer.chat_template", "{{ é }}");
        let known = "tokenizer: gpt2, pre-tokenizer qwen2\n\
            tokens: 4 (1 control, 3 normal), 1 merge\n\
            begin and end: BOS none, EOS 3 \"<|im_end|>\" (added to texts), EOT none\n\
            ends an answer: 3 \"<|im_end|>\"\n\
            chat template: 7 characters\n";
        assert_eq!(lines(&writer), known);
        let unknown = lines(&writer.clone().set("tokenizer.ggml.pre", "klingon"));
        assert!(unknown.starts_with("tokenizer: gpt2, pre-tokenizer klingon, which is not known\n"), "{unknown}");
        assert!(unknown.contains("unusable: tokenizer.ggml.pre \"klingon\" is not known; "), "{unknown}");
        let torn = lines(&writer.clone().set("tokenizer.chat_template", Value::Bytes(vec![0xff])));
        assert!(torn.contains("chat template: unusable: key \"tokenizer.chat_template\" should be a text"), "{torn}");
        let strange = lines(&writer.set("tokenizer.ggml.eot_token_id", 9_u32));
        assert!(strange.contains("EOT 9, which is no token\n"), "{strange}");
        let empty = lines(&GgufWriter::new("llama").set("tokenizer.ggml.model", "llama"));
        assert!(empty.contains("unusable: ") && empty.contains("tokenizer.ggml.tokens"), "{empty}");
    }
}
