//! One file over HTTP: resumed where it broke off, retried while the fault may pass.

use std::{io::Read, path::Path, thread, time::Duration};

use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::{HeaderMap, Response, StatusCode, header},
};

use super::{
    Progress, PullError, names,
    part::{BLOCK, Expected, PartialFile},
    slot::ensure_space,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// A try that brought this much, in bytes, makes the earlier failures forgotten.
const GAIN: u64 = 1 << 20;

/// How long to be patient.
#[derive(Clone, Debug)]
pub(super) struct ServerPatience {
    /// Waits before the second, third, … try.
    pub(super) waits: Vec<Duration>,
    /// How long a server, or pip, may bring nothing.
    pub(super) silence: Duration,
}

/// A file on a server.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// For people.
    pub(super) what: String,
    pub(super) url: String,
    /// Sent to this host only, not to where it redirects.
    pub(super) token: Option<String>,
    pub(super) expected: Expected,
}

/// The HTTP client.
pub(super) struct Http {
    agent: Agent,
    waits: Vec<Duration>,
}

impl Http {
    /// A client that goes through `proxy`.
    pub(super) fn new(patience: &ServerPatience, proxy: Option<ureq::Proxy>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_per_read(Some(patience.silence))
            .user_agent(concat!("qmesh/", env!("CARGO_PKG_VERSION")))
            .proxy(proxy)
            .build();
        Self { agent: config.into(), waits: patience.waits.clone() }
    }

    /// The body at `url`, of at most `limit` bytes, and its headers.
    pub(super) fn get(&self, url: &str, token: Option<&str>, limit: u64) -> Result<(HeaderMap, Vec<u8>), PullError> {
        let attempt = || {
            let response = self.send(url, token, &[])?;
            expect_ok(url, &response)?;
            let (head, body) = response.into_parts();
            let body = body.into_with_config().limit(limit).read_to_vec().map_err(transport(url))?;
            Ok((head.headers, body))
        };
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(answer) => return Ok(answer),
                Err(error) => self.pause(&mut failures, error)?,
            }
        }
    }

    /// Downloads `source` to `target`. The caller holds the lock of its folder.
    pub(super) fn download(
        &self,
        source: &Source,
        target: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), PullError> {
        let identity = match &source.expected.sha256 {
            Some(sha256) => format!("sha256:{sha256}"),
            None => format!("url:{}", blake3::hash(source.url.as_bytes())),
        };
        let part = PartialFile::open(target, &identity, progress)?;
        let mut transfer = Transfer { http: self, source, target, part, progress, total: source.expected.bytes };
        let mut failures = 0;
        loop {
            let before = transfer.part.bytes();
            let Err(error) = transfer.attempt() else { break };
            transfer.part.checkpoint()?;
            if transfer.part.bytes() >= before.saturating_add(GAIN) {
                failures = 0;
            }
            self.pause(&mut failures, error)?;
        }
        transfer.progress.finish();
        let expected = Expected { bytes: transfer.total, ..source.expected.clone() };
        transfer.part.finish(&expected)
    }

    pub(super) fn send(
        &self,
        url: &str,
        token: Option<&str>,
        headers: &[(header::HeaderName, String)],
    ) -> Result<Response<Body>, PullError> {
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.call().map_err(transport(url))
    }

    /// Waits before the next try, or gives the error back when there is none.
    pub(super) fn pause(&self, failures: &mut usize, error: PullError) -> Result<(), PullError> {
        let Some(&wait) = self.waits.get(*failures).filter(|_| error.is_transient()) else { return Err(error) };
        *failures += 1;
        tracing::warn!(%error, wait_s = wait.as_secs(), "trying again");
        thread::sleep(wait);
        Ok(())
    }
}

struct Transfer<'a> {
    http: &'a Http,
    source: &'a Source,
    target: &'a Path,
    part: PartialFile,
    progress: &'a mut dyn Progress,
    /// Bytes of the whole file, once they are known.
    total: Option<u64>,
}

