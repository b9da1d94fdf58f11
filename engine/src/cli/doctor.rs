//! `doctor`: looks at this machine, and with a ticket at the way to its coordinator.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Args, builder::FalseyValueParser};
use qmesh_discovery::listen_for;
use qmesh_doctor::{Finding, Report, Verdict, clock, disk, memory, network, port};
use qmesh_kernels::{KernelError, lanes::Simd};
use qmesh_models::{bytes::ByteCount, directories::Directories};
use qmesh_net::Ticket;

use super::{
    join::parse_ticket,
    report::{USAGE, print_json, print_text, say},
};

pub(super) const DOCTOR_HELP: &str = "\
Examples:
  shard-worker doctor
  shard-worker doctor qmesh1aeb…   also the coordinator: can it be reached, and does it reach this machine
  shard-worker doctor --json

It writes up to 64 MB into the cache folder and deletes them again.

Exit codes: 0 all is well, or could be better; 1 something does not work; 2 wrong usage.";

/// Less memory holds few layers of any model.
const MEMORY: ByteCount = ByteCount(1_000_000_000);
/// Less disk holds few layers of any model.
const DISK: ByteCount = ByteCount(5_000_000_000);
const SIMD_CHECK: &str = "instructions";

/// Arguments of `doctor`.
#[derive(Args)]
pub(super) struct DoctorArgs {
    /// A ticket: its coordinator is dialled
    #[arg(env = "QMESH_TICKET", hide_env_values = true, num_args = 1..)]
    ticket: Vec<String>,
    /// UDP address that the worker would listen on, as for `join`
    #[arg(long, env = "QMESH_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Folder where fetched tensors are kept [default: $QMESH_CACHE, or $XDG_CACHE_HOME/qmesh]
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Print JSON
    #[arg(long, env = "QMESH_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

/// Looks, and says what it found.
pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let ticket = match &args.ticket[..] {
        [] => None,
        words => match parse_ticket(words) {
            Ok(ticket) => Some(ticket),
            Err(error) => {
                say(&error.to_string());
                return Ok(ExitCode::from(USAGE));
            }
        },
    };
    let report = examine(args, ticket.as_ref())?;
    if args.json {
        print_json(&report.json())?
    } else {
        print_text(&report.text())?
    }
    Ok(match report.verdict() {
        Verdict::Ok | Verdict::Unknown | Verdict::Warn => ExitCode::SUCCESS,
        Verdict::Fail => ExitCode::FAILURE,
    })
}

fn examine(args: &DoctorArgs, ticket: Option<&Ticket>) -> Result<Report> {
    let cache = match &args.cache {
        Some(cache) => cache.clone(),
        None => Directories::from_env()?.cache().to_owned(),
    };
    let anywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let listen = args.listen.unwrap_or_else(|| ticket.map_or(anywhere, |ticket| listen_for(&ticket.addresses)));
    let mut findings = vec![
        port::udp(listen),
        network::buffers(listen),
        network::mtu(),
        clock::check(ticket.and_then(|ticket| ticket.expires_unix)),
        memory::check(MEMORY),
        memory::huge_pages(),
        instructions(Simd::choose(), &Simd::available()),
        disk::check(&cache, DISK),
    ];
    if let Some(ticket) = ticket {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the network")?;
        findings.extend(runtime.block_on(network::coordinator(ticket, listen)));
    }
    Ok(findings.into_iter().collect())
}

/// Judges what kernels would run on, of what the CPU has, the fastest first.
fn instructions(chosen: Result<Simd, KernelError>, available: &[Simd]) -> Finding {
    let fastest = available.first().map_or("scalar", |simd| simd.name());
    match chosen.map(Simd::name) {
        Err(error) => Finding::fail(SIMD_CHECK, "QMESH_SIMD names none that this CPU has", error.to_string()),
        Ok(name) if name != fastest => Finding::warn(
            SIMD_CHECK,
            format!("{name}, as QMESH_SIMD says"),
            format!("leave QMESH_SIMD unset for {fastest}"),
        ),
        Ok("scalar") => Finding::warn(
            SIMD_CHECK,
            "scalar: this CPU has no vector instructions that the kernels know",
            "it works, and slowly: a CPU with AVX2, AVX-512 VNNI or NEON with dot products is many times as quick",
        ),
        Ok(name) => Finding::ok(SIMD_CHECK, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(ticket: &[&str]) -> DoctorArgs {
        let ticket = ticket.iter().map(ToString::to_string).collect();
        DoctorArgs { ticket, listen: None, cache: None, json: true }
    }

    #[test]
    fn the_fastest_instructions_are_right_and_others_a_choice() {
        let available = Simd::available();
        let scalar = available.last().copied().unwrap();
        let fastest = instructions(Ok(available[0]), &available);
        assert_eq!((fastest.verdict == Verdict::Ok, available[0].name() != "scalar"), (true, true), "{fastest:?}");
        let slower = instructions(Ok(scalar), &available);
        assert_eq!((slower.verdict, slower.fix.unwrap().contains(available[0].name())), (Verdict::Warn, true));
        assert_eq!(instructions(Ok(scalar), &[scalar]).verdict, Verdict::Warn);
        let absent = instructions(Simd::named(Some("mmx".into())), &available);
        assert_eq!((absent.verdict, absent.fix.unwrap().contains("QMESH_SIMD=mmx")), (Verdict::Fail, true));
    }

    #[test]
    fn the_whole_machine_is_looked_at() {
        let cache = tempfile::tempdir().unwrap();
        let args = DoctorArgs { cache: Some(cache.path().to_owned()), ..args(&[]) };
        let json = examine(&args, None).unwrap().json();
        let checks: Vec<_> = json["checks"].as_array().unwrap().iter().map(|c| c["check"].as_str().unwrap()).collect();
        let expected = ["mesh port", "udp buffers", "mtu", "clock", "memory", "huge pages", SIMD_CHECK, "disk"];
        assert_eq!(checks, expected);
    }

    #[test]
    fn what_is_no_ticket_is_wrong_usage() {
        assert_eq!(run(&args(&["qmesh2", "abc"])).unwrap(), ExitCode::from(USAGE));
    }
}
