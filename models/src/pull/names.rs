//! Names that come from outside, made fit for the file system, a URL or a message.

/// The longest local file name that is accepted, in bytes: room for suffixes within the usual 255.
const NAME_BYTES: usize = 200;
/// The most parts that a split model may have.
const PARTS: usize = 999;

/// A part of a split model: `{stem}-00001-of-00003.gguf`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SplitName<'a> {
    /// What all parts' names begin with, folders included.
    pub(super) stem: &'a str,
    /// Which part, from 1.
    pub(super) part: usize,
    /// How many there are.
    pub(super) count: usize,
}

impl<'a> SplitName<'a> {
    /// The part that `name` names, if it has this form.
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let (rest, count) = without_gguf(name)?.rsplit_once("-of-")?;
        let (stem, part) = rest.rsplit_once('-')?;
        let number = |digits: &str| {
            let plain = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse::<usize>().ok())?
        };
        let (part, count) = (number(part)?, number(count)?);
        ((1..=count).contains(&part) && count <= PARTS).then_some(Self { stem, part, count })
    }

    /// The name of part `part`, from 1.
    pub(super) fn name(&self, part: usize) -> String {
        format!("{}-{part:05}-of-{:05}.gguf", self.stem, self.count)
    }
}

/// Whether the name ends in `.gguf`.
pub(super) fn is_gguf(name: &str) -> bool {
    without_gguf(name).is_some()
}

/// Whether `text` is safe as one component of a path on every system, as it is.
pub(super) fn is_component(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=NAME_BYTES).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with(['.', '-'])
}

/// A local file name for a path on a server: folders joined by `--`, every unusual character replaced by `_`; `None`
/// where nothing usable remains.
pub(super) fn local_name(remote: &str) -> Option<String> {
    let kept = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = remote.split('/').collect::<Vec<_>>().join("--").chars().map(kept).collect();
    let name = name.trim_start_matches(['.', '-']);
    let name = if is_gguf(name) { name.to_owned() } else { format!("{name}.gguf") };
    is_component(&name).then_some(name)
}

/// Whether the model file `path` is of quantisation `quant`: its stem ends with it, as a word of its own.
pub(super) fn has_quant(path: &str, quant: &str) -> bool {
    let stem = stem(path);
    let Some(at) = stem.len().checked_sub(quant.len()).filter(|&at| stem.is_char_boundary(at)) else { return false };
    let (before, end) = stem.split_at(at);
    end.eq_ignore_ascii_case(quant) && (before.is_empty() || before.ends_with(['-', '.', '_', '/']))
}

/// A model file's path without `.gguf` and without the number of its part.
pub(super) fn stem(path: &str) -> &str {
    SplitName::parse(path).map_or_else(|| without_gguf(path).unwrap_or(path), |split| split.stem)
}

/// A path as part of a URL.
pub(super) fn percent_encoded(path: &str) -> String {
    let encode = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    path.bytes().map(encode).collect()
}

/// A URL without user, query and fragment, for messages and files: those may be secrets.
pub(super) fn redacted(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or(url);
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or(authority);
    format!("{scheme}://{host}{path}")
}

fn without_gguf(name: &str) -> Option<&str> {
    let at = name.len().checked_sub(".gguf".len()).filter(|&at| name.is_char_boundary(at))?;
    name[at..].eq_ignore_ascii_case(".gguf").then(|| &name[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_names_round_trip_and_odd_ones_are_whole_files() {
        let split = SplitName::parse("q4/m-00002-of-00003.gguf").unwrap();
        assert_eq!(split, SplitName { stem: "q4/m", part: 2, count: 3 });
        assert_eq!(split.name(1), "q4/m-00001-of-00003.gguf");
        for name in
            ["m.gguf", "m-0001-of-0003.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-+0001-of-00003.gguf"]
        {
            assert_eq!(SplitName::parse(name), None, "{name}");
        }
        assert_eq!(SplitName::parse("m-00001-of-99999.gguf"), None);
    }

    #[test]
    fn no_name_from_outside_leaves_its_folder() {
        assert_eq!(local_name("Q4/model q.gguf").unwrap(), "Q4--model_q.gguf");
        assert_eq!(local_name("../../etc/passwd").unwrap(), "etc--passwd.gguf");
        assert_eq!(local_name("/abs\\x\0y.gguf").unwrap(), "abs_x_y.gguf");
        assert_eq!(local_name("é/ü.gguf").unwrap(), "_--_.gguf");
        assert_eq!(local_name(&"x".repeat(300)), None);
        for text in ["", ".", "..", ".hidden", "-flag", "a/b", "a\\b", "a b", "a\n"] {
            assert!(!is_component(text), "{text:?}");
        }
    }

    #[test]
    fn a_quantisation_is_a_word_at_the_end() {
        for path in ["m-Q4_K_M.gguf", "m.q4_k_m.gguf", "Q4_K_M.gguf", "d/m_Q4_K_M-00001-of-00002.gguf"] {
            assert!(has_quant(path, "q4_K_M"), "{path}");
        }
        for path in ["m-IQ4_K_M.gguf", "m-Q4_K_M-old.gguf", "m-Q4_K.gguf", "é.gguf"] {
            assert!(!has_quant(path, "Q4_K_M"), "{path}");
        }
    }

    #[test]
    fn messages_hold_no_secrets() {
        assert_eq!(redacted("https://u:p@h:1/a@b/m.gguf?token=x#y"), "https://h:1/a@b/m.gguf");
        assert_eq!(percent_encoded("a b/ü.gguf"), "a%20b/%C3%BC.gguf");
    }
}
