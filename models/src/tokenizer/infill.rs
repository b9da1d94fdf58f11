//! The tokens by which models fill in the middle of a text.

use super::token::Tokens;

/// Tokens around the parts of a text whose middle is to be filled in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InfillTokens {
    /// Before what comes before the middle.
    pub prefix: u32,
    /// Before what comes after it.
    pub suffix: u32,
    /// Where the model goes on with the middle.
    pub middle: u32,
    /// Before the name of a repository, where other files of it come first.
    pub repository: Option<u32>,
    /// Before the name of a file.
    pub file: Option<u32>,
}

/// Those that a file names, unchecked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct InfillIds {
    /// As in [`InfillTokens`].
    pub prefix: Option<u32>,
    /// As in [`InfillTokens`].
    pub suffix: Option<u32>,
    /// As in [`InfillTokens`].
    pub middle: Option<u32>,
    /// As in [`InfillTokens`].
    pub repository: Option<u32>,
    /// As in [`InfillTokens`].
    pub file: Option<u32>,
}

/// Their texts in models whose files do not name them: Qwen, StarCoder, Granite, DeepSeek, Code Llama, GLM, Falcon.
const PREFIXES: [&str; 8] = [
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];
const SUFFIXES: [&str; 8] = [
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];
const MIDDLES: [&str; 8] = [
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
const REPOSITORIES: [&str; 5] = ["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FILES: [&str; 1] = ["<|file_sep|>"];

impl InfillTokens {
    /// Those of a vocabulary, where it has all three that it takes.
    pub(super) fn of(tokens: &Tokens, ids: InfillIds) -> Option<Self> {
        let find = |id: Option<u32>, texts: &[&str]| id.or_else(|| texts.iter().find_map(|text| tokens.find(text)));
        Some(Self {
            prefix: find(ids.prefix, &PREFIXES)?,
            suffix: find(ids.suffix, &SUFFIXES)?,
            middle: find(ids.middle, &MIDDLES)?,
            repository: find(ids.repository, &REPOSITORIES),
            file: find(ids.file, &FILES),
        })
    }
}
