//! Models that other machines share: how they come into the cache, and how this machine gives them on.

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use qmesh_discovery::{Announcement, find_holders, listen_for, own_addresses, told_addresses};
use qmesh_models::{
    bytes::ByteCount,
    directories::Directories,
    pull::{ModelRef, Progress as _, SharedRef, SharedSlot, local},
};
use qmesh_net::{Admission, Connection, Endpoint, FailureKind, Holder, Identity, ShareLink};
use qmesh_share::{Holding, Manifest, PartialFile, PullNews, Pulling, ShareError, SignedManifest, Told, find, pull};
use tokio::{sync::mpsc, task::spawn_blocking};

use super::signals::{Stop, next_stop};
use crate::{
    cli::{Failure, PullArgs},
    render::{count, note, output, progress::Progress},
};

/// How long who the link names is asked before others are asked beside it.
const NAMED_FIRST: Duration = Duration::from_secs(2);
/// How long the local network is asked who has a model.
const LAN_PATIENCE: Duration = Duration::from_secs(2);
/// How often the sharer hears that this machine still gives.
const STILL_HERE: Duration = Duration::from_secs(20);
/// News of a pull that may wait to be shown.
const HEARD_WAITING: usize = 64;

/// A shared model's (first) file, fetched where it is not there yet. Blocks.
pub(super) fn fetch(shared: &SharedRef, directories: &Directories) -> Result<PathBuf, Failure> {
    if let Some(path) = local(&ModelRef::Shared(shared.clone()), directories) {
        return Ok(path);
    }
    let link = link_of(shared)?;
    let work = || {
        // The caller may be inside a runtime, which must not be blocked by another one on its thread.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
        runtime.block_on(async {
            let identity = Identity::ephemeral();
            let endpoint =
                Endpoint::bind(listen_for(&link.addresses), &identity, Admission::only([])).map_err(failed)?;
            let (first, manifest) = found(&endpoint, &link).await?;
            let place = Place::open(shared, &link, &manifest, directories).await?;
            place.fill(&link, &endpoint, first, Holder::default()).await
        })
    };
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|_| Err(Failure::failed("the pull ended early")))
}

/// The same, and gives what is here to others until a signal comes.
pub(super) async fn pull_and_give(
    shared: &SharedRef,
    directories: &Directories,
    args: &PullArgs,
) -> Result<(), Failure> {
    let link = link_of(shared)?;
    let listen = args.listen.unwrap_or_else(|| listen_for(&link.addresses));
    let identity = Identity::ephemeral();
    let endpoint = Endpoint::bind(listen, &identity, Admission::anyone()).map_err(failed)?;
    let bound = endpoint.local_addr();
    let me = Holder { gives: true, addresses: own_addresses(bound) };
    let (first, manifest) = found(&endpoint, &link).await?;
    let own_link = ShareLink { sharer: identity.peer_id(), addresses: told_addresses(bound), ..link.clone() };
    let _announced = Announcement::of_holder(&link.mark(), identity.peer_id(), bound).ok();
    let place = Place::open(shared, &link, &manifest, directories).await?;
    let (holding, told) = Holding::new(manifest, place.files.clone(), link.secret.clone(), args.rate);
    let filling = async {
        let path = place.fill(&link, &endpoint, first, me.clone()).await?;
        super::pull::print(&path)?;
        output::text(format_args!("\ngiven on, also by this link:\ncoordinator pull {own_link}"))?;
        stay_known(&endpoint, &link, &me).await;
        Ok::<(), Failure>(())
    };
    let giving = async {
        tokio::select! {
            ended = filling => ended,
            () = give(holding, told, endpoint.clone()) => Err(Failure::failed("the socket was closed")),
        }
    };
    tokio::select! {
        ended = giving => ended,
        stop = next_stop() => {
            endpoint.close(qmesh_net::CloseCode::Shutdown, "it is given no more");
            endpoint.closed().await;
            if stop == Stop::Terminate { Ok(()) } else { Err(Failure::interrupted()) }
        }
    }
}

/// Gives to whoever connects, and says who came and went.
pub(super) async fn give(holding: Holding, mut told: mpsc::Receiver<Told>, endpoint: Endpoint) {
    let telling = async {
        while let Some(told) = told.recv().await {
            match told {
                Told::Came { reader, from } => note(format_args!("{} reads, from {from}", reader.short())),
                Told::Left { reader, bytes } => {
                    note(format_args!("{} is gone: it was sent {}", reader.short(), ByteCount(bytes)));
                }
            }
        }
    };
    tokio::select! {
        () = holding.serve(endpoint) => {}
        () = telling => {}
    }
}

/// A shared model's place in the cache, and what of it is there.
struct Place {
    manifest: Arc<Manifest>,
    slot: SharedSlot,
    files: Vec<PartialFile>,
    /// Whether it was whole before.
    whole: bool,
}

fn link_of(shared: &SharedRef) -> Result<ShareLink, Failure> {
    let whole = shared.link().ok_or_else(|| {
        Failure::usage(format!("{shared} is not in the cache"))
            .with_advice("the whole link, as `coordinator share` prints it")
    })?;
    ShareLink::parse(whole).map_err(|error| Failure::usage(error.to_string()))
}

