//! `plan`: who would hold which layers, and what that would do.

use std::fs;

use qmesh_models::{
    bytes::ByteCount,
    pull::{self, ModelRef, OfferedModel, Remote},
    spec::ModelSpec,
};

use super::{header, room::Room, status};
use crate::{
    cli::{CoordinatorArgs, DraftArgs, Failure, PlanArgs, WorkloadArgs},
    drafter::DraftRoom,
    local,
    mesh::{DRAFTS_MOST, status::WorkerStatus},
    plan::{
        self, Capacity, Link, Links, PlanError, PlanInput,
        alternatives::alternatives,
        cluster::{self, Cluster},
        drafted::{Drafting, predict_drafts},
        machine::Machine,
        offer::Offer,
        prediction::predict,
        quantisations::{Fitting, Quantisation, fitting},
    },
    render::{note, output, plan::PlanReport},
};

pub(super) fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let spec = header::spec(&args.model)?;
    let Cluster { workers, links } = cluster(args, &spec)?;
    let Room { kv_positions, context, chunk_rows } = Room::new(args.room, args.parallel, &spec)?;
    let WorkloadArgs { workload, goal, .. } = args.workload;
    // Those of this machine are asked for by their number, so that each of them is used.
    let stages_least = if let Some(Offer::Here(count)) = args.workers { count } else { 0 };
    let mut input = PlanInput {
        links,
        cut: args.cut.clone(),
        stages_least,
        goal,
        workload,
        experts: args.workload.experts(),
        ..PlanInput::new(&spec, workers, kv_positions, context, chunk_rows)
    };
    place(args, &mut input)?;
    let solved = plan::solve(&input);
    let fitting = fitting_of(&args.model, &input);
    let plan = solved.map_err(|error| with_fitting(error, fitting.as_ref()))?;
    let streams = if args.parallel > 1 { args.parallel } else { STREAMS };
    let prediction = predict(&input, &plan, streams);
    let expected = prediction.map(|prediction| (prediction, alternatives(&input, &plan, streams)));
    let drafting = drafting(args, &input)?;
    let drafted = drafting.and_then(|drafting| predict_drafts(&input, &plan, &drafting));
    let mut report = PlanReport::new(&input, &plan, expected.as_ref(), fitting.as_ref());
    report.drafts = drafted.as_ref();
    if let Some(path) = &args.svg {
        fs::write(path, report.svg())
            .map_err(|error| Failure::failed(format!("cannot write --svg {}: {error}", path.display())))?;
    }
    if args.json {
        output::json(&serde_json::to_string_pretty(&report).map_err(anyhow::Error::from)?)?;
    } else {
        output::text(report.text())?;
    }
    Ok(())
}

/// The model that shall draft on this machine, and how fast it does.
fn drafting(args: &PlanArgs, input: &PlanInput<'_>) -> Result<Option<Drafting>, Failure> {
    let DraftArgs { draft_model, draft_threads, draft_max } = &args.draft;
    let Some(reference) = draft_model else { return Ok(None) };
    let spec = header::spec(reference)?;
    let machine = Machine::measure();
    let threads = draft_threads.unwrap_or(machine.cores as usize);
    let model = spec.name.clone();
    let unknown = |why: &str| note(format_args!("note: whether {model} pays as a draft model is not known: {why}"));
    if args.workload.no_measure {
        unknown("--no-measure leaves this machine's speed unmeasured");
        return Ok(None);
    }
    let speed = match local::measure(&spec, u32::try_from(threads).unwrap_or(u32::MAX)) {
        Ok(speed) => speed,
        Err(error) => {
            unknown(&error);
            return Ok(None);
        }
    };
    let room = DraftRoom::of(&spec, input.context, input.kv_positions);
    // It is a plan of one worker, as far as its tokens are concerned.
    let alone = Capacity { name: model.clone(), memory_bytes: u64::MAX, threads: 1, speed: Some(speed) };
    let alone = PlanInput::new(&spec, vec![alone], room.kv_positions, room.context, input.chunk_rows);
    let token_s = predict(&alone, &plan::solve(&alone)?, 1).map(|alone| alone.stage_ms.iter().sum::<f64>() / 1e3);
    let memory_bytes = room.memory_bytes(&spec, threads);
    let most = draft_max.unwrap_or(DRAFTS_MOST);
    Ok(token_s.map(|token_s| Drafting { model, memory_bytes, token_s, most }))
}

