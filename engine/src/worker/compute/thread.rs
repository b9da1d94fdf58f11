//! The compute thread: it owns every shard at work, takes one command after the other, and says what became of each.

use std::{io, thread, time::Instant};

use tokio::sync::mpsc;

use super::{
    command::{Command, Done},
    shards::Shards,
};

/// The near ends of the compute thread's channels.
pub(crate) struct ComputeThread {
    /// The thread lives as long as this sender.
    pub(crate) commands: mpsc::Sender<Command>,
    /// What became of each command; it ends when the thread does.
    pub(crate) done: mpsc::Receiver<Done>,
}

impl ComputeThread {
    /// Starts the thread, without a shard. So many commands may wait for it, and so many answers of it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn spawn(depth: usize) -> io::Result<Self> {
        let ((sender, mut commands), (done, answers)) = (mpsc::channel(depth), mpsc::channel(depth));
        thread::Builder::new().name("qmesh-compute".into()).spawn(move || {
            let mut shards = Shards::default();
            loop {
                let since = Instant::now();
                let Some(command) = commands.blocking_recv() else { return };
                shards.waited(since.elapsed());
                let answer = shards.handle(command, &mut Instant::now);
                if answer.is_some_and(|answer| done.blocking_send(answer).is_err()) {
                    return;
                }
            }
        })?;
        Ok(Self { commands: sender, done: answers })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use qmesh_net::{FaultCode, Frame, FrameKind, PlanEpoch, Segment, SessionId, StepId, Trail, Wants};

    use super::*;
    use crate::{
        step::StepOutput,
        worker::{
            assignment::Assignment,
            compute::{command::ShardState, masks::StepMasks, scripted::ScriptedShard},
            tests::load_shard,
            turn::Turn,
        },
    };

    fn frame(step: u32) -> Frame {
        let (session, wants) = (SessionId(5), Wants::None);
        let segment = Segment { session, position: 0, rows: 2, wants, trail: Trail(0) };
        let end = Frame::end(PlanEpoch(1), StepId(step));
        Frame { kind: FrameKind::Tokens, segments: vec![segment], ids: vec![1, 2], ..end }
    }

    #[test]
    fn a_shard_that_panics_is_lost_alone() {
        let mut thread = ComputeThread::spawn(4).unwrap();
        let assignment = Arc::new(Assignment::try_from(load_shard(1, 0..2)).unwrap());
        let shards = [
            ScriptedShard(|_| panic!("on purpose")),
            ScriptedShard(|step| Ok(StepOutput::Hidden(vec![0.0; step.ids.len() * 64]))),
        ];
        let turns = [Turn(1), Turn(2)];
        for (turn, shard) in turns.into_iter().zip(shards) {
            let (assignment, shard) = (Arc::clone(&assignment), Box::new(shard));
            thread.commands.blocking_send(Command::Activate { turn, assignment, shard }).unwrap();
        }
        let mut step = |turn, number| {
            let command =
                Command::Step { turn, frame: frame(number), masks: StepMasks::default(), arrived: Instant::now() };
            thread.commands.blocking_send(command).unwrap();
            match thread.done.blocking_recv() {
                Some(Done::Stepped(stepped)) => *stepped,
                other => panic!("{other:?}"),
            }
        };
        let lost = step(Turn(1), 1);
        assert_eq!((lost.shard, lost.faults[0].code, lost.faults.len()), (ShardState::Lost, FaultCode::Internal, 1));
        assert!(lost.frame.is_none() && lost.faults[0].text.contains("on purpose"));
        let whole = step(Turn(2), 1);
        assert_eq!((whole.shard, whole.rows, whole.faults.len()), (ShardState::Whole, 2, 0));
        assert_eq!(whole.frame.map(|frame| (frame.kind, frame.step)), Some((FrameKind::Hidden, StepId(1))));
        let over = step(Turn(1), 2);
        assert!(over.frame.is_none() && over.faults.is_empty(), "there is no shard that could fail");
    }
}
