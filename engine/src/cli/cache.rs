//! `cache`: looks after the tensors that workers keep on this machine.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use clap::{ArgGroup, Args, Subcommand, builder::FalseyValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use qmesh_engine::worker::{Blob, BlobState, Damage, OnDamage, Removal, Selection, TensorCache, Usage, Verification};
use qmesh_models::{bytes::ByteCount, directories::Directories, span::TimeSpan};
use serde_json::{Value, json};

use super::report::{print_json, print_text};

pub(super) const CACHE_HELP: &str = "\
Examples:
  shard-worker cache ls
  shard-worker cache rm 3fa9c01b           the tensor whose hash begins like this
  shard-worker cache rm --older-than 30d   what no shard was loaded from for 30 days
  shard-worker cache verify                read everything, and delete what is damaged

What a running worker of this machine has loaded, or is about to load, is never deleted. Whatever is missing is fetched \
again when it is needed. `shard-worker join --cache-size SIZE` keeps the cache small by itself.

Exit codes: 0 done, 1 a failure, damage, or a tensor that is in use or not there, 2 wrong usage.";

/// Hex digits that tell one tensor from another in a table.
const SHOWN_DIGITS: usize = 16;
/// Fewer would hardly be meant.
const PREFIX_DIGITS_MIN: usize = 4;
/// Without colours, as the bar of fetching.
const TEMPLATE: &str = "verifying {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// Arguments of `cache`.
#[derive(Args)]
pub(super) struct CacheArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the tensors, the least recently used first
    Ls(Place),
    /// Delete tensors that no running worker uses
    Rm(RmArgs),
    /// Read every tensor and compare it with its hash
    Verify(VerifyArgs),
}

#[derive(Args)]
struct Place {
    /// Folder where fetched tensors are kept [default: $QMESH_CACHE, or $XDG_CACHE_HOME/qmesh]
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Print JSON
    #[arg(long, env = "QMESH_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

#[derive(Args)]
#[command(group = ArgGroup::new("which").args(["hash", "all", "older_than"]).required(true))]
struct RmArgs {
    /// Beginnings of hashes, as `ls` shows them
    #[arg(value_name = "HASH", value_parser = prefix)]
    hash: Vec<String>,
    /// All tensors
    #[arg(long)]
    all: bool,
    /// Tensors that were not used for so long: 12h, 30d
    #[arg(long, value_name = "TIME")]
    older_than: Option<TimeSpan>,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
struct VerifyArgs {
    /// Only report what is damaged, and delete nothing
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    place: Place,
}

/// Looks after the cache.
pub(super) fn run(args: &CacheArgs) -> Result<ExitCode> {
    match &args.action {
        Action::Ls(place) => ls(place),
        Action::Rm(args) => rm(args),
        Action::Verify(args) => verify(args),
    }
}

impl Place {
    fn open(&self) -> Result<TensorCache> {
        let folder = match &self.cache {
            Some(folder) => folder.clone(),
            None => Directories::from_env()?.cache().to_owned(),
        };
        Ok(TensorCache::open(&folder)?)
    }

