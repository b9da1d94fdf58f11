//! One seeded world: a coordinator and its workers, over links that delay, break and are cut, in virtual time.
//!
//! Both sides are the shipped machines: the conductor with its roster, prober and scheduler, and each worker's state machine
//! with what its compute thread does. They have no IO and no clock, so a world can play both: it draws its circumstances from
//! a seed, carries messages and frames after a delay, lets workers die, stop, leave and return, cuts connections and links,
//! and lets fetches and loads fail. The same seed gives the same story, byte for byte.
//!
//! What computes is a hash ([`model`]) with strict [`books`]: a row of a wrong session, position, plan or layer changes the
//! text, and pages or sessions that do not add up are found where it happens.
//!
//! # What no world may show
//! - a text that is not the one that one process computes;
//! - a request that ends neither with its text nor with an honest failure, or not in time;
//! - when nothing goes wrong any more: a mesh that does not come to rest, or a session, a page, a frame or a shard that is
//!   left over on either side;
//! - a worker that is honest and is hung up on, refuses a session, has a fault that is no link's, or is given more than its
//!   memory holds.
//!
//! Some worlds have one worker that sends frames of old plans, which must change nothing at all, or frames twice. There texts
//! must be right all the same, but the second frame is refused, and so faults and failures may be seen.
//!
//! # How to read a story
//! `cargo run -p qmesh-simulation -- --seed N` replays one world and prints a line for whatever happens, with the seconds of
//! virtual time before it. It begins with the model, the mesh and its machines `m0`, `m1` and so on, which are all that was
//! drawn beforehand. A worker that joins is told by its machine, by its name in the mesh and by the number of its connection.
//! Lines that look like `PlanMade { .. }` are the events that the mesh publishes; `m1 says` is what a worker tells its user;
//! mishaps are told as they happen, such as `m2 dies`. After `nothing goes wrong from now on` everybody returns, what is under
//! way ends, and the books are compared. A line with `FOUND` says what should not be, and ends the world: go up from there to
//! the last plan, and from there to the mishap before it.
//!
//! `--seeds A..B` runs many worlds and prints those that found something. The tests run 500 of them; a failure names the seed.

pub mod agenda;
pub mod books;
pub mod model;
pub mod random;
pub mod scenario;
pub mod story;
pub mod world;

pub use self::{
    story::{Story, Totals},
    world::World,
};

/// A fault that is put into the parts of a world that are not shipped, to show that it would be found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Plant {
    /// A shard counts a page as free twice.
    PageFreedTwice,
    /// A frame of an old plan is taken for one of the present plan.
    OldFrameTaken,
    /// Some sessions are never closed on a stage.
    SessionNeverClosed,
}

/// The story of a seed's world.
pub fn story(seed: u64, plant: Option<Plant>) -> Story {
    World::new(seed, plant).run()
}
