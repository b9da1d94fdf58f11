//! The join line of a running coordinator, in a file that its own user alone can read: `coordinator ticket` shows it.
//!
//! Whoever may read a status must not be able to add a machine, so the line goes no other way than the terminal and
//! this file. The coordinator holds a lock on the file for as long as it runs, however it ends: a file without one is
//! stale.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use qmesh_net::Ticket;
use serde::{Deserialize, Serialize};

/// How workers join a coordinator that runs on this machine.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Invitation {
    /// The model that it serves.
    pub model: String,
    /// Where its HTTP API is.
    pub api: SocketAddr,
    /// Its process id.
    pub process: u32,
    /// The command that a worker's owner pastes.
    pub join: String,
    /// What shows that a client of the API is who runs the coordinator. For this file alone.
    pub owner: String,
    /// When the ticket stops letting new workers in, in seconds since 1970.
    pub expires_unix: Option<u64>,
}

/// An invitation that others can find; dropping it takes it back.
#[derive(Debug)]
pub struct Posted {
    path: PathBuf,
    /// Locked: the system lets go of it when the process ends.
    _file: File,
}

/// A folder of invitations that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct InvitationError {
    path: PathBuf,
    source: io::Error,
}

impl Invitation {
    /// Leaves the invitation under `directory`, mode 0600, until `Posted` is dropped or the process ends.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn post(&self, directory: &Path) -> Result<Posted, InvitationError> {
        let folder = directory.join(FOLDER);
        // Process ids are not unique where containers share a home.
        let fail = |source| InvitationError { path: folder.clone(), source };
        let name = getrandom::u64().map_err(|error| fail(io::Error::other(error.to_string())))?;
        let (path, fresh) = (folder.join(format!("{name:016x}.json")), folder.join(format!("{name:016x}.new")));
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            // Locked before it gets its name, so that nobody finds it unlocked.
            file.lock()?;
            file.write_all(&serde_json::to_vec(self)?)?;
            fs::rename(&fresh, &path)?;
            Ok(file)
        };
        let file = write().map_err(fail)?;
        Ok(Posted { path, _file: file })
    }

    /// Where its HTTP API is reached from this machine.
    pub fn url(&self) -> String {
        let loopback = match self.api.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let ip = if self.api.ip().is_unspecified() { loopback } else { self.api.ip() };
        format!("http://{}", SocketAddr::new(ip, self.api.port()))
    }

    /// The link to its page by which the owner decides about workers there.
    pub fn owner_page(&self) -> String {
        format!("{}/#owner={}", self.url(), self.owner)
    }

    /// The invitations of all coordinators that run now, by port; removes those of processes that are gone.
    ///
    /// # Errors
    /// When the folder or a file in it cannot be read.
    pub fn all(directory: &Path) -> Result<Vec<Self>, InvitationError> {
        let folder = directory.join(FOLDER);
        let fail = |path: &Path, source| InvitationError { path: path.to_owned(), source };
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail(&folder, error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| fail(&folder, error))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                found.extend(read(&path).map_err(|error| fail(&path, error))?);
            }
        }
        found.sort_by_key(|invitation: &Self| (invitation.api.port(), invitation.process));
        Ok(found)
    }
}

/// Writes the ticket alone into `path`, mode 0600, whole or not at all: whoever waits for the file never finds half of it.
///
/// # Errors
/// When the file cannot be made.
pub fn write_ticket(ticket: &Ticket, path: &Path) -> Result<(), InvitationError> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        writeln!(file, "{ticket}")?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| InvitationError { path: path.to_owned(), source })
}

impl Drop for Posted {
    fn drop(&mut self) {
        // Without its lock it is stale in any case.
        drop(fs::remove_file(&self.path));
    }
}

/// The invitation in a file, if its coordinator runs.
fn read(path: &Path) -> io::Result<Option<Invitation>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        // Its coordinator ends in this moment.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => {
            remove_if_there(path)?;
            return Ok(None);
        }
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some(serde_json::from_str(&text)?))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Inside the folder of keys.
const FOLDER: &str = "coordinators";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn invitation(process: u32, port: u16) -> Invitation {
        let api = ([127, 0, 0, 1], port).into();
        let (join, owner) = ("shard-worker join qmesh1a".into(), "secret".into());
        Invitation { model: "tiny".into(), api, process, join, owner, expires_unix: None }
    }

    #[test]
    fn a_written_ticket_is_whole_and_its_user_s_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ticket");
        let (coordinator, secret) = (qmesh_net::Identity::ephemeral().peer_id(), qmesh_net::JoinSecret::random());
        let mut ticket = Ticket {
            addresses: vec!["localhost:1".into()],
            rendezvous: vec![],
            coordinator,
            secret,
            expires_unix: None,
        };
        for expires_unix in [Some(1), None] {
            ticket.expires_unix = expires_unix;
            write_ticket(&ticket, &path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap().trim().parse(), Ok(ticket.clone()));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(write_ticket(&ticket, &folder.path().join("no/folder")).unwrap_err().to_string().contains("no/folder"));
    }

    #[test]
    fn the_api_is_reached_from_this_machine_wherever_it_listens() {
        let at = |api: &str| Invitation { api: api.parse().unwrap(), ..invitation(1, 1) };
        assert_eq!(at("0.0.0.0:80").url(), "http://127.0.0.1:80");
        assert_eq!(at("[::]:80").url(), "http://[::1]:80");
        assert_eq!(at("192.168.0.2:80").owner_page(), "http://192.168.0.2:80/#owner=secret");
    }

    #[test]
    fn invitations_are_found_while_their_coordinators_run() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Invitation::all(folder.path()).unwrap(), []);
        let (first, second) = (invitation(8, 8081), invitation(9, 8080));
        let posted = [first.post(folder.path()).unwrap(), second.post(folder.path()).unwrap()];
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&posted[0].path), mode(posted[0].path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(Invitation::all(folder.path()).unwrap(), [second.clone(), first]);
        let [gone, stays] = posted;
        drop(gone);
        assert_eq!(Invitation::all(folder.path()).unwrap(), [second]);
        drop(stays);
        assert_eq!(Invitation::all(folder.path()).unwrap(), []);
    }

    #[test]
    fn what_a_killed_coordinator_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let posted = invitation(7, 8080).post(folder.path()).unwrap();
        let path = posted.path.clone();
        let bytes = fs::read(&path).unwrap();
        drop(posted);
        fs::write(&path, bytes).unwrap();
        let _posted = invitation(7, 8081).post(folder.path()).unwrap();
        assert_eq!(Invitation::all(folder.path()).unwrap(), [invitation(7, 8081)]);
        assert!(!path.exists());
    }
}
