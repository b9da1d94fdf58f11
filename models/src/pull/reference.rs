//! What a user may call a model: a catalog name, a file, a repository on a model hub, a URL.

use std::{ffi::OsStr, fmt, path::PathBuf, str::FromStr};

use super::{names, shared::SharedRef};
use crate::catalog::{self, NamedModel};

/// A model as the user names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ModelRef {
    /// `smollm2-135m`: a model of the catalog.
    Named(&'static NamedModel),
    /// A GGUF file on this machine; of a split model its first part.
    File(PathBuf),
    /// `hf:org/repo[:QUANT]`, or `hf://…`.
    Hub(HubRef),
    /// `http(s)://…`.
    Web(WebUrl),
    /// `qmesh:…`: a model that another machine shares.
    Shared(SharedRef),
}

/// A model on a server that hands out its files piece by piece.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Remote<'a> {
    /// On a model hub.
    Hub(&'a HubRef),
    /// At a URL.
    Web(&'a WebUrl),
}

/// A repository on a model hub, and which of its models.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HubRef {
    org: String,
    repo: String,
    choice: Choice,
}

/// Which model of a repository.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Choice {
    /// The first that there is of an order of preference.
    Preferred,
    /// The one with this quantisation (`Q4_K_M`) or of this file name, in any case of letters.
    Named(String),
}

/// A URL with the scheme `http` or `https`, a host and nothing that a terminal or a header would trip over.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WebUrl(String);

/// Why a text names no model.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReferenceError {
    /// Neither in the catalog nor of any other form.
    #[error(
        "no model is called `{reference}`{hint}; the catalog has {known}; or give a path, hf:org/repo[:QUANT], a URL, a qmesh: link",
        hint = near.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default(),
        known = catalog_names()
    )]
    Unknown {
        /// What the user wrote.
        reference: String,
        /// The catalog's nearest name, where one is near.
        near: Option<&'static str>,
    },
    /// Begins with `hf:`, and does not go on as it should.
    #[error("`{reference}` is no hub reference: write hf:org/repo, hf:org/repo:Q4_K_M or hf:org/repo:FILE.gguf")]
    Hub {
        /// What the user wrote.
        reference: String,
    },
    /// Begins with `qmesh:`, and is no link. It may be a damaged one, so it is not repeated.
    #[error("what begins with qmesh: here is no link to a shared model: copy all of what `coordinator share` prints")]
    Shared,
    /// Begins with `http:` or `https:`, and is no URL.
    #[error("`{reference}` is not a URL that can be fetched")]
    Url {
        /// What the user wrote.
        reference: String,
    },
}

impl HubRef {
    /// The organisation or user.
    pub fn org(&self) -> &str {
        &self.org
    }

    /// The repository's name.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Which of its models.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }
}

impl WebUrl {
    /// The URL as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ModelRef {
    /// Where its header can be read without the rest. A model of the catalog comes inside Python packages, whole or not at
    /// all, and a file is here already.
    pub fn remote(&self) -> Option<Remote<'_>> {
        match self {
            Self::Hub(hub) => Some(Remote::Hub(hub)),
            Self::Web(url) => Some(Remote::Web(url)),
            Self::Named(_) | Self::File(_) | Self::Shared(_) => None,
        }
    }

    /// The model that a word of the command line names: a path need not be UTF-8, all else is.
    ///
    /// # Errors
    /// As for a text.
    pub fn from_os_str(reference: &OsStr) -> Result<Self, ReferenceError> {
        reference.to_str().map_or_else(|| Ok(Self::File(reference.into())), str::parse)
    }
}

impl FromStr for ModelRef {
    type Err = ReferenceError;

    fn from_str(reference: &str) -> Result<Self, ReferenceError> {
        if let Some(rest) = reference.strip_prefix("hf:") {
            let hub = parse_hub(rest.strip_prefix("//").unwrap_or(rest));
            return hub.map(Self::Hub).ok_or_else(|| ReferenceError::Hub { reference: reference.into() });
        }
        if reference.starts_with("http:") || reference.starts_with("https:") {
            let url = parse_url(reference).map(Self::Web);
            return url.ok_or_else(|| ReferenceError::Url { reference: names::redacted(reference) });
        }
        if SharedRef::is_meant(reference) {
            return SharedRef::parse(reference).map(Self::Shared).ok_or(ReferenceError::Shared);
        }
        if let Some(model) = catalog::find(reference) {
            return Ok(Self::Named(model));
        }
        let path = PathBuf::from(reference);
        if reference.contains(['/', '\\']) || names::is_gguf(reference) || path.exists() {
            return Ok(Self::File(path));
        }
        Err(ReferenceError::Unknown { reference: reference.into(), near: nearest(reference) })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(model) => f.write_str(model.name),
            Self::File(path) => path.display().fmt(f),
            Self::Hub(hub) => hub.fmt(f),
            Self::Web(url) => url.fmt(f),
            Self::Shared(shared) => shared.fmt(f),
        }
    }
}

