//! Cluster files: the workers to plan for and the links between them, as TOML.
//!
//! ```toml
//! [[worker]]
//! name = "laptop"
//! memory = "8GB"
//! threads = 8
//! bandwidth = "60GB/s"     # of its memory, or cpu = "Ryzen 7 7700"; without both there are no times
//! disk = "3GB/s"           # how quickly it is read, where experts may stay there
//! rtt_ms = 2               # its link, there and back, and how fast
//! rate = "100MB/s"
//!
//! [[link]]                 # where two of them are closer to each other, or farther away
//! between = ["laptop", "attic"]
//! rtt_ms = 0.2
//! rate = "1GB/s"
//! ```

use std::path::{Path, PathBuf};

use qmesh_models::{
    bytes::ByteCount,
    files::{self, TextError},
};
use serde::Deserialize;

use super::{Capacity, End, Link, Links, Speed, cpus, offer};

/// Why a cluster file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// It cannot be read.
    #[error("cannot read the cluster file {path}: {source}")]
    Unreadable {
        /// As the user wrote it.
        path: PathBuf,
        /// What is wrong with it, or what the system says.
        source: TextError,
    },
    /// It cannot be understood.
    #[error("{path}:{line}: {text}")]
    Invalid {
        /// As the user wrote it.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The key, and what is wrong with it.
        text: String,
    },
    /// It understands itself, but plans for nobody.
    #[error("{path}: {text}")]
    Useless {
        /// As the user wrote it.
        path: PathBuf,
        /// What is missing or too much.
        text: String,
    },
}

/// What a cluster file describes.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// In the file's order.
    pub workers: Vec<Capacity>,
    /// Theirs.
    pub links: Links,
}

