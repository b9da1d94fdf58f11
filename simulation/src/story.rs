//! What happened in a world, as lines to be read, and what was found to be wrong.

use std::{fmt, time::Duration};

/// A world's story.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Story {
    now: Duration,
    lines: Vec<String>,
    /// What no world should show, in the order in which it showed.
    pub findings: Vec<String>,
    /// What happened how often.
    pub totals: Totals,
}

/// What happened how often in a world.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Totals {
    /// Texts that came to their end.
    pub texts: usize,
    /// Requests that failed for a reason that is one.
    pub failures: usize,
    /// Requests that were cancelled.
    pub cancelled: usize,
    /// Tokens that were told.
    pub tokens: usize,
    /// Tokens that a small model drafted and that were right.
    pub drafted: u64,
    /// Plans that were made.
    pub plans: usize,
    /// Things that went wrong.
    pub mishaps: usize,
    /// Frames on links, and messages on control streams.
    pub frames: usize,
    /// Virtual time that passed, in milliseconds.
    pub millis: u64,
}

impl Story {
    /// A story without lines.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is told from now on happens at this time.
    pub fn at(&mut self, now: Duration) {
        self.now = now;
    }

    /// Adds a line.
    pub fn tell(&mut self, line: String) {
        self.lines.push(format!("{:12.6}  {line}", self.now.as_secs_f64()));
    }

    /// Adds something that should not be.
    pub fn find(&mut self, text: String) {
        self.tell(format!("FOUND: {text}"));
        self.findings.push(text);
    }

    /// Whether something was found, so that going on tells nothing more.
    pub fn is_over(&self) -> bool {
        !self.findings.is_empty()
    }

    /// The world ends.
    pub fn end(&mut self, now: Duration) {
        self.totals.millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.tell(format!("the end: {:?}", self.totals));
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
