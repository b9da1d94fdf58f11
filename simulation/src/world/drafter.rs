//! A small model that drafts: it is often right, as it computes what one process would, and it answers late, or dies.

use std::{collections::BTreeMap, time::Duration};

use qmesh_net::{DraftAnswer, DraftOrder, SessionId};

use super::World;
use crate::{
    agenda::Happening,
    model::{self, Drawing, VOCAB},
    random::Random,
};

/// The process of a model that drafts. It has chances of its own, so that worlds without it are what they were.
#[derive(Debug)]
pub(super) struct Drafter {
    random: Random,
    /// What it was told of each session.
    told: BTreeMap<SessionId, (Vec<u32>, Drawing)>,
    /// Percent of its tokens that are right.
    right: u64,
    /// Milliseconds that an answer takes at most.
    takes_ms: u64,
    /// When its last answer comes: they come in order.
    last: Duration,
    is_gone: bool,
}

impl Drafter {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(!seed ^ DRAFTER);
        let (right, takes_ms) = (random.within(20..100), random.within(2..60));
        Self { random, told: BTreeMap::new(), right, takes_ms, last: Duration::ZERO, is_gone: false }
    }

    /// Sessions that it was not told the end of.
    pub(super) fn knows(&self) -> usize {
        self.told.len()
    }
}

impl World {
    pub(super) fn drafter_starts(&mut self) {
        let Some(drafter) = &mut self.drafter else { return };
        let (right, takes_ms) = (drafter.right, drafter.takes_ms);
        let ready = drafter.random.millis(0..8000);
        let ends = drafter.random.percent(20).then(|| drafter.random.millis(8000..40_000));
        self.story.tell(format!("a model drafts, {right} % right, within {takes_ms} ms"));
        self.agenda.enter(ready, Happening::Drafted(DraftAnswer::Ready));
        if let Some(at) = ends {
            self.agenda.enter(at, Happening::DrafterEnds);
        }
    }

    pub(super) fn drafter_ends(&mut self) {
        let Some(drafter) = &mut self.drafter else { return };
        drafter.is_gone = true;
        drafter.told.clear();
        self.story.tell("the model that drafts is gone".to_owned());
        self.coordinator.draft_model_gone();
        self.carry_out();
    }

    pub(super) fn drafted(&mut self, answer: DraftAnswer) {
        if self.drafter.as_ref().is_some_and(|drafter| !drafter.is_gone) {
            self.coordinator.draft_answered(self.instant(), answer);
            self.carry_out();
        }
    }

    /// The coordinator orders drafts.
    pub(super) fn draft(&mut self, order: DraftOrder) {
        let layers = self.scenario.mesh.spec.layers.len();
        let Some(drafter) = self.drafter.as_mut().filter(|drafter| !drafter.is_gone) else {
            return self.find(format!("nobody is there to draft: {order:?}"));
        };
        match order {
            DraftOrder::Open { session, sampling } => {
                if drafter.told.insert(session, (Vec::new(), Drawing::from(&sampling))).is_some() {
                    self.find(format!("session {session} is opened twice where it is drafted"));
                }
            }
            DraftOrder::Close { session } => {
                if drafter.told.remove(&session).is_none() {
                    self.find(format!("session {session} is closed where it is not drafted"));
                }
            }
            DraftOrder::Draft { session, from, ids, most } => {
                let Some((told, drawing)) = drafter.told.get_mut(&session) else {
                    return self.find(format!("session {session} is drafted and not open"));
                };
                if told.len() != from as usize {
                    let text = format!("session {session}: {} ids were told, and ids from {from} come", told.len());
                    return self.find(text);
                }
                told.extend(ids);
                let text = model::text(layers, told, most as usize, &[], drawing);
                let (at, right) = (told.len() as u32, drafter.right);
                let tokens = text.tokens.iter().map(|row| row.token);
                let wrong = |token: u32| (token + 1) % VOCAB as u32;
                let ids =
                    tokens.map(|token| if drafter.random.percent(right) { token } else { wrong(token) }).collect();
                let late = drafter.random.millis(1..drafter.takes_ms + 1);
                // Some answers come when nobody waits for them any more.
                let late = if drafter.random.percent(5) { late * 20 } else { late };
                let token_us = late.as_micros() as u32 / most.max(1);
                drafter.last = drafter.last.max(self.now + late);
                self.agenda
                    .enter(drafter.last, Happening::Drafted(DraftAnswer::Drafted { session, at, ids, token_us }));
            }
        }
    }
}

/// Its chances are not those that drew how much it drafts.
const DRAFTER: u64 = 0xd7af;
