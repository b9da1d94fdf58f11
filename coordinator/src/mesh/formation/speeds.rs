//! How fast the workers are: who has been asked, and what they said. It is kept by key, so that a worker that comes back need
//! not be asked again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use qmesh_models::spec::ModelSpec;
use qmesh_net::{AttentionTime, DiskRate, Measure, Measured, MeasuredPoint, Message, PeerId};

use super::worker::{Joined, WorkerId};
use crate::{
    mesh::config::Measuring,
    plan::{Speed, SpeedPoint},
};

/// What is known of how fast workers are.
#[derive(Debug)]
pub(super) struct Speeds {
    /// What they are asked; `None` where nobody is.
    question: Option<Message>,
    /// By key and threads.
    known: BTreeMap<(PeerId, u32), Option<Speed>>,
    /// Who has not answered yet.
    asked: BTreeMap<WorkerId, Asked>,
    /// Who is to be asked, in the order of their coming, and on which machine it is.
    queue: Vec<(WorkerId, Option<MachineName>)>,
}

/// Whose answer is waited for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    until: Instant,
    /// Which machine is busy with it, where that is known.
    machine: Option<MachineName>,
}

/// A machine's name in this mesh.
type MachineName = [u8; 32];

impl Speeds {
    /// Nothing is known yet of how fast anybody computes `spec`.
    pub(super) fn new(spec: &ModelSpec, measuring: Measuring) -> Self {
        let question = match measuring {
            Measuring::Off => None,
            // A spec is plain numbers and texts: writing it as JSON cannot fail.
            Measuring::On => {
                serde_json::to_vec(&excerpt(spec)).ok().map(|spec_json| Message::Measure(Measure { spec_json }))
            }
        };
        Self { question, known: BTreeMap::new(), asked: BTreeMap::new(), queue: Vec::new() }
    }

    /// A worker that has joined is to say how fast it is when it is its turn, if it has not said it before.
    pub(super) fn ask(&mut self, id: WorkerId, worker: &Joined) {
        if self.question.is_some() && !self.known.contains_key(&key(worker)) {
            self.queue.push((id, worker.share.as_ref().map(|share| share.machine)));
        }
    }

    /// Who is asked now: one of a machine at a time. Otherwise they would measure each other, and not a stage that computes
    /// while the others wait for it.
    pub(super) fn turns(&mut self, now: Instant) -> Vec<(WorkerId, Message)> {
        let Some(question) = &self.question else { return Vec::new() };
        let mut turns = Vec::new();
        self.queue.retain(|&(id, machine)| {
            let is_busy =
                machine.is_some() && self.asked.values().any(|asked| asked.machine == machine && asked.until > now);
            if !is_busy {
                self.asked.insert(id, Asked { until: now + PATIENCE, machine });
                turns.push((id, question.clone()));
            }
            is_busy
        });
        turns
    }

    /// A worker's answer; whether it was asked.
    pub(super) fn answered(&mut self, id: WorkerId, worker: &Joined, measured: Measured) -> bool {
        let asked = self.asked.remove(&id).is_some();
        if asked {
            let speed = speed(&measured);
            if speed.is_none() {
                tracing::info!("{} does not know how fast it is: {}", worker.name, measured.text);
            }
            self.known.insert(key(worker), speed);
        }
        asked
    }

    /// A worker is gone: nobody waits for its answer.
    pub(super) fn gone(&mut self, id: WorkerId) {
        self.asked.remove(&id);
        self.queue.retain(|(waiting, _)| *waiting != id);
    }

    /// Whether somebody's answer is still waited for.
    pub(super) fn pending(&self, now: Instant) -> bool {
        !self.queue.is_empty() || self.asked.values().any(|asked| asked.until > now)
    }

    /// How fast a worker is.
    pub(super) fn of(&self, worker: &Joined) -> Option<Speed> {
        self.known.get(&key(worker)).cloned().flatten()
    }
}

fn key(worker: &Joined) -> (PeerId, u32) {
    (worker.peer, worker.threads)
}

/// What a worker says; `None` if nobody can have measured it.
fn speed(measured: &Measured) -> Option<Speed> {
    let disk = DiskRate::find(&measured.sections).ok().flatten().map(|rate| rate.bytes_per_s as f64);
    let attention = AttentionTime::find(&measured.sections).ok().flatten().map(|time| per_byte(time.ps_per_kib));
    let speed = Speed::measured(measured.points.iter().map(point).collect())?;
    Some(speed.with_disk(disk).with_attention(attention))
}

fn per_byte(ps_per_kib: u64) -> f64 {
    ps_per_kib as f64 / 1024.0
}

fn point(point: &MeasuredPoint) -> SpeedPoint {
    SpeedPoint {
        rows: point.rows,
        layers_ps_per_byte: per_byte(point.layers_ps_per_kib),
        head_ps_per_byte: per_byte(point.head_ps_per_kib),
    }
}

/// What workers find out with how fast they compute `spec`. It is less than what any of a few stages holds, as it counts
/// towards a worker's peak memory, and of a large model still more than most caches hold.
pub(crate) fn excerpt(spec: &ModelSpec) -> ModelSpec {
    let all = spec.shard_bytes(&(0..spec.layers.len()));
    spec.excerpt((all / EXCERPT_SHARE).min(EXCERPT_BYTES))
}

