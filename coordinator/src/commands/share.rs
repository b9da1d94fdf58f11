//! `share`: gives a model to other machines, by a link.

use std::path::PathBuf;

use qmesh_discovery::{Announcement, told_addresses};
use qmesh_models::{bytes::ByteCount, directories::Directories, gguf::Gguf};
use qmesh_net::{Admission, Endpoint, Identity, ReadSecret, ShareLink};
use qmesh_share::{Holding, PartialFile, SignedManifest, signed_manifest};

use super::{
    block_on_to_the_end, directories, fetch,
    shared::give,
    signals::{Stop, next_stop},
};
use crate::{
    cli::{Failure, ShareArgs},
    model::served_name,
    render::{count, note, output, progress::HashingProgress, table::pairs},
};

pub(super) fn share(args: &ShareArgs) -> Result<(), Failure> {
    let path = fetch(&args.model)?;
    let directories = directories()?;
    let identity = Identity::load_or_create(directories.keys().join("share.key")).map_err(failed)?;
    let gguf = Gguf::open(&path).map_err(failed)?;
    let paths: Vec<PathBuf> = gguf.parts().iter().map(|part| part.path.clone()).collect();
    let licence = gguf.text_lossy("general.license").ok();
    let name = served_name(&path);
    let hashing = HashingProgress::new(&name);
    let watch = |done, total| {
        if done == 0 && !HashingProgress::shows(total) {
            note(format_args!("hashing {}", ByteCount(total)));
        }
        hashing.advance(done, total);
    };
    let kept = directories.cache().join("manifests");
    let manifest = signed_manifest(&kept, (&name, licence.as_deref()), &paths, &identity, &watch).map_err(failed)?;
    block_on_to_the_end(async {
        match share_until_stopped(args, &identity, manifest, &paths, &directories).await? {
            Stop::Interrupt => Err(Failure::interrupted()),
            Stop::Terminate => Ok(()),
        }
    })
}

async fn share_until_stopped(
    args: &ShareArgs,
    identity: &Identity,
    manifest: SignedManifest,
    paths: &[PathBuf],
    directories: &Directories,
) -> Result<Stop, Failure> {
    let secret =
        directories.keys().join("shared").join(&ShareLink::hash_text(&manifest.hash())[..16]).with_extension("secret");
    let secret = if args.new_link { ReadSecret::rotate(secret) } else { ReadSecret::load_or_create(secret) };
    let secret = secret.map_err(failed)?;
    let endpoint = Endpoint::bind(args.listen, identity, Admission::anyone())
        .map_err(|error| failed(error).with_advice("another --listen; port 0 takes a free one"))?;
    let bound = endpoint.local_addr();
    let link = ShareLink {
        manifest: manifest.hash(),
        sharer: identity.peer_id(),
        secret: secret.clone(),
        addresses: if args.advertise.is_empty() { told_addresses(bound) } else { args.advertise.clone() },
    };
    let what = manifest.manifest();
    let files = paths.iter().zip(&what.files).map(|(path, of)| PartialFile::whole(path, what, of));
    let files = files.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    introduce(&manifest, &link)?;
    let _announced = (!args.no_mdns && !bound.ip().is_loopback())
        .then(|| Announcement::of_holder(&link.mark(), identity.peer_id(), bound))
        .and_then(|begun| {
            begun.inspect_err(|error| note(format_args!("nobody finds this share by itself: {error}"))).ok()
        });
    let (holding, told) = Holding::new(manifest, files, secret, args.rate);
    tokio::select! {
        () = give(holding, told, endpoint.clone()) => Err(Failure::failed("the socket was closed")),
        stop = next_stop() => {
            endpoint.close(qmesh_net::CloseCode::Shutdown, "it is shared no more");
            endpoint.closed().await;
            Ok(stop)
        }
    }
}

/// The link stands alone on its line, to be copied.
fn introduce(manifest: &SignedManifest, link: &ShareLink) -> Result<(), Failure> {
    let what = manifest.manifest();
    let size = format!("{}: {}, {}", what.name, count(what.files.len(), "file"), ByteCount(what.bytes()));
    let summary = pairs([
        ("model", size),
        ("licence", what.licence.clone().unwrap_or_else(|| "its file names none".to_owned())),
        ("shared by", format!("key {} (it proves who shares the model, not who made it)", manifest.signer().short())),
    ]);
    output::text(format_args!("{summary}\n\nwhoever has this link can read the model, and nothing else:"))?;
    output::text(format_args!("coordinator pull {link}"))?;
    Ok(())
}

fn failed(error: impl ToString) -> Failure {
    Failure::failed(error.to_string())
}