    /// Prints what is asked for.
    fn print(&self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> Result<()> {
        let printed = if self.json { print_json(&json()) } else { print_text(&text()) };
        Ok(printed?)
    }
}

impl RmArgs {
    fn selection(&self, now: SystemTime) -> Selection {
        match &self.older_than {
            // A time before all times selects nothing.
            Some(TimeSpan(span)) => Selection::UnusedSince(now.checked_sub(*span).unwrap_or(UNIX_EPOCH)),
            None if self.all => Selection::All,
            None => Selection::Prefixes(self.hash.clone()),
        }
    }
}

fn ls(place: &Place) -> Result<ExitCode> {
    let blobs = place.open()?.blobs()?;
    let now = SystemTime::now();
    place.print(|| table(&blobs, now), || json!({ "bytes": bytes(&blobs).0, "tensors": described(&blobs) }))?;
    Ok(ExitCode::SUCCESS)
}

fn rm(args: &RmArgs) -> Result<ExitCode> {
    let selection = args.selection(SystemTime::now());
    let removal = args.place.open()?.remove(&selection)?;
    let json = || {
        json!({
            "removed_bytes": bytes(&removal.removed).0,
            "removed": described(&removal.removed),
            "kept": described(&removal.kept),
        })
    };
    args.place.print(|| removed(&removal), json)?;
    if let Selection::Prefixes(prefixes) = &selection {
        refused(prefixes, &removal)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What was asked for by name and is there still, or was not there.
fn refused(prefixes: &[String], removal: &Removal) -> Result<()> {
    let of = |blobs: &[Blob], prefix: &String| blobs.iter().any(|blob| blob.hash.to_hex().starts_with(prefix));
    for prefix in prefixes {
        if of(&removal.kept, prefix) {
            bail!("a running worker of this machine uses {prefix}: stop it first");
        }
        if !of(&removal.removed, prefix) {
            bail!("no tensor of the cache has a hash that begins with {prefix}: `shard-worker cache ls` lists them");
        }
    }
    Ok(())
}

fn verify(args: &VerifyArgs) -> Result<ExitCode> {
    let cache = args.place.open()?;
    let on_damage = if args.keep { OnDamage::Report } else { OnDamage::Delete };
    // It is hidden where standard error is no terminal.
    let style = ProgressStyle::with_template(TEMPLATE).expect("the template is a constant that parses");
    let bar = ProgressBar::new(bytes(&cache.blobs()?).0).with_style(style);
    let found = cache.verify(on_damage, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let damaged = |(blob, why): &(Blob, Damage)| json!({ "hash": blob.hash.to_hex().as_str(), "bytes": blob.bytes, "why": why.to_string() });
    let json = || {
        json!({
            "sound": found.sound,
            "sound_bytes": found.sound_bytes,
            "damaged": found.damaged.iter().map(damaged).collect::<Vec<_>>(),
            "deleted": on_damage == OnDamage::Delete,
        })
    };
    args.place.print(|| verified(&found, on_damage), json)?;
    Ok(if found.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn bytes(blobs: &[Blob]) -> ByteCount {
    ByteCount(blobs.iter().map(|blob| blob.bytes).sum())
}

fn described(blobs: &[Blob]) -> Vec<Value> {
    let one = |blob: &Blob| {
        let last_used = blob.last_used.duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "hash": blob.hash.to_hex().as_str(),
            "bytes": blob.bytes,
            "last_used_unix": last_used.as_secs(),
            "whole": blob.state == BlobState::Whole,
            "in_use": blob.usage == Usage::InUse,
        })
    };
    blobs.iter().map(one).collect()
}

/// One line a tensor, and one for all.
fn table(blobs: &[Blob], now: SystemTime) -> String {
    let mut lines = vec![format!("{:SHOWN_DIGITS$}  {:>8}  {:>10}  state", "hash", "size", "last use")];
    for blob in blobs {
        let state = match (blob.state, blob.usage) {
            (BlobState::Whole, Usage::Idle) => "",
            (BlobState::Whole, Usage::InUse) => "in use",
            (BlobState::Partial, Usage::Idle) => "partial",
            (BlobState::Partial, Usage::InUse) => "partial, in use",
        };
        let (size, last_use) = (ByteCount(blob.bytes), ago(now, blob.last_used));
        let line = format!("{}  {size:>8}  {last_use:>10}  {state}", short(blob));
        lines.push(line.trim_end().to_owned());
    }
    let in_use = bytes(&blobs.iter().filter(|blob| blob.usage == Usage::InUse).cloned().collect::<Vec<_>>());
    lines.push(format!("{}, {} in all, {in_use} in use", count(blobs.len()), bytes(blobs)));
    lines.join("\n")
}

fn removed(removal: &Removal) -> String {
    let mut text = format!("deleted {} with {}", count(removal.removed.len()), bytes(&removal.removed));
    if !removal.kept.is_empty() {
        let kept = (count(removal.kept.len()), bytes(&removal.kept));
        text.push_str(&format!("; {} with {} stay: a running worker uses them", kept.0, kept.1));
    }
    text
}

fn verified(found: &Verification, on_damage: OnDamage) -> String {
    let deleted = match on_damage {
        OnDamage::Delete => "deleted",
        OnDamage::Report => "damaged",
    };
    let damaged = found.damaged.iter().map(|(blob, why)| format!("{deleted} {}: {why}", short(blob)));
    let sound = format!("{} with {} are sound", count(found.sound), ByteCount(found.sound_bytes));
    damaged.chain([sound]).collect::<Vec<_>>().join("\n")
}

fn short(blob: &Blob) -> String {
    blob.hash.to_hex()[..SHOWN_DIGITS].to_owned()
}

fn count(tensors: usize) -> String {
    format!("{tensors} tensor{}", if tensors == 1 { "" } else { "s" })
}

/// How long ago `then` was, in the largest unit of which there is at least one.
fn ago(now: SystemTime, then: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or(Duration::ZERO).as_secs();
    let unit = [("d", 86_400), ("h", 3600), ("min", 60)].into_iter().find(|(_, length)| seconds >= *length);
    unit.map_or_else(|| "now".to_owned(), |(name, length)| format!("{} {name} ago", seconds / length))
}

/// The beginning of a hash.
fn prefix(text: &str) -> Result<String, String> {
    let fits = (PREFIX_DIGITS_MIN..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| text.to_ascii_lowercase())
        .ok_or_else(|| format!("want {PREFIX_DIGITS_MIN} to 64 hex digits, as `ls` shows them"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CacheArgs,
    }

    fn parse(words: &[&str]) -> Result<CacheArgs, String> {
        let line = Line::try_parse_from(["cache"].iter().chain(words));
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_deleted_must_be_said_in_one_way() {
        for bad in
            [&["rm"][..], &["rm", "--all", "abcd"], &["rm", "abc"], &["rm", "xyzw"], &["rm", "--older-than", "30"]]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let now = UNIX_EPOCH + Duration::from_secs(10_000_000);
        let selection = |words: &[&str]| match parse(words).unwrap().action {
            Action::Rm(args) => args.selection(now),
            Action::Ls(_) | Action::Verify(_) => panic!("not rm"),
        };
        assert_eq!(selection(&["rm", "ABCD", "0123"]), Selection::Prefixes(vec!["abcd".into(), "0123".into()]));
        assert_eq!(selection(&["rm", "--all"]), Selection::All);
        let day_before = now - Duration::from_secs(86_400);
        assert_eq!(selection(&["rm", "--older-than", "1d"]), Selection::UnusedSince(day_before));
    }

    #[test]
    fn commands_do_what_they_say() {
        let folder = tempfile::tempdir().unwrap();
        let put = |body: &[u8], bytes: &[u8]| {
            let hex = blake3::hash(body).to_hex();
            let blobs = folder.path().join("blobs").join(&hex[..2]);
            std::fs::create_dir_all(&blobs).unwrap();
            std::fs::write(blobs.join(hex.as_str()), bytes).unwrap();
            hex[..8].to_owned()
        };
        let (first, second) = (put(b"first", b"first"), put(b"second", b"changed"));
        let run = |words: &[&str]| {
            let words = [words, &["--cache", folder.path().to_str().unwrap(), "--json"]].concat();
            run(&parse(&words).unwrap()).map(|code| code == ExitCode::SUCCESS).map_err(|e| e.to_string())
        };
        assert_eq!(run(&["ls"]), Ok(true));
        assert_eq!(run(&["verify", "--keep"]), Ok(false));
        assert_eq!(run(&["verify"]), Ok(false));
        assert_eq!(run(&["verify"]), Ok(true), "what is damaged is gone");
        assert!(run(&["rm", &second]).unwrap_err().starts_with("no tensor of the cache has a hash that begins with"));
        assert_eq!(run(&["rm", "--older-than", "1h"]), Ok(true));
        assert_eq!(TensorCache::open(folder.path()).unwrap().blobs().unwrap().len(), 1, "it is younger");
        assert_eq!(run(&["rm", &first]), Ok(true));
        assert_eq!(TensorCache::open(folder.path()).unwrap().blobs().unwrap(), []);
    }

    #[test]
    fn tables_show_size_last_use_and_total() {
        let folder = tempfile::tempdir().unwrap();
        let hex = blake3::hash(b"x").to_hex();
        let blobs = folder.path().join("blobs").join(&hex[..2]);
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(hex.as_str()), vec![0_u8; 1500]).unwrap();
        let blobs = TensorCache::open(folder.path()).unwrap().blobs().unwrap();
        let shown = table(&blobs, blobs[0].last_used + Duration::from_secs(3 * 86_400 + 5));
        let expected = format!(
            "hash                  size    last use  state\n{}   1.50 kB     3 d ago\n1 tensor, 1.50 kB in all, 0 B in use",
            &hex[..16]
        );
        assert_eq!(shown, expected);
        assert_eq!(ago(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(9)), "now", "a clock may have been set back");
    }
}
