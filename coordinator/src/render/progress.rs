//! Progress on standard error: a bar on a terminal, elsewhere a line about every tenth of the way.

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
    bar.set_draw_target(ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(escaped_line(what).into_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
