//! The mesh on a whole terminal, for `top`: its pipeline, how fast tokens come, and what happens.

mod requests;

use std::{collections::VecDeque, time::Instant};

use qmesh_models::bytes::ByteCount;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, List, Paragraph, Row, Sparkline, Table},
};

use self::requests::Requests;
pub use self::requests::RunningRequest;
use super::{
    count,
    report::{link, percentiles, uptime},
};
use crate::mesh::status::{MeshState, MeshStatus, StagePhase, StageStatus};

/// What is shown.
#[derive(Debug)]
pub struct Dashboard {
    status: MeshStatus,
    /// Mean milliseconds of each stage's steps between the last two statuses that differ in them.
    step_ms: Vec<f64>,
    generated_per_s: f64,
    prompt_per_s: f64,
    /// Generated tokens of each second, the newest last.
    seconds: VecDeque<u64>,
    requests: Requests,
    /// What happened and when, the newest first.
    events: VecDeque<(Instant, String)>,
    /// Why nothing new comes.
    gone: Option<String>,
}

impl Dashboard {
    /// Of a mesh that says this of itself.
    pub fn new(status: MeshStatus) -> Self {
        let step_ms = status.stages.iter().map(|stage| stage.compute_ms).collect();
        Self {
            status,
            step_ms,
            generated_per_s: 0.0,
            prompt_per_s: 0.0,
            seconds: VecDeque::new(),
            requests: Requests::default(),
            events: VecDeque::new(),
            gone: None,
        }
    }

    /// The mesh says something else of itself.
    pub fn update(&mut self, status: MeshStatus) {
        self.gone = None;
        let same_plan = self.status.epoch == status.epoch && self.status.stages.len() == status.stages.len();
        self.step_ms = status
            .stages
            .iter()
            .enumerate()
            .map(|(number, new)| match self.status.stages.get(number).filter(|_| same_plan) {
                Some(old) => recent(old, new).unwrap_or(self.step_ms[number]),
                None => new.compute_ms,
            })
            .collect();
        self.status = status;
    }

    /// Tokens come at another rate.
    pub fn rates(&mut self, generated_per_s: f64, prompt_per_s: f64) {
        (self.generated_per_s, self.prompt_per_s) = (generated_per_s, prompt_per_s);
    }

    /// A second has passed.
    pub fn second(&mut self) {
        self.seconds.push_back(self.generated_per_s.round() as u64);
        if self.seconds.len() > SECONDS {
            self.seconds.pop_front();
        }
    }

    /// Something happened, in words.
    pub fn happened(&mut self, now: Instant, sentence: String) {
        self.events.push_front((now, sentence));
        self.events.truncate(EVENTS);
    }

    /// A request was taken, of so many tokens, and at most so many in its answer.
    pub fn started(&mut self, now: Instant, number: u64, key: Option<String>, tokens: (usize, usize)) {
        self.requests.started(now, number, key, tokens);
    }

    /// A request is over.
    pub fn ended(&mut self, number: u64) {
        self.requests.ended(number);
    }

    /// Ends of requests may have been missed.
    pub fn missed(&mut self) {
        self.requests.forget();
    }

    /// These requests run now.
    pub fn running(&mut self, now: Instant, running: &[RunningRequest]) {
        self.requests.run(now, running);
    }

    /// The coordinator says no more, and why.
    pub fn gone(&mut self, why: String) {
        self.missed();
        self.gone = Some(why);
        self.rates(0.0, 0.0);
    }

