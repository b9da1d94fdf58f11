//! Whole pulls on the network in memory: holders that stay, go, lie, and have only a part.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use qmesh_net::{
    Admission, Connection, Endpoint, Holder, Identity, Incoming, NetError, PeerId, ReadGrant, ReadSecret, ShareLink,
    memory::Network,
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{Holding, Manifest, PartialFile, PullNews, Pulled, Pulling, ShareError, SignedManifest, find, pull};

const CHUNK: usize = 1 << 20;

/// A model on disk, what it is, and a network on which it is shared.
struct Scene {
    network: Network,
    folder: TempDir,
    path: PathBuf,
    content: Vec<u8>,
    signed: SignedManifest,
    secret: ReadSecret,
}

impl Scene {
    fn new(seed: u64, chunks: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let content: Vec<u8> = (0..chunks * CHUNK - 77).map(|i| (i * 31 / 7 % 256) as u8).collect();
        fs::write(&path, &content).unwrap();
        let manifest = Manifest::of("m", None, &[&path]).unwrap();
        let signed = SignedManifest::read(manifest.sign(&Identity::ephemeral()).unwrap()).unwrap();
        let secret = ReadSecret::load_or_create(folder.path().join("secret")).unwrap();
        Self { network: Network::new(seed), folder, path, content, signed, secret }
    }

    fn endpoint(&self) -> Endpoint {
        self.network.endpoint(&Identity::ephemeral(), Admission::anyone()).unwrap()
    }

    fn whole(&self) -> PartialFile {
        PartialFile::whole(&self.path, self.signed.manifest(), &self.signed.manifest().files[0]).unwrap()
    }

    fn part(&self, name: &str) -> PartialFile {
        let path = self.folder.path().join(name);
        PartialFile::open(&path, self.signed.manifest(), &self.signed.manifest().files[0]).unwrap()
    }

    fn hold(&self, endpoint: &Endpoint, file: PartialFile, rate: Option<u64>) -> JoinHandle<()> {
        let (holding, _) = Holding::new(self.signed.clone(), [file], self.secret.clone(), rate);
        tokio::spawn(holding.serve(endpoint.clone()))
    }

    fn link(&self, to: &Endpoint) -> ShareLink {
        let addresses = vec![to.local_addr().to_string()];
        ShareLink { manifest: self.signed.hash(), sharer: to.peer_id(), secret: self.secret.clone(), addresses }
    }

    /// Tells `to` that `holder` gives the model as well, for as long as what this returns is kept.
    async fn known_at(&self, to: &Endpoint, holder: &Endpoint) -> Connection {
        let connection = holder.dial(&[to.local_addr().to_string()], to.peer_id()).await.unwrap();
        let me = Holder { gives: true, addresses: vec![] };
        connection.ask_to_read(&self.secret, &me).await.unwrap();
        connection
    }

    async fn pull(
        &self,
        from: &Endpoint,
        part: &PartialFile,
        heard: mpsc::Sender<PullNews>,
    ) -> Result<Pulled, ShareError> {
        let endpoint = self.endpoint();
        let (first, signed) = find(&endpoint, &self.link(from), &at(from)).await?;
        assert_eq!(signed, self.signed);
        let (secret, me) = (self.secret.clone(), Holder::default());
        pull(Pulling { endpoint, secret, me, files: vec![part.clone()] }, first, heard).await
    }

    fn check(&self, part: &PartialFile, name: &str) {
        let target = self.folder.path().join(format!("{name}.gguf"));
        part.finish(&target).unwrap();
        assert!(fs::read(target).unwrap() == self.content, "{name}: other bytes");
    }
}

fn at(holder: &Endpoint) -> [(PeerId, Vec<String>); 1] {
    [(holder.peer_id(), vec![holder.local_addr().to_string()])]
}

fn nobody() -> mpsc::Sender<PullNews> {
    mpsc::channel(1).0
}

/// All that was noted until now.
fn notes(hears: &mut mpsc::Receiver<PullNews>) -> String {
    let mut notes = String::new();
    while let Ok(heard) = hears.try_recv() {
        if let PullNews::Note(note) = heard {
            notes += &note;
        }
    }
    notes
}