/// Which quantisations of the model the workers could hold, where it is one of a repository's.
fn fitting_of(model: &ModelRef, input: &PlanInput<'_>) -> Option<Fitting> {
    let Some(Remote::Hub(repository)) = model.remote() else { return None };
    match pull::offered(repository) {
        Ok(offered) if offered.len() < 2 => None,
        Ok(offered) => {
            let quantisation = |OfferedModel { name, bytes }| Quantisation { name, bytes };
            Some(fitting(input, offered.into_iter().map(quantisation).collect()))
        }
        Err(error) => {
            note(format_args!("note: which quantisations would fit is not known: {error}"));
            None
        }
    }
}

/// The error, with another quantisation among the advice.
fn with_fitting(error: PlanError, fitting: Option<&Fitting>) -> Failure {
    let is_size = matches!(error, PlanError::DoesNotFit(_));
    let mut failure = Failure::from(error);
    if let Some(fitting) = fitting.filter(|_| is_size) {
        failure.advice =
            Some([Some(fitting.to_string()), failure.advice].into_iter().flatten().collect::<Vec<_>>().join("; "));
    }
    failure
}

/// Takes out whom `--exclude` names, and gives the others what `--pin` says.
fn place(args: &PlanArgs, input: &mut PlanInput<'_>) -> Result<(), Failure> {
    let unknown = |flag: &str, name: &str, input: &PlanInput<'_>| {
        let names: Vec<&str> = input.workers.iter().map(|worker| worker.name.as_str()).collect();
        Failure::usage(format!("{flag} {name}: no worker has that name, there are {}", names.join(", ")))
    };
    for name in &args.placement.exclude {
        if input.workers.iter().all(|worker| worker.name != *name) {
            return Err(unknown("--exclude", name, input));
        }
    }
    let kept: Vec<usize> = (0..input.workers.len())
        .filter(|&worker| !args.placement.exclude.contains(&input.workers[worker].name))
        .collect();
    input.links = input.links.of(&kept);
    input.workers = kept.iter().map(|&worker| input.workers[worker].clone()).collect();
    input.stages_least = input.stages_least.min(kept.len());
    for pin in &args.placement.pin {
        let worker = input.workers.iter().position(|worker| worker.name == pin.worker);
        let worker = worker.ok_or_else(|| unknown("--pin", &pin.worker, input))?;
        input.pins.insert(worker, pin.layers.clone());
    }
    Ok(())
}

/// Whom to plan for.
fn cluster(args: &PlanArgs, spec: &ModelSpec) -> Result<Cluster, Failure> {
    if let Some(path) = &args.cluster {
        return cluster::read(path).map_err(|e| Failure::usage(e.to_string()));
    }
    if let Some(url) = &args.live {
        return live(url, args, spec);
    }
    let mut workers = match &args.workers {
        Some(Offer::Listed(workers)) => workers.clone(),
        Some(Offer::Here(count)) => Machine::measure().shared_by(*count),
        None => Machine::measure().shared_by(1),
    };
    for worker in &mut workers {
        if let Some(ByteCount(memory_bytes)) = args.memory {
            worker.memory_bytes = memory_bytes;
        }
        if let Some(threads) = args.threads {
            worker.threads = u32::try_from(threads).unwrap_or(u32::MAX);
        }
    }
    let are_here = !matches!(args.workers, Some(Offer::Listed(_)));
    if are_here && !args.workload.no_measure {
        match local::measure(spec, workers[0].threads) {
            Ok(speed) => workers.iter_mut().for_each(|worker| worker.speed = Some(speed.clone())),
            Err(error) => note(format_args!("note: no times, as this machine's speed is not known: {error}")),
        }
    }
    Ok(Cluster { workers, links: Links::default() })
}

/// The workers of a running coordinator. Their speed is that with the model that it serves.
fn live(url: &str, args: &PlanArgs, spec: &ModelSpec) -> Result<Cluster, Failure> {
    let (_, status) = status::ask(&CoordinatorArgs { url: url.to_owned(), api_key: args.api_key.clone() })?;
    if status.workers.is_empty() {
        return Err(Failure::failed(format!("no worker has joined the coordinator at {url}")));
    }
    let same = status.model == spec.name;
    if !same {
        note(format_args!(
            "note: no times, as {url} serves {} and knows its workers' speed with that only",
            status.model
        ));
    }
    let mut links = Links::default();
    let mut workers = Vec::new();
    for (number, worker) in status.workers.into_iter().enumerate() {
        links.set_own(number, Link { rtt_ms: worker.rtt_ms, bytes_per_s: None });
        let WorkerStatus { name, memory_bytes, threads, speed, .. } = worker;
        workers.push(Capacity { name, memory_bytes, threads, speed: speed.filter(|_| same) });
    }
    plan::even_out(&mut workers);
    Ok(Cluster { workers, links })
}

/// Streams that are predicted for, where nothing is said.
const STREAMS: usize = 8;
