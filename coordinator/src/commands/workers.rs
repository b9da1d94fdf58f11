//! `admit` and `workers`: what the user who runs a coordinator decides about workers.

use std::io::{self, BufRead, IsTerminal};

use qmesh_net::JoinCode;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    status::{PATIENCE, agent, unreachable},
    ticket,
};
use crate::{
    api::OWNER_KEY,
    cli::{AdmitArgs, Failure, ListWorkersArgs, WorkerArgs, WorkersArgs, WorkersCommand},
    mesh::{
        members::now_unix,
        owner::{Decided, WorkerList},
        status::AskingStatus,
    },
    render::{note, output, workers},
};

pub(super) fn admit(args: &AdmitArgs) -> Result<(), Failure> {
    let owner = Owner::find(args.port)?;
    let asking = owner.list()?.asking;
    let one = meant(args.who.as_deref(), &asking)?;
    let typed = args.who.as_deref().is_some_and(|who| is_code(who, one));
    if !typed && !args.yes && !is_confirmed(one)? {
        return Err(Failure::failed(format!("{} waits on", one.name))
            .with_advice(format!("coordinator workers refuse {}", one.code)));
    }
    // By its code: whoever asks by the same name meanwhile is not meant.
    let Decided { name, key } = owner.decide(&one.code, "admit")?;
    output::text(format_args!("{name} is admitted, with the key {}", short(&key)))?;
    Ok(())
}

pub(super) fn workers(args: &WorkersArgs) -> Result<(), Failure> {
    match &args.command {
        WorkersCommand::Ls(args) => list(args),
        WorkersCommand::Refuse(args) => {
            let Decided { name, .. } = decide(args, "refuse")?;
            output::text(format_args!("{name} is refused"))?;
            Ok(())
        }
        WorkersCommand::Revoke(args) => {
            let Decided { name, key } = decide(args, "revoke")?;
            output::text(format_args!("{name} is revoked, with the key {}", short(&key)))?;
            note(
                "whoever has a ticket comes back by another key: `coordinator serve --new-ticket` makes tickets worthless",
            );
            Ok(())
        }
        WorkersCommand::Forget(args) => {
            let Decided { name, key } = decide(args, "forget")?;
            output::text(format_args!("{name}, with the key {}, is a stranger again", short(&key)))?;
            Ok(())
        }
    }
}

fn list(args: &ListWorkersArgs) -> Result<(), Failure> {
    let list = Owner::find(args.port)?.list()?;
    if args.json {
        output::json(&serde_json::to_string_pretty(&list).map_err(anyhow::Error::from)?)?;
    } else {
        output::text(workers::list(&list, now_unix()))?;
    }
    Ok(())
}

fn decide(args: &WorkerArgs, what: &str) -> Result<Decided, Failure> {
    Owner::find(args.port)?.decide(&args.who, what)
}

/// The one that asks and is meant.
fn meant<'a>(who: Option<&str>, asking: &'a [AskingStatus]) -> Result<&'a AskingStatus, Failure> {
    let found: Vec<_> = match who {
        Some(who) => match asking.iter().find(|one| is_code(who, one)) {
            Some(one) => vec![one],
            None => asking.iter().filter(|one| one.name == who).collect(),
        },
        None => asking.iter().collect(),
    };
    match (&found[..], who) {
        ([one], _) => Ok(one),
        ([], Some(who)) if !asking.is_empty() => {
            let all: Vec<_> = asking.iter().map(|one| format!("{} ({})", one.name, one.code)).collect();
            Err(Failure::failed(format!("no worker asks to join by the name or code {who}"))
                .with_advice(format!("one of those that do: {}", all.join(", "))))
        }
        ([], _) => Err(Failure::failed("no worker asks to join").with_advice(
            "`shard-worker join` on a machine of the local network, with `coordinator serve --open` here",
        )),
        (several, _) => {
            let all: Vec<_> = several.iter().map(|one| format!("{} ({})", one.code, one.name)).collect();
            Err(Failure::usage(format!(
                "{} workers ask to join so: say which by the code on its screen",
                several.len()
            ))
            .with_advice(format!("coordinator admit CODE, which is one of {}", all.join(", "))))
        }
    }
}

