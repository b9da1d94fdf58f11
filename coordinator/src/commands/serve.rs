//! `serve`: a mesh that others join, behind an HTTP API.

use std::{net::SocketAddr, num::NonZeroU16, path::Path, sync::Arc};

use data_encoding::BASE32_NOPAD;
use qmesh_discovery::{Announcement, DhtRecord, Entrance, Kept, PortMap, Renewed, told_addresses};
use qmesh_logging::service;
use qmesh_models::bytes::ByteCount;
use qmesh_net::{RelaySecret, Strangers};
use tokio::sync::oneshot;

use super::{
    block_on_to_the_end, directories,
    opened::Opened,
    signals::{Stop, next_stop, stop_asked},
};
use crate::{
    api::{self, ApiKey, ApiKeyError, ApiState, ListenError, Listeners, NamedKeys},
    cli::{Failure, PlacementArgs, ServeArgs, WorkloadArgs},
    invitation::{self, Invitation, Posted},
    local::LocalWorkers,
    mesh::{
        Formation, Measuring, Mesh, MeshConfig, MeshHandle, Relaying, Rotate, TicketSource, Workers,
        events::{Heard, MeshEvent},
        members::now_unix,
        status::MeshState,
    },
    model::Model,
    plan::machine::Machine,
    render::{count, note, output, report, table::pairs},
};

pub(super) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let opened = Opened::open(&args.model.model, args.tokenizer.choice(), args.room, args.parallel)?;
    let opened = opened.with_drafter(&args.pipeline.draft)?;
    block_on_to_the_end(async {
        match serve_until_stopped(args, &opened).await? {
            Stop::Interrupt => Err(Failure::interrupted()),
            Stop::Terminate => Ok(()),
        }
    })
}

async fn serve_until_stopped(args: &ServeArgs, opened: &Opened) -> Result<Stop, Failure> {
    for_others(args)?;
    let named_keys = args.clients.api_key_file.as_deref().map(named_keys).transpose()?.unwrap_or_default();
    let mut text = opened.text()?;
    text.pooling = args.pooling.unwrap_or(text.pooling);
    let text = Arc::new(text);
    let listeners = Listeners::bind(&args.addresses.host, args.addresses.port).await.map_err(|error| {
        let advice = match &error {
            ListenError::Unknown { .. } => "--host with an address of this machine, or localhost",
            ListenError::Bind { .. } => "another --port; 0 takes a free one",
        };
        Failure::failed(error.to_string()).with_advice(advice)
    })?;
    let addresses = listeners.addresses()?;
    let mapped = mapped_port(args).await?;
    let mesh = Mesh::start(config(args, opened, mapped.as_ref())?).await?;
    let (owner_key, owner) = owner_key()?;
    let invitation = invitation(args, &opened.model, &mesh, &addresses, owner);
    introduce(args, opened, &mesh, &addresses, invitation.as_ref())?;
    let _posted = post(invitation.as_ref())?;
    if let Some(file) = &args.ticket_file {
        invitation::write_ticket(mesh.ticket(), file).map_err(|error| Failure::failed(error.to_string()))?;
    }
    let _announced = announced(args, opened, &mesh);
    let _recorded = recorded(args, &mesh);
    let workers = local_workers(args, &opened.model, &mesh)?;
    let announcements = tokio::spawn(announce(mesh.handle()));
    let (stop, stopped) = oneshot::channel();
    let mut state = ApiState::new(mesh.handle(), text);
    state.api_key.clone_from(&args.clients.api_key);
    state.named_keys = named_keys;
    state.owner_key = Some(owner_key);
    state.trusted_proxies.clone_from(&args.clients.trusted_proxy);
    // A name of loopback that was chosen is one to be asked by.
    state.hosts.push(args.addresses.host.clone());
    state.hosts.extend(args.clients.allow_host.iter().cloned());
    state.origins.clone_from(&args.clients.allow_origin);
    state.names.clone_from(&args.clients.alias);
    state.any_name = args.clients.any_model_name;
    service::ready();
    let served = async {
        let asked = async move {
            // The other end is held below, until the API is over.
            let _asked = stopped.await;
        };
        api::serve(listeners, state, asked).await?;
        announcements.abort();
        mesh.stop().await;
        workers.stop().await;
        if let Some(mapped) = mapped {
            mapped.end().await;
        }
        Ok::<(), Failure>(())
    };
    tokio::pin!(served);
    let signal = tokio::select! {
        ended = &mut served => return Err(ended.err().unwrap_or_else(|| Failure::failed("the API ended"))),
        signal = next_stop() => signal,
    };
    note("letting running answers end; once more ends them at once");
    service::stopping();
    let _ended = stop.send(());
    tokio::select! {
        ended = &mut served => ended.map(|()| signal),
        () = stop_asked() => Err(Failure::interrupted()),
    }
}