/// The workers of the cluster file at `path`, and their links.
///
/// # Errors
/// Names the file, and the line and key at fault.
pub fn read(path: &Path) -> Result<Cluster, ClusterError> {
    let text = files::read_text(path, FILE_BYTES_MAX)
        .map_err(|source| ClusterError::Unreadable { path: path.to_owned(), source })?;
    parse(path, &text)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with a list of workers")]
struct ClusterFile {
    #[serde(default)]
    worker: Vec<WorkerEntry>,
    #[serde(default)]
    link: Vec<LinkEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with name, memory and threads")]
struct WorkerEntry {
    name: String,
    memory: ByteCount,
    threads: u32,
    bandwidth: Option<String>,
    cpu: Option<String>,
    disk: Option<String>,
    rtt_ms: Option<f64>,
    rate: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with between, and rtt_ms or rate")]
struct LinkEntry {
    between: [String; 2],
    rtt_ms: Option<f64>,
    rate: Option<String>,
}

impl WorkerEntry {
    /// How fast it is, where something is said of that.
    fn speed(&self) -> Result<Option<Speed>, String> {
        let disk = self.disk.as_deref().map(offer::rate).transpose()?;
        Ok(self.memory_speed()?.map(|speed| speed.with_disk(disk)))
    }

    fn memory_speed(&self) -> Result<Option<Speed>, String> {
        match (&self.bandwidth, &self.cpu) {
            (Some(_), Some(_)) => Err("bandwidth and cpu say the same: leave one out".to_owned()),
            (Some(bandwidth), None) => Ok(Some(Speed::of_bandwidth(offer::rate(bandwidth)?))),
            (None, Some(cpu)) => match cpus::bytes_per_s(cpu) {
                Some(bytes_per_s) => Ok(Some(Speed::of_bandwidth(bytes_per_s))),
                None => {
                    let known = cpus::names().collect::<Vec<_>>().join(", ");
                    Err(format!("cpu `{cpu}` is not known: say bandwidth instead, or one of {known}"))
                }
            },
            (None, None) => Ok(None),
        }
    }
}

fn parse(path: &Path, text: &str) -> Result<Cluster, ClusterError> {
    let file: ClusterFile = toml::from_str(text).map_err(|error| invalid(path, text, &error))?;
    let useless = |text: String| ClusterError::Useless { path: path.to_owned(), text };
    if file.worker.is_empty() {
        return Err(useless("no worker: add [[worker]] with name, memory and threads".to_owned()));
    }
    if file.worker.len() > WORKERS_MAX {
        return Err(useless(format!("{} workers, at most {WORKERS_MAX} are possible", file.worker.len())));
    }
    let mut cluster = Cluster { workers: Vec::new(), links: Links::default() };
    for (number, entry) in file.worker.into_iter().enumerate() {
        let of_worker = |text: String| useless(format!("worker `{}`: {text}", entry.name));
        if cluster.workers.iter().any(|known| known.name == entry.name) {
            return Err(useless(format!("two workers are called `{}`", entry.name)));
        }
        if entry.threads == 0 {
            return Err(of_worker("threads must be at least 1".to_owned()));
        }
        if let Some(link) = link(entry.rtt_ms, entry.rate.as_deref()).map_err(of_worker)? {
            cluster.links.set_own(number, link);
        }
        let speed = entry.speed().map_err(of_worker)?;
        let WorkerEntry { name, memory, threads, .. } = entry;
        cluster.workers.push(Capacity { name, memory_bytes: memory.0, threads, speed });
    }
    for LinkEntry { between: [one, other], rtt_ms, rate } in file.link {
        let of_link = |text: String| useless(format!("link between `{one}` and `{other}`: {text}"));
        let place = |name: &String| cluster.workers.iter().position(|worker| worker.name == *name);
        let (Some(a), Some(b)) = (place(&one), place(&other)) else {
            return Err(of_link("both must be names of workers".to_owned()));
        };
        let link = link(rtt_ms, rate.as_deref()).map_err(of_link)?;
        let link = link.ok_or_else(|| of_link("say its rtt_ms or its rate".to_owned()))?;
        cluster.links.set_pair(End::Worker(a), End::Worker(b), link);
    }
    Ok(cluster)
}

/// The link with this latency and rate, where one of them is said.
fn link(rtt_ms: Option<f64>, rate: Option<&str>) -> Result<Option<Link>, String> {
    if let Some(rtt_ms) = rtt_ms.filter(|ms| !(0.0..=RTT_MS_MAX).contains(ms)) {
        return Err(format!("rtt_ms {rtt_ms} is not between 0 and {RTT_MS_MAX}"));
    }
    let bytes_per_s = rate.map(offer::rate).transpose()?;
    let said = rtt_ms.is_some() || bytes_per_s.is_some();
    Ok(said.then_some(Link { rtt_ms: rtt_ms.unwrap_or(0.0), bytes_per_s }))
}

fn invalid(path: &Path, text: &str, error: &toml::de::Error) -> ClusterError {
    let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let key = text[line_start..].lines().next().and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
    // The parser names the keys that it does not know or that are missing, but not the ones with a bad value.
    let message = error.message().trim().replace('\n', ", ");
    let text = match key {
        Some(key) if !message.contains(&format!("`{key}`")) => format!("{key}: {message}"),
        Some(_) | None => message,
    };
    ClusterError::Invalid { path: path.to_owned(), line: before.matches('\n').count() + 1, text }
}

/// A hundred bytes a worker and to spare.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// A minute: no link on which anybody would wait.
const RTT_MS_MAX: f64 = 60_000.0;
/// More stages than any model has layers.
const WORKERS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(Path::new("c.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn reads_workers_in_order() {
        let text =
            "[[worker]]\nname = 'a'\nmemory = '8GB'\nthreads = 8\n\n[[worker]]\nthreads=2\nmemory='512MiB'\nname='b'";
        let Cluster { workers, links } = parse(Path::new("c.toml"), text).unwrap();
        assert_eq!(links, Links::default());
        let shown: Vec<_> = workers.iter().map(|w| (w.name.as_str(), w.memory_bytes, w.threads)).collect();
        assert_eq!(shown, [("a", 8_000_000_000, 8), ("b", 512 << 20, 2)]);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let worker = "[[worker]]\nname = 'a'\nthreads = 2\n";
        let bad_size = error(&format!("{worker}memory = 'lots'\n"));
        assert_eq!(bad_size, "c.toml:4: memory: `lots` is no size: write it like 800MB, 8GB or 512MiB");
        assert!(error(&format!("{worker}memory = 8")).starts_with("c.toml:4: memory: invalid type"));
        let numbers = error("worker = [7]");
        assert_eq!(
            numbers,
            "c.toml:1: worker: invalid type: integer `7`, expected a table with name, memory and threads"
        );
        assert!(
            error(&format!("{worker}memory = 8")).ends_with("expected a size in quotes, such as \"8GB\" or \"512MiB\"")
        );
        assert!(error(&format!("{worker}memry = '1GB'")).starts_with("c.toml:4: unknown field `memry`"));
        assert_eq!(error(worker), "c.toml:1: missing field `memory`");
        assert!(error("[[worker]\n").starts_with("c.toml:1: "));
        assert!(error("").contains("no worker: add [[worker]]"));
        let twice = format!("{worker}memory='1GB'\n{worker}memory='1GB'\n");
        assert_eq!(error(&twice), "c.toml: two workers are called `a`");
    }

    #[test]
    fn speeds_and_links_are_read() {
        let text = "[[worker]]\nname='a'\nmemory='8GB'\nthreads=8\nbandwidth='100GB/s'\nrtt_ms=2\nrate='1GB/s'\n\
            [[worker]]\nname='b'\nmemory='8GB'\nthreads=8\ncpu='Apple M4'\n\
            [[link]]\nbetween=['b','a']\nrtt_ms=0.5\n";
        let Cluster { workers, links } = parse(Path::new("c.toml"), text).unwrap();
        let speeds: Vec<_> = workers.into_iter().map(|worker| worker.speed).collect();
        assert_eq!(speeds, [Some(Speed::of_bandwidth(100e9)), Some(Speed::of_bandwidth(90e9))]);
        let link = |rtt_ms, bytes_per_s| Some(Link { rtt_ms, bytes_per_s });
        assert_eq!(links.between(End::Worker(0), End::Worker(1)), link(0.5, None));
        assert_eq!(links.between(End::Coordinator, End::Worker(0)), link(2.0, Some(1e9)));
    }

    #[test]
    fn speeds_and_links_that_make_no_sense_are_refused() {
        let worker = "[[worker]]\nname='a'\nmemory='8GB'\nthreads=8\n";
        for (more, part) in [
            (
                "cpu='Pentium II'",
                "worker `a`: cpu `Pentium II` is not known: say bandwidth instead, or one of apple m1",
            ),
            ("cpu='Apple M4'\nbandwidth='1GB/s'", "say the same"),
            ("bandwidth='fast'", "`fast` is no rate"),
            ("rtt_ms=-1", "rtt_ms -1 is not between 0"),
            ("[[link]]\nbetween=['a','b']\nrtt_ms=1", "link between `a` and `b`: both must be names of workers"),
            ("[[link]]\nbetween=['a','a']", "say its rtt_ms or its rate"),
        ] {
            let found = error(&format!("{worker}{more}\n"));
            assert!(found.contains(part), "{more}: {found}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("home.toml");
        std::fs::write(&path, "\u{feff}[[worker]]\r\nname = 'a'\r\nmemory = '4Gi'\r\nthreads = 2\r\n").unwrap();
        assert_eq!(read(&path).unwrap().workers[0].memory_bytes, 4 << 30);
        let refused = read(folder.path()).unwrap_err().to_string();
        assert!(refused.ends_with("this is a directory, not a regular file"), "{refused}");
    }
}
