//! Pre-tokenizers: how text is cut into words before merging, by the names that GGUF files use.

mod table;

use fancy_regex::Regex;

use self::table::KINDS;
use super::TokenizerError;

/// The names of all known pre-tokenizers, as GGUF files spell them.
pub fn pretokenizers() -> impl Iterator<Item = &'static str> {
    KINDS.iter().flat_map(|kind| kind.names).copied()
}

/// Cuts text into the words that merges never cross.
#[derive(Debug)]
pub(super) struct Pretokenizer {
    cutters: Vec<Cutter>,
    kind: &'static CutKind,
}

/// Whether a word that is a token as a whole skips the merges.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum WholeWords {
    /// It is merged like any other.
    Merge,
    /// It becomes that token.
    Keep,
}

/// One way to cut, with everything that goes by the same name.
#[derive(Debug)]
struct CutKind {
    names: &'static [&'static str],
    /// Each cuts the pieces of the one before.
    passes: &'static [Pass],
    whole_words: WholeWords,
    /// Whether texts begin with BOS where the file does not say.
    add_bos: bool,
}

/// What is cut out of a piece; what lies between is a piece as well.
#[derive(Clone, Copy, Debug)]
enum Pass {
    /// What the expression matches.
    Matches(&'static str),
    /// Digits in threes from the right, where the piece has nothing else. An expression for it would be quadratic.
    Triplets,
}

/// A pass, ready to be used.
#[derive(Debug)]
enum Cutter {
    Expression(Regex),
    Triplets,
}

impl Pretokenizer {
    /// The pre-tokenizer of that name.
    pub(super) fn named(name: Option<&str>) -> Result<Self, TokenizerError> {
        let known = || pretokenizers().collect::<Vec<_>>().join(", ");
        let name = name.ok_or_else(|| TokenizerError::PretokenizerMissing { known: known() })?;
        let kind = KINDS
            .iter()
            .find(|kind| kind.names.contains(&name))
            .ok_or_else(|| TokenizerError::Pretokenizer { found: name.to_owned(), known: known() })?;
        Ok(Self { cutters: kind.passes.iter().map(Cutter::new).collect(), kind })
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
        for cutter in &self.cutters {
            let mut cut = Vec::with_capacity(pieces.len());
            for piece in pieces {
                cutter.cut(piece, &mut cut).map_err(|error| self.gave_up(error))?;
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

impl Cutter {
    fn new(pass: &Pass) -> Self {
        match pass {
            Pass::Matches(source) => {
                Self::Expression(Regex::new(source).expect("the table's expressions compile, a test tries each"))
            }
            Pass::Triplets => Self::Triplets,
        }
    }

    /// Appends the parts of `piece`, some of them maybe empty.
    fn cut<'t>(&self, piece: &'t str, parts: &mut Vec<&'t str>) -> Result<(), fancy_regex::Error> {
        match self {
            Self::Expression(regex) => {
                let mut end = 0;
                for found in regex.find_iter(piece) {
                    let found = found?;
                    parts.extend([&piece[end..found.start()], found.as_str()]);
                    end = found.end();
                }
                parts.push(&piece[end..]);
            }
            Self::Triplets if piece.chars().all(char::is_numeric) => triplets(piece, parts),
            Self::Triplets => parts.push(piece),
        }
        Ok(())
    }
}

/// Appends `digits` in threes, the first of them maybe shorter.
fn triplets<'t>(digits: &'t str, parts: &mut Vec<&'t str>) {
    let count = digits.chars().count();
    let mut from = 0;
    for (number, (at, _)) in digits.char_indices().enumerate() {
        if (count - number).is_multiple_of(3) {
            parts.push(&digits[from..at]);
            from = at;
        }
    }
    parts.push(&digits[from..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_compiles_and_keeps_the_text() {
        let text = "Hello, y'ALL!  12345\r\n\n  Ünïcode 你好 \t x... ";
        for kind in KINDS {
            let name = kind.names[0];
            assert_eq!(Pretokenizer::named(Some(name)).unwrap().split(text).unwrap().concat(), text, "{name}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = pretokenizers().collect();
        names.sort_unstable();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    }

    #[test]
    fn kinds_cut_where_their_models_were_trained_to() {
        for (name, text, words) in [
            ("gpt-2", "It's 2024,  ok", &["It", "'s", " 2024", ",", " ", " ok"][..]),
            ("starcoder", "It'S 2024", &["It", "'", "S", " ", "2", "0", "2", "4"]),
            ("llama-bpe", "IT'S 2024!\n x", &["IT", "'S", " ", "202", "4", "!\n", " x"]),
            ("qwen2", "a\u{301} 20", &["a", "\u{301}", " ", "2", "0"]),
            ("qwen35", "a\u{301} 20", &["a\u{301}", " ", "2", "0"]),
            ("tekken", "fooBar ÉTÉs 12 //\n", &["foo", "Bar", " ÉTÉs", " ", "1", "2", " //\n"]),
            ("gpt-4o", "fooBar's ÉTÉs 1234", &["foo", "Bar's", " ÉTÉs", " ", "123", "4"]),
            ("kimi-k2", "a你好b 好", &["a", "你好", "b", " ", "好"]),
            ("deepseek-v3", "x.y 1234 你かb", &["x", ".y", " ", "123", "4", " ", "你か", "b"]),
            ("superbpe", "in 1234567 to 12", &["in ", "1", "234", "567", " to ", "12"]),
            ("falcon", "a.12345", &["a", ".", "123", "45"]),
            ("bloom", "Hi, you.", &["Hi", ",", " you", "."]),
            ("laguna", "a \n\n b", &["a", " ", "\n\n", " b"]),
            ("bailingmoe", " \n\n b", &[" \n\n", " b"]),
        ] {
            assert_eq!(Pretokenizer::named(Some(name)).unwrap().split(text).unwrap(), words, "{name}");
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
