//! The tensors of shards on this machine: which are wanted, where each of them lies, and which a loaded shard has already.

mod fetch;
mod holding;
mod inventory;
mod local;
mod room;
mod store;
mod uses;

#[cfg(any(test, feature = "simulation"))]
pub(crate) use self::holding::needed_together;
pub(crate) use self::{
    fetch::{Fetch, FetchNews, FetchRequest, Scrutiny},
    holding::{Holding, take_over},
    store::TensorPlaces,
    uses::HeldUses,
};
pub use self::{
    inventory::{Blob, BlobState, Damage, OnDamage, Removal, Selection, TensorCache, Usage, Verification},
    store::StoreError,
};
