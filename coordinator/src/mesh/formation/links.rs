//! The tasks around one worker's connection: they move messages, frames and tensor bytes, and decide nothing.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use qmesh_net::{
    Acquaintance, Applicant, CloseCode, Connection, ControlReceiver, ControlSender, Endpoint, Frame, FrameKind,
    FrameReceiver, Gate, Incoming, MachineShare, Message, Nat, NetError, OwnAddresses, PeerId, PlanEpoch, RejectCode,
    Right, Sections, Seeker, StepId, WayFound, Welcome,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
};

use super::{
    weights::TensorServer,
    worker::{Joined, WorkerId},
};
use crate::mesh::{entry::Verdict, lobby::Newcomer};

/// What happens on a link, as the mesh's task hears of it.
pub(crate) enum LinkEvent {
    /// A worker has proved that it may join, and wants a name.
    Arrived { worker: WorkerId, joined: Joined, link: WorkerLink, name: oneshot::Sender<String> },
    /// A worker without a ticket asks to join.
    Asks { worker: WorkerId, newcomer: Newcomer, verdict: oneshot::Sender<Verdict> },
    /// It has gone before anybody decided.
    AsksNoMore { worker: WorkerId },
    /// A worker sent a message.
    Control { worker: WorkerId, message: Message },
    /// A worker's packets come from elsewhere now, and this is where it is by its own account.
    Moved { worker: WorkerId, address: SocketAddr, sections: Sections },
    /// This machine has another address: these peers have lost it, and are called from where it is.
    Displaced { peers: BTreeSet<PeerId> },
    /// A rendezvous says who has asked it for this coordinator.
    Sought { worker: WorkerId, seeker: Seeker },
    /// A worker sent a frame: it came out of the pipeline.
    Frame { worker: WorkerId, frame: Frame },
    /// A worker is gone.
    Left { worker: WorkerId, why: String },
}

/// The ways to one worker.
#[derive(Debug)]
pub(crate) struct WorkerLink {
    pub(crate) connection: Connection,
    /// Messages for its control stream.
    pub(crate) control: mpsc::Sender<Message>,
}

impl WorkerLink {
    /// A way for frames of this epoch; a link that breaks shows by its queue closing.
    pub(crate) fn open_frames(&self, epoch: PlanEpoch) -> mpsc::Sender<Frame> {
        let (frames, queue) = mpsc::channel(FRAMES_WAITING);
        tokio::spawn(send_frames(self.connection.clone(), epoch, queue));
        frames
    }
}

/// Accepts connections for as long as the endpoint lives.
pub(crate) async fn accept(
    endpoint: Endpoint,
    gate: Gate,
    tensors: TensorServer,
    mesh: String,
    events: mpsc::Sender<LinkEvent>,
) {
    // The endpoint bounds the number of connections that have not joined yet, and the places that of workers that have.
    let mut arrivals = JoinSet::new();
    let places = Arc::new(Semaphore::new(WORKERS_MOST));
    let mut next = 1;
    while let Some(connection) = endpoint.accept().await {
        while arrivals.try_join_next().is_some() {}
        let worker = WorkerId(next);
        next += 1;
        let (gate, places) = (gate.clone(), Arc::clone(&places));
        let guest = Guest { worker, connection, gate, places, tensors: tensors.clone(), events: events.clone() };
        arrivals.spawn(guest.serve(mesh.clone()));
    }
}

/// A connection that may become a worker.
struct Guest {
    worker: WorkerId,
    connection: Connection,
    gate: Gate,
    places: Arc<Semaphore>,
    tensors: TensorServer,
    events: mpsc::Sender<LinkEvent>,
}

impl Guest {
    /// From hello to goodbye.
    async fn serve(self, mesh: String) {
        let worker = self.worker;
        let applicant = match qmesh_net::welcome(&self.connection, &self.gate).await {
            Ok(applicant) => applicant,
            Err(error) => return tracing::info!("worker {worker}: {error}"),
        };
        match applicant.right() {
            Right::Ticket | Right::Key => {}
            Right::Asks => match self.ask(self.newcomer(&applicant)).await {
                Some(Verdict::Admitted) => {}
                Some(Verdict::Refused { code, text }) => return applicant.reject(code, text).await,
                None => return,
            },
        }
        let Some(_place) = self.place(&applicant) else {
            return applicant.reject(RejectCode::Full, "the mesh has no place left: stop a worker, or try later").await;
        };
        if let Err(error) = self.stay(applicant, mesh).await {
            tracing::info!("worker {worker}: {error}");
        }
        // The mesh's task may be over; then nobody needs to know.
        drop(self.events.send(LinkEvent::Left { worker, why: self.why().await }).await);
    }

    /// A worker that asks, for whoever decides.
    fn newcomer(&self, applicant: &Applicant) -> Newcomer {
        Newcomer {
            name: applicant.hello().name.clone(),
            peer: applicant.peer(),
            code: applicant.code(),
            address: self.connection.remote_address(),
        }
    }

    /// What is decided about a worker that asks; `None` where it goes before, or the mesh does.
    async fn ask(&self, newcomer: Newcomer) -> Option<Verdict> {
        let (worker, (verdict, decided)) = (self.worker, oneshot::channel());
        drop(self.events.send(LinkEvent::Asks { worker, newcomer, verdict }).await);
        let verdict = tokio::select! {
            decided = decided => decided.ok(),
            _ = self.connection.closed() => None,
        };
        if verdict.is_none() {
            drop(self.events.send(LinkEvent::AsksNoMore { worker }).await);
        }
        verdict
    }

