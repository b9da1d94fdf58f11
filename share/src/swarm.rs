//! Which chunk is asked of whom: a pure piece of state that all lanes of a pull share.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Most holders that the same chunk is asked of at a time, once nothing else is left to ask for.
const TWICE: usize = 2;

/// A chunk of a model.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Chunk {
    /// Which file.
    pub(crate) file: usize,
    /// Which chunk of it.
    pub(crate) index: usize,
}

/// A holder, by the order in which it came.
pub(crate) type HolderNumber = usize;

/// What is missing, and who is asked for it.
#[derive(Debug)]
pub(crate) struct Swarm {
    work: Mutex<Work>,
    /// Something came back, or all is there.
    changed: Notify,
}

#[derive(Debug)]
struct Work {
    todo: VecDeque<Chunk>,
    /// Who has been asked for it and has not answered yet.
    asked: BTreeMap<Chunk, BTreeSet<HolderNumber>>,
    /// What a holder said that it does not have.
    lacking: BTreeMap<HolderNumber, BTreeSet<Chunk>>,
}

/// A chunk that a holder is asked for. Dropped before it is there, it is asked of others.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    swarm: &'a Swarm,
    holder: HolderNumber,
    pub(crate) chunk: Chunk,
}

/// What a holder can be asked for.
pub(crate) enum Next<'a> {
    /// This chunk.
    Ask(Asked<'a>),
    /// Nothing at the moment.
    Wait,
    /// All is there.
    Whole,
}

impl Swarm {
    /// These chunks are missing; they are asked for in this order.
    pub(crate) fn new(missing: impl IntoIterator<Item = Chunk>) -> Self {
        let work = Work { todo: missing.into_iter().collect(), asked: BTreeMap::new(), lacking: BTreeMap::new() };
        Self { work: Mutex::new(work), changed: Notify::new() }
    }

    /// Whether all is there.
    pub(crate) fn is_whole(&self) -> bool {
        let work = self.work();
        work.todo.is_empty() && work.asked.is_empty()
    }

    /// What this holder is to be asked for next. Where all that is missing has been asked of others, it is asked for the same: who
    /// is slow or gone must not hold up the end.
    pub(crate) fn next(&self, holder: HolderNumber) -> Next<'_> {
        let mut work = self.work();
        if work.todo.is_empty() && work.asked.is_empty() {
            return Next::Whole;
        }
        let lacks = work.lacking.get(&holder);
        let has = |chunk: &Chunk| !lacks.is_some_and(|lacking| lacking.contains(chunk));
        let chunk = if let Some(at) = work.todo.iter().position(has) {
            work.todo.remove(at)
        } else {
            let asks =
                |(chunk, asked): &(&Chunk, &BTreeSet<_>)| asked.len() < TWICE && !asked.contains(&holder) && has(chunk);
            work.asked.iter().find(asks).map(|(chunk, _)| *chunk)
        };
        let Some(chunk) = chunk else { return Next::Wait };
        work.asked.entry(chunk).or_default().insert(holder);
        Next::Ask(Asked { swarm: self, holder, chunk })
    }

    /// Waits until there may be something else to ask for.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What it did not have before, it may have by now.
    pub(crate) fn forget_lacking(&self, holder: HolderNumber) {
        self.work().lacking.remove(&holder);
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked<'_> {
    /// It is there.
    pub(crate) fn came(self) {
        self.swarm.work().asked.remove(&self.chunk);
        // Dropping it has nothing to give back, and wakes those who wait.
    }

    /// The holder does not have it.
    pub(crate) fn lacks(self) {
        self.swarm.work().lacking.entry(self.holder).or_default().insert(self.chunk);
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut work = self.swarm.work();
        if let Some(asked) = work.asked.get_mut(&self.chunk) {
            asked.remove(&self.holder);
            if asked.is_empty() {
                work.asked.remove(&self.chunk);
                work.todo.push_front(self.chunk);
            }
        }
        drop(work);
        self.swarm.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(index: usize) -> Chunk {
        Chunk { file: 0, index }
    }

    fn ask(swarm: &Swarm, holder: HolderNumber) -> Option<Asked<'_>> {
        match swarm.next(holder) {
            Next::Ask(asked) => Some(asked),
            Next::Wait | Next::Whole => None,
        }
    }

    #[test]
    fn every_chunk_is_asked_once_and_comes_back_when_it_is_lost() {
        let swarm = Swarm::new((0..3).map(chunk));
        let first = ask(&swarm, 0).unwrap();
        let second = ask(&swarm, 1).unwrap();
        assert_eq!((first.chunk, second.chunk), (chunk(0), chunk(1)));
        drop(first);
        assert_eq!(ask(&swarm, 1).unwrap().chunk, chunk(0), "what was lost comes first");
        second.came();
        ask(&swarm, 0).unwrap().came();
        assert!(!swarm.is_whole());
        ask(&swarm, 0).unwrap().came();
        assert!(swarm.is_whole() && matches!(swarm.next(0), Next::Whole));
    }

    #[test]
    fn at_the_end_the_same_is_asked_of_another_one() {
        let swarm = Swarm::new([chunk(0)]);
        let slow = ask(&swarm, 0).unwrap();
        assert!(ask(&swarm, 0).is_none(), "not of the same");
        let fast = ask(&swarm, 1).unwrap();
        assert!(ask(&swarm, 2).is_none(), "of two at most");
        fast.came();
        assert!(swarm.is_whole());
        drop(slow);
        assert!(swarm.is_whole(), "who comes late has nothing to give back");
    }

    #[test]
    fn what_a_holder_lacks_is_asked_of_others() {
        let swarm = Swarm::new((0..2).map(chunk));
        ask(&swarm, 0).unwrap().lacks();
        let (one, zero) = (ask(&swarm, 0).unwrap(), ask(&swarm, 1).unwrap());
        assert_eq!((one.chunk, zero.chunk), (chunk(1), chunk(0)));
        drop(zero);
        assert!(ask(&swarm, 0).is_none());
        swarm.forget_lacking(0);
        assert_eq!(ask(&swarm, 0).unwrap().chunk, chunk(0));
    }
}
