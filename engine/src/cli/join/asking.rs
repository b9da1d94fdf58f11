//! A join without a ticket: to the mesh that has let this worker in before, or to one of the local network that may be asked.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use qmesh_discovery::{FoundCoordinator, discover, mark_of};
use qmesh_engine::worker::{KnownMesh, WayIn};
use tokio::time::sleep;

use super::JoinArgs;

/// The way to the mesh that is remembered in `kept_in`, or else to the one that is open; waits until there is one.
///
/// # Errors
/// Several are open, or none is and nobody shall wait for it; the network cannot be asked; the file is damaged.
pub(super) async fn way_in(args: &JoinArgs, kept_in: PathBuf) -> Result<WayIn> {
    if args.dht {
        bail!("--dht needs a ticket, which says whose record to look for");
    }
    let wanted = args.mesh.as_deref();
    if let Some(mesh) = KnownMesh::load(&kept_in)?
        && wanted.is_none_or(|wanted| is_meant(wanted, &mesh.mesh, &mark_of(mesh.coordinator)))
    {
        return Ok(WayIn::Key { mesh, kept_in: Some(kept_in) });
    }
    if args.no_mdns {
        bail!("without a ticket only the local network says where a mesh is: give a ticket, or leave out --no-mdns");
    }
    let mut is_said = false;
    loop {
        let found = discover(LISTENING).await?;
        let meant = found.into_iter().filter(|found| wanted.is_none_or(|w| is_meant(w, &found.model, &found.mark)));
        let mut open: Vec<_> = meant.filter_map(|found| known(&found).map(|mesh| (mesh, found))).collect();
        match (open.len(), args.once) {
            (0, true) => bail!("{}", nobody(wanted)),
            (0, false) => {
                if !is_said {
                    qmesh_logging::note(&format!("{}; waiting for it", nobody(wanted)));
                }
                is_said = true;
                sleep(PAUSE).await;
            }
            (1, _) => {
                let (mesh, _) = open.remove(0);
                return Ok(WayIn::Key { mesh, kept_in: Some(kept_in) });
            }
            _ => {
                bail!("several meshes are open, choose one by --mesh: {}", listed(open.iter().map(|(_, found)| found)))
            }
        }
    }
}

/// Whether a mesh is the one that was asked for, by its model or its mark.
fn is_meant(wanted: &str, model: &str, mark: &str) -> bool {
    wanted == model || wanted.eq_ignore_ascii_case(mark)
}

/// What is known of a mesh that may be asked.
fn known(found: &FoundCoordinator) -> Option<KnownMesh> {
    let FoundCoordinator { model, addresses, open, .. } = found;
    let is_v4 = |address: &&String| address.parse().is_ok_and(|address: SocketAddr| address.is_ipv4());
    let v4: Vec<String> = addresses.iter().filter(is_v4).cloned().collect();
    // A socket dials one family, and where both are there it is that of IPv4.
    let addresses = if v4.is_empty() { addresses.clone() } else { v4 };
    Some(KnownMesh { coordinator: (*open)?, addresses, mesh: model.clone() })
}

fn nobody(wanted: Option<&str>) -> String {
    let which = wanted.map(|name| format!(" by the name of {name}")).unwrap_or_default();
    format!("no mesh{which} on the local network may be asked (coordinator serve --open)")
}

fn listed<'a>(open: impl Iterator<Item = &'a FoundCoordinator>) -> String {
    let one = |found: &FoundCoordinator| format!("{} ({}, at {})", found.mark, found.model, found.addresses.join(" "));
    open.map(one).collect::<Vec<_>>().join(", ")
}

/// How long the network is listened to: coordinators that are there answer within a second.
const LISTENING: Duration = Duration::from_millis(1500);
/// Until it is asked again.
const PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use qmesh_net::PeerId;

    use super::*;

    #[test]
    fn a_mesh_is_meant_by_its_model_or_its_mark() {
        let mark = mark_of(PeerId([1; 32]));
        assert!(is_meant("tiny", "tiny", &mark) && is_meant(&mark.to_uppercase(), "tiny", &mark));
        assert!(!is_meant("tin", "tiny", &mark) && !is_meant("", "tiny", &mark));
    }

    #[test]
    fn only_a_mesh_that_is_open_is_asked() {
        let key = PeerId([1; 32]);
        let mut found = FoundCoordinator {
            mark: mark_of(key),
            model: "tiny".into(),
            open: None,
            addresses: vec!["10.0.0.1:4433".into()],
        };
        assert_eq!(known(&found), None);
        found.open = Some(key);
        let mesh = known(&found).unwrap();
        assert_eq!((mesh.coordinator, mesh.mesh.as_str(), &mesh.addresses), (key, "tiny", &found.addresses));
        found.addresses.insert(0, "[fd00::1]:4433".into());
        assert_eq!(known(&found).unwrap().addresses, ["10.0.0.1:4433"]);
        found.addresses.truncate(1);
        assert_eq!(known(&found).unwrap().addresses, ["[fd00::1]:4433"]);
        assert!(listed([&found].into_iter()).contains("tiny, at [fd00::1]:4433"));
    }
}