/// What is meant for other machines wants an address that they reach.
fn for_others(args: &ServeArgs) -> Result<(), Failure> {
    let open = args.open.then_some("--open");
    let Some(flag) = open.or(args.reach.wide_flag()) else { return Ok(()) };
    if !args.listen().ip().is_loopback() {
        return Ok(());
    }
    let text = format!("{flag} is for other machines, of which none reaches --listen {}", args.listen());
    Err(Failure::usage(text).with_advice(format!("--listen 0.0.0.0:4433, which {flag} takes by itself")))
}

/// The keys of a file.
fn named_keys(path: &Path) -> Result<NamedKeys, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    NamedKeys::parse(&text).map_err(|error| wrong(&error))
}

fn config(args: &ServeArgs, opened: &Opened, mapped: Option<&PortMap>) -> Result<MeshConfig, Failure> {
    let workers = match (args.min_workers, args.local_workers) {
        (Some(least), _) => Workers::AtLeast(least),
        (None, 0) => Workers::WhenItFits,
        // The first of them would form a pipeline alone otherwise.
        (None, local) => Workers::AtLeast(local),
    };
    let expires_unix = args.ticket_expires.map(|time| now_unix() + time.as_secs());
    let rotate = if args.new_ticket { Rotate::New } else { Rotate::Keep };
    let WorkloadArgs { workload, goal, no_measure, .. } = args.workload;
    let PlacementArgs { ref pin, ref exclude } = args.placement;
    let formation = Formation {
        workload,
        goal,
        experts: args.workload.experts(),
        pins: pin.iter().map(|pin| (pin.worker.clone(), pin.layers.clone())).collect(),
        excluded: exclude.iter().cloned().collect(),
        measuring: if no_measure { Measuring::Off } else { Measuring::On },
        relaying: if args.no_relay { Relaying::Off } else { Relaying::On(RelaySecret::random()) },
        ..Formation::new(workers)
    };
    Ok(MeshConfig {
        listen: args.listen(),
        strangers: if args.open { Strangers::MayAsk } else { Strangers::NeedTickets },
        advertise: addresses(args, mapped),
        rendezvous: args.reach.rendezvous.clone(),
        ticket: TicketSource::Kept { directory: directories()?.keys().to_owned(), rotate, expires_unix },
        ..opened.mesh(formation, &args.pipeline)
    })
}

/// The addresses of the ticket, where they are not those that it listens on.
fn addresses(args: &ServeArgs, mapped: Option<&PortMap>) -> Vec<String> {
    let advertised = args.reach.advertise.clone();
    let Some(mapped) = mapped else { return advertised };
    let near = if advertised.is_empty() { told_addresses(args.listen()) } else { advertised };
    [mapped.address().to_string()].into_iter().chain(near).collect()
}

/// A port of the router that leads here, if that is wanted.
async fn mapped_port(args: &ServeArgs) -> Result<Option<PortMap>, Failure> {
    if !args.reach.map_port {
        return Ok(None);
    }
    let Some(port) = NonZeroU16::new(args.listen().port()) else {
        return Err(Failure::usage("--map-port needs a port that is known: --listen has port 0")
            .with_advice("--listen 0.0.0.0:4433"));
    };
    let told = |renewed: Renewed| {
        if let Err(error) = renewed {
            note(format_args!("workers of other networks may not reach this coordinator: {error}"));
        }
    };
    let asked = PortMap::ask(port, told).await;
    let mapped = asked.map_err(|error| {
        let advice =
            "without --map-port: a port that you forward yourself (--advertise), --rendezvous, or a local network";
        Failure::failed(error.to_string()).with_advice(advice)
    })?;
    note(format_args!("the router leads {} to this coordinator", mapped.address()));
    Ok(Some(mapped))
}

