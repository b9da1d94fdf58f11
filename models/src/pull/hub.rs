//! Model hubs with Hugging Face's interface: which files a repository has, and which of them are the model.

use std::{collections::BTreeMap, env};

use serde::Deserialize;
use ureq::http::HeaderMap;

use super::{
    Choice, HubRef, OfferedModel, PullError,
    http::{Http, Source},
    names::{self, SplitName},
    part::Expected,
};

const ENDPOINT: &str = "https://huggingface.co";
/// The most pages of a list, and bytes of a page, that are read.
const PAGES: usize = 32;
const PAGE_BYTES: u64 = 16 << 20;
/// How many files an error lists.
const LISTED: usize = 40;
/// What is taken where nothing is asked for: small and good first, then what else can be computed with. Of two bits a
/// weight and fewer too little is left, so they are taken where there is nothing else.
const PREFERENCE: [&str; 39] = [
    "Q4_K_M",
    "Q4_K_S",
    "IQ4_XS",
    "IQ4_NL",
    "MXFP4",
    "MXFP4_MOE",
    "Q5_K_M",
    "Q8_0",
    "Q5_K_S",
    "Q6_K",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K",
    "Q3_K_S",
    "NVFP4",
    "IQ3_M",
    "IQ3_S",
    "IQ3_XS",
    "IQ3_XXS",
    "F16",
    "BF16",
    "F32",
    "Q2_K_L",
    "Q2_K",
    "Q2_K_S",
    "IQ2_M",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "TQ2_0",
    "TQ1_0",
    "Q2_0",
    "IQ1_M",
    "IQ1_S",
    "Q1_0",
];

/// A model hub.
#[derive(Clone, Debug)]
pub(super) struct Hub {
    endpoint: String,
    token: Option<String>,
}

/// A file of a repository.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct HubFile {
    /// Path in the repository.
    pub(super) path: String,
    /// Length in bytes.
    pub(super) bytes: u64,
    /// 64 lower-case hex digits; small files have none.
    pub(super) sha256: Option<String>,
}

/// The model that a reference stands for.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Chosen {
    /// What asks for exactly this model, where it is known.
    pub(super) exact: Option<String>,
    /// Its files, in order.
    pub(super) files: Vec<HubFile>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    oid: String,
    size: u64,
}

impl Hub {
    /// The hub at `$HF_ENDPOINT`, asked with `$HF_TOKEN`.
    pub(super) fn from_env() -> Self {
        let variable = |name| env::var(name).ok().filter(|value| !value.trim().is_empty());
        Self::new(variable("HF_ENDPOINT").as_deref().unwrap_or(ENDPOINT), variable("HF_TOKEN"))
    }

    pub(super) fn new(endpoint: &str, token: Option<String>) -> Self {
        let token = token.map(|token| token.trim().to_owned());
        Self { endpoint: endpoint.trim().trim_end_matches('/').to_owned(), token }
    }

    /// The model that `reference` stands for today.
    pub(super) fn choose(&self, http: &Http, reference: &HubRef) -> Result<Chosen, PullError> {
        let repository = format!("hf:{}/{}", reference.org(), reference.repo());
        choose(&repository, reference.choice(), &self.files(http, reference)?)
    }

    /// Every model of the repository that is whole, and what asks for it.
    pub(super) fn offered(&self, http: &Http, reference: &HubRef) -> Result<Vec<OfferedModel>, PullError> {
        Ok(offered(&self.files(http, reference)?))
    }

    /// Where `file` of the repository is.
    pub(super) fn source(&self, reference: &HubRef, file: &HubFile, what: String) -> Source {
        let path = names::percent_encoded(&file.path);
        let url = format!("{}/{}/{}/resolve/main/{path}", self.endpoint, reference.org(), reference.repo());
        let expected = Expected { bytes: Some(file.bytes), sha256: file.sha256.clone() };
        Source { what, url, token: self.token.clone(), expected }
    }

