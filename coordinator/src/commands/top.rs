//! `top`: a running mesh on the whole terminal, as it changes.

use std::{
    io::{self, BufRead, BufReader, IsTerminal, Read},
    sync::mpsc::{self, Sender},
    thread,
    time::{Duration, Instant},
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers},
};
use serde::Deserialize;
use serde_json::Value;

use super::status;
use crate::{
    cli::{CoordinatorArgs, Failure, TopArgs},
    mesh::status::MeshStatus,
    render::dashboard::Dashboard,
};

pub(super) fn top(args: TopArgs) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        return Err(Failure::usage("`top` draws on a terminal, and standard output is none".to_owned())
            .with_advice("coordinator status"));
    }
    // Whatever is wrong with address or key is said before the screen changes.
    let (_, first) = status::ask(&args.coordinator)?;
    let (sender, news) = mpsc::channel();
    let follower = thread::Builder::new().name("follow".into()).spawn(move || follow(&args.coordinator, &sender));
    follower.map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
    let mut terminal = ratatui::init();
    let ended = show(&mut terminal, Dashboard::new(first), &news);
    ratatui::restore();
    ended.map_err(|error| Failure::failed(format!("cannot draw on this terminal: {error}")))
}

/// What comes from the coordinator.
#[derive(Debug, PartialEq)]
enum News {
    Status(Box<MeshStatus>),
    Rates { generated_per_s: f64, prompt_per_s: f64 },
    Sentence(String),
    Gone(String),
}

fn show(terminal: &mut DefaultTerminal, mut dashboard: Dashboard, news: &mpsc::Receiver<News>) -> io::Result<()> {
    let mut second = Instant::now();
    loop {
        let now = Instant::now();
        while second + SECOND <= now {
            dashboard.second();
            second += SECOND;
        }
        terminal.draw(|frame| dashboard.draw(frame, now))?;
        if event::poll(REDRAW)?
            && let Event::Key(key) = event::read()?
            && ends(key)
        {
            return Ok(());
        }
        for news in news.try_iter() {
            match news {
                News::Status(status) => dashboard.update(*status),
                News::Rates { generated_per_s, prompt_per_s } => dashboard.rates(generated_per_s, prompt_per_s),
                News::Sentence(sentence) => dashboard.happened(now, sentence),
                News::Gone(why) => dashboard.gone(why),
            }
        }
    }
}

/// `q`, Escape and Ctrl-C, which is a key like others on a terminal that hands over each of them.
fn ends(key: KeyEvent) -> bool {
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

/// Sends on what the coordinator says, and connects again when it is gone, until nobody wants to know any more.
fn follow(coordinator: &CoordinatorArgs, news: &Sender<News>) {
    loop {
        let why = listen(coordinator, news);
        if news.send(News::Gone(why)).is_err() {
            return;
        }
        thread::sleep(SECOND);
    }
}

/// Sends on what comes, until nothing more does; why.
fn listen(coordinator: &CoordinatorArgs, news: &Sender<News>) -> String {
    let url = &coordinator.url;
    let body = match status::open(coordinator, "/api/events", None) {
        Ok(body) => body,
        Err(failure) => return failure.text,
    };
    let mut events = ServerEvents(BufReader::new(body.into_reader()));
    loop {
        match events.next_event() {
            Ok(Some((name, text))) => {
                if understood(&name, &text).is_some_and(|one| news.send(one).is_err()) {
                    return String::new();
                }
            }
            Ok(None) => return format!("{url} has stopped"),
            Err(error) => return format!("{url}: {error}"),
        }
    }
}

/// What an event of the coordinator's means; `None` where it is nothing to show.
fn understood(name: &str, text: &str) -> Option<News> {
    if name.is_empty() {
        return Some(News::Status(serde_json::from_str(text).ok()?));
    }
    let event: Value = serde_json::from_str(text).ok()?;
    match name {
        "token_rates" => {
            let Rates { generated_per_s, prompt_per_s } = Rates::deserialize(event).ok()?;
            Some(News::Rates { generated_per_s, prompt_per_s })
        }
        "lost" => Some(News::Sentence(format!("{} events were lost: they came too quickly.", event["events"]))),
        _ => Some(News::Sentence(event["sentence"].as_str()?.to_owned())),
    }
}

#[derive(Deserialize)]
struct Rates {
    generated_per_s: f64,
    prompt_per_s: f64,
}

/// Reads server-sent events.
struct ServerEvents<R>(R);

impl<R: BufRead> ServerEvents<R> {
    /// The next event's name, empty for one without, and its data; `None` at the end.
    fn next_event(&mut self) -> io::Result<Option<(String, String)>> {
        let (mut name, mut text) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.0.by_ref().take(LONGEST_LINE).read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.strip_suffix('\n').ok_or_else(|| io::Error::other("an event is cut off, or too long"))?;
            let line = line.strip_suffix('\r').unwrap_or(line);
            match line.split_once(':').unwrap_or((line, "")) {
                // A blank line ends an event; one without data is only a sign of life.
                ("", "") if !text.is_empty() => return Ok(Some((name, text))),
                ("event", value) => value.trim_start().clone_into(&mut name),
                ("data", value) => text += value.trim_start(),
                _ => {}
            }
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// The longest that a key, or news, waits.
const REDRAW: Duration = Duration::from_millis(200);
/// A status of a thousand workers is shorter.
const LONGEST_LINE: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_servers_write_them() {
        let stream =
            ":\n\nevent: fault_seen\ndata: {\"sentence\":\"w1: a NaN.\"}\n\ndata: {}\r\n\r\n: alive\n\nevent: x\n";
        let mut events = ServerEvents(stream.as_bytes());
        let (name, text) = events.next_event().unwrap().unwrap();
        assert_eq!(understood(&name, &text), Some(News::Sentence("w1: a NaN.".to_owned())));
        let (name, text) = events.next_event().unwrap().unwrap();
        assert_eq!((name.as_str(), text.as_str()), ("", "{}"));
        assert_eq!(understood(&name, &text), None, "no status");
        assert!(events.next_event().unwrap().is_none());
        assert!(ServerEvents(&b"data: {"[..]).next_event().is_err());
    }

    #[test]
    fn rates_and_losses_are_understood_and_the_rest_passed_over() {
        let rates = r#"{"prompt_per_s":2.0,"generated_per_s":30.5,"running":1,"waiting":0}"#;
        assert_eq!(understood("token_rates", rates), Some(News::Rates { generated_per_s: 30.5, prompt_per_s: 2.0 }));
        let lost = understood("lost", r#"{"events":7}"#);
        assert_eq!(lost, Some(News::Sentence("7 events were lost: they came too quickly.".to_owned())));
        assert_eq!(understood("load_progress", r#"{"stage":0}"#), None);
        assert_eq!(understood("worker_left", "nonsense"), None);
    }
}
