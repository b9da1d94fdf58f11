//! What whoever runs a mesh decides about workers: who is let in without a ticket, and who must go.

use qmesh_net::{JoinCode, PeerId};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    sync::oneshot,
    task::{JoinError, spawn_blocking},
};

use super::{
    formation::WorkerId,
    handle::{Call, MeshHandle},
    lobby::Newcomer,
    members::{Book, BookFull, MembersError, Standing, now_unix},
    status::AskingStatus,
};

/// Everybody that the mesh knows of.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct WorkerList {
    /// Who asks to be let in.
    pub asking: Vec<AskingStatus>,
    /// Who is here, and whose key is remembered, by name.
    pub workers: Vec<WorkerEntry>,
}

/// A worker that is here, or whose key is remembered.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WorkerEntry {
    /// Its name in the mesh, or the one that it had.
    pub name: String,
    /// Its key.
    pub key: String,
    /// By what it comes in, or does not.
    pub by: WorkerRight,
    /// When that was decided, in seconds since 1970; for workers with a ticket nothing was.
    pub since_unix: Option<u64>,
    /// When it was last here, in seconds since 1970.
    pub seen_unix: Option<u64>,
    /// Whether it is here now.
    pub here: bool,
}

/// By what a worker comes in, or does not.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerRight {
    /// Its ticket: its key is not remembered.
    Ticket,
    /// Its key, which was admitted.
    Key,
    /// It was revoked: nothing lets it in.
    Revoked,
}

/// About whom something was decided.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Decided {
    /// Its name.
    pub name: String,
    /// Its key.
    pub key: String,
}

/// Why nothing was decided.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OwnerError {
    /// There is no such worker.
    #[error("no worker {what} by the name of {who}{}", and_there_are(there))]
    Nobody {
        /// What was typed.
        who: String,
        /// What such a worker would do.
        what: &'static str,
        /// Who does.
        there: Vec<String>,
    },
    /// There are several.
    #[error("several workers go by {who}: say which one by {by}: {}", these.join(", "))]
    Several {
        /// What was typed.
        who: String,
        /// What tells them apart.
        by: &'static str,
        /// The texts that do.
        these: Vec<String>,
    },
    /// It is so already.
    #[error("the key of {name} was revoked already")]
    Already {
        /// Whose.
        name: String,
    },
    /// The book.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// The change to the book ended before its time.
    #[error("changing the book failed: {0}")]
    Changing(#[from] JoinError),
    /// The mesh is gone.
    #[error("the coordinator is going down")]
    Over,
}

/// Who can be meant.
#[derive(Clone, Debug)]
struct Candidate {
    name: String,
    peer: PeerId,
    /// Of those that ask.
    code: Option<JoinCode>,
}

impl MeshHandle {
    /// Everybody that the mesh knows of; nothing once it is gone.
    pub async fn workers(&self) -> Option<WorkerList> {
        let there = self.there().await.ok()?;
        let (book, asking) = (self.members().book(), self.status().asking.clone());
        let here = |peer: PeerId| there.present.iter().find(|(_, other)| *other == peer).map(|(name, _)| name.clone());
        let remembered = book.members().map(|(peer, member)| WorkerEntry {
            name: here(peer).unwrap_or_else(|| member.name.clone()),
            key: peer.to_string(),
            by: match member.standing {
                Standing::Admitted => WorkerRight::Key,
                Standing::Revoked => WorkerRight::Revoked,
            },
            since_unix: Some(member.since_unix),
            seen_unix: self.members().seen_unix(peer),
            here: here(peer).is_some(),
        });
        let others =
            there.present.iter().filter(|(_, peer)| book.get(*peer).is_none()).map(|(name, peer)| WorkerEntry {
                name: name.clone(),
                key: peer.to_string(),
                by: WorkerRight::Ticket,
                since_unix: None,
                seen_unix: None,
                here: true,
            });
        let mut workers: Vec<_> = remembered.chain(others).collect();
        workers.sort_by(|a, b| (&a.name, &a.key).cmp(&(&b.name, &b.key)));
        Some(WorkerList { asking, workers })
    }

