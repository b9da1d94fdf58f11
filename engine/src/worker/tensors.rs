//! The tensors of shards on this machine: which are wanted, who has them, where each of them lies, which a loaded shard has
//! already, and who else may have them.

mod failure;
mod fetch;
mod filed;
mod holding;
mod inventory;
mod local;
mod origins;
mod places;
mod room;
mod serve;
mod shelf;
mod store;
mod suppliers;
mod transfer;
mod uses;

#[cfg(any(test, feature = "simulation"))]
pub(crate) use self::holding::needed_together;
pub(crate) use self::{
    fetch::{Fetch, FetchNews, FetchRequest, Scrutiny},
    holding::{Holding, take_over},
    origins::Origins,
    places::TensorPlaces,
    serve::Server,
    shelf::{Offer, Shelf},
    uses::HeldUses,
};
pub use self::{
    inventory::{Blob, BlobState, Damage, OnDamage, Removal, Selection, TensorCache, Usage, Verification},
    store::StoreError,
};