#[tokio::test(start_paused = true)]
async fn two_holders_give_about_half_each() {
    let scene = Scene::new(1, 24);
    let (sharer, other) = (scene.endpoint(), scene.endpoint());
    let _holding = scene.hold(&sharer, scene.whole(), Some(4 << 20));
    let _also = scene.hold(&other, scene.whole(), Some(4 << 20));
    let _known = scene.known_at(&sharer, &other).await;
    let part = scene.part("got");
    let pulled = scene.pull(&sharer, &part, nobody()).await.unwrap();
    scene.check(&part, "got");
    let of = |peer| pulled.from.get(&peer).copied().unwrap_or(0) as usize;
    let (first, second) = (of(sharer.peer_id()), of(other.peer_id()));
    assert!(first > 8 * CHUNK && second > 8 * CHUNK, "{first} and {second}");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_dies_is_replaced_and_nothing_is_lost() {
    let scene = Scene::new(2, 16);
    let (sharer, other) = (scene.endpoint(), scene.endpoint());
    let holding = scene.hold(&sharer, scene.whole(), Some(2 << 20));
    let _also = scene.hold(&other, scene.whole(), Some(2 << 20));
    let _known = scene.known_at(&sharer, &other).await;
    let part = scene.part("got");
    let (heard, mut hears) = mpsc::channel(1024);
    let killing = async {
        while part.bytes_here() < 4 * CHUNK as u64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        holding.abort();
        sharer.close(qmesh_net::CloseCode::Internal, "killed");
    };
    let (pulled, ()) = tokio::join!(scene.pull(&sharer, &part, heard), killing);
    assert!(pulled.unwrap().from.contains_key(&other.peer_id()));
    scene.check(&part, "got");
    let said = notes(&mut hears);
    assert!(said.contains(&format!("{} is gone", sharer.peer_id().short())), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_liar_is_named_and_its_bytes_are_not_kept() {
    let scene = Scene::new(3, 12);
    let (sharer, liar) = (scene.endpoint(), scene.endpoint());
    let _holding = scene.hold(&sharer, scene.whole(), Some(4 << 20));
    let _lying = tokio::spawn(lie(liar.clone()));
    let _known = scene.known_at(&sharer, &liar).await;
    let part = scene.part("got");
    let (heard, mut hears) = mpsc::channel(1024);
    scene.pull(&sharer, &part, heard).await.unwrap();
    scene.check(&part, "got");
    let said = notes(&mut hears);
    assert!(said.contains(&format!("{} gave wrong bytes (chunk ", liar.peer_id().short())), "{said}");
    assert_eq!(said.matches("wrong bytes").count(), 1, "asked no more: {said}");
}

#[tokio::test(start_paused = true)]
async fn a_pull_goes_on_where_it_stopped_and_partial_holders_help() {
    let scene = Scene::new(4, 8);
    let (sharer, partial) = (scene.endpoint(), scene.endpoint());
    let holding = scene.hold(&sharer, scene.whole(), Some(4 << 20));
    let part = scene.part("first");
    {
        let pulling = scene.pull(&sharer, &part, nobody());
        tokio::pin!(pulling);
        // It is dropped in the middle, as when its process is killed.
        while part.bytes_here() < 3 * CHUNK as u64 {
            tokio::select! {
                _ = &mut pulling => panic!("too fast"),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        }
    }
    let had = part.bytes_here();
    drop(part);
    let part = scene.part("first");
    assert_eq!(part.bytes_here(), had);
    // Who has a part gives that part, and the sharer the rest.
    let _partly = scene.hold(&partial, scene.part("first"), None);
    let _known = scene.known_at(&sharer, &partial).await;
    let second = scene.part("second");
    let pulled = scene.pull(&sharer, &second, nobody()).await.unwrap();
    scene.check(&second, "second");
    assert!(pulled.from.values().sum::<u64>() >= scene.content.len() as u64);
    assert!(pulled.from.contains_key(&partial.peer_id()), "{pulled:?}");
    let pulled = scene.pull(&sharer, &part, nobody()).await.unwrap();
    scene.check(&part, "first");
    assert!(pulled.from[&sharer.peer_id()] <= scene.content.len() as u64 - had, "what was there did not come again");
    holding.abort();
}

#[tokio::test(start_paused = true)]
async fn who_has_no_link_gets_nothing() {
    let scene = Scene::new(5, 1);
    let sharer = scene.endpoint();
    let _holding = scene.hold(&sharer, scene.whole(), None);
    let reader = scene.endpoint();
    let secret = ReadSecret::load_or_create(scene.folder.path().join("other")).unwrap();
    let link = ShareLink { secret, ..scene.link(&sharer) };
    let refused = find(&reader, &link, &at(&sharer)).await.unwrap_err();
    assert!(matches!(&refused, ShareError::Net { source: NetError::ReadingRefused { .. } }), "{refused}");
    // Without asking first, nothing is given either.
    let connection = reader.dial(&link.addresses, sharer.peer_id()).await.unwrap();
    let request = qmesh_net::RangeRequest { tensor: scene.signed.hash(), offset: 0, bytes: 4 << 20 };
    assert!(connection.fetch_range(request).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn where_nobody_is_left_it_is_said_and_what_came_is_kept() {
    let scene = Scene::new(6, 8);
    let sharer = scene.endpoint();
    let holding = scene.hold(&sharer, scene.whole(), Some(2 << 20));
    let part = scene.part("got");
    let killing = async {
        while part.bytes_here() < 2 * CHUNK as u64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        holding.abort();
        sharer.close(qmesh_net::CloseCode::Internal, "killed");
    };
    let (pulled, ()) = tokio::join!(scene.pull(&sharer, &part, nobody()), killing);
    assert!(matches!(pulled, Err(ShareError::Alone { .. })), "{pulled:?}");
    assert!(scene.part("got").bytes_here() >= 2 * CHUNK as u64);
}

/// A holder that flips a bit in all that it gives.
async fn lie(endpoint: Endpoint) {
    while let Some(connection) = endpoint.accept().await {
        tokio::spawn(async move {
            while let Ok(stream) = connection.accept_stream().await {
                match stream {
                    Incoming::Reading(reading) => reading.grant(&connection, ReadGrant::default()).await.unwrap(),
                    Incoming::Range(mut range) => {
                        let bytes = range.request().bytes;
                        let wrong = vec![1; bytes as usize];
                        let given = async {
                            range.accept(bytes).await?;
                            range.write(Bytes::from(wrong)).await?;
                            range.finish()
                        };
                        // The reader may have gone already.
                        drop(given.await);
                    }
                    Incoming::Frames(_) => return,
                }
            }
        });
    }
}

#[test]
fn paths_of_models_make_names_that_every_system_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my model (1).gguf");
    fs::write(&path, "GGUF").unwrap();
    let manifest = Manifest::of("my model", None, &[&path]).unwrap();
    assert_eq!(manifest.files[0].name, "my_model__1_.gguf");
    assert!(SignedManifest::read(manifest.sign(&Identity::ephemeral()).unwrap()).is_ok());
    assert!(Manifest::of("none", None, &[Path::new("/no/such/file")]).is_err());
}