/// Says on the local network where this coordinator is, if others can reach it there.
fn announced(args: &ServeArgs, opened: &Opened, mesh: &Mesh) -> Option<Announcement> {
    let listen = mesh.listens_at();
    if args.no_mdns || listen.ip().is_loopback() {
        return None;
    }
    let entrance = if args.open { Entrance::Open } else { Entrance::ByTicket };
    let begun = Announcement::begin(mesh.ticket().coordinator, listen, &opened.model.name, entrance);
    // Workers have the addresses of the ticket as well.
    begun.inspect_err(|error| note(format_args!("workers cannot find this coordinator by themselves: {error}"))).ok()
}

/// Keeps a record on the DHT, if that is wanted.
fn recorded(args: &ServeArgs, mesh: &Mesh) -> Option<DhtRecord> {
    let mut is_said = None;
    let told = move |kept: Kept| {
        // It goes on for as long as the mesh does: only what is news is said.
        if is_said.replace(kept.is_ok()) == Some(kept.is_ok()) {
            return;
        }
        match kept {
            Ok(time) => note(format_args!("the DHT knows where this coordinator is ({:.1} s)", time.as_secs_f64())),
            Err(error) => note(format_args!("workers do not find this coordinator by the DHT: {error}")),
        }
    };
    let handle = mesh.handle();
    let sought = move |seeker| handle.meet(seeker);
    args.reach.dht().map(|dht| DhtRecord::keep(dht, mesh.ticket(), mesh.listens_at(), told, sought))
}

fn local_workers(args: &ServeArgs, model: &Model, mesh: &Mesh) -> Result<LocalWorkers, Failure> {
    let threads = args.threads.unwrap_or_else(|| Machine::measure().threads_each(args.local_workers) as usize);
    Ok(LocalWorkers::spawn(mesh.ticket(), args.local_workers, threads, model.folder())?)
}

/// The join line stands alone on its line, to be copied.
fn introduce(
    args: &ServeArgs,
    opened: &Opened,
    mesh: &Mesh,
    api: &[SocketAddr],
    invitation: Option<&Invitation>,
) -> Result<(), Failure> {
    let Opened { model, room, drafter } = opened;
    let weights = model.spec.shard_bytes(&(0..model.spec.layers.len()));
    let summary = [
        ("model", format!("{}: {}, {}", model.name, count(model.spec.layers.len(), "layer"), ByteCount(weights))),
        ("room", format!("{} of {} tokens", count(args.parallel, "session"), room.context)),
    ];
    let drafts = drafter.as_ref().map(|drafter| {
        let memory = ByteCount(drafter.memory_bytes(drafter.room(room.context, room.kv_positions)));
        let (name, threads) = (&drafter.model.name, count(drafter.threads, "thread"));
        ("drafts", format!("{name}, up to {memory} and {threads} of this machine"))
    });
    let summary = pairs(summary.into_iter().chain(drafts));
    let reach =
        if args.listen().ip().is_loopback() { " (on this machine; --listen 0.0.0.0:4433 lets others in)" } else { "" };
    if mesh.ticket().expires_unix.is_some_and(|end| end <= now_unix()) {
        note(
            "the ticket has expired: workers that are known come back, --new-ticket or --ticket-expires lets others in",
        );
    }
    let api: Vec<String> = api.iter().map(|address| format!("http://{address}/v1")).collect();
    let (join, api) = (join_command(args, mesh), api.join(" "));
    output::text(format_args!("{summary}\n\nworkers join with{reach}:\n{join}\n\nAPI: {api}"))?;
    if let Some(invitation) = invitation.filter(|_| args.open) {
        let page = invitation.owner_page();
        output::text(format_args!(
            "\nopen: `shard-worker join` on another machine of the local network asks to join; `coordinator admit`\n\
             lets it in, and so does this link to the page, which is for you alone:\n{page}"
        ))?;
    }
    Ok(())
}

