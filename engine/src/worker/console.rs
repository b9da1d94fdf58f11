//! What the person at the worker sees: single lines on stderr, and a bar while tensors come.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use qmesh_models::{bytes::ByteCount, terminal::escaped_line};

/// How often progress is a line of its own where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Without colours: it reads well without, and so `NO_COLOR` holds.
const TEMPLATE: &str = "fetching {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// Who reads what a worker says.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Audience {
    /// Somebody at the terminal, or a log.
    #[default]
    People,
    /// Nobody: a test.
    Nobody,
}

/// The worker's voice.
#[derive(Debug)]
pub(super) struct Console {
    audience: Audience,
    bar: Option<ProgressBar>,
    line_due: Option<Instant>,
}

impl Console {
    pub(super) fn new(audience: Audience) -> Self {
        Self { audience, bar: None, line_due: None }
    }

    /// Says one line, after what was in progress. Names of models and peers in it come from elsewhere.
    pub(super) fn say(&mut self, line: &str) {
        self.finish();
        self.print(line);
    }

    /// Shows how far the fetching is.
    pub(super) fn progress(&mut self, bytes_done: u64, bytes_total: u64) {
        if self.audience == Audience::Nobody {
            return;
        }
        if stderr().is_terminal() {
            let style = || ProgressStyle::with_template(TEMPLATE).expect("the template is a constant that parses");
            let bar = self.bar.get_or_insert_with(|| ProgressBar::new(bytes_total).with_style(style()));
            return bar.set_position(bytes_done);
        }
        let now = Instant::now();
        let due = *self.line_due.get_or_insert(now + LINE_INTERVAL);
        if now >= due {
            self.line_due = Some(now + LINE_INTERVAL);
            self.print(&format!("fetched {} of {}", ByteCount(bytes_done), ByteCount(bytes_total)));
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&mut self) {
        self.line_due = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn print(&self, line: &str) {
        if self.audience == Audience::People {
            eprintln!("{}", escaped_line(line));
        }
    }
}
