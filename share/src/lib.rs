//! Models from machine to machine, without a server: who has one shares it, who has the link gets it from all that hold it.
//!
//! # What is shared
//! A [`Manifest`] says what a model is: its name, its licence, its files, and the BLAKE3 hash of every chunk of them. The hash
//! of the manifest stands in the link, so that whoever has the link knows every byte before it comes, whoever brings it. The
//! sharer signs the manifest. That proves who shares it, and nothing about who made it.
//!
//! # Who has it
//! A *holder* gives others what it has: the sharer, and whoever pulled the model and chose to give it on. A reader proves by the
//! link's secret that it may read, and is told of the other holders that are there. [`Holding`] is the giving side.
//!
//! # How it comes
//! [`pull`] asks all holders at once for chunks, some from each at a time. A chunk is hashed before it is written. Whoever
//! brings a wrong one is named and asked no more; what a lost holder owed is asked of the others. What is there stays there: a
//! later pull hashes it and goes on.

mod codec;
mod error;
mod file;
mod holding;
mod kept;
mod manifest;
mod pull;
mod swarm;

pub use error::ShareError;
pub use file::PartialFile;
pub use holding::{Holding, Told};
pub use kept::signed_manifest;
pub use manifest::{Manifest, ManifestError, SharedFile, SignedManifest};
pub use pull::{PullNews, Pulled, Pulling, find, pull};

#[cfg(test)]
mod tests;
