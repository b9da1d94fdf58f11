//! The shards at work, and what becomes of the commands for them. Whoever calls this says what time it is.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use qmesh_net::{Fault, FaultCode, Frame, OpenSession};

use super::{
    active::{ActiveShard, Computed},
    command::{Command, Done, ShardState, Stepped},
    failure::{Failure, guarded},
    masks::StepMasks,
};
use crate::worker::turn::Turn;

/// The shards at work, by turn.
#[derive(Default)]
pub(crate) struct Shards {
    active: BTreeMap<Turn, ActiveShard>,
    /// Time without anything to do since the last step.
    waited: Duration,
}

impl Shards {
    /// Nothing was to be done for so long.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Carries a command out, and says what became of it. `clock` tells the time when a step begins and when it is done.
    pub(crate) fn handle(&mut self, command: Command, clock: &mut dyn FnMut() -> Instant) -> Option<Done> {
        match command {
            Command::Activate { turn, assignment, shard } => {
                self.active.insert(turn, ActiveShard::new(assignment, shard));
                self.waited = Duration::ZERO;
                None
            }
            Command::Unload { turn } => {
                self.active.remove(&turn);
                Some(Done::Unloaded { turn })
            }
            Command::Open { turn, open } => Some(self.open(turn, open)),
            Command::Close { turn, session } => {
                self.active.get_mut(&turn)?.close(session);
                None
            }
            Command::Keep { turn, session, positions } => {
                self.active.get_mut(&turn)?.keep(session, positions);
                None
            }
            Command::Step { turn, frame, masks, arrived } => {
                Some(Done::Stepped(Box::new(self.step(turn, frame, masks, arrived, clock))))
            }
        }
    }

    fn open(&mut self, turn: Turn, open: OpenSession) -> Done {
        let session = open.session;
        let opened = match self.active.get_mut(&turn) {
            Some(shard) => shard.open(open).map(|()| shard.kv_positions_used()),
            None => Err(Failure::NoShard.to_string()),
        };
        match opened {
            Ok(kv_positions_used) => Done::Opened { turn, session, kv_positions_used },
            Err(text) => Done::Refused { turn, session, text },
        }
    }

    fn step(
        &mut self,
        turn: Turn,
        frame: Frame,
        masks: StepMasks,
        arrived: Instant,
        clock: &mut dyn FnMut() -> Instant,
    ) -> Stepped {
        let since = clock();
        let waited = std::mem::take(&mut self.waited);
        let nothing = Stepped {
            turn,
            frame: None,
            faults: Vec::new(),
            rows: 0,
            compute: Duration::ZERO,
            waited,
            kv_positions_used: 0,
            shard: ShardState::Whole,
        };
        // A frame of a turn that is over: whoever sent it has a new plan.
        let Some(shard) = self.active.get_mut(&turn) else { return nothing };
        match guarded(|| Ok(shard.step(&frame, masks))) {
            Ok(Computed { frame, rows, faults }) => {
                let kv_positions_used = shard.kv_positions_used();
                let compute = clock().saturating_duration_since(since);
                let queued = since.saturating_duration_since(arrived);
                let frame = frame.map(|frame| Frame { times: frame.times.and_stage(compute, queued), ..frame });
                Stepped { frame, rows, faults, compute, kv_positions_used, ..nothing }
            }
            Err(failure) => {
                let (epoch, code, text) = (shard.epoch(), FaultCode::Internal, failure.to_string());
                self.active.remove(&turn);
                Stepped { faults: vec![Fault { epoch, session: None, code, text }], shard: ShardState::Lost, ..nothing }
            }
        }
    }
}