/// What a worker's owner pastes: it looks on the DHT if there is something to find.
fn join_command(args: &ServeArgs, mesh: &Mesh) -> String {
    mesh.join_command() + &args.reach.of_workers()
}

/// What shows for as long as this process lives that a client of the API is who runs it, for the API and for clients.
fn owner_key() -> Result<(ApiKey, String), Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Failure::failed(format!("no random numbers: {error}")))?;
    let text = BASE32_NOPAD.encode(&bytes).to_lowercase();
    let key = text.parse().map_err(|error: ApiKeyError| Failure::failed(error.to_string()))?;
    Ok((key, text))
}

/// What the owner's other commands need to know.
fn invitation(args: &ServeArgs, model: &Model, mesh: &Mesh, api: &[SocketAddr], owner: String) -> Option<Invitation> {
    let (model, join, expires_unix) = (model.name.clone(), join_command(args, mesh), mesh.ticket().expires_unix);
    Some(Invitation { model, api: *api.first()?, process: std::process::id(), join, owner, expires_unix })
}

/// Leaves it where `coordinator ticket` and `coordinator admit` find it.
fn post(invitation: Option<&Invitation>) -> Result<Option<Posted>, Failure> {
    let Some(invitation) = invitation else { return Ok(None) };
    match invitation.post(directories()?.keys()) {
        Ok(posted) => Ok(Some(posted)),
        Err(error) => {
            note(format_args!("note: `coordinator ticket` and `coordinator admit` will not find this one: {error}"));
            Ok(None)
        }
    }
}

/// Says what becomes of the mesh, until it is dropped or the mesh is over.
async fn announce(mesh: MeshHandle) {
    // Before the first look at the status, so that nothing that happens after it is missed.
    let mut events = mesh.events();
    let mut said = None;
    loop {
        announce_phase(&mesh, &mut said);
        loop {
            match events.next().await {
                Some(Heard::Event(event)) => match &*event {
                    MeshEvent::PhaseChanged { .. } => break,
                    MeshEvent::ChangeAnnounced { epoch, text } => note(format_args!("plan {epoch} is next: {text}")),
                    MeshEvent::WorkerMoved { .. } | MeshEvent::WorkerSlow { .. } => {
                        event.sentence().into_iter().for_each(note);
                    }
                    MeshEvent::WorkerAsks { worker, code, namesake, .. } => {
                        event.sentence().into_iter().for_each(note);
                        let who = if *namesake { code } else { worker };
                        note(format_args!("  if its screen shows the same code, let it in: coordinator admit {who}"));
                    }
                    MeshEvent::WorkerJoined { .. }
                    | MeshEvent::WorkerLeft { .. }
                    | MeshEvent::PlanMade { .. }
                    | MeshEvent::LoadProgress { .. }
                    | MeshEvent::RequestStarted { .. }
                    | MeshEvent::RequestEnded { .. }
                    | MeshEvent::TokenRates { .. }
                    | MeshEvent::FaultSeen { .. } => {}
                },
                // Whatever was lost, the status tells what came of it.
                Some(Heard::Lost(_)) => break,
                None => return,
            }
        }
    }
}

/// Says in which phase the mesh is, if that was not `said` before.
fn announce_phase(mesh: &MeshHandle, said: &mut Option<(MeshState, u32, String)>) {
    let status = mesh.status();
    // Several texts while it loads are one phase.
    let text = if status.state == MeshState::Loading { String::new() } else { status.text.clone() };
    let phase = Some((status.state, status.epoch, text));
    if *said == phase {
        return;
    }
    *said = phase;
    match status.state {
        MeshState::Waiting => note(&status.text),
        MeshState::Loading => {
            note(format_args!("\nplan {}, loading:\n{}", status.epoch, report::stages(&status)));
        }
        MeshState::Ready => note(format_args!("ready: {}", status.text)),
        MeshState::Failed => note(format_args!("no pipeline: {}", status.text)),
        MeshState::Stopping => {}
    }
    if status.state != MeshState::Stopping {
        service::status(&status.text);
    }
}
