//! The trails of the sessions on a stage: whether it and who sends to it mean the same ids.

use std::collections::HashMap;

use qmesh_net::{Frame, Prefix, SessionId, Trails};

/// A session whose ids differ, and how many positions they were compared over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stray {
    pub(super) session: SessionId,
    pub(super) positions: usize,
}

/// By session, from `open` to `close`.
#[derive(Debug, Default)]
pub(super) struct SessionTrails(HashMap<SessionId, Trails>);

impl SessionTrails {
    /// A session begins, perhaps as another one did.
    pub(super) fn open(&mut self, session: SessionId, prefix: Option<Prefix>) {
        let shared = prefix.and_then(|p| Some(self.0.get(&p.session)?.beginning(p.positions as usize)));
        self.0.insert(session, shared.unwrap_or_default());
    }

    /// A session keeps its first positions only.
    pub(super) fn keep(&mut self, session: SessionId, positions: usize) {
        if let Some(trails) = self.0.get_mut(&session) {
            trails.truncate(positions);
        }
    }

    /// A session is over.
    pub(super) fn close(&mut self, session: SessionId) {
        self.0.remove(&session);
    }

    /// Takes in a frame's ids: the sessions whose trail is another one than the sender's. A session that is not open, or
    /// lacks positions before the frame's, is the shard's to report.
    pub(super) fn follow(&mut self, frame: &Frame) -> Vec<Stray> {
        let mut strays = Vec::new();
        for (segment, span) in frame.spans() {
            let (session, position) = (segment.session, segment.position as usize);
            let positions = position + span.len();
            let own = self.0.get_mut(&session).and_then(|trails| trails.write(position, frame.ids.get(span)?));
            if own.is_some_and(|own| own != segment.trail) {
                strays.push(Stray { session, positions });
            }
        }
        strays
    }
}

#[cfg(test)]
mod tests {
    use qmesh_net::{FrameKind, PlanEpoch, Segment, StepId, Trail, Wants};

    use super::*;

    fn frame(position: u32, ids: &[u32], trail: Trail) -> Frame {
        let (wants, rows) = (Wants::Last, u32::try_from(ids.len()).unwrap());
        let segment = Segment { session: SessionId(1), position, rows, wants, trail };
        let end = Frame::end(PlanEpoch(1), StepId(1));
        Frame { kind: FrameKind::Tokens, segments: vec![segment], ids: ids.to_vec(), ..end }
    }

    #[test]
    fn only_other_ids_are_strays() {
        let ids: Vec<u32> = (0..80).collect();
        let mut sender = Trails::default();
        let mut stage = SessionTrails::default();
        assert_eq!(stage.follow(&frame(0, &ids, Trail(9))), [], "not open");
        stage.open(SessionId(1), None);
        let trail = sender.write(0, &ids).unwrap();
        assert_eq!(stage.follow(&frame(0, &ids, trail)), []);
        // A draft that was rejected, then what was right.
        let drafted = sender.write(80, &[7, 8]).unwrap();
        assert_eq!(stage.follow(&frame(80, &[7, 8], drafted)), []);
        let right = sender.write(81, &[9]).unwrap();
        assert_eq!(stage.follow(&frame(81, &[9], right)), []);
        assert_eq!(stage.follow(&frame(99, &[9], Trail(1))), [], "a gap");
        // An id that changed on its way, now or long ago.
        let next = sender.write(82, &[5]).unwrap();
        assert_eq!(stage.follow(&frame(82, &[6], next)), [Stray { session: SessionId(1), positions: 83 }]);
        let later = sender.write(83, &[5]).unwrap();
        assert_eq!(stage.follow(&frame(83, &[5], later)).len(), 1);
    }

    #[test]
    fn beginnings_are_shared_and_kept() {
        let ids: Vec<u32> = (0..70).collect();
        let mut stage = SessionTrails::default();
        stage.open(SessionId(2), None);
        let mut sender = Trails::default();
        let of_2 =
            |frame: Frame| Frame { segments: vec![Segment { session: SessionId(2), ..frame.segments[0] }], ..frame };
        assert_eq!(stage.follow(&of_2(frame(0, &ids, sender.write(0, &ids).unwrap()))), []);
        stage.keep(SessionId(2), 64);
        stage.open(SessionId(1), Some(Prefix { session: SessionId(2), positions: 64 }));
        stage.close(SessionId(2));
        let trail = sender.write(64, &[1, 2]).unwrap();
        assert_eq!(stage.follow(&frame(64, &[1, 2], trail)), []);
    }
}
