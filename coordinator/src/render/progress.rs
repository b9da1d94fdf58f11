//! Progress on standard error: a bar on a terminal, elsewhere a line about every tenth of the way.

use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qmesh_models::{bytes::ByteCount, pull, terminal::escaped_line};

use super::note;

/// The progress of one phase after another.
#[derive(Debug)]
pub struct Progress {
    shown: Shown,
    phase: Option<Phase>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shown {
    AsBar,
    AsLines,
}

#[derive(Debug)]
enum Phase {
    Bar(ProgressBar),
    Lines(Lines),
}

/// A phase in lines: says when the next tenth is reached.
#[derive(Debug)]
struct Lines {
    what: String,
    total_bytes: Option<u64>,
    tenths_said: u64,
}

impl Progress {
    /// Progress in the form that fits standard error.
    pub fn new() -> Self {
        let shown = if qmesh_logging::shows_progress() { Shown::AsBar } else { Shown::AsLines };
        Self { shown, phase: None }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl pull::Progress for Progress {
    fn begin(&mut self, what: &str, total_bytes: Option<u64>) {
        self.phase = Some(match self.shown {
            Shown::AsBar => Phase::Bar(bar(what, total_bytes)),
            Shown::AsLines => {
                note(total_bytes.map_or_else(|| what.to_owned(), |total| format!("{what}: {}", ByteCount(total))));
                Phase::Lines(Lines { what: what.to_owned(), total_bytes, tenths_said: 0 })
            }
        });
    }

    fn advance(&mut self, done_bytes: u64) {
        match &mut self.phase {
            Some(Phase::Bar(bar)) => bar.set_position(done_bytes),
            Some(Phase::Lines(lines)) => {
                if let Some(line) = lines.advance(done_bytes) {
                    note(line);
                }
            }
            None => {}
        }
    }

    fn finish(&mut self) {
        match self.phase.take() {
            Some(Phase::Bar(bar)) => bar.finish_and_clear(),
            Some(Phase::Lines(lines)) => note(format!("{}: done", lines.what)),
            None => {}
        }
    }
}

/// A bar that nobody finished would stay on the screen, in front of the error.
impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(Phase::Bar(bar)) = self.phase.take() {
            bar.finish_and_clear();
        }
    }
}

/// How many of several things are done, such as prompts.
#[derive(Debug)]
pub struct CountProgress {
    what: &'static str,
    total: u64,
    done: u64,
    bar: Option<ProgressBar>,
}

impl CountProgress {
    /// None of `total` is done yet.
    pub fn new(what: &'static str, total: usize) -> Self {
        let total = total as u64;
        let template = "{msg} [{bar:30}] {pos}/{len} {eta}";
        let bar = qmesh_logging::shows_progress().then(|| styled(ProgressBar::new(total), what, template));
        Self { what, total, done: 0, bar }
    }

    /// One more is done.
    pub fn one_more(&mut self) {
        self.done += 1;
        match (&self.bar, self.line()) {
            (Some(bar), _) => bar.set_position(self.done),
            (None, Some(line)) => note(line),
            (None, None) => {}
        }
    }

    /// What is said where there is no bar: each tenth of the way, but not the end, which shows by itself.
    fn line(&self) -> Option<String> {
        let Self { what, total, done, .. } = self;
        let tenths = |done: u64| done * 10 / total.max(&1);
        (done < total && tenths(*done) > tenths(done - 1)).then(|| format!("{what}: {done} of {total}"))
    }
}

impl Drop for CountProgress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// How far the hashing of a model's tensors is, if that takes long enough to be waited for. Threads may tell it side by side.
#[derive(Debug)]
pub struct HashingProgress {
    what: String,
    begun: Mutex<Option<Progress>>,
}

impl HashingProgress {
    /// Of the model of this name.
    pub fn new(model: &str) -> Self {
        Self { what: format!("hashing {model}"), begun: Mutex::new(None) }
    }

    /// Whether so many bytes are worth it.
    pub fn shows(total_bytes: u64) -> bool {
        total_bytes >= LARGE_BYTES
    }

