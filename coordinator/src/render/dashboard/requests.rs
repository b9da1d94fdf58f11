//! The requests of a mesh, from what a coordinator tells of them as they come and from what runs on its stages.

use std::{collections::BTreeMap, time::Instant};

use ratatui::{
    layout::Constraint,
    style::{Modifier, Style},
    widgets::{Block, Row, Table},
};

use crate::render::report::uptime;

/// One request on the stages, as `/slots` tells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RunningRequest {
    /// Its number.
    pub number: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Of those, the ones that are computed.
    pub read_tokens: usize,
    /// Generated so far.
    pub generated_tokens: usize,
    /// The most that may be generated.
    pub max_tokens: usize,
}

/// The requests that are not over.
#[derive(Debug, Default)]
pub(super) struct Requests(BTreeMap<u64, Known>);

/// What is known of one.
#[derive(Debug)]
struct Known {
    since: Instant,
    /// Whose key asked for it.
    key: Option<String>,
    heard: Heard,
    prompt_tokens: usize,
    max_tokens: usize,
    /// Its prompt's and its own tokens so far, while it is on the stages.
    running: Option<(usize, usize)>,
}

/// How a request became known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Heard {
    /// As it was taken: its end will be told as well.
    Told,
    /// It ran already.
    Seen,
}

impl Requests {
    /// A request was taken.
    pub(super) fn started(&mut self, now: Instant, number: u64, key: Option<String>, tokens: (usize, usize)) {
        let (prompt_tokens, max_tokens) = tokens;
        let known = Known { since: now, key, heard: Heard::Told, prompt_tokens, max_tokens, running: None };
        self.0.insert(number, known);
        while self.0.len() > MOST {
            self.0.pop_first();
        }
    }

    /// A request is over.
    pub(super) fn ended(&mut self, number: u64) {
        self.0.remove(&number);
    }

    /// What is known may be over: nothing was heard for a while.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// These run; all others wait.
    pub(super) fn run(&mut self, now: Instant, running: &[RunningRequest]) {
        self.0.values_mut().for_each(|known| known.running = None);
        for &RunningRequest { number, prompt_tokens, read_tokens, generated_tokens, max_tokens } in running {
            let seen = Known { since: now, key: None, heard: Heard::Seen, prompt_tokens, max_tokens, running: None };
            self.0.entry(number).or_insert(seen).running = Some((read_tokens, generated_tokens));
        }
        // Nobody tells of the end of those.
        self.0.retain(|_, known| known.heard == Heard::Told || known.running.is_some());
    }

    /// Lines that their table takes.
    pub(super) fn lines(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap_or(u16::MAX).min(MOST_LINES) + 3
    }

    /// Those that run first, the oldest first; how many there are is told where not all of them have a line.
    pub(super) fn table(&self, now: Instant) -> Table<'_> {
        let (running, waiting): (Vec<_>, Vec<_>) = self.0.iter().partition(|(_, known)| known.running.is_some());
        let title = match running.len() + waiting.len() {
            0 => " no requests ".to_owned(),
            _ => format!(" requests: {} running, {} waiting ", running.len(), waiting.len()),
        };
        let rows = running.into_iter().chain(waiting).map(|(number, known)| known.row(*number, now));
        let widths = [
            Constraint::Length(9),
            Constraint::Length(16),
            Constraint::Length(9),
            Constraint::Length(18),
            Constraint::Length(18),
            Constraint::Fill(1),
        ];
        let head = Row::new(["request", "key", "", "prompt", "answer", "for"]);
        Table::new(rows, widths)
            .header(head.style(Style::new().add_modifier(Modifier::DIM)))
            .block(Block::bordered().title(title))
    }
}

impl Known {
    fn row(&self, number: u64, now: Instant) -> Row<'static> {
        let (state, prompt, answer) = match self.running {
            Some((read, generated)) => {
                ("running", format!("{read} of {}", self.prompt_tokens), format!("{generated} of {}", self.max_tokens))
            }
            None => ("waiting", self.prompt_tokens.to_string(), format!("at most {}", self.max_tokens)),
        };
        let took = uptime(now.saturating_duration_since(self.since).as_secs());
        let key = self.key.clone().unwrap_or_default();
        Row::new([number.to_string(), key, state.to_owned(), prompt, answer, took])
    }
}

/// Requests that are kept: more than a mesh takes at a time.
const MOST: usize = 1000;
/// Of them, those that have a line.
const MOST_LINES: u16 = 8;