    /// The token for `url`: none, unless it is on this hub.
    pub(super) fn token_for(&self, url: &str) -> Option<String> {
        let here = url.strip_prefix(&self.endpoint).is_some_and(|path| path.starts_with('/'));
        self.token.clone().filter(|_| here)
    }

    fn files(&self, http: &Http, reference: &HubRef) -> Result<Vec<HubFile>, PullError> {
        let (org, repo) = (reference.org(), reference.repo());
        let mut url = format!("{}/api/models/{org}/{repo}/tree/main?recursive=true", self.endpoint);
        let mut files = Vec::new();
        for _ in 0..PAGES {
            let bad = |reason: String| PullError::Listing { url: names::redacted(&url), reason };
            let (headers, body) = http.get(&url, self.token.as_deref(), PAGE_BYTES)?;
            let page: Vec<Entry> = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
            for entry in page.into_iter().filter(|entry| entry.kind == "file" && names::is_gguf(&entry.path)) {
                files.push(entry.file().ok_or_else(|| bad("an oid that is no sha256".into()))?);
            }
            match self.next_page(&headers) {
                Some(next) => url = next,
                None => return Ok(files),
            }
        }
        Err(PullError::Listing { url: names::redacted(&url), reason: format!("more than {PAGES} pages") })
    }

    /// The next page, on this hub whatever host the link names: the token goes nowhere else.
    fn next_page(&self, headers: &HeaderMap) -> Option<String> {
        let links = headers.get("link")?.to_str().ok()?;
        let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
        let (link, _) = next.split_once('<')?.1.split_once('>')?;
        Some(format!("{}{}", self.endpoint, &link[link.find("/api/models/")?..]))
    }
}

impl Entry {
    fn file(self) -> Option<HubFile> {
        let Some(large) = self.lfs else { return Some(HubFile { path: self.path, bytes: self.size, sha256: None }) };
        let valid = large.oid.len() == 64 && large.oid.bytes().all(|b| b.is_ascii_hexdigit());
        let sha256 = valid.then(|| large.oid.to_ascii_lowercase())?;
        Some(HubFile { path: self.path, bytes: large.size, sha256: Some(sha256) })
    }
}

/// The files of a repository by their paths, and the paths at which its models begin.
fn models(files: &[HubFile]) -> (BTreeMap<&str, &HubFile>, Vec<String>) {
    let by_path: BTreeMap<&str, &HubFile> = files.iter().map(|file| (file.path.as_str(), file)).collect();
    let mut models: Vec<String> = by_path.keys().filter(|path| is_model(path)).map(|path| lead(path)).collect();
    models.dedup();
    (by_path, models)
}

fn offered(files: &[HubFile]) -> Vec<OfferedModel> {
    let (by_path, models) = models(files);
    let stems: Vec<&str> = models.iter().map(|model| names::stem(file_name(model))).collect();
    let shared = shared_words(&stems);
    let one = |(model, stem): (&String, &str)| {
        let quant = &stem[shared..];
        let alone = models.iter().filter(|other| fits(other, quant)).count() == 1;
        let name = if alone && !quant.is_empty() { quant } else { file_name(model) };
        let bytes = parts(model).iter().map(|part| Some(by_path.get(part.as_str())?.bytes)).sum::<Option<u64>>()?;
        Some(OfferedModel { name: name.to_owned(), bytes })
    };
    models.iter().zip(stems).filter_map(one).collect()
}

/// How many bytes at the beginning of all names are the same, up to the end of a word.
fn shared_words(names: &[&str]) -> usize {
    let Some((first, others)) = names.split_first() else { return 0 };
    let same = |other: &&str| first.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let shared = others.iter().map(same).min().unwrap_or(0);
    first.as_bytes()[..shared].iter().rposition(|byte| matches!(byte, b'-' | b'.')).map_or(0, |at| at + 1)
}

/// The paths of the files of the model that begins with the one at `lead`.
fn parts(lead: &str) -> Vec<String> {
    match SplitName::parse(lead) {
        Some(split) => (1..=split.count).map(|part| split.name(part)).collect(),
        None => vec![lead.to_owned()],
    }
}