    /// A place in the mesh, if there is one. The last ones are for those that were here before.
    fn place(&self, applicant: &Applicant) -> Option<OwnedSemaphorePermit> {
        let is_known = self.gate.known.acquaintance(applicant.peer()) == Acquaintance::Known;
        let kept = if is_known { 0 } else { WORKERS_KNOWN };
        let free = self.places.available_permits() > kept;
        free.then(|| Arc::clone(&self.places).try_acquire_owned().ok()).flatten()
    }

    async fn stay(&self, applicant: Applicant, mesh: String) -> Result<(), NetError> {
        let hello = applicant.hello();
        let (name, address) = (hello.name.clone(), self.connection.remote_address());
        let joined = Joined {
            rtt_ms: self.connection.least_rtt().as_secs_f64() * 1e3,
            // The gate has refused what is no such section.
            share: MachineShare::find(&hello.sections).ok().flatten(),
            nat: Nat::find(&hello.sections).ok().flatten(),
            found: WayFound::find(&hello.sections).ok().flatten(),
            own: OwnAddresses::find(&hello.sections).map(|own| own.sockets()).unwrap_or_default(),
            ..Joined::new(name, applicant.peer(), address, hello.memory_bytes, hello.threads.max(1))
        };
        let (control, messages) = mpsc::channel(MESSAGES_WAITING);
        let (name, named) = oneshot::channel();
        let link = WorkerLink { connection: self.connection.clone(), control };
        drop(self.events.send(LinkEvent::Arrived { worker: self.worker, joined, link, name }).await);
        // Without a name the mesh is going down.
        let Ok(assigned_name) = named.await else { return Ok(()) };
        // Who was let in once comes back without a ticket, for as long as this process lives.
        self.gate.known.remember(applicant.peer());
        let (_, sender, receiver) = applicant.admit(Welcome { mesh, assigned_name, ..Welcome::default() }).await?;
        tokio::select! {
            done = send_messages(sender, messages) => done,
            done = self.receive_messages(receiver) => done,
            done = self.receive_streams() => done,
        }
    }

    async fn receive_messages(&self, mut receiver: ControlReceiver) -> Result<(), NetError> {
        loop {
            let message = receiver.recv().await?;
            let left = matches!(message, Message::Bye { .. });
            let worker = self.worker;
            let event = if let Message::Moved { sections } = message {
                LinkEvent::Moved { worker, address: self.connection.remote_address(), sections }
            } else if let Message::Sought(seeker) = message {
                LinkEvent::Sought { worker, seeker }
            } else {
                LinkEvent::Control { worker, message }
            };
            drop(self.events.send(event).await);
            if left {
                return Ok(());
            }
        }
    }

    async fn receive_streams(&self) -> Result<(), NetError> {
        let mut streams = JoinSet::new();
        loop {
            match self.connection.accept_stream().await? {
                Incoming::Frames(receiver) => {
                    let receiver = receiver.only(FrameKind::Sampled);
                    streams.spawn(receive_frames(self.worker, receiver, self.events.clone()));
                }
                Incoming::Range(server) => {
                    let (tensors, from) = (self.tensors.clone(), self.connection.remote_address());
                    streams.spawn(async move { tensors.serve(server, from).await });
                }
                Incoming::Reading(reading) => {
                    streams.spawn(async move {
                        reading.refuse(NO_SHARE).await;
                        Ok(())
                    });
                }
            }
            while streams.try_join_next().is_some() {}
        }
    }

    /// Why the connection is gone; closes it if it is not.
    async fn why(&self) -> String {
        self.connection.close(CloseCode::Ok, "");
        self.connection.closed().await.to_string()
    }
}

async fn send_messages(mut sender: ControlSender, mut messages: mpsc::Receiver<Message>) -> Result<(), NetError> {
    while let Some(message) = messages.recv().await {
        sender.send(&message).await?;
    }
    // The task has let go of this worker; what it sent last shall still arrive.
    sender.finish().await;
    Ok(())
}

async fn receive_frames(
    worker: WorkerId,
    mut receiver: FrameReceiver,
    events: mpsc::Sender<LinkEvent>,
) -> Result<(), NetError> {
    while let Some(frame) = receiver.recv().await? {
        drop(events.send(LinkEvent::Frame { worker, frame }).await);
    }
    Ok(())
}

async fn send_frames(connection: Connection, epoch: PlanEpoch, mut queue: mpsc::Receiver<Frame>) {
    let sending = async {
        let (mut sender, mut last) = (connection.open_frames(epoch).await?, StepId::default());
        while let Some(frame) = queue.recv().await {
            sender.send(&frame).await?;
            last = frame.step;
        }
        // The plan is over: to the first stage that is no failure of the link.
        sender.finish(last).await
    };
    match sending.await {
        // The mesh is going down.
        Ok(()) | Err(NetError::ClosedHere { .. }) => {}
        Err(error) => tracing::warn!("frames to the first stage: {error}"),
    }
}

/// What who asks for a shared model hears.
const NO_SHARE: &str = "a mesh shares no models: ask for a link of `coordinator share`";
/// Control messages that may wait for one worker: a burst of sessions opening.
const MESSAGES_WAITING: usize = 1024;
/// Frames that may wait for one pipeline. There are fewer of them, because the scheduler bounds the steps under way.
const FRAMES_WAITING: usize = 512;
/// The most workers that may have joined: each may cost some tens of megabytes here.
const WORKERS_MOST: usize = 256;
/// How many of these places are kept for workers that come back.
const WORKERS_KNOWN: usize = 32;
