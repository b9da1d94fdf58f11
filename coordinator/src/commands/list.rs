//! `list`: the catalog, and what the cache holds.

use qmesh_models::{
    bytes::ByteCount,
    catalog,
    pull::{CacheState, CachedModel, list as cached},
};
use serde::Serialize;

use super::directories;
use crate::{
    cli::{Failure, ListArgs},
    render::{
        output,
        table::{Align, table},
    },
};

#[derive(Serialize)]
struct Entry {
    name: String,
    state: State,
    bytes_here: u64,
    /// Of the whole model, where the catalog knows it.
    bytes: Option<u64>,
    path: Option<String>,
    licence: Option<&'static str>,
    about: Option<&'static str>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Complete,
    Partial,
    Absent,
}

pub(super) fn list(args: &ListArgs) -> Result<(), Failure> {
    let directories = directories()?;
    let entries: Vec<Entry> = cached(&directories).into_iter().map(Entry::new).collect();
    if args.json {
        output::json(&serde_json::to_string_pretty(&entries).map_err(anyhow::Error::from)?)?;
        return Ok(());
    }
    let columns = [
        ("model", Align::Left),
        ("size", Align::Right),
        ("here", Align::Left),
        ("licence", Align::Left),
        ("about", Align::Left),
    ];
    output::text(table(&columns, entries.iter().map(Entry::cells)))?;
    output::text(format_args!("\ncache: {}", directories.models().display()))?;
    Ok(())
}

impl Entry {
    fn new(model: CachedModel) -> Self {
        let named = catalog::find(&model.name);
        Self {
            state: match model.state {
                CacheState::Complete => State::Complete,
                CacheState::Partial => State::Partial,
                CacheState::Absent => State::Absent,
            },
            bytes_here: model.bytes,
            bytes: named.map(|named| named.bytes),
            path: (model.state == CacheState::Complete).then(|| model.path.display().to_string()),
            licence: named.map(|named| named.licence),
            about: named.map(|named| named.about),
            name: model.name,
        }
    }

    fn cells(&self) -> Vec<String> {
        let here = match (self.state, self.bytes) {
            (State::Complete, _) => "yes".to_owned(),
            (State::Partial, Some(bytes)) => format!("{} %", self.bytes_here.saturating_mul(100) / bytes.max(1)),
            (State::Partial, None) => "partly".to_owned(),
            (State::Absent, _) => "-".to_owned(),
        };
        let text = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let size = ByteCount(self.bytes.unwrap_or(self.bytes_here)).to_string();
        vec![self.name.clone(), size, here, text(self.licence), text(self.about)]
    }
}
