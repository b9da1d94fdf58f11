//! `doctor`: looks whether this machine would be a good coordinator.

use qmesh_doctor::{Report, Verdict, clock, disk, memory, network, port};
use qmesh_models::bytes::ByteCount;

use super::{block_on, directories};
use crate::{
    cli::{DoctorArgs, Failure},
    render::output,
};

pub(super) fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    block_on(examine(args))
}

async fn examine(args: &DoctorArgs) -> Result<(), Failure> {
    let mut findings = vec![
        port::http(&args.addresses.host, args.addresses.port),
        port::udp(args.addresses.listen()),
        network::buffers(args.addresses.listen()),
        network::mtu(),
        clock::check(None),
        memory::check(MEMORY),
        memory::huge_pages(),
        disk::check(directories()?.cache(), DISK),
    ];
    if let Some(peer) = &args.ask {
        findings.push(network::others(peer, args.addresses.listen()).await);
    }
    let report: Report = findings.into_iter().collect();
    if args.json {
        output::json(&format!("{:#}", report.json()))?;
    } else {
        output::text(report.text())?;
    }
    match report.verdict() {
        Verdict::Ok | Verdict::Unknown | Verdict::Warn => Ok(()),
        // All is said already.
        Verdict::Fail => Err(Failure::failed("")),
    }
}

/// It holds a vocabulary and the requests, no weights.
const MEMORY: ByteCount = ByteCount(500_000_000);
/// It keeps whole models.
const DISK: ByteCount = ByteCount(10_000_000_000);
