//! What the person at the worker sees: single lines on stderr, and a bar while tensors come.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use qmesh_models::{bytes::ByteCount, terminal::escaped_line};

use super::tensors::Origins;

/// How often progress is a line of its own where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Without colours: it reads well without, and so `NO_COLOR` holds.
const TEMPLATE: &str = "fetching {bar:30} {msg}";

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
    /// When the fetch was first heard of, and how many bytes it had at hand then.
    began: Option<(Instant, u64)>,
}

impl Console {
    pub(super) fn new(audience: Audience) -> Self {
        Self { audience, bar: None, line_due: None, began: None }
    }

    /// Says one line, after what was in progress. Names of models and peers in it come from elsewhere.
    pub(super) fn say(&mut self, line: &str) {
        self.finish();
        self.print(line);
    }

    /// Shows how far the fetching is.
    pub(super) fn progress(&mut self, bytes_done: u64, bytes_total: u64, origins: &Origins) {
        if self.audience == Audience::Nobody {
            return;
        }
        let now = Instant::now();
        let (since, before) = *self.began.get_or_insert((now, bytes_done));
        let pace = (bytes_done.saturating_sub(before), now.duration_since(since));
        let text = progress_text(bytes_done, bytes_total, origins, pace);
        if qmesh_logging::shows_progress() {
            let style = || ProgressStyle::with_template(TEMPLATE).expect("the template is a constant that parses");
            let bar = self.bar.get_or_insert_with(|| ProgressBar::new(bytes_total).with_style(style()));
            bar.set_message(escaped_line(&text).to_string());
            return bar.set_position(bytes_done);
        }
        let due = *self.line_due.get_or_insert(now + LINE_INTERVAL);
        if now >= due {
            self.line_due = Some(now + LINE_INTERVAL);
            self.print(&format!("fetched {text}"));
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&mut self) {
        (self.line_due, self.began) = (None, None);
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn print(&self, line: &str) {
        self.audience.hear(line);
    }
}

impl Audience {
    /// Says a line to whoever listens, where nothing is in progress.
    pub(super) fn hear(self, line: &str) {
        if self == Self::People {
            qmesh_logging::note(&escaped_line(line));
        }
    }
}

/// `80 MB of 120 MB (60 MB from attic, 20 MB from the coordinator), 12 MB/s, 3 s left`, where so many bytes came in that
/// time; who sent what stands there once another worker has sent something.
fn progress_text(done: u64, total: u64, origins: &Origins, (came, time): (u64, Duration)) -> String {
    let mut text = format!("{} of {}", ByteCount(done), ByteCount(total));
    if !origins.peers.is_empty() {
        text = format!("{text} ({origins})");
    }
    let per_second = came as f64 / time.as_secs_f64();
    if per_second.is_normal() {
        let left = total.saturating_sub(done) as f64 / per_second;
        text = format!("{text}, {}/s, {left:.0} s left", ByteCount(per_second as u64));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_names_who_sends_how_fast_and_how_long_it_takes() {
        let origins = Origins { coordinator: 20_000_000, peers: vec![("attic".into(), 60_000_000)] };
        let pace = (60_000_000, Duration::from_secs(5));
        let text = progress_text(80_000_000, 120_000_000, &origins, pace);
        let who = "60.0 MB from attic, 20.0 MB from the coordinator";
        assert_eq!(text, format!("80.0 MB of 120 MB ({who}), 12.0 MB/s, 3 s left"));
        let first = progress_text(1, 2, &Origins::coordinator(1), (0, Duration::ZERO));
        assert_eq!(first, "1 B of 2 B");
    }
}
