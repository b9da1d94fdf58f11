//! What threads meet in: the standard library's, or under `--cfg loom` those of a model checker, which tries every order
//! in which threads may run (`tests/interleavings.rs`).

#[cfg(not(loom))]
pub(crate) use self::real::*;

#[cfg(not(loom))]
mod real {
    pub(crate) use std::{
        hint::spin_loop,
        sync::{
            Arc, Mutex, MutexGuard,
            atomic::{AtomicBool, AtomicU64, AtomicUsize},
        },
        thread::{self, JoinHandle, Thread},
    };

    use std::time::{Duration, Instant};

    /// How long a thread spins before it parks: longer than the serial parts of a step, shorter than anyone notices.
    const SPIN: Duration = Duration::from_micros(50);

    /// Since when a thread has nothing to do.
    #[derive(Clone, Copy)]
    pub(crate) struct Idle(Instant);

    impl Idle {
        pub(crate) fn from_now() -> Self {
            Self(Instant::now())
        }

        /// Waits for a moment, unless this has gone on long enough.
        pub(crate) fn spin(self) -> bool {
            (0..4).for_each(|_| spin_loop());
            self.0.elapsed() < SPIN
        }
    }

    /// The standard library's cell, lent as the model checker's is.
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }
}

#[cfg(loom)]
pub(crate) use self::modelled::*;

#[cfg(loom)]
mod modelled {
    pub(crate) use loom::{
        cell::UnsafeCell,
        sync::{
            Arc, Mutex, MutexGuard,
            atomic::{AtomicBool, AtomicU64, AtomicUsize},
        },
        thread::{self, JoinHandle, Thread},
    };

    /// A thread without work parks at once: time has no place in a model.
    #[derive(Clone, Copy)]
    pub(crate) struct Idle;

    impl Idle {
        pub(crate) fn from_now() -> Self {
            Self
        }

        pub(crate) fn spin(self) -> bool {
            false
        }
    }
}
