//! The headers of a model on a server, by requests for the beginnings of its files: a few MB at most tell what hundreds of
//! GB are made of.

use std::{io::Read, path::PathBuf};

use ureq::{
    Body,
    http::{Response, StatusCode, header},
};

use super::{
    PullError,
    http::{Http, Source, content_length, content_range, expect_ok, validator},
    names,
};
use crate::gguf::{Gguf, GgufError, GgufFault, HEADER_BYTES_MAX, PartHeader};

/// The first piece; each further one doubles what is here.
const FIRST_BYTES: u64 = 64 << 10;

/// The headers of a model that is on a server.
#[derive(Clone, Debug)]
pub struct RemoteHeader {
    /// What they say. The paths of its parts are addresses, without queries.
    pub gguf: Gguf,
    /// Bytes of the model's files that were read for it.
    pub bytes_read: u64,
}

/// Reads the headers of all parts, in order.
pub(super) fn read(http: &Http, sources: &[Source]) -> Result<RemoteHeader, PullError> {
    let (mut parts, mut bytes_read) = (Vec::new(), 0);
    for source in sources {
        let mut prefix = Prefix { http, source, bytes: Vec::new(), total: None, validator: None, bytes_read: 0 };
        parts.push(prefix.header()?);
        bytes_read += prefix.bytes_read;
    }
    Ok(RemoteHeader { gguf: Gguf::from_parts(parts)?, bytes_read })
}

/// The beginning of a file on a server, as far as it is here.
struct Prefix<'a> {
    http: &'a Http,
    source: &'a Source,
    bytes: Vec<u8>,
    /// Bytes of the whole file, once they are known.
    total: Option<u64>,
    /// What tells this content from a later one at the same URL.
    validator: Option<String>,
    bytes_read: u64,
}

impl Prefix<'_> {
    /// Reads on until the header is whole.
    fn header(&mut self) -> Result<PartHeader, PullError> {
        let (mut failures, mut wanted) = (0, FIRST_BYTES);
        loop {
            match self.attempt(&mut wanted) {
                Ok(Some(header)) => return Ok(header),
                Ok(None) => {}
                Err(error) => self.http.pause(&mut failures, error)?,
            }
        }
    }

    /// One request for the bytes up to `wanted`, which grows where they do not suffice. A server that knows no ranges sends
    /// the file from its start: it is read as far as its header goes, and the connection is given up.
    fn attempt(&mut self, wanted: &mut u64) -> Result<Option<PartHeader>, PullError> {
        let Source { url, token, .. } = self.source;
        let mut headers = vec![(header::RANGE, format!("bytes={}-{}", self.here(), *wanted - 1))];
        headers.extend(self.validator.clone().map(|validator| (header::IF_RANGE, validator)));
        let response = self.http.send(url, token.as_deref(), &headers)?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let total = content_range(url, response.headers(), self.here())?;
            self.set_total(total, &response)?;
            self.take(&mut response.into_body().into_reader(), *wanted)?;
            return self.parse(wanted);
        }
        expect_ok(url, &response)?;
        self.bytes.clear();
        self.total = None;
        self.set_total(content_length(response.headers()), &response)?;
        let mut body = response.into_body().into_reader();
        loop {
            self.take(&mut body, *wanted)?;
            if let Some(header) = self.parse(wanted)? {
                return Ok(Some(header));
            }
        }
    }

    /// Notes how long the file is, which must be what it was before and what its hub says.
    fn set_total(&mut self, total: Option<u64>, response: &Response<Body>) -> Result<(), PullError> {
        let url = || names::redacted(&self.source.url);
        let actual = total.ok_or_else(|| PullError::NoLength { url: url() })?;
        let known = self.total.or(self.source.expected.bytes);
        if let Some(expected) = known.filter(|&expected| expected != actual) {
            return Err(PullError::Length { what: self.source.what.clone(), expected, actual });
        }
        self.total = Some(actual);
        self.validator = validator(response.headers());
        Ok(())
    }

    /// Reads until `wanted` bytes are here, or all that the file has.
    fn take(&mut self, body: &mut impl Read, wanted: u64) -> Result<(), PullError> {
        let wanted = wanted.min(self.total.unwrap_or(wanted));
        let before = self.here();
        let read = body.take(wanted.saturating_sub(before)).read_to_end(&mut self.bytes);
        self.bytes_read += self.here() - before;
        let reason = match read {
            Ok(_) if self.here() == wanted => return Ok(()),
            Ok(_) => format!("{wanted} were asked for"),
            Err(error) => error.to_string(),
        };
        Err(PullError::BrokeOff { url: names::redacted(&self.source.url), got_bytes: self.here(), reason })
    }

    /// The header, if it is here as a whole; else `wanted` becomes what may be enough.
    fn parse(&self, wanted: &mut u64) -> Result<Option<PartHeader>, PullError> {
        let path = PathBuf::from(names::redacted(&self.source.url));
        match PartHeader::parse(path.clone(), &self.bytes, self.total.unwrap_or(self.here())) {
            Ok(header) => Ok(Some(header)),
            Err(GgufFault::MoreNeeded { bytes, .. }) => {
                *wanted = bytes.max(2 * self.here()).min(HEADER_BYTES_MAX);
                Ok(None)
            }
            Err(fault) => Err(GgufError { path, fault }.into()),
        }
    }

    fn here(&self) -> u64 {
        self.bytes.len() as u64
    }
}