fn choose(repository: &str, choice: &Choice, files: &[HubFile]) -> Result<Chosen, PullError> {
    let (by_path, models) = models(files);
    let fitting = |name: &str| -> Vec<&String> { models.iter().filter(|model| fits(model, name)).collect() };
    let (wanted, fit) = match choice {
        Choice::Named(name) => (Some(name.clone()), fitting(name)),
        Choice::Preferred if models.len() == 1 => (None, models.iter().collect()),
        Choice::Preferred => {
            let quant = PREFERENCE.into_iter().find(|quant| !fitting(quant).is_empty());
            (quant.map(str::to_owned), quant.map(fitting).unwrap_or_default())
        }
    };
    let repository = || repository.to_owned();
    let [model] = fit[..] else {
        let wanted = wanted.unwrap_or_else(|| PREFERENCE.join(", "));
        return Err(match fit.is_empty() {
            true => PullError::NoSuchModel { repository: repository(), wanted, available: listed(models.iter()) },
            false => PullError::Ambiguous { repository: repository(), wanted, available: listed(fit.into_iter()) },
        });
    };
    let file = |path: String| match by_path.get(path.as_str()) {
        Some(&file) => Ok(file.clone()),
        None => Err(PullError::PartMissing { repository: repository(), missing: path }),
    };
    Ok(Chosen { exact: wanted, files: parts(model).into_iter().map(file).collect::<Result<_, _>>()? })
}

/// Whether the GGUF file at `path` is a model, and not what goes with one.
fn is_model(path: &str) -> bool {
    let name = file_name(path).to_ascii_lowercase();
    !name.starts_with("mmproj") && !name.contains("imatrix")
}

/// The first part's path, of which `path` may be another part.
fn lead(path: &str) -> String {
    SplitName::parse(path).map_or_else(|| path.to_owned(), |split| split.name(1))
}

