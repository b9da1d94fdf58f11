//! Prometheus' two formats of text: OpenMetrics for who asks for it, and the older one, which every tool reads, for all others.

use std::collections::HashSet;

use axum::http::{HeaderMap, header};

/// How metrics are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TextFormat {
    OpenMetrics,
    Classic,
}

impl TextFormat {
    /// What a client reads.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let accepted = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
        let open = accepted
            .flat_map(|list| list.split(','))
            .any(|kind| kind.trim().starts_with("application/openmetrics-text"));
        if open { Self::OpenMetrics } else { Self::Classic }
    }

    /// Its media type.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// A text in OpenMetrics as this format has it.
    pub(super) fn write(self, text: String) -> String {
        match self {
            Self::OpenMetrics => text,
            Self::Classic => classic(&text),
        }
    }
}

/// The older format describes counters by the names that their values have, with `_total`, and has no end mark.
fn classic(text: &str) -> String {
    let counter = |line: &str| line.strip_prefix("# TYPE ")?.strip_suffix(" counter").map(str::to_owned);
    let counters: HashSet<String> = text.lines().filter_map(counter).collect();
    let line = |line: &str| {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF"), None, None) => String::new(),
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                format!("# {what} {name}_total {rest}\n")
            }
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn counters_are_described_as_they_are_named() {
        let text =
            "# HELP a Of all.\n# TYPE a counter\na_total 1\n# HELP b Now.\n# TYPE b gauge\nb{c=\"# EOF\"} 2\n# EOF\n";
        let older = "# HELP a_total Of all.\n# TYPE a_total counter\na_total 1\n# HELP b Now.\n# TYPE b gauge\nb{c=\"# EOF\"} 2\n";
        assert_eq!(TextFormat::Classic.write(text.to_owned()), older);
        assert_eq!(TextFormat::OpenMetrics.write(text.to_owned()), text);
    }

    #[test]
    fn who_asks_for_openmetrics_gets_it() {
        let wanted = |accept: &'static str| {
            TextFormat::wanted(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
        };
        let prometheus = "text/plain;q=0.5, application/openmetrics-text;version=1.0.0;q=0.6";
        assert_eq!(wanted(prometheus), TextFormat::OpenMetrics);
        assert_eq!((wanted("*/*"), TextFormat::wanted(&HeaderMap::new())), (TextFormat::Classic, TextFormat::Classic));
    }
}