    /// Draws it all.
    pub fn draw(&self, frame: &mut Frame<'_>, now: Instant) {
        let standbys = self.standbys();
        let rows = [
            Constraint::Length(1),
            Constraint::Length(u16::try_from(self.status.stages.len()).unwrap_or(u16::MAX).saturating_add(3).min(20)),
            Constraint::Length(u16::try_from(standbys.len()).unwrap_or(u16::MAX).min(8)),
            Constraint::Length(6),
            Constraint::Length(self.requests.lines()),
            Constraint::Min(3),
            Constraint::Length(1),
        ];
        let [title, pipeline, others, rates, requests, events, foot] = Layout::vertical(rows).areas(frame.area());
        frame.render_widget(self.title(), title);
        frame.render_widget(self.pipeline(), pipeline);
        frame.render_widget(List::new(standbys), others);
        self.draw_rates(frame, rates);
        frame.render_widget(self.requests.table(now), requests);
        let happened = self.events.iter().map(|(at, sentence)| {
            let ago = format!("{:>8} ago  ", uptime(now.saturating_duration_since(*at).as_secs()));
            Line::from(vec![Span::from(ago).dim(), Span::from(sentence.as_str())])
        });
        frame.render_widget(List::new(happened).block(Block::bordered().title(" what happens ")), events);
        frame.render_widget(Line::from(" q quits").dim(), foot);
    }

    fn title(&self) -> Line<'_> {
        let MeshStatus { model, state, text, uptime_s, .. } = &self.status;
        let colour = match state {
            MeshState::Ready => Color::Green,
            MeshState::Failed => Color::Red,
            MeshState::Waiting | MeshState::Loading | MeshState::Stopping => Color::Yellow,
        };
        let mut spans = vec![Span::from(format!(" {model}  ")).bold()];
        match &self.gone {
            Some(why) => spans.push(Span::from(format!("gone: {why}")).fg(Color::Red)),
            None => {
                spans.push(Span::from(state.name()).fg(colour));
                spans.push(Span::from(format!(": {text}  up {}", uptime(*uptime_s))));
            }
        }
        Line::from(spans)
    }

    fn pipeline(&self) -> Table<'_> {
        let slowest = self.slowest();
        let stages = self.status.stages.iter().zip(&self.step_ms).enumerate();
        let rows = stages.map(|(number, (stage, &ms))| self.stage(stage, ms, slowest, number));
        let widths = [
            Constraint::Length(5),
            Constraint::Length(13),
            Constraint::Length(7),
            Constraint::Length(7),
            Constraint::Length(13),
            Constraint::Length(11),
            Constraint::Length(6),
            Constraint::Length(18),
            Constraint::Length(16),
            Constraint::Fill(1),
        ];
        let head =
            ["stage", "worker", "layers", "step ms", "p50 / p95", "", "hop ms", "memory", "KV used", "to the next"];
        let plan =
            if self.status.epoch == 0 { " no plan yet ".to_owned() } else { format!(" plan {} ", self.status.epoch) };
        Table::new(rows, widths)
            .header(Row::new(head).style(Style::new().add_modifier(Modifier::DIM)))
            .block(Block::bordered().title(plan))
    }

    /// One line of the table. `slowest` is the stage that the others wait for.
    fn stage(&self, stage: &StageStatus, ms: f64, slowest: Option<usize>, number: usize) -> Row<'static> {
        let role = match (stage.phase, slowest) {
            (StagePhase::Ready, Some(slowest)) if slowest == number => "bottleneck".to_owned(),
            (StagePhase::Ready, Some(slowest)) => format!("waits {:.0} %", 100.0 * (1.0 - ms / self.step_ms[slowest])),
            (StagePhase::Ready, None) => String::new(),
            (phase, _) => loading(phase, stage.bytes_done, stage.bytes_total),
        };
        let cells = [
            stage.stage.to_string(),
            stage.worker.clone(),
            format!("{}–{}", stage.first_layer, stage.end_layer.saturating_sub(1)),
            format!("{ms:.1}"),
            stage.recent.map(percentiles).unwrap_or_default(),
            role,
            format!("{:.2}", stage.hop_ms),
            format!("{} of {}", ByteCount(stage.peak_bytes), ByteCount(stage.planned_bytes)),
            kv_used(stage),
            stage.link.map(link).unwrap_or_default(),
        ];
        let row = Row::new(cells);
        if slowest == Some(number) { row.style(Style::new().fg(Color::Yellow)) } else { row }
    }

    /// The stage that takes longest, where there are several and all have computed.
    fn slowest(&self) -> Option<usize> {
        let stages = &self.status.stages;
        if stages.len() < 2 || stages.iter().any(|stage| stage.steps == 0) {
            return None;
        }
        (0..stages.len()).max_by(|&a, &b| self.step_ms[a].total_cmp(&self.step_ms[b]))
    }

    /// A line for each worker without layers, and for the plan that comes next.
    fn standbys(&self) -> Vec<Line<'_>> {
        let without = self.status.workers.iter().filter(|worker| worker.stage.is_none());
        let standbys = without.map(|worker| {
            let why = worker.note.as_deref().unwrap_or("it waits for a plan");
            Line::from(format!(" {} has no layers: {why}", worker.name)).dim()
        });
        let next =
            self.status.change.iter().map(|next| Line::from(format!(" plan {} is next: {}", next.epoch, next.text)));
        standbys.chain(next).collect()
    }

    fn draw_rates(&self, frame: &mut Frame<'_>, area: Rect) {
        let MeshStatus { running, waiting, kv_positions, kv_positions_used, .. } = &self.status;
        let block = Block::bordered().title(" tokens ");
        let [numbers, curve] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(block.inner(area));
        frame.render_widget(block, area);
        let line = format!(
            " {:.1} tok/s generated, {:.1} read   {} running, {waiting} waiting   {kv_positions_used} of {kv_positions} positions in use",
            self.generated_per_s,
            self.prompt_per_s,
            count(*running, "sequence"),
        );
        frame.render_widget(Paragraph::new(line), numbers);
        // The newest second is at the right edge.
        let shown = self.seconds.len().min(usize::from(curve.width));
        let blank = std::iter::repeat_n(0, usize::from(curve.width) - shown);
        let seconds: Vec<u64> = blank.chain(self.seconds.iter().skip(self.seconds.len() - shown).copied()).collect();
        frame.render_widget(Sparkline::default().data(seconds).style(Style::new().fg(Color::Cyan)), curve);
    }
}

