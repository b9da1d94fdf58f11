//! `top`: a running mesh on the whole terminal, as it changes.

use std::{
    io::{self, BufReader, IsTerminal},
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers},
};
use serde::Deserialize;
use serde_json::Value;

use super::{server_events::ServerEvents, status};
use crate::{
    cli::{CoordinatorArgs, Failure, TopArgs},
    mesh::status::MeshStatus,
    render::dashboard::{Dashboard, RunningRequest},
};

pub(super) fn top(args: TopArgs) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        return Err(Failure::usage("`top` draws on a terminal, and standard output is none".to_owned())
            .with_advice("coordinator status"));
    }
    // Whatever is wrong with address or key is said before the screen changes.
    let (_, first) = status::ask(&args.coordinator)?;
    let (sender, news) = mpsc::channel();
    let (coordinator, other) = (Arc::new(args.coordinator), sender.clone());
    let (asked, started) =
        (Arc::clone(&coordinator), |error| Failure::failed(format!("cannot start a thread: {error}")));
    thread::Builder::new().name("follow".into()).spawn(move || follow(&coordinator, &sender)).map_err(started)?;
    thread::Builder::new().name("slots".into()).spawn(move || look(&asked, &other)).map_err(started)?;
    let mut terminal = ratatui::init();
    let ended = show(&mut terminal, Dashboard::new(first), &news);
    ratatui::restore();
    ended.map_err(|error| Failure::failed(format!("cannot draw on this terminal: {error}")))
}

/// What comes from the coordinator.
#[derive(Debug, PartialEq)]
enum News {
    Status(Box<MeshStatus>),
    Rates {
        generated_per_s: f64,
        prompt_per_s: f64,
    },
    Started {
        number: u64,
        key: Option<String>,
        prompt_tokens: usize,
        max_tokens: usize,
    },
    Ended {
        number: u64,
    },
    Running(Vec<RunningRequest>),
    /// So many events were not heard.
    Lost {
        events: u64,
    },
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
                News::Started { number, key, prompt_tokens, max_tokens } => {
                    dashboard.started(now, number, key, (prompt_tokens, max_tokens));
                }
                News::Ended { number } => dashboard.ended(number),
                News::Running(running) => dashboard.running(now, &running),
                News::Lost { events } => {
                    dashboard.missed();
                    dashboard.happened(now, format!("{events} events were lost: they came too quickly."));
                }
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

/// Tells again and again what runs, until nobody wants to know any more. That the coordinator is gone is told by who follows it.
fn look(coordinator: &CoordinatorArgs, news: &Sender<News>) {
    loop {
        let slots = status::open(coordinator, "/slots", Some(status::PATIENCE));
        let slots = slots.ok().and_then(|mut body| serde_json::from_str(&body.read_to_string().ok()?).ok());
        if slots.is_some_and(|slots: Vec<Slot>| news.send(News::Running(running(slots))).is_err()) {
            return;
        }
        thread::sleep(SECOND);
    }
}

fn running(slots: Vec<Slot>) -> Vec<RunningRequest> {
    let one = |slot: Slot| {
        Some(RunningRequest {
            number: slot.id_task.filter(|_| slot.is_processing)?,
            prompt_tokens: slot.n_prompt_tokens,
            read_tokens: slot.n_prompt_tokens_cache + slot.n_prompt_tokens_processed,
            generated_tokens: slot.next_token.first().map_or(0, |next| next.n_decoded),
            max_tokens: slot.params.n_predict,
        })
    };
    slots.into_iter().filter_map(one).collect()
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
        "request_started" => {
            let Started { request: number, key, prompt_tokens, max_tokens } = Started::deserialize(event).ok()?;
            Some(News::Started { number, key, prompt_tokens, max_tokens })
        }
        "request_ended" => Some(News::Ended { number: event["request"].as_u64()? }),
        "lost" => Some(News::Lost { events: event["events"].as_u64()? }),
        _ => Some(News::Sentence(event["sentence"].as_str()?.to_owned())),
    }
}

#[derive(Deserialize)]
struct Started {
    request: u64,
    key: Option<String>,
    prompt_tokens: usize,
    max_tokens: usize,
}

/// An entry of `/slots`; an idle one has little of it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Slot {
    id_task: Option<u64>,
    is_processing: bool,
    n_prompt_tokens: usize,
    n_prompt_tokens_processed: usize,
    n_prompt_tokens_cache: usize,
    params: SlotParams,
    next_token: Vec<NextToken>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SlotParams {
    n_predict: usize,
}

#[derive(Deserialize)]
struct NextToken {
    n_decoded: usize,
}

#[derive(Deserialize)]
struct Rates {
    generated_per_s: f64,
    prompt_per_s: f64,
}

const SECOND: Duration = Duration::from_secs(1);
/// The longest that a key, or news, waits.
const REDRAW: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_as_the_api_tells_them() {
        let told = understood("fault_seen", r#"{"sentence":"w1: a NaN."}"#);
        assert_eq!(told, Some(News::Sentence("w1: a NaN.".to_owned())));
        let started = r#"{"request":7,"prompt_tokens":300,"max_tokens":64,"key":"anna"}"#;
        let news = News::Started { number: 7, key: Some("anna".to_owned()), prompt_tokens: 300, max_tokens: 64 };
        assert_eq!(understood("request_started", started), Some(news));
        let ended = r#"{"request":7,"end":"cancelled"}"#;
        assert_eq!(understood("request_ended", ended), Some(News::Ended { number: 7 }));
        let slots = r#"[
            {"id":0,"id_task":7,"is_processing":true,"n_prompt_tokens":300,"n_prompt_tokens_processed":200,
             "n_prompt_tokens_cache":56,"params":{"n_predict":64,"temperature":0.0,"seed":1},
             "next_token":[{"has_next_token":true,"n_remain":59,"n_decoded":5}]},
            {"id":1,"n_ctx":64,"is_processing":false}]"#;
        let found =
            RunningRequest { number: 7, prompt_tokens: 300, read_tokens: 256, generated_tokens: 5, max_tokens: 64 };
        assert_eq!(running(serde_json::from_str(slots).unwrap()), [found]);
    }

    #[test]
    fn rates_and_losses_are_understood_and_the_rest_passed_over() {
        let rates = r#"{"prompt_per_s":2.0,"generated_per_s":30.5,"running":1,"waiting":0}"#;
        assert_eq!(understood("token_rates", rates), Some(News::Rates { generated_per_s: 30.5, prompt_per_s: 2.0 }));
        let lost = understood("lost", r#"{"events":7}"#);
        assert_eq!(lost, Some(News::Lost { events: 7 }));
        assert_eq!(understood("load_progress", r#"{"stage":0}"#), None);
        assert_eq!(understood("worker_left", "nonsense"), None);
    }
}
