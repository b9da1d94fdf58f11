//! What checks found, as lines for people and as JSON.

use serde::Serialize;

/// How good it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The system does not tell.
    Unknown,
    /// It works, but not as well as it could.
    Warn,
    /// It does not work.
    Fail,
}

/// What one check found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub check: &'static str,
    /// How good it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do, where something is to be done.
    pub fix: Option<String>,
}

/// What all checks found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Report {
    /// The worst of the verdicts.
    verdict: Verdict,
    /// In the order of the checks.
    checks: Vec<Finding>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), fix: None }
    }

    /// The system does not tell.
    pub fn unknown(check: &'static str, why: impl Into<String>) -> Self {
        Self { verdict: Verdict::Unknown, ..Self::ok(check, why) }
    }

    /// It could be better.
    pub fn warn(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, fix: Some(fix.into()), ..Self::ok(check, found) }
    }

    /// It does not work.
    pub fn fail(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(check, found, fix) }
    }
}

impl Verdict {
    /// Its word, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl Report {
    /// The worst of the verdicts.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// A line for each check, and one more where something is to be done.
    pub fn text(&self) -> String {
        let check_width = self.checks.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        let mut lines = Vec::new();
        for Finding { check, verdict, found, fix } in &self.checks {
            lines.push(format!("{:VERDICT_WIDTH$}  {check:check_width$}  {found}", verdict.name()));
            lines.extend(fix.as_ref().map(|fix| format!("{:1$}try: {fix}", "", VERDICT_WIDTH + check_width + 4)));
        }
        lines.join("\n")
    }

    /// The same for programs.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

impl FromIterator<Finding> for Report {
    fn from_iter<I: IntoIterator<Item = Finding>>(findings: I) -> Self {
        let checks: Vec<_> = findings.into_iter().collect();
        let verdict = checks.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
        Self { verdict, checks }
    }
}

/// Of the longest word.
const VERDICT_WIDTH: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_verdict_is_the_reports() {
        let findings = [
            Finding::ok("clock", "today"),
            Finding::unknown("mtu", "not told"),
            Finding::warn("disk", "slow", "a new one"),
        ];
        let verdicts = |n: usize| findings.iter().take(n).cloned().collect::<Report>().verdict();
        assert_eq!([0, 1, 2, 3].map(verdicts), [Verdict::Ok, Verdict::Ok, Verdict::Unknown, Verdict::Warn]);
        let failed: Report = findings.iter().cloned().chain([Finding::fail("port", "taken", "another")]).collect();
        assert_eq!(failed.verdict(), Verdict::Fail);
        let expected = "\
ok       clock  today
unknown  mtu    not told
warn     disk   slow
                try: a new one
fail     port   taken
                try: another";
        assert_eq!(failed.text(), expected);
        let json = failed.json();
        assert_eq!(json["verdict"], "fail");
        assert_eq!(json["checks"][3]["fix"], "another");
        assert!(json["checks"][0]["fix"].is_null());
    }
}