impl fmt::Display for HubRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}/{}", self.org, self.repo)?;
        match &self.choice {
            Choice::Preferred => Ok(()),
            Choice::Named(name) => write!(f, ":{name}"),
        }
    }
}

/// Without its query and user, which may be secrets.
impl fmt::Display for WebUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&names::redacted(&self.0))
    }
}

fn parse_hub(text: &str) -> Option<HubRef> {
    let (repository, choice) = match text.split_once(':') {
        Some((repository, name)) => (repository, Choice::Named(names::is_component(name).then(|| name.into())?)),
        None => (text, Choice::Preferred),
    };
    let (org, repo) = repository.split_once('/')?;
    let valid = names::is_component(org) && names::is_component(repo);
    valid.then(|| HubRef { org: org.into(), repo: repo.into(), choice })
}

fn parse_url(text: &str) -> Option<WebUrl> {
    let uri: ureq::http::Uri = text.parse().ok()?;
    let web = matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty());
    web.then(|| WebUrl(text.into()))
}

fn catalog_names() -> String {
    catalog::ALL.iter().map(|model| model.name).collect::<Vec<_>>().join(", ")
}

/// The catalog's name that `text` is a part of, or that a few keystrokes would make of it.
fn nearest(text: &str) -> Option<&'static str> {
    let text = text.to_lowercase();
    let names = || catalog::ALL.iter().map(|model| model.name);
    let part = names().find(|name| text.len() >= 3 && name.contains(&text));
    let close = || names().map(|name| (edits(&text, name), name)).min().filter(|(edits, name)| edits * 3 <= name.len());
    part.or_else(|| close().map(|(_, name)| name))
}

/// Levenshtein distance; the texts are short, or cut to be.
fn edits(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, b) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &a) in a.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn parse(text: &str) -> Result<ModelRef, ReferenceError> {
        text.parse()
    }

    #[test]
    fn every_form_parses_and_displays_as_itself() {
        assert_eq!(parse("SmolLM2-135M").unwrap(), ModelRef::Named(&catalog::ALL[0]));
        assert!(matches!(parse("/no/such/file").unwrap(), ModelRef::File(_)));
        assert!(matches!(parse("absent.GGUF").unwrap(), ModelRef::File(_)));
        let ModelRef::Hub(hub) = parse("hf://Org/a.Repo-1:Q4_K_M").unwrap() else { panic!("not a hub reference") };
        assert_eq!((hub.org(), hub.repo(), hub.choice()), ("Org", "a.Repo-1", &Choice::Named("Q4_K_M".into())));
        for text in ["gemma3-270m", "./x/model", "hf:org/repo", "hf:org/repo:q8_0", "https://host:1/a/b.gguf"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert_eq!(parse("https://me:pw@host/a.gguf?key=1").unwrap().to_string(), "https://host/a.gguf");
    }

    #[test]
    fn a_path_need_not_be_utf_8() {
        let path = OsStr::from_bytes(b"caf\xe9.gguf");
        assert_eq!(ModelRef::from_os_str(path).unwrap(), ModelRef::File(path.into()));
        assert_eq!(ModelRef::from_os_str("hf:o/r".as_ref()).unwrap(), parse("hf:o/r").unwrap());
        assert_eq!(ModelRef::from_os_str("mistral".as_ref()), parse("mistral"));
    }

    #[test]
    fn what_is_no_reference_is_refused_by_name() {
        for text in [
            "hf:",
            "hf:org",
            "hf:org/",
            "hf:../..",
            "hf:org/repo:",
            "hf:org/repo:a/b",
            "hf:org/repo/x.gguf",
            "hf:o o/r",
        ] {
            assert_eq!(parse(text), Err(ReferenceError::Hub { reference: text.into() }));
        }
        for text in ["http:", "https://", "http://ho st/x", "http:///x"] {
            assert!(matches!(parse(text), Err(ReferenceError::Url { .. })), "{text}");
        }
        let message = parse("smolm2-135").unwrap_err().to_string();
        assert!(message.contains("`smolm2-135` (did you mean smollm2-135m?)"), "{message}");
        assert!(catalog::ALL.iter().all(|model| message.contains(model.name)), "{message}");
        assert!(matches!(parse("coder"), Err(ReferenceError::Unknown { near: Some("qwen2.5-coder-0.5b"), .. })));
        assert!(matches!(parse("mistral"), Err(ReferenceError::Unknown { near: None, .. })));
    }
}
