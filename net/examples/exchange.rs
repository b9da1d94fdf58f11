//! Two endpoints on this machine: a worker joins a coordinator by ticket, and says goodbye.
//!
//! cargo run -p qmesh-net --example exchange

use std::{
    error::Error,
    net::{Ipv4Addr, SocketAddr},
};

use qmesh_net::{
    Admission, Claim, Endpoint, Gate, Identity, Introduction, JoinSecret, KnownPeers, Message, Strangers, Ticket,
    Welcome, join, welcome,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Port 0 lets the system choose. Whoever knows the coordinator's key may dial; the secret decides who joins.
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let coordinator = Endpoint::bind(any_port, &Identity::ephemeral(), Admission::anyone())?;
    let secret = JoinSecret::random();
    let ticket = Ticket {
        addresses: vec![coordinator.local_addr().to_string()],
        rendezvous: Vec::new(),
        coordinator: coordinator.peer_id(),
        secret: secret.clone(),
        expires_unix: None,
    };
    // Both sides in one process: each is a future that runs until it has what it wants.
    let (worker, heard) = tokio::join!(lend(ticket.to_string()), host(coordinator, secret));
    worker?;
    say(format_args!("the coordinator heard {:?}", heard?));
    Ok(())
}

/// The worker's side. All it knows is the ticket.
async fn lend(ticket: String) -> Result<(), Box<dyn Error>> {
    let ticket = Ticket::parse(&ticket)?;
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // It lets nobody dial it: a stage of a pipeline would let the stage before it.
    let endpoint = Endpoint::bind(any_port, &Identity::ephemeral(), Admission::only([]))?;
    let connection = endpoint.dial(&ticket.addresses, ticket.coordinator).await?;
    let me = Introduction { name: "attic".into(), threads: 4, ..Introduction::default() };
    let (welcome, mut sender, _receiver) = join(&connection, Claim::Ticket(&ticket.secret), me).await?;
    say(format_args!("joined {} as {}", welcome.mesh, welcome.assigned_name));
    sender.send(&Message::Bye { text: "that was all".into() }).await?;
    // Waits for the other side to have read it: what is unread when a connection ends is lost.
    sender.finish().await;
    connection.closed().await;
    Ok(())
}

/// The coordinator's side: lets one worker in, and hears what it says first.
async fn host(endpoint: Endpoint, secret: JoinSecret) -> Result<Message, Box<dyn Error>> {
    let gate = Gate {
        secret,
        expires_unix: None,
        known: KnownPeers::default(),
        strangers: Strangers::NeedTickets,
        numerics: String::new(),
    };
    let connection = endpoint.accept().await.ok_or("the endpoint is closed")?;
    let applicant = welcome(&connection, &gate).await?;
    let answer =
        Welcome { mesh: "example".into(), assigned_name: applicant.hello().name.clone(), ..Welcome::default() };
    let (_hello, _sender, mut receiver) = applicant.admit(answer).await?;
    Ok(receiver.recv().await?)
}

#[allow(clippy::print_stdout, reason = "an example prints")]
fn say(what: std::fmt::Arguments<'_>) {
    println!("{what}");
}