impl Transfer<'_> {
    /// One request, and as much of its answer as comes.
    fn attempt(&mut self) -> Result<(), PullError> {
        let Source { url, token, expected, .. } = self.source;
        if self.part.bytes() > 0 && expected.bytes == Some(self.part.bytes()) {
            return Ok(());
        }
        let range = self.range()?;
        let response = self.http.send(url, token.as_deref(), &range)?;
        let offered = match response.status() {
            StatusCode::PARTIAL_CONTENT => self.continued(response.headers())?,
            StatusCode::RANGE_NOT_SATISFIABLE if self.part.bytes() > 0 => return self.past_the_end(response.headers()),
            _ => {
                expect_ok(url, &response)?;
                self.anew(response.headers())?
            }
        };
        if let (Some(expected), Some(actual)) = (expected.bytes, offered)
            && expected != actual
        {
            return Err(PullError::Length { what: self.source.what.clone(), expected, actual });
        }
        self.total = offered.or(expected.bytes);
        let folder = self.target.parent().unwrap_or(Path::new("."));
        ensure_space(folder, self.total.unwrap_or(0).saturating_sub(self.part.bytes()))?;
        self.receive(response.into_body())
    }

    fn receive(&mut self, body: Body) -> Result<(), PullError> {
        self.progress.begin(&self.source.what, self.total);
        self.progress.advance(self.part.bytes());
        let mut reader = body.into_reader();
        let mut block = vec![0; BLOCK];
        loop {
            let n = reader.read(&mut block).map_err(|error| self.broke_off(error.to_string()))?;
            let actual = self.part.bytes() + n as u64;
            match self.total {
                Some(total) if n == 0 && actual < total => {
                    return Err(self.broke_off(format!("it has {total}")));
                }
                Some(expected) if actual > expected => {
                    return Err(PullError::Length { what: self.source.what.clone(), expected, actual });
                }
                _ if n == 0 => return Ok(()),
                _ => {}
            }
            self.part.append(&block[..n])?;
            self.part.checkpoint_if_due()?;
            self.progress.advance(actual);
        }
    }

    /// The headers that ask for the rest. Without a digest or a validator nothing tells whether the rest belongs to
    /// what is here, so that it is fetched anew.
    fn range(&mut self) -> Result<Vec<(header::HeaderName, String)>, PullError> {
        if self.part.bytes() == 0 {
            return Ok(Vec::new());
        }
        let mut headers = vec![(header::RANGE, format!("bytes={}-", self.part.bytes()))];
        match (&self.source.expected.sha256, &self.part.sidecar.validator) {
            // Mirrors may differ in their validators where the content is the same.
            (Some(_), _) => {}
            (None, Some(validator)) => headers.push((header::IF_RANGE, validator.clone())),
            (None, None) => {
                self.part.restart()?;
                headers.clear();
            }
        }
        Ok(headers)
    }

    /// The answer is the whole file, from its start: its length.
    fn anew(&mut self, headers: &HeaderMap) -> Result<Option<u64>, PullError> {
        if self.part.bytes() > 0 {
            self.part.restart()?;
        }
        self.part.sidecar.validator = validator(headers);
        Ok(content_length(headers))
    }

    /// The answer is the rest of the file: the length of the whole.
    fn continued(&mut self, headers: &HeaderMap) -> Result<Option<u64>, PullError> {
        content_range(&self.source.url, headers, self.part.bytes())
    }

    /// There is no rest: the file is complete, or another one than before.
    fn past_the_end(&mut self, headers: &HeaderMap) -> Result<(), PullError> {
        let total = text(headers, header::CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
        if total == Some(self.part.bytes()) {
            return Ok(());
        }
        let error = self.broke_off("the file has changed".into());
        self.part.restart()?;
        Err(error)
    }

    fn broke_off(&self, reason: String) -> PullError {
        PullError::BrokeOff { url: names::redacted(&self.source.url), got_bytes: self.part.bytes(), reason }
    }
}

/// The answer is a piece of the file, which must begin at `wanted`: the length of the whole, where it is said.
pub(super) fn content_range(url: &str, headers: &HeaderMap, wanted: u64) -> Result<Option<u64>, PullError> {
    let range = text(headers, header::CONTENT_RANGE).unwrap_or_default();
    let parsed = range.strip_prefix("bytes ").and_then(|range| range.split_once('/'));
    let from = parsed.and_then(|(span, _)| span.split_once('-')?.0.parse::<u64>().ok());
    if from != Some(wanted) {
        return Err(PullError::Range { url: names::redacted(url), wanted, range: range.into() });
    }
    Ok(parsed.and_then(|(_, total)| total.parse().ok()))
}

/// The length of a body, where it is said.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_LENGTH).and_then(|length| length.parse().ok())
}

/// What tells this content from a later one at the same URL: a strong `ETag`, or else the date.
pub(super) fn validator(headers: &HeaderMap) -> Option<String> {
    let strong = text(headers, header::ETAG).filter(|tag| tag.starts_with('"'));
    strong.or_else(|| text(headers, header::LAST_MODIFIED)).map(str::to_owned)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

pub(super) fn expect_ok(url: &str, response: &Response<Body>) -> Result<(), PullError> {
    let status = response.status().as_u16();
    let advice = match status {
        200 => return Ok(()),
        401 | 403 => ": check the name, and set HF_TOKEN to a token that may read it",
        404 => ": check the name",
        429 => ": it wants to be asked less often, try later",
        _ => "",
    };
    Err(PullError::Status { url: names::redacted(url), status, advice })
}

fn transport(url: &str) -> impl Fn(ureq::Error) -> PullError {
    move |source| PullError::Transport { url: names::redacted(url), source: Box::new(source) }
}
