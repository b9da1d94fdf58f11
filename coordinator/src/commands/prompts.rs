//! Prompt files: one JSON object a line, a text or ids.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use qmesh_models::tokenizer::{Affixes, Specials, Tokenizer};
use serde::Deserialize;

use crate::cli::Failure;

/// One prompt to evaluate.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
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
    let unreadable = |e| Failure::usage(format!("cannot read the prompts {}: {e}", path.display()));
    let file = File::open(path).map_err(unreadable)?;
    let mut prompts: Vec<Prompt> = Vec::new();
    for (number, line) in BufReader::new(file.take(FILE_BYTES_MAX)).lines().enumerate() {
        let line = line.map_err(unreadable)?;
        if line.trim().is_empty() {
            continue;
        }
        let bad = |text: String| Failure::usage(format!("{}:{}: {text}", path.display(), number + 1));
        let prompt = parse(&line).map_err(bad)?;
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
            (r#"{"id": "a", "txt": "x"}"#, "unknown field `txt`, expected one of `id`, `text`, `special`, `ids`"),
        ] {
            assert_eq!(parse(line).unwrap_err(), expected);
        }
        assert!(parse(r#"{"id": "a", "ids": [-1]}"#).unwrap_err().starts_with("invalid value: integer `-1`"));
    }
}