/// Whether `name` asks for the model that begins with the file at `lead`.
fn fits(lead: &str, name: &str) -> bool {
    names::has_quant(lead, name) || file_name(lead).eq_ignore_ascii_case(name)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn listed<'a>(models: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = models.len().saturating_sub(LISTED);
    let mut text = models.take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if text.is_empty() {
        text.push_str("no GGUF file");
    }
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(choice: &str, paths: &[&str]) -> Result<(Option<String>, Vec<String>), PullError> {
        let file = |path: &&str| HubFile { path: (*path).into(), bytes: 1, sha256: None };
        let choice = if choice.is_empty() { Choice::Preferred } else { Choice::Named(choice.into()) };
        let chosen = choose("hf:o/r", &choice, &paths.iter().map(file).collect::<Vec<_>>())?;
        Ok((chosen.exact, chosen.files.into_iter().map(|file| file.path).collect()))
    }

    #[test]
    fn the_preferred_model_is_small_and_good_and_the_only_one_needs_no_name() {
        let all = ["m-F16.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-Q4_K_M.gguf", "q.imatrix.gguf"];
        assert_eq!(pick("", &all).unwrap(), (Some("Q4_K_M".into()), vec!["m-Q4_K_M.gguf".into()]));
        assert_eq!(pick("", &["m-IQ2_M.gguf"]).unwrap().1, ["m-IQ2_M.gguf"]);
        for (there, taken) in [
            (["m-mxfp4.gguf", "m-F16.gguf"], "MXFP4"),
            (["m-Q2_K.gguf", "m-IQ4_XS.gguf"], "IQ4_XS"),
            (["m-Q2_K.gguf", "m-Q3_K_M.gguf"], "Q3_K_M"),
            (["m-Q2_K.gguf", "m-IQ1_S.gguf"], "Q2_K"),
            (["m-IQ1_S.gguf", "m-IQ2_M.gguf"], "IQ2_M"),
            (["m-IQ3_XXS.gguf", "m-IQ2_XXS.gguf"], "IQ3_XXS"),
            (["m-Q4_K_M.gguf", "m-IQ4_NL.gguf"], "Q4_K_M"),
        ] {
            assert_eq!(pick("", &there).unwrap().0.as_deref(), Some(taken), "{there:?}");
        }
        assert_eq!(pick("q8_0", &all).unwrap().1, ["m-Q8_0.gguf"]);
        assert_eq!(pick("M-f16.gguf", &all).unwrap().1, ["m-F16.gguf"]);
    }

    #[test]
    fn split_models_come_whole_or_not_at_all() {
        let parts = ["q/m-Q8_0-00002-of-00002.gguf", "q/m-Q8_0-00001-of-00002.gguf", "m-Q4_0.gguf"];
        assert_eq!(pick("Q8_0", &parts).unwrap().1, [parts[1], parts[0]]);
        let error = pick("Q8_0", &parts[..1]).unwrap_err();
        assert_eq!(error.to_string(), "hf:o/r lacks q/m-Q8_0-00001-of-00002.gguf");
    }

    #[test]
    fn whole_models_are_offered_by_the_shortest_name_that_means_them() {
        let offers = |files: &[(&str, u64)]| {
            let file = |&(path, bytes): &(&str, u64)| HubFile { path: path.to_owned(), bytes, sha256: None };
            let offered = offered(&files.iter().map(file).collect::<Vec<_>>());
            offered.into_iter().map(|model| (model.name, model.bytes)).collect::<Vec<_>>()
        };
        let files = [
            ("Big-2.5-Q4_K_M.gguf", 4),
            ("Big-2.5-UD-Q2_K_XL.gguf", 2),
            ("Q8_0/Big-2.5-Q8_0-00001-of-00002.gguf", 5),
            ("Q8_0/Big-2.5-Q8_0-00002-of-00002.gguf", 3),
            ("F16/Big-2.5-F16-00001-of-00002.gguf", 16),
            ("mmproj-F16.gguf", 1),
        ];
        let named = |name: &str, bytes| (name.to_owned(), bytes);
        assert_eq!(offers(&files), [named("Q4_K_M", 4), named("UD-Q2_K_XL", 2), named("Q8_0", 8)]);
        assert_eq!(offers(&[("one.gguf", 1)]), [named("one", 1)]);
        let twins = [("a-Q4_0.gguf", 1), ("b-Q4_0.gguf", 2), ("b-UD-Q4_0.gguf", 3)];
        let names: Vec<String> = offers(&twins).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a-Q4_0", "b-Q4_0", "b-UD-Q4_0"]);
    }

    #[test]
    fn no_model_and_several_models_are_errors_that_list_them() {
        let two = ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf", "b-Q8_0.gguf"];
        let message = pick("", &two).unwrap_err().to_string();
        assert!(message.contains("a-Q4_K_M.gguf, b-Q4_K_M.gguf") && !message.contains("Q8_0"), "{message}");
        assert_eq!(pick("b-Q4_K_M.gguf", &two).unwrap().1, ["b-Q4_K_M.gguf"]);
        let message = pick("Q5_K_M", &two).unwrap_err().to_string();
        assert!(message.contains("`Q5_K_M`") && message.contains("b-Q8_0.gguf"), "{message}");
        assert!(pick("", &[]).unwrap_err().to_string().contains("it has no GGUF file"));
    }

    #[test]
    fn pages_and_tokens_stay_on_the_hub() {
        let hub = Hub::new("http://mirror/hf/", Some("secret\n".into()));
        let mut headers = HeaderMap::new();
        assert_eq!(hub.next_page(&headers), None);
        headers.insert("link", r#"<https://evil/api/models/o/r/tree/main?cursor=x>; rel="next""#.parse().unwrap());
        assert_eq!(hub.next_page(&headers).unwrap(), "http://mirror/hf/api/models/o/r/tree/main?cursor=x");
        assert_eq!(hub.token_for("http://mirror/hf/o/r/x.gguf").as_deref(), Some("secret"));
        assert_eq!(hub.token_for("http://mirror/hf.evil/x.gguf"), None);
    }
}