fn is_code(typed: &str, one: &AskingStatus) -> bool {
    JoinCode::parse(typed).is_some_and(|code| JoinCode::parse(&one.code) == Some(code))
}

/// Asks whether the worker's screen shows the same code.
fn is_confirmed(one: &AskingStatus) -> Result<bool, Failure> {
    let AskingStatus { name, code, address, namesake } = one;
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{name} may be anybody: say by its code that you mean this one"))
            .with_advice("coordinator admit CODE, as its screen shows it; or --yes if somebody has compared it"));
    }
    if *namesake {
        note(format_args!("another worker is known, or asks, by the name of {name}"));
    }
    note(format_args!("{name} at {address} asks to join, with the code {code}"));
    note("does its screen show the same? [y/N]");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// A coordinator of this user, with what shows that he runs it.
struct Owner {
    url: String,
    key: String,
}

impl Owner {
    fn find(port: Option<u16>) -> Result<Self, Failure> {
        let invitation = ticket::invitation(port)?;
        Ok(Self { url: invitation.url(), key: invitation.owner })
    }

    fn list(&self) -> Result<WorkerList, Failure> {
        let address = format!("{}/api/workers", self.url);
        let request = agent(Some(PATIENCE)).get(&address).header(OWNER_KEY, &self.key);
        self.answer(request.call())
    }

    fn decide(&self, who: &str, what: &str) -> Result<Decided, Failure> {
        let address = format!("{}/api/workers/{}/{what}", self.url, escaped(who));
        let request = agent(Some(PATIENCE)).post(&address).header(OWNER_KEY, &self.key);
        self.answer(request.send_empty())
    }

    /// What it answers, or its words for why not.
    fn answer<T: DeserializeOwned>(
        &self,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, Failure> {
        let mut response = response.map_err(|error| unreachable(&self.url, &error))?;
        let body = response.body_mut().read_to_string().map_err(|error| unreachable(&self.url, &error))?;
        let stranger = || Failure::failed(format!("{} is no qmesh coordinator of this version", self.url));
        if response.status().is_success() {
            return serde_json::from_str(&body).map_err(|_| stranger());
        }
        let error: Value = serde_json::from_str(&body).map_err(|_| stranger())?;
        Err(error["error"]["message"].as_str().map_or_else(stranger, Failure::failed))
    }
}

/// A part of a path.
fn escaped(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    // Two dots alone would be a way up.
    if part.bytes().all(|byte| byte == b'.') { "%2E".repeat(part.len()) } else { part.bytes().map(one).collect() }
}

/// Enough of a key to tell it from others.
fn short(key: &str) -> &str {
    key.get(..8).unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(name: &str, code: &str) -> AskingStatus {
        AskingStatus { name: name.into(), code: code.into(), address: "10.0.0.1:7".into(), namesake: false }
    }

    #[test]
    fn who_is_meant_is_found_by_code_then_by_name_and_otherwise_said() {
        let codes = ["aaaa-bbbb-cccc", "dddd-eeee-ffff", "gggg-hhhh-iiii"];
        let all = [asking("attic", codes[0]), asking("attic", codes[1]), asking(codes[0], codes[2])];
        assert_eq!(meant(Some("AAAABBBBCCCC"), &all).unwrap(), &all[0]);
        assert_eq!(meant(None, &all[..1]).unwrap(), &all[0]);
        assert_eq!(meant(Some("attic"), &all[1..]).unwrap(), &all[1]);
        let failure = |who, asking| meant(who, asking).unwrap_err().lines().join(" | ");
        let several = failure(Some("attic"), &all[..]);
        assert!(several.contains("2 workers ask") && codes[..2].iter().all(|code| several.contains(code)), "{several}");
        assert!(failure(None, &all[..]).contains("3 workers ask"));
        assert!(failure(Some("loft"), &all[..]).contains("attic (aaaa-bbbb-cccc)"));
        assert!(failure(Some("loft"), &[]).contains("no worker asks"));
    }

    #[test]
    fn a_part_of_a_path_is_one() {
        assert_eq!(escaped("attic-2.lan_x"), "attic-2.lan_x");
        assert_eq!((escaped("a/b?%é").as_str(), escaped("..").as_str()), ("a%2Fb%3F%25%C3%A9", "%2E%2E"));
    }
}