/// Mean milliseconds of the steps between two statuses of a stage, if there were any.
fn recent(old: &StageStatus, new: &StageStatus) -> Option<f64> {
    let steps = new.steps.checked_sub(old.steps).filter(|&steps| steps > 0)?;
    let total = |stage: &StageStatus| stage.compute_ms * stage.steps as f64;
    Some(((total(new) - total(old)) / steps as f64).max(0.0))
}

/// `25 % of 800 MB`.
fn kv_used(stage: &StageStatus) -> String {
    let share = stage.kv_bytes_used as f64 / stage.kv_bytes.max(1) as f64;
    format!("{:.0} % of {}", 100.0 * share, ByteCount(stage.kv_bytes))
}

fn loading(phase: StagePhase, done: u64, total: u64) -> String {
    let name = match phase {
        StagePhase::Asked => "asked",
        StagePhase::Fetching => "fetches",
        StagePhase::Loading => "loads",
        StagePhase::Ready => "ready",
        StagePhase::Failed => "failed",
    };
    if total == 0 { name.to_owned() } else { format!("{name} {:.0} %", 100.0 * done as f64 / total as f64) }
}

/// Seconds of rates that are kept: more than a terminal has columns.
const SECONDS: usize = 600;
/// Events that are kept: more than a terminal has lines.
const EVENTS: usize = 200;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::text::fake;

    fn stage(number: usize, steps: u64, compute_ms: f64) -> StageStatus {
        let text = format!(
            r#"{{"stage": {number}, "worker": "w{number}", "first_layer": {}, "end_layer": {}, "weight_bytes": 1,
                "planned_bytes": 2000000000, "kv_bytes": 800000000, "kv_bytes_used": 200000000, "peak_bytes": 1500000000, "phase": "ready", "bytes_done": 0, "bytes_total": 0,
                "steps": {steps}, "compute_ms": {compute_ms}, "hop_ms": 0.25,
                "recent": {{"count": 256, "p50_ms": 6.5, "p95_ms": 31.25}},
                "link": {{"passage": "relayed", "rtt_ms": 12.3}}}}"#,
            number * 4,
            number * 4 + 4
        );
        serde_json::from_str(&text).unwrap()
    }

    /// The lines of a terminal of 132 columns.
    fn drawn(dashboard: &Dashboard, now: Instant) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(132, 30)).unwrap();
        terminal.draw(|frame| dashboard.draw(frame, now)).unwrap();
        let cells = terminal.backend().buffer().content();
        cells.chunks(132).map(|line| line.iter().map(|cell| cell.symbol()).collect()).collect()
    }

    fn line<'a>(lines: &'a [String], part: &str) -> &'a str {
        lines.iter().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{part}: {lines:#?}"))
    }

    #[test]
    fn stages_are_shown_with_the_times_of_their_last_steps() {
        let status = |steps, ms: [f64; 2]| MeshStatus {
            epoch: 3,
            stages: vec![stage(0, steps, ms[0]), stage(1, steps, ms[1])],
            ..fake::mesh_status(MeshState::Ready)
        };
        let mut dashboard = Dashboard::new(status(100, [5.0, 5.0]));
        // Over 200 steps in all: the last hundred took 10 and 40 ms.
        dashboard.update(status(200, [7.5, 22.5]));
        let lines = drawn(&dashboard, Instant::now());
        let first = line(&lines, "w0");
        for part in [
            "0–3",
            "10.0",
            "6.5 / 31.2",
            "waits 75 %",
            "0.25",
            "1.50 GB of 2.00 GB",
            "25 % of 800 MB",
            "relayed, 12.3 ms",
        ] {
            assert!(first.contains(part), "{part}: {first}");
        }
        let second = line(&lines, "w1");
        assert!(second.contains("40.0") && second.contains("bottleneck"), "{second}");
        assert!(line(&lines, "plan 3").starts_with('┌'));
    }

    #[test]
    fn requests_are_shown_as_they_run_and_wait() {
        let start = Instant::now();
        let mut dashboard = Dashboard::new(fake::mesh_status(MeshState::Ready));
        line(&drawn(&dashboard, start), "no requests");
        for number in [7, 8] {
            dashboard.started(start, number, Some("anna".to_owned()), (300, 64));
        }
        let running = |number| RunningRequest {
            number,
            prompt_tokens: 300,
            read_tokens: 256,
            generated_tokens: 5,
            max_tokens: 64,
        };
        // The third ran before anybody looked.
        dashboard.running(start, &[running(3), running(7)]);
        let lines = drawn(&dashboard, start + Duration::from_secs(9));
        line(&lines, "requests: 2 running, 1 waiting");
        let place = |part: &str| lines.iter().position(|line| line.starts_with(part)).unwrap_or(usize::MAX);
        assert!(place("│3 ") < place("│7 ") && place("│7 ") < place("│8 "), "{lines:#?}");
        for (row, parts) in [
            ("│7 ", ["anna", "running", "256 of 300", "5 of 64", "9 s"]),
            ("│8 ", ["anna", "waiting", "300", "at most 64", "9 s"]),
        ] {
            let row = &lines[place(row)];
            assert!(parts.iter().all(|part| row.contains(part)), "{row}");
        }
        dashboard.running(start, &[running(8)]);
        dashboard.ended(7);
        line(&drawn(&dashboard, start), "requests: 1 running, 0 waiting");
        dashboard.gone("stopped".to_owned());
        line(&drawn(&dashboard, start), "no requests");
    }

    #[test]
    fn what_happens_is_listed_with_the_newest_first_and_an_end_is_told() {
        let start = Instant::now();
        let mut dashboard = Dashboard::new(fake::mesh_status(MeshState::Ready));
        dashboard.rates(31.5, 0.0);
        dashboard.second();
        dashboard.happened(start, "w1 has\u{1b}[31m gone: timed out.".to_owned());
        dashboard.happened(start + Duration::from_secs(65), "w2 has joined.".to_owned());
        let lines = drawn(&dashboard, start + Duration::from_secs(70));
        let place = |part: &str| lines.iter().position(|line| line.contains(part));
        assert!(place("5 s ago  w2 has joined.") < place("1 min ago  w1 has[31m gone: timed out."), "{lines:#?}");
        line(&lines, "31.5 tok/s generated");
        dashboard.gone("connection refused".to_owned());
        let lines = drawn(&dashboard, start);
        line(&lines, "gone: connection refused");
        line(&lines, "0.0 tok/s generated");
    }
}
