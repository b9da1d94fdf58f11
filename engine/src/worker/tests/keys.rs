//! A worker without a ticket: it asks, remembers who has let it in, and goes for good when it is sent away.

use qmesh_net::{RejectCode, Right};

use super::*;
use crate::worker::KnownMesh;

#[tokio::test]
async fn who_is_let_in_by_its_key_remembers_where_and_ends_when_it_is_sent_away() {
    let stage = Stagecraft::new(38);
    let folder = tempfile::tempdir().unwrap();
    let kept_in = folder.path().join("worker-hired.mesh");
    let hired = stage.hire(|config| {
        let Ticket { addresses, coordinator, .. } = ticket_of(config).clone();
        let mesh = KnownMesh { coordinator, addresses, mesh: "before".into() };
        (config.way_in, config.stay) = (WayIn::Key { mesh, kept_in: Some(kept_in.clone()) }, Stay::ForGood);
    });
    let connection = stage.coordinator.accept().await.unwrap();
    let gate = Gate { strangers: Strangers::MayAsk, ..stage.gate() };
    let applicant = welcome(&connection, &gate).await.unwrap();
    assert_eq!(applicant.right(), Right::Asks);
    let place = Welcome { mesh: "stage".into(), assigned_name: "hired".into(), ..Welcome::default() };
    let (_, mut sender, _receiver) = applicant.admit(place).await.unwrap();
    sender.send(&Message::Reject { code: RejectCode::Secret, text: "no longer wanted".into() }).await.unwrap();
    assert_eq!(ended(hired.task).await, WorkerEnd::SentAway { text: "no longer wanted".into() });
    let kept = KnownMesh::load(&kept_in).unwrap().unwrap();
    assert_eq!((kept.coordinator, kept.mesh.as_str()), (stage.coordinator.peer_id(), "stage"));
    assert_eq!(kept.addresses, [stage.coordinator.local_addr().to_string()]);
}
