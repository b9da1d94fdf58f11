//! The threads of a shard: fork and join for regions of a few microseconds.
//!
//! A thread that waits spins for a moment and then parks, so an idle shard costs nothing. Only threads that have entered
//! a region are waited for: one that the system has put aside meanwhile does not hold the others up.

#![allow(unsafe_code, reason = "tasks borrow from the caller, who waits for them")]

mod sync;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{PoisonError, atomic::Ordering},
};

use self::sync::{
    Arc, AtomicBool, AtomicU64, AtomicUsize, Idle, JoinHandle, Mutex, MutexGuard, Thread, UnsafeCell, thread,
};

/// The team's threads could not be started.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("cannot start {threads} compute threads: {reason}")]
pub struct NoThreads {
    /// Threads asked for.
    pub threads: usize,
    /// What the system said.
    pub reason: String,
}

/// A team of threads, one of them the caller of [`Team::each`].
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One region at a time.
    region: Mutex<()>,
}

/// A region's work as the threads see it: `run(task)` for each task once.
#[derive(Clone, Copy)]
struct Region {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Shared {
    /// Generation of the region in the high half, then [`OPEN`] while threads may enter it, then how many are inside.
    state: AtomicU64,
    /// Written only while the region is closed and nobody is inside.
    region: UnsafeCell<Option<Region>>,
    next_task: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Who waits at the end of a region, parked.
    caller: Mutex<Option<Thread>>,
}

// SAFETY: `region` is read only by threads that entered while it was open, and written only while nobody can enter; what
// it points to is `Sync` and outlives the region, whose caller waits for all who entered.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

const GENERATION: u64 = 1 << 32;
const OPEN: u64 = 1 << 31;

impl Team {
    /// A team of `threads`, the caller included; at least one.
    ///
    /// # Errors
    /// The system starts no thread more.
    pub fn new(threads: usize) -> Result<Self, NoThreads> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            region: UnsafeCell::new(None),
            next_task: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            caller: Mutex::new(None),
        });
        let mut team = Self { shared, threads: Vec::new(), region: Mutex::new(()) };
        for i in 1..threads {
            let shared = Arc::clone(&team.shared);
            let thread = thread::Builder::new().name(format!("compute-{i}")).spawn(move || shared.serve());
            team.threads.push(thread.map_err(|e| NoThreads { threads, reason: e.to_string() })?);
        }
        Ok(team)
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Gives each item to some thread, in about their order, and returns when all are done.
    pub fn each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Sync) {
        if self.threads.is_empty() || items.len() < 2 {
            return items.into_iter().for_each(work);
        }
        let slots: Vec<Slot<T>> = items.into_iter().map(|item| Slot(UnsafeCell::new(Some(item)))).collect();
        self.run(slots.len(), &|task| {
            // SAFETY: each task is claimed by one thread only, and nobody else looks at its slot.
            if let Some(item) = slots[task].0.with_mut(|item| unsafe { (*item).take() }) {
                work(item);
            }
        });
    }

    /// As [`Team::each`], with what came of each item, in the order of the items.
    pub fn map<T: Send, R: Send>(&self, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
        let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
        let pairs = items.into_iter().zip(&mut results).collect();
        self.each(pairs, |(item, result): (T, &mut Option<R>)| *result = Some(work(item)));
        results.into_iter().flatten().collect()
    }

    fn run(&self, tasks: usize, run: &(dyn Fn(usize) + Sync)) {
        let _one_at_a_time = lock(&self.region);
        let shared = &*self.shared;
        // SAFETY: the lifetime is only forgotten: `Closing` waits, even in a panic, until nobody can use the pointer.
        let run: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(run) };
        // SAFETY: no region is open, nobody is inside.
        shared.region.with_mut(|region| unsafe { *region = Some(Region { run, tasks }) });
        shared.next_task.store(0, Ordering::Relaxed);
        let state = shared.state.load(Ordering::Relaxed);
        shared.state.store(((state & !(GENERATION - 1)) + GENERATION) | OPEN, Ordering::SeqCst);
        for thread in &self.threads[..self.threads.len().min(tasks - 1)] {
            thread.thread().unpark();
        }
        let closing = Closing(shared);
        shared.work();
        drop(closing);
        if let Some(panic) = lock(&shared.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A thread of the team catches what its tasks panic with.
            drop(thread.join());
        }
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({})", self.threads())
    }
}

impl Shared {
    /// The life of a thread of the team.
    fn serve(&self) {
        let mut seen = 0;
        let mut idle = Idle::from_now();
        while !self.stop.load(Ordering::SeqCst) {
            let state = self.state.load(Ordering::SeqCst);
            if state & OPEN != 0 && state / GENERATION != seen {
                if self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                    seen = state / GENERATION;
                    self.work();
                    self.leave();
                    idle = Idle::from_now();
                }
            } else if idle.spin() {
                // Look again.
            } else {
                // A region that opens in between has left a token that makes this return at once.
                thread::park();
                idle = Idle::from_now();
            }
        }
    }

    /// Takes tasks until there are none. Only while the region is held open by this thread's presence, or by its caller.
    fn work(&self) {
        // SAFETY: whoever is inside keeps the region from being written.
        let Some(region) = self.region.with(|region| unsafe { *region }) else { return };
        loop {
            let task = self.next_task.fetch_add(1, Ordering::Relaxed);
            if task >= region.tasks {
                return;
            }
            // SAFETY: the caller of the region waits for this thread before what `run` borrows ends.
            let run = unsafe { &*region.run };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(task))) {
                self.next_task.store(region.tasks, Ordering::Relaxed);
                *lock(&self.panic) = Some(panic);
            }
        }
    }

    fn leave(&self) {
        let before = self.state.fetch_sub(1, Ordering::SeqCst);
        if before & OPEN == 0
            && before % OPEN == 1
            && let Some(caller) = lock(&self.caller).take()
        {
            caller.unpark();
        }
    }

    fn is_empty(&self) -> bool {
        self.state.load(Ordering::SeqCst).is_multiple_of(OPEN)
    }
}

/// Closes the region and waits until all who entered have left.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let shared = self.0;
        shared.state.fetch_and(!OPEN, Ordering::SeqCst);
        let idle = Idle::from_now();
        while !shared.is_empty() {
            if idle.spin() {
                continue;
            }
            // Parked, this core is free for a thread that shares its own with somebody else.
            *lock(&shared.caller) = Some(thread::current());
            if !shared.is_empty() {
                thread::park();
            }
            lock(&shared.caller).take();
        }
    }
}

/// An item that one thread takes.
struct Slot<T>(UnsafeCell<Option<T>>);

// SAFETY: a slot is touched by the one thread that claims its task.
unsafe impl<T: Send> Sync for Slot<T> {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Tasks run outside the locks, so what they hold is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