    /// So many bytes are read.
    pub fn advance(&self, done_bytes: u64, total_bytes: u64) {
        if !Self::shows(total_bytes) {
            return;
        }
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = begun.get_or_insert_with(|| {
            let mut progress = Progress::new();
            pull::Progress::begin(&mut progress, &self.what, Some(total_bytes));
            progress
        });
        pull::Progress::advance(progress, done_bytes);
        if done_bytes == total_bytes {
            pull::Progress::finish(progress);
            *begun = None;
        }
    }
}

/// How far a prompt is, on a terminal; nothing of it stays there.
#[derive(Debug, Default)]
pub struct PromptProgress(Option<ProgressBar>);

impl PromptProgress {
    /// So many of its tokens are computed.
    pub fn advance(&mut self, computed: u64, total: u64) {
        if qmesh_logging::shows_progress() {
            let template = "{msg} [{bar:30}] {pos}/{len} tokens {eta}";
            let bar = || styled(ProgressBar::new(total), "reading the prompt", template);
            self.0.get_or_insert_with(bar).set_position(computed);
        }
    }

    /// All of them are.
    pub fn done(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

/// A bar that nobody finished would stay on the screen, in front of what comes next.
impl Drop for PromptProgress {
    fn drop(&mut self) {
        self.done();
    }
}

impl Lines {
    fn advance(&mut self, done_bytes: u64) -> Option<String> {
        let total = self.total_bytes.filter(|&total| total > 0)?;
        let tenths = (u128::from(done_bytes.min(total)) * 10 / u128::from(total)) as u64;
        if tenths <= self.tenths_said || tenths == 10 {
            return None;
        }
        self.tenths_said = tenths;
        Some(format!("{}: {}0 %, {}", self.what, tenths, ByteCount(done_bytes)))
    }
}

fn bar(what: &str, total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(total) => (
            ProgressBar::new(total),
            "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
        ),
        None => (ProgressBar::new_spinner(), "{msg} {decimal_bytes}"),
    };
    styled(bar, what, template)
}

fn styled(bar: ProgressBar, what: &str, template: &str) -> ProgressBar {
    bar.set_draw_target(ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(escaped_line(what).into_owned());
    bar
}

/// A model that is smaller is hashed in a second or two.
const LARGE_BYTES: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashing_is_shown_of_large_models_from_its_beginning_to_its_end() {
        let hashing = HashingProgress::new("m");
        let is_shown = || hashing.begun.lock().unwrap().is_some();
        hashing.advance(1 << 20, LARGE_BYTES - 1);
        assert!(!is_shown());
        hashing.advance(1 << 20, LARGE_BYTES);
        assert!(is_shown());
        hashing.advance(LARGE_BYTES, LARGE_BYTES);
        assert!(!is_shown());
    }

    #[test]
    fn lines_come_at_each_tenth_and_not_more_often() {
        let mut lines = Lines { what: "fetching m".to_owned(), total_bytes: Some(1_000_000), tenths_said: 0 };
        let said: Vec<_> = (0..=1000).filter_map(|step| lines.advance(step * 1000)).collect();
        assert_eq!(said.len(), 9);
        assert_eq!((said[0].as_str(), said[8].as_str()), ("fetching m: 10 %, 100 kB", "fetching m: 90 %, 900 kB"));
        assert_eq!(lines.advance(5_000_000), None);
        let mut unknown = Lines { what: "m".to_owned(), total_bytes: None, tenths_said: 0 };
        assert_eq!(unknown.advance(77), None);
    }

    #[test]
    fn counts_are_said_at_each_tenth_and_never_for_the_last_one() {
        let said = |total: usize| {
            let mut progress = CountProgress { what: "prompts", total: total as u64, done: 0, bar: None };
            let line = |_| {
                progress.done += 1;
                progress.line()
            };
            (0..total).filter_map(line).collect::<Vec<_>>()
        };
        assert_eq!(said(3), ["prompts: 1 of 3", "prompts: 2 of 3"]);
        let long = said(500);
        assert_eq!((long.len(), long[0].as_str(), long[8].as_str()), (9, "prompts: 50 of 500", "prompts: 450 of 500"));
        assert!(said(1).is_empty() && said(0).is_empty());
    }
}
