//! `plan`: who would hold which layers.

use qmesh_models::bytes::ByteCount;

use super::{header::spec, room::Room};
use crate::{
    cli::{Failure, PlanArgs},
    plan::{self, Capacity, PlanInput, cluster, machine::Machine},
    render::{output, plan::PlanReport},
};

pub(super) fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let workers = workers(args)?;
    let spec = spec(&args.model)?;
    let room = Room::new(args.room, args.parallel, &spec)?;
    let input = PlanInput {
        spec: &spec,
        workers,
        kv_positions: room.kv_positions,
        context: room.context,
        chunk_rows: room.chunk_rows,
        cut: args.cut.clone(),
        workload: args.workload.workload,
    };
    let plan = plan::solve(&input)?;
    let report = PlanReport::new(&input, &plan);
    if args.json {
        output::json(&serde_json::to_string_pretty(&report).map_err(anyhow::Error::from)?)?;
    } else {
        output::text(report.text())?;
    }
    Ok(())
}

fn workers(args: &PlanArgs) -> Result<Vec<Capacity>, Failure> {
    if let Some(path) = &args.cluster {
        return cluster::read(path).map_err(|e| Failure::usage(e.to_string()));
    }
    let mut workers = Machine::measure().shared_by(args.workers.unwrap_or(1));
    for worker in &mut workers {
        if let Some(ByteCount(memory_bytes)) = args.memory {
            worker.memory_bytes = memory_bytes;
        }
        if let Some(threads) = args.threads {
            worker.threads = u32::try_from(threads).unwrap_or(u32::MAX);
        }
    }
    Ok(workers)
}