    /// Lets in a worker that asks, by the code on its screen or, where one alone has it, by its name. Its key is remembered.
    ///
    /// # Errors
    /// Nobody asks so, or several do; the book cannot be changed.
    pub async fn admit(&self, who: &str) -> Result<Decided, OwnerError> {
        let (_, one) = self.asking(who).await?;
        let (peer, name) = (one.peer, one.name.clone());
        self.decide(move |book| book.admit(peer, &name, now_unix())).await?;
        Ok(one.decided())
    }

    /// Sends away a worker that asks. It may ask again.
    ///
    /// # Errors
    /// Nobody asks so, or several do.
    pub async fn refuse(&self, who: &str) -> Result<Decided, OwnerError> {
        let (worker, one) = self.asking(who).await?;
        let (refused, answer) = oneshot::channel();
        self.ask(Call::Refuse { worker, refused }).await?;
        // It may have gone by itself meanwhile, which is as good.
        let _waited = answer.await.map_err(|_| OwnerError::Over)?;
        Ok(one.decided())
    }

    /// Takes a worker's right away, whether it is here or not: it goes at once, and no ticket brings it back.
    ///
    /// # Errors
    /// There is no such worker, or there are several; the book cannot be changed.
    pub async fn revoke(&self, who: &str) -> Result<Decided, OwnerError> {
        let (there, book) = (self.there().await?, self.members().book());
        let candidate = |name: &str, peer| Candidate { name: name.to_owned(), peer, code: None };
        let absent = |peer: &PeerId| !there.present.iter().any(|(_, other)| other == peer);
        let remembered = book.members().filter(|(peer, _)| absent(peer)).map(|(peer, m)| candidate(&m.name, peer));
        let present = there.present.iter().map(|(name, peer)| candidate(name, *peer));
        let one = chosen(who, "is here, or is remembered,", present.chain(remembered).collect())?;
        if book.get(one.peer).is_some_and(|member| member.standing == Standing::Revoked) {
            return Err(OwnerError::Already { name: one.name });
        }
        let (peer, name) = (one.peer, one.name.clone());
        self.decide(move |book| book.revoke(peer, &name, now_unix())).await?;
        Ok(one.decided())
    }

    /// Makes a revoked key a stranger's again: it may ask, or come with a ticket.
    ///
    /// # Errors
    /// There is no such key, or there are several; the book cannot be changed.
    pub async fn forget(&self, who: &str) -> Result<Decided, OwnerError> {
        let book = self.members().book();
        let revoked = book.members().filter(|(_, member)| member.standing == Standing::Revoked);
        let revoked = revoked.map(|(peer, member)| Candidate { name: member.name.clone(), peer, code: None });
        let one = chosen(who, "was revoked", revoked.collect())?;
        let peer = one.peer;
        self.decide(move |book| {
            book.forget(peer);
            Ok(())
        })
        .await?;
        Ok(one.decided())
    }

    /// The worker that asks by this code or name.
    async fn asking(&self, who: &str) -> Result<(WorkerId, Candidate), OwnerError> {
        let there = self.there().await?;
        let candidate = |newcomer: &Newcomer| Candidate {
            name: newcomer.name.clone(),
            peer: newcomer.peer,
            code: Some(newcomer.code),
        };
        let candidates = there.asking.iter().map(|(_, newcomer)| candidate(newcomer)).collect();
        let one = chosen(who, "asks to be let in", candidates)?;
        let worker = there.asking.iter().find(|(_, newcomer)| newcomer.peer == one.peer).map(|(worker, _)| *worker);
        Ok((worker.ok_or(OwnerError::Over)?, one))
    }

