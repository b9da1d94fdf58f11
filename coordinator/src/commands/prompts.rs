//! Prompt files: one JSON object a line, a text or ids.

use std::path::Path;

use qmesh_models::{
    files,
    tokenizer::{Affixes, Specials, Tokenizer},
};
use serde::Deserialize;

use crate::cli::Failure;

/// One prompt to evaluate.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, expecting = "an object with `id`, and `text` or `ids`")]
pub(super) struct Prompt {
    /// Its name in the results.
    pub(super) id: String,
    /// Text, or
    pub(super) text: Option<String>,
    /// whether control tokens in it are parsed;
    pub(super) special: Option<bool>,
    /// or ids.
    ids: Option<Vec<u32>>,
}

impl Prompt {
    /// Its ids, with the BOS that the model asks for where it is a text.
    ///
    /// # Errors
    /// A text for a model without a tokenizer, or one that its tokenizer gives up on.
    pub(super) fn tokens(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>, Failure> {
        let Some(text) = &self.text else { return Ok(self.ids.clone().unwrap_or_default()) };
        let no_tokenizer =
            || Failure::failed(format!("prompt `{}`: the model has no tokenizer, only ids will do", self.id));
        let specials = if self.special == Some(true) { Specials::Parse } else { Specials::Plain };
        let ids = tokenizer.ok_or_else(no_tokenizer)?.encode(text, specials, Affixes::AsModel);
        ids.map_err(|e| Failure::failed(format!("prompt `{}`: {e}", self.id)))
    }
}

/// The prompts of the file at `path`.
///
/// # Errors
/// A usage failure that names the file and the line.
pub(super) fn read(path: &Path) -> Result<Vec<Prompt>, Failure> {
    let text = files::read_text(path, FILE_BYTES_MAX)
        .map_err(|e| Failure::usage(format!("cannot read the prompts {}: {e}", path.display())))?;
    let mut prompts: Vec<Prompt> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |text: String| Failure::usage(format!("{}:{}: {text}", path.display(), number + 1));
        let prompt = parse(line).map_err(bad)?;
        if prompts.iter().any(|known| known.id == prompt.id) {
            return Err(bad(format!("two prompts are called `{}`", prompt.id)));
        }
        prompts.push(prompt);
    }
    if prompts.is_empty() { Err(Failure::usage(format!("{} has no prompts", path.display()))) } else { Ok(prompts) }
}

fn parse(line: &str) -> Result<Prompt, String> {
    // The parser's own position is within the line, and always line 1.
    let prompt: Prompt = serde_json::from_str(line).map_err(|e| match e.to_string().split_once(" at line ") {
        Some((text, _)) => text.to_owned(),
        None => e.to_string(),
    })?;
    match (&prompt.text, &prompt.ids) {
        (Some(_), None) | (None, Some(_)) => Ok(prompt),
        (None, None) => Err("neither `text` nor `ids`".to_owned()),
        (Some(_), Some(_)) => Err("both `text` and `ids`".to_owned()),
    }
}

/// Larger files are not prompts.
const FILE_BYTES_MAX: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_texts_or_ids() {
        let text = parse(r#"{"id": "a", "text": "hi", "special": true}"#).unwrap();
        assert_eq!((text.text.as_deref(), text.special), (Some("hi"), Some(true)));
        assert_eq!(parse(r#"{"id": "b", "ids": [1, 2]}"#).unwrap().tokens(None).unwrap(), [1, 2]);
        assert!(text.tokens(None).unwrap_err().text.contains("no tokenizer"));
        for (line, expected) in [
            (r#"{"id": "a"}"#, "neither `text` nor `ids`"),
            (r#"{"id": "a", "text": "", "ids": []}"#, "both `text` and `ids`"),
            (r#"{"text": "x"}"#, "missing field `id`"),
            ("7", "invalid type: integer `7`, expected an object with `id`, and `text` or `ids`"),
            (r#"{"id": "a", "txt": "x"}"#, "unknown field `txt`, expected one of `id`, `text`, `special`, `ids`"),
        ] {
            assert_eq!(parse(line).unwrap_err(), expected);
        }
        assert!(parse(r#"{"id": "a", "ids": [-1]}"#).unwrap_err().starts_with("invalid value: integer `-1`"));
    }

    #[test]
    fn files_are_read_line_by_line_whatever_editor_wrote_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.jsonl");
        let read_from = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        let line = |id: &str| format!(r#"{{"id": "{id}", "text": "hi"}}"#);
        let marked = read_from(&format!("\u{feff}{}\r\n\r\n{}", line("a"), line("b"))).unwrap();
        assert_eq!(marked.iter().map(|prompt| prompt.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let twice = read_from(&format!("{}\n\n{}\n", line("a"), line("a"))).unwrap_err().text;
        assert!(twice.ends_with("prompts.jsonl:3: two prompts are called `a`"), "{twice}");
        assert!(read_from("\u{feff}\n").unwrap_err().text.ends_with("has no prompts"));
        let refused = read(folder.path()).unwrap_err().text;
        assert!(refused.ends_with("this is a directory, not a regular file"), "{refused}");
    }
}
