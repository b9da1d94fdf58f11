//! Pre-tokenizers as data: how text is cut into words before merging, by the names that GGUF files use.

use fancy_regex::Regex;

use super::TokenizerError;

/// Cuts text into the words that merges never cross.
#[derive(Debug)]
pub(super) struct Pretokenizer {
    splits: Vec<Regex>,
    kind: &'static Kind,
}

/// Whether a word that is a token as a whole skips the merges.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum WholeWords {
    /// No.
    Merge,
    /// Yes.
    Keep,
}

/// One way to cut, with everything that goes by the same name.
#[derive(Debug)]
struct Kind {
    names: &'static [&'static str],
    /// Each cuts the pieces of the one before: its matches, and what lies between them.
    splits: &'static [&'static str],
    whole_words: WholeWords,
    /// Whether texts begin with BOS where the file does not say.
    add_bos: bool,
}

/// Cuts as GPT-2 did.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// Cuts as Llama 3 does.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Cuts as Qwen 2 does: digits one by one.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// The letters with case that DeepSeek LLM lists, a subset of `\p{LC}`.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-z\xB5\xC0-\xD6\xD8-\xF6\xF8-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}",
    r"\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}",
    r"\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}",
    r"\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}",
    r"\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}",
    r"\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}",
    r"\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}",
    r"\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}",
    r"\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}",
    r"\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}",
    r"\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}",
    r"\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+",
);
const DEEPSEEK_PUNCTUATION: &str = r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+";
const DEEPSEEK_CJK: &str = r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";
const DEEPSEEK: &[&str] = &[r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", DEEPSEEK_CJK, r"\p{N}+"];

/// Every way to cut that the golden vectors cover, and the names that mean exactly the same.
const KINDS: &[Kind] = &[
    kind(&["gpt-2", "phi-2", "mpt", "olmo", "exaone4"], &[GPT2]),
    kind(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"], &[r"\p{N}", GPT2]),
    kind(&["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"], &[QWEN2]),
    kind(&["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"], &[LLAMA3])
        .keeping_whole_words()
        .with_bos(),
    kind(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[LLAMA3]),
    kind(&["deepseek-llm"], DEEPSEEK),
    kind(&["default"], &[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
];

const fn kind(names: &'static [&'static str], splits: &'static [&'static str]) -> Kind {
    Kind { names, splits, whole_words: WholeWords::Merge, add_bos: false }
}

impl Kind {
    const fn keeping_whole_words(self) -> Self {
        Self { whole_words: WholeWords::Keep, ..self }
    }

    const fn with_bos(self) -> Self {
        Self { add_bos: true, ..self }
    }
}

impl Pretokenizer {
    /// The pre-tokenizer of that name.
    pub(super) fn named(name: Option<&str>) -> Result<Self, TokenizerError> {
        let known = || KINDS.iter().flat_map(|kind| kind.names).copied().collect::<Vec<_>>().join(", ");
        let name = name.ok_or_else(|| TokenizerError::PretokenizerMissing { known: known() })?;
        let kind = KINDS
            .iter()
            .find(|kind| kind.names.contains(&name))
            .ok_or_else(|| TokenizerError::Pretokenizer { found: name.to_owned(), known: known() })?;
        let compile = |source: &&str| Regex::new(source).expect("the table's expressions compile, a test tries each");
        Ok(Self { splits: kind.splits.iter().map(compile).collect(), kind })
    }

    pub(super) fn whole_words(&self) -> WholeWords {
        self.kind.whole_words
    }

    pub(super) fn add_bos(&self) -> bool {
        self.kind.add_bos
    }

    /// The words of `text`, in order and without gaps.
    pub(super) fn split<'t>(&self, text: &'t str) -> Result<Vec<&'t str>, TokenizerError> {
        let mut pieces = vec![text];
        for regex in &self.splits {
            let mut cut = Vec::with_capacity(pieces.len());
            for piece in pieces {
                let mut end = 0;
                for found in regex.find_iter(piece) {
                    let found = found.map_err(|error| self.gave_up(error))?;
                    cut.extend([&piece[end..found.start()], found.as_str()]);
                    end = found.end();
                }
                cut.push(&piece[end..]);
            }
            cut.retain(|part| !part.is_empty());
            pieces = cut;
        }
        Ok(pieces)
    }

    fn gave_up(&self, error: fancy_regex::Error) -> TokenizerError {
        TokenizerError::Split { name: self.kind.names[0], error: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_compiles_and_keeps_the_text() {
        let text = "Hello, y'ALL!  12345\r\n\n  Ünïcode 你好 \t x... ";
        for kind in KINDS {
            for name in kind.names {
                assert_eq!(Pretokenizer::named(Some(name)).unwrap().split(text).unwrap().concat(), text, "{name}");
            }
        }
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        for name in [None, Some("no-such-pre")] {
            assert!(Pretokenizer::named(name).unwrap_err().to_string().contains("smollm, starcoder"));
        }
    }

    #[test]
    fn backtracking_is_bounded() {
        let spaces = " ".repeat(8 << 20);
        let result = Pretokenizer::named(Some("qwen2")).unwrap().split(&spaces).map(|words| words.len());
        assert!(matches!(result, Ok(1) | Err(TokenizerError::Split { .. })), "{result:?}");
    }
}