    /// Changes the book, and lets the mesh go by it.
    async fn decide(
        &self,
        change: impl FnOnce(&mut Book) -> Result<(), BookFull> + Send + 'static,
    ) -> Result<(), OwnerError> {
        let members = self.members().clone();
        // It waits for the disk, and the mesh does not.
        spawn_blocking(move || members.change(change)).await??;
        let (heeded, answer) = oneshot::channel();
        self.ask(Call::Heed(heeded)).await?;
        answer.await.map_err(|_| OwnerError::Over)
    }
}

impl Candidate {
    fn decided(self) -> Decided {
        Decided { name: self.name, key: self.peer.to_string() }
    }
}

/// The one that is meant: by its code or its whole key, which nobody else can have, or else by its name or the beginning of its
/// key.
fn chosen(who: &str, what: &'static str, candidates: Vec<Candidate>) -> Result<Candidate, OwnerError> {
    let proven = |one: &&Candidate| {
        one.code.is_some_and(|code| JoinCode::parse(who) == Some(code)) || one.peer.to_string() == who
    };
    if let Some(one) = candidates.iter().find(proven) {
        return Ok(one.clone());
    }
    let mut named: Vec<_> = candidates.iter().filter(|one| one.name == who || one.peer.short() == who).collect();
    match named.len() {
        0 => {
            let there = candidates.iter().map(|one| one.name.clone()).collect();
            Err(OwnerError::Nobody { who: who.to_owned(), what, there })
        }
        1 => Ok(named.remove(0).clone()),
        _ => {
            let by = if named.iter().any(|one| one.code.is_some()) { "the code on its screen" } else { "its key" };
            let told = |one: &&Candidate| one.code.map_or_else(|| one.peer.to_string(), |code| code.to_string());
            Err(OwnerError::Several { who: who.to_owned(), by, these: named.iter().map(told).collect() })
        }
    }
}

fn and_there_are(there: &[String]) -> String {
    if there.is_empty() { "; there is none at all".to_owned() } else { format!("; there is: {}", there.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(key: u8, name: &str, asks: bool) -> Candidate {
        let peer = PeerId([key; 32]);
        Candidate { name: name.to_owned(), peer, code: asks.then(|| JoinCode::of(&[key; 32], peer, peer)) }
    }

    #[test]
    fn a_name_that_two_have_means_nobody_and_a_code_means_one() {
        let both = vec![candidate(1, "attic", true), candidate(2, "attic", true)];
        let error = chosen("attic", "asks", both.clone()).unwrap_err().to_string();
        let codes: Vec<_> = both.iter().map(|one| one.code.unwrap().to_string()).collect();
        assert!(codes.iter().all(|code| error.contains(code)) && error.contains("the code on its screen"), "{error}");
        assert_eq!(chosen(&codes[1].to_uppercase(), "asks", both.clone()).unwrap().peer, both[1].peer);
        // Who takes another one's code for a name is not taken for it.
        let faked = vec![candidate(1, "attic", true), candidate(2, &codes[0], true)];
        assert_eq!(chosen(&codes[0], "asks", faked).unwrap().peer, both[0].peer);
    }

    #[test]
    fn keys_tell_workers_apart_that_do_not_ask() {
        let both = vec![candidate(1, "attic", false), candidate(2, "attic", false), candidate(3, "cellar", false)];
        let error = chosen("attic", "is here", both.clone()).unwrap_err().to_string();
        assert!(error.contains("by its key") && error.contains(&both[0].peer.to_string()), "{error}");
        for who in [both[1].peer.to_string(), both[1].peer.short()] {
            assert_eq!(chosen(&who, "is here", both.clone()).unwrap().peer, both[1].peer);
        }
        let error = chosen("loft", "is here", both).unwrap_err().to_string();
        assert_eq!(error, "no worker is here by the name of loft; there is: attic, attic, cellar");
        let nobody = chosen("loft", "asks", Vec::new()).unwrap_err().to_string();
        assert_eq!(nobody, "no worker asks by the name of loft; there is none at all");
    }
}
