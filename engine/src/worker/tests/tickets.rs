//! A worker whose ticket came from a file looks there again.

use std::fs;

use super::*;

pub(super) fn ticket_of(config: &mut WorkerConfig) -> &mut Ticket {
    let WayIn::Ticket(ticket) = &mut config.way_in else { panic!("it was hired by a ticket") };
    ticket
}

#[tokio::test]
async fn a_ticket_that_is_refused_or_leads_nowhere_gives_way_to_a_newer_one() {
    let stage = Stagecraft::new(37);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ticket");
    let mut newer = None;
    let hired = stage.hire(|config| {
        newer = Some(ticket_of(config).clone());
        ticket_of(config).secret = JoinSecret::random();
        (config.stay, config.ticket_file) = (Stay::ForGood, Some(file.clone()));
    });
    fs::write(&file, newer.unwrap().to_string()).unwrap();
    // Refused, for the secret that it came with.
    let connection = stage.coordinator.accept().await.unwrap();
    assert!(welcome(&connection, &stage.gate()).await.is_err());
    let played = stage.admit().await;
    drop(played);
    drop(hired);

    let elsewhere = stage.network.endpoint(&Identity::ephemeral(), Admission::anyone()).unwrap();
    let mut newer = None;
    let lost = stage.hire(|config| {
        newer = Some(ticket_of(config).clone());
        ticket_of(config).addresses = vec![elsewhere.local_addr().to_string()];
        (config.stay, config.ticket_file) = (Stay::ForGood, Some(file.clone()));
    });
    fs::write(&file, newer.unwrap().to_string()).unwrap();
    stage.admit().await;
    drop(lost);
}
