//! The formats that models write calls in, and which of them a model writes: its chat template tells.

mod cohere;
mod deepseek;
mod gemma;
mod generic;
mod glm;
mod granite;
mod hermes;
mod kimi;
mod llama;
mod minimax;
mod mistral;
mod phi;
mod qwen_coder;

use std::fmt;

use super::family::{Bare, Family, Force};

/// How a model writes its calls.
#[derive(Clone, Copy)]
pub struct Format(Kind);

#[derive(Clone, Copy)]
enum Kind {
    /// Marked within a text.
    Marked(&'static Family),
    /// As messages of their own, in gpt-oss's channels.
    Channels,
}

/// The formats, of which a model writes the first one that its template teaches.
static FAMILIES: [&Family; 16] = [
    &kimi::KIMI,
    &minimax::MINIMAX,
    &minimax::DEEPSEEK_32,
    &gemma::GEMMA,
    &cohere::COHERE,
    &deepseek::DEEPSEEK,
    &deepseek::DEEPSEEK_31,
    &mistral::MISTRAL_ARGS,
    &mistral::MISTRAL,
    &glm::GLM,
    &qwen_coder::QWEN_CODER,
    &llama::LLAMA,
    &phi::PHI,
    &granite::GRANITE,
    &hermes::HERMES,
    &generic::GENERIC,
];

/// No call is read out of a text.
static NONE: Family = Family {
    name: "none",
    is_taught_by: |_| false,
    opens: &[],
    bare: Bare::Never,
    head: |_| Err(super::cursor::Stop::Wrong),
    inner: &[],
    between: &[],
    closes: &[],
    force: Force::Generic,
};

impl Format {
    /// What our own instructions ask for.
    pub const GENERIC: Self = Self(Kind::Marked(&generic::GENERIC));

    /// gpt-oss's.
    pub const CHANNELS: Self = Self(Kind::Channels);

    /// Reads no calls.
    pub const NONE: Self = Self(Kind::Marked(&NONE));

    /// That which a chat template, given its source, teaches.
    pub fn of_template(source: &str) -> Self {
        if source.contains("<|channel|>") && source.contains("<|message|>") {
            return Self::CHANNELS;
        }
        FAMILIES
            .iter()
            .find(|family| (family.is_taught_by)(source))
            .map_or(Self::GENERIC, |&family| Self(Kind::Marked(family)))
    }

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Marked(family) => family.name,
            Kind::Channels => "channels",
        }
    }

    /// How an answer is made to be a call.
    pub(super) fn force(self) -> Force {
        match self.0 {
            Kind::Marked(family) => family.force,
            Kind::Channels => Force::Named {
                before: ("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>"),
                after: "<|call|>",
            },
        }
    }

    /// Every text that means something where calls are marked within a text.
    pub(crate) fn marks(self) -> impl Iterator<Item = &'static str> {
        self.family().into_iter().flat_map(Family::marks)
    }

    /// Its description, where calls are marked within a text.
    pub(super) fn family(self) -> Option<&'static Family> {
        match self.0 {
            Kind::Marked(family) => Some(family),
            Kind::Channels => None,
        }
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Format").field(&self.name()).finish()
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Format {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_tell_their_format() {
        for (template, format) in [
            ("deepseek-r1-distill-llama", "deepseek"),
            ("deepseek-r1-distill-qwen", "deepseek"),
            ("command-r7b", "cohere"),
            ("deepseek-v3.1", "deepseek-3.1"),
            ("deepseek-v3.2", "deepseek-3.2"),
            ("gemma2", "generic"),
            ("gemma3", "generic"),
            ("gemma4", "gemma"),
            ("glm4", "generic"),
            ("glm4.6", "glm"),
            ("gpt-oss", "channels"),
            ("granite3.0", "granite"),
            ("granite3.3", "granite"),
            ("granite4.0", "hermes"),
            ("llama3", "generic"),
            ("llama3.1", "llama"),
            ("llama3.2", "llama"),
            ("minimax-m2", "minimax"),
            ("mistral-nemo", "mistral"),
            ("mistral-small3.2", "mistral-args"),
            ("mistral-v3", "mistral"),
            ("phi3.5", "generic"),
            ("phi4", "generic"),
            ("qwen2.5", "hermes"),
            ("qwen3", "hermes"),
            ("qwen3-coder", "qwen3-coder"),
            ("qwen3.5", "qwen3-coder"),
            ("smollm2", "generic"),
            ("smollm3", "generic"),
            ("step3.5", "qwen3-coder"),
        ] {
            let path = format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/chat/{}.jinja"), template);
            let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(Format::of_template(&source).name(), format, "{template}");
        }
        assert_eq!(Format::of_template("… <|tool_calls_section_begin|> …").name(), "kimi");
        assert_eq!(Format::of_template("<|tool|>{{ tools }}<|/tool|>").name(), "phi");
        assert_eq!(Format::of_template("<seed:tool_call><function=f><parameter=p>").name(), "qwen3-coder");
    }
}
