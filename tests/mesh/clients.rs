//! Clients that people have, unchanged, against a mesh of two workers: the scripts of `tests/clients/`. They want a Python with
//! what `tests/clients/requirements.txt` names, in `target/clients`:
//! `python3 -m venv target/clients && target/clients/bin/pip install -r tests/clients/requirements.txt`.

use std::{path::PathBuf, process::Command};

use qmesh_tests::root;

use super::{MODEL, Serving};

#[test]
fn clients_chat_and_call_tools_and_get_what_they_ask_for() {
    let Some(python) = python() else { return };
    let serving = Serving::start_for(MODEL, 2048, &["--min-workers", "2"]);
    let _workers = [serving.join("left", &[]), serving.join("right", &[])];
    serving.wait_ready(2);
    for script in SCRIPTS {
        let mut command = Command::new(&python);
        command.arg(root().join("tests/clients").join(script)).args([&serving.url, MODEL]);
        // Nothing is to be told to anybody else.
        command.env("LANGCHAIN_TRACING_V2", "false").env("NO_PROXY", "*");
        let output = command.output().expect("python runs");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        println!("{script}\n{said}");
        assert!(output.status.success(), "{script}:\n{said}");
    }
}

/// The Python that has the clients. Without it the test is left out, aloud; where `CI` is set, it fails.
fn python() -> Option<PathBuf> {
    let python = root().join("target/clients/bin/python");
    if python.is_file() {
        return Some(python);
    }
    assert!(std::env::var_os("CI").is_none(), "CI needs the clients in target/clients");
    eprintln!("SKIPPED: clients need `pip install -r tests/clients/requirements.txt` in target/clients");
    None
}

const SCRIPTS: [&str; 4] = ["openai_chat.py", "langchain_chat.py", "anthropic_chat.py", "ollama_chat.py"];