/// Somebody who has the model: who the link names or, where nobody answers there soon, who says so on the local network.
async fn found(endpoint: &Endpoint, link: &ShareLink) -> Result<(Connection, SignedManifest), Failure> {
    let sharer = [(link.sharer, link.addresses.clone())];
    let named = find(endpoint, link, &sharer);
    let others = async {
        tokio::time::sleep(NAMED_FIRST).await;
        note("the sharer has not answered yet: asking the local network who else has the model");
        let others = find_holders(&link.mark(), LAN_PATIENCE).await.unwrap_or_default();
        find(endpoint, link, &others).await
    };
    tokio::pin!(named, others);
    let error = tokio::select! {
        found = &mut named => match found {
            Ok(found) => return Ok(found),
            // An answer that is no help ends it; silence does not.
            Err(error) if !is_silence(&error) => return Err(failed(error)),
            Err(error) => match others.await {
                Ok(found) => return Ok(found),
                Err(_) => error,
            },
        },
        found = &mut others => match found {
            Ok(found) => return Ok(found),
            Err(_) => match named.await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            },
        },
    };
    let advice = "a link of somebody else who has the model and gives it on";
    Err(if is_silence(&error) { Failure::unreachable(error.to_string()).with_advice(advice) } else { failed(error) })
}

/// Whether nobody answered.
fn is_silence(error: &ShareError) -> bool {
    matches!(error, ShareError::Net { source }
        if matches!(source.kind(), FailureKind::NotFound | FailureKind::NotReachable | FailureKind::TimedOut))
}

impl Place {
    /// Says what is about to come, makes room for it, and looks how much of it is there.
    async fn open(
        shared: &SharedRef,
        link: &ShareLink,
        signed: &SignedManifest,
        directories: &Directories,
    ) -> Result<Self, Failure> {
        introduce(link, signed);
        let manifest = Arc::new(signed.manifest().clone());
        let names: Vec<_> = manifest.files.iter().map(|file| (file.name.as_str(), file.bytes)).collect();
        let slot = SharedSlot::open(shared, directories, &names, &mut Progress::new()).map_err(failed)?;
        let whole = local(&ModelRef::Shared(shared.clone()), directories).is_some();
        let paths = (0..names.len()).map(|i| if whole { slot.target(i) } else { slot.part(i) });
        let (paths, of) = (paths.collect::<Vec<_>>(), Arc::clone(&manifest));
        let open = if whole { PartialFile::whole } else { PartialFile::open };
        let open = move || paths.iter().zip(&of.files).map(|(path, file)| open(path, &of, file)).collect();
        let files: Result<_, ShareError> = spawn_blocking(open).await.map_err(failed)?;
        let files = files.map_err(failed)?;
        Ok(Self { manifest, slot, files, whole })
    }

    /// Gets what is missing; the path of the (first) file.
    async fn fill(&self, link: &ShareLink, from: &Endpoint, first: Connection, me: Holder) -> Result<PathBuf, Failure> {
        if !self.whole {
            self.get(link, from, first, me).await?;
            let moves: Vec<_> = self.files.iter().cloned().enumerate().map(|(i, f)| (f, self.slot.target(i))).collect();
            let finish = move || moves.iter().try_for_each(|(file, target)| file.finish(target));
            spawn_blocking(finish).await.map_err(failed)?.map_err(failed)?;
        }
        Ok(self.slot.target(0))
    }

    async fn get(&self, link: &ShareLink, from: &Endpoint, first: Connection, me: Holder) -> Result<(), Failure> {
        let mut progress = Progress::new();
        progress.begin(&format!("fetching {}", self.manifest.name), Some(self.manifest.bytes()));
        let (heard, mut hears) = mpsc::channel(HEARD_WAITING);
        let (endpoint, secret, files) = (from.clone(), link.secret.clone(), self.files.clone());
        let pulling = pull(Pulling { endpoint, secret, me, files }, first, heard);
        let showing = async {
            while let Some(heard) = hears.recv().await {
                match heard {
                    PullNews::Bytes(bytes) => progress.advance(bytes),
                    PullNews::Note(text) => note(text),
                }
            }
        };
        let (pulled, ()) = tokio::join!(pulling, showing);
        let pulled = pulled.map_err(failed)?;
        progress.finish();
        let each: Vec<_> =
            pulled.from.iter().map(|(by, &bytes)| format!("{} {}", by.short(), ByteCount(bytes))).collect();
        note(format_args!("from {}: {}", count(each.len(), "machine"), each.join(", ")));
        Ok(())
    }
}

/// What is about to come, and who vouches for it.
fn introduce(link: &ShareLink, signed: &SignedManifest) {
    let manifest = signed.manifest();
    let licence = manifest.licence.as_deref().unwrap_or("no licence named");
    note(format_args!("{}: {}, {licence}", manifest.name, ByteCount(manifest.bytes())));
    let whose = if signed.signer() == link.sharer { "the link is its own" } else { "the link is of another one" };
    note(format_args!(
        "shared by key {}; {whose}. That proves who shares it, not who made it",
        signed.signer().short()
    ));
}

/// Keeps the link's sharer told that this machine gives the model on.
async fn stay_known(endpoint: &Endpoint, link: &ShareLink, me: &Holder) {
    loop {
        if let Ok(connection) = endpoint.dial(&link.addresses, link.sharer).await {
            while connection.ask_to_read(&link.secret, me).await.is_ok() {
                tokio::time::sleep(STILL_HERE).await;
            }
        }
        tokio::time::sleep(STILL_HERE).await;
    }
}

fn failed(error: impl ToString) -> Failure {
    Failure::failed(error.to_string())
}