/// Loaded in some tenths of a second.
const EXCERPT_BYTES: u64 = 192 << 20;
/// Of a small model, a part of so many.
const EXCERPT_SHARE: u64 = 8;
/// Measuring takes one or two seconds.
const PATIENCE: Duration = Duration::from_secs(6);

#[cfg(test)]
mod tests {
    use qmesh_net::MachineShare;

    use super::*;

    fn worker(threads: u32) -> Joined {
        let address = ([127, 0, 0, 1], 1).into();
        Joined::new("a".to_owned(), PeerId([1; 32]), address, 1, threads)
    }

    fn speeds() -> Speeds {
        let question = Some(Message::Measure(Measure { spec_json: Vec::new() }));
        Speeds { question, known: BTreeMap::new(), asked: BTreeMap::new(), queue: Vec::new() }
    }

    /// Who is asked now, after this one has joined.
    fn ask(speeds: &mut Speeds, now: Instant, id: u64, worker: &Joined) -> Vec<u64> {
        speeds.ask(WorkerId(id), worker);
        turns(speeds, now)
    }

    fn turns(speeds: &mut Speeds, now: Instant) -> Vec<u64> {
        speeds.turns(now).into_iter().map(|(id, _)| id.0).collect()
    }

    #[test]
    fn who_comes_back_is_not_asked_again() {
        let (now, mut speeds) = (Instant::now(), speeds());
        let answer = |ps| Measured {
            points: vec![MeasuredPoint { rows: 1, layers_ps_per_kib: ps, head_ps_per_kib: ps }],
            ..Measured::default()
        };
        assert!(ask(&mut speeds, now, 1, &worker(2)) == [1] && speeds.pending(now));
        assert!(speeds.answered(WorkerId(1), &worker(2), answer(2048)) && !speeds.pending(now));
        assert_eq!(speeds.of(&worker(2)).map(|speed| speed.layers(1.0)), Some(2.0));
        let presumed = speeds.of(&worker(2)).map(|speed| speed.disk_ps_per_byte);
        assert!(ask(&mut speeds, now, 1, &worker(2)).is_empty());
        // With other threads it is another one.
        assert!(ask(&mut speeds, now, 2, &worker(4)) == [2] && speeds.of(&worker(4)).is_none());
        let mut with_disk = answer(1);
        DiskRate { bytes_per_s: 500_000_000 }.put(&mut with_disk.sections).unwrap();
        AttentionTime { ps_per_kib: 3072 }.put(&mut with_disk.sections).unwrap();
        assert!(speeds.answered(WorkerId(2), &worker(4), with_disk));
        let disk = speeds.of(&worker(4)).map(|speed| speed.disk_ps_per_byte);
        assert_eq!((disk, presumed), (Some(2000.0), Some(1000.0)));
        assert_eq!(speeds.of(&worker(4)).map(|speed| speed.attention()), Some(3.0));
        assert!(!speeds.answered(WorkerId(1), &worker(2), answer(1)), "it was not asked");
    }

    #[test]
    fn nobody_is_waited_for_for_ever() {
        let (now, mut speeds) = (Instant::now(), speeds());
        ask(&mut speeds, now, 1, &worker(1));
        assert!(speeds.pending(now) && !speeds.pending(now + PATIENCE));
        speeds.gone(WorkerId(1));
        assert!(!speeds.pending(now));
        ask(&mut speeds, now, 1, &worker(1));
        // An answer without points is one as well.
        assert!(speeds.answered(WorkerId(1), &worker(1), Measured::default()));
        assert!(ask(&mut speeds, now, 1, &worker(1)).is_empty() && speeds.of(&worker(1)).is_none());
    }

    #[test]
    fn workers_of_one_machine_take_turns() {
        let (now, mut speeds) = (Instant::now(), speeds());
        let on = |machine: u8, threads| {
            let share = MachineShare { machine: [machine; 32], ..MachineShare::default() };
            Joined { share: Some(share), ..worker(threads) }
        };
        assert_eq!(ask(&mut speeds, now, 1, &on(1, 1)), [1]);
        assert!(ask(&mut speeds, now, 2, &on(1, 2)).is_empty() && ask(&mut speeds, now, 3, &on(1, 3)).is_empty());
        assert_eq!(ask(&mut speeds, now, 4, &on(2, 4)), [4]);
        speeds.answered(WorkerId(1), &on(1, 1), Measured::default());
        speeds.answered(WorkerId(4), &on(2, 4), Measured::default());
        assert_eq!(turns(&mut speeds, now), [2]);
        // One that goes gives its turn up, and one that says nothing keeps the next one waiting no longer than everybody.
        speeds.gone(WorkerId(2));
        assert_eq!(turns(&mut speeds, now), [3]);
        assert!(ask(&mut speeds, now, 5, &on(1, 5)).is_empty() && speeds.pending(now + PATIENCE));
        assert_eq!(turns(&mut speeds, now + PATIENCE), [5]);
        speeds.gone(WorkerId(5));
        assert!(!speeds.pending(now + PATIENCE));
    }
}
