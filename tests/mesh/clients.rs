//! Clients that people have, unchanged, against a mesh of two workers: the scripts of `tests/clients/`. They want what
//! `scripts/install-clients` installs.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
};

use qmesh_tests::{is_real, root};

use super::{MODEL, Serving};

#[test]
fn clients_chat_and_call_tools_and_get_what_they_ask_for() {
    let Some(interpreters) = Interpreters::find() else { return };
    if !is_real("clients, which want a model that makes sense") {
        return;
    }
    let serving = Serving::start_for(MODEL, 2048, &["--min-workers", "2"]);
    let _workers = [serving.join("left", &[]), serving.join("right", &[])];
    serving.wait_ready(2);
    let left = Mutex::new(SCRIPTS.to_vec());
    let (left, interpreters, url) = (&left, &interpreters, &serving.url);
    // Clients spend as much time on starting as the mesh does on answering them.
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(move || {
                let next = || left.lock().expect("no script panics while it holds the list").pop();
                while let Some((kind, script)) = next() {
                    play(interpreters.of(kind), script, url);
                }
            });
        }
    });
}

/// Runs a script to its end, which must be a good one.
fn play(interpreter: &Path, script: &str, url: &str) {
    let mut command = Command::new(interpreter);
    command.arg(root().join("tests/clients").join(script)).args([url, MODEL]);
    // Nothing is to be told to anybody else.
    command.env("LANGCHAIN_TRACING_V2", "false").env("NO_PROXY", "*");
    let output = command.output().expect("the interpreter runs");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    eprintln!("{script}\n{said}");
    assert!(output.status.success(), "{script}:\n{said}");
}

/// What runs a script.
#[derive(Clone, Copy)]
enum Kind {
    /// A Python with the newest clients.
    Python,
    /// A Python with clients that want older versions of what others bring.
    Held,
    Node,
}

/// Where those are.
struct Interpreters {
    python: PathBuf,
    held: PathBuf,
}

impl Interpreters {
    /// Those with the clients. Without them the test is left out, aloud; where `CI` is set, it fails.
    fn find() -> Option<Self> {
        let [python, held] =
            ["clients", "clients-held"].map(|name| root().join("target").join(name).join("bin/python"));
        let modules = root().join("tests/clients/node_modules/openai");
        if python.is_file() && held.is_file() && modules.is_dir() {
            return Some(Self { python, held });
        }
        assert!(std::env::var_os("CI").is_none(), "CI needs what scripts/install-clients installs");
        eprintln!("SKIPPED: clients need what scripts/install-clients installs");
        None
    }

    fn of(&self, kind: Kind) -> &Path {
        match kind {
            Kind::Python => &self.python,
            Kind::Held => &self.held,
            Kind::Node => Path::new("node"),
        }
    }
}

/// How many scripts run at a time.
const LANES: usize = 2;

/// The last ones come first.
const SCRIPTS: [(Kind, &str); 14] = [
    (Kind::Python, "anthropic_chat.py"),
    (Kind::Python, "schema_check.py"),
    (Kind::Python, "ollama_chat.py"),
    (Kind::Python, "openai_chat.py"),
    (Kind::Python, "langchain_chat.py"),
    (Kind::Python, "langgraph_agent.py"),
    (Kind::Python, "llm_prompt.py"),
    (Kind::Python, "litellm_chat.py"),
    (Kind::Python, "pydantic_agent.py"),
    (Kind::Node, "openai_chat.mjs"),
    (Kind::Node, "vercel_chat.mjs"),
    (Kind::Held, "instructor_extract.py"),
    (Kind::Held, "llama_index_chat.py"),
    (Kind::Held, "aider_edit.py"),
];
