//! The house rules that a machine can check. Each failure names file, line, rule and what to do instead.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A broken rule: where, and what to do.
type Breach = String;

#[test]
fn every_file_starts_with_its_purpose() {
    assert_tidy(|file| {
        let first = file.text.lines().next().unwrap_or_default();
        if first.starts_with("//! ") {
            vec![]
        } else {
            vec![file.at(0, "start with a `//!` line that says what it is for")]
        }
    });
}

#[test]
fn files_have_at_most_500_lines() {
    assert_tidy(|file| {
        let lines = file.text.lines().count();
        if lines <= 500 { vec![] } else { vec![file.at(lines - 1, "split it: at most 500 lines")] }
    });
}

#[test]
fn functions_have_at_most_70_lines() {
    assert_tidy(|file| {
        let long = functions(&file.text).into_iter().filter(|(_, length)| *length > 70);
        long.map(|(line, length)| file.at(line, &format!("{length} lines: split it, at most 70"))).collect()
    });
}

#[test]
fn banned_names_are_not_declared() {
    assert_tidy(|file| {
        let mut breaches = vec![];
        for (number, line) in file.code_lines() {
            for name in declared(line) {
                let banned = name.split('_').map(str::to_lowercase).find(|w| BANNED.contains(&w.as_str()));
                breaches.extend(
                    banned.map(|word| file.at(number, &format!("`{name}`: `{word}` says nothing; name what it is"))),
                );
            }
        }
        breaches
    });
}

#[test]
fn unfinished_work_does_not_land() {
    // Spelled apart, so that this file does not find itself.
    let marks = ["todo!", "unimplemented!", "#[ignore", "#[should_panic", concat!("FIX", "ME"), concat!("XX", "X")];
    assert_tidy(|file| {
        if file.path.ends_with("tests/tidy.rs") {
            return vec![];
        }
        let marked = |line: &str| marks.iter().find(|m| line.contains(**m)).copied();
        let lines = file.text.lines().enumerate();
        lines
            .filter_map(|(n, l)| marked(l).map(|m| file.at(n, &format!("`{m}`: finish it, or leave it out"))))
            .collect()
    });
}

#[test]
fn unsafe_stays_in_the_kernels_and_the_mmap() {
    only_in(
        "unsafe code",
        |line| word(line, "unsafe"),
        &["engine/kernels/src/", "engine/team/src/lib.rs", "models/src/map.rs"],
    );
}

#[test]
fn bincode_stays_in_one_file_of_a_package() {
    only_in("bincode", |line| word(line, "bincode"), &["net/src/codec.rs", "share/src/codec.rs"]);
}

#[test]
fn candle_stays_in_the_engine() {
    only_in("candle", |line| line.contains("candle_"), &["engine/", "benches/"]);
    for manifest in ["models", "net", "coordinator"] {
        let text = read(&root().join(manifest).join("Cargo.toml"));
        assert!(!text.contains("candle"), "{manifest} must not link a tensor library");
    }
}

#[test]
fn only_the_worker_speaks_net_in_the_engine() {
    let inside = |f: &File| f.path.starts_with("engine/src");
    // The command line is part of the binary.
    let allowed = ["engine/src/worker/", "engine/src/cli.rs", "engine/src/cli/"];
    only_where(inside, "qmesh_net", |line| line.contains("qmesh_net"), &allowed);
}

#[test]
fn the_engine_knows_no_family() {
    let families =
        ["llama", "qwen", "gemma", "mistral", "mixtral", "phi3", "granite", "olmo", "smollm", "starcoder", "deepseek"];
    let inside = |f: &File| f.path.starts_with("engine/src");
    let named = |line: &str| families.iter().any(|f| line.to_lowercase().contains(f)) && !line.contains(".gguf");
    only_where(inside, "a family's name", named, &[]);
}

#[test]
fn tokens_become_text_only_at_the_coordinator() {
    let inside = |f: &File| f.path.starts_with("engine/src") || f.path.starts_with("net/src");
    only_where(inside, "the tokenizer", |line| line.contains("tokenizer::") || line.contains("chat::"), &[]);
}

#[test]
fn no_machine_is_named() {
    let marks = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    let mut breaches = vec![];
    for path in tracked(&["rs", "md", "toml", "sh", "yml", ""]) {
        let text = read(&root().join(&path));
        let lines = text.lines().enumerate().filter(|(_, l)| marks.iter().any(|m| l.contains(m)));
        breaches.extend(lines.map(|(n, _)| format!("{}:{}: a path of some machine", path.display(), n + 1)));
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn paths_in_the_docs_exist() {
    let mut breaches = vec![];
    for path in tracked(&["md"]) {
        let text = read(&root().join(&path));
        for (number, line) in text.lines().enumerate() {
            for quoted in line.split('`').skip(1).step_by(2).filter(|q| looks_like_path(q)) {
                if !root().join(quoted.trim_end_matches('/')).exists() {
                    breaches.push(format!("{}:{}: `{quoted}` does not exist", path.display(), number + 1));
                }
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn the_rules_see_what_they_forbid() {
    assert_eq!(functions("fn a() {\n  1;\n}\nfn b() { 2 }\n"), [(0, 3), (3, 1)]);
    assert_eq!(functions("fn a(\n  b: u8,\n) -> u8;\nfn b() {\n}\n"), [(0, 3), (3, 2)]);
    assert!(declared(concat!("let user_", "data = 1;")).any(|n| n == "user_data"));
    assert!(declared(concat!("pub(crate) f", "n helper(x: u8) {")).any(|n| n == "helper"));
    assert!(word("unsafe { x }", "unsafe") && !word("#![deny(unsafe_code)]", "unsafe"));
    assert!(looks_like_path("engine/kernels/src/") && !looks_like_path("a/b") && !looks_like_path("/v1/models"));
}

/// One Rust file of the repository, its path relative to the root.
struct File {
    path: PathBuf,
    text: String,
}

impl File {
    fn at(&self, line: usize, what: &str) -> Breach {
        format!("{}:{}: {what}", self.path.display(), line + 1)
    }

    /// Lines that are not comments, numbered from 0.
    fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate();
        lines.map(|(n, l)| (n, l.split(" // ").next().unwrap_or(l))).filter(|(_, l)| !l.trim_start().starts_with("//"))
    }
}

fn assert_tidy(rule: impl Fn(&File) -> Vec<Breach>) {
    let breaches: Vec<Breach> = rust_files().iter().flat_map(rule).collect();
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

fn only_in(what: &str, found: impl Fn(&str) -> bool, allowed: &[&str]) {
    only_where(|f| !f.path.starts_with("tests"), what, found, allowed);
}

fn only_where(inside: impl Fn(&File) -> bool, what: &str, found: impl Fn(&str) -> bool, allowed: &[&str]) {
    assert_tidy(|file| {
        if !inside(file) || allowed.iter().any(|a| file.path.starts_with(a)) {
            return vec![];
        }
        let lines = file.code_lines().filter(|(_, l)| found(l));
        lines.map(|(n, _)| file.at(n, &format!("{what} belongs in {allowed:?} only"))).collect()
    });
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie inside the repository").to_owned()
}

fn rust_files() -> Vec<File> {
    let files: Vec<File> =
        tracked(&["rs"]).into_iter().map(|path| File { text: read(&root().join(&path)), path }).collect();
    assert!(files.len() > 20, "the rules saw only {} files", files.len());
    files
}

/// Files with one of these endings, in source folders and at the top.
fn tracked(endings: &[&str]) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the repository can be listed").flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            // In a second worktree `.git` is a file.
            if ["target", ".git", "golden", "node_modules"].contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if endings.contains(&path.extension().unwrap_or_default().to_string_lossy().as_ref()) {
                found.push(path.strip_prefix(root()).expect("it was found below the root").to_owned());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// First line (from 0) and length of every function, by indentation: rustfmt closes a function in the column of its `fn`.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let starts = lines.iter().enumerate().filter(|(_, l)| {
        let head = l.trim_start().split('(').next().unwrap_or_default();
        head.split(['<', ' ']).any(|w| w == "fn") && !l.trim_start().starts_with("//") && !l.trim_end().ends_with(';')
    });
    starts
        .map(|(start, line)| {
            let indent = &line[..line.len() - line.trim_start().len()];
            let one_line = line.trim_end().ends_with('}');
            let close = format!("{indent}}}");
            // A trait may leave a function without a body: its signature ends in a line of its own.
            let bare = format!("{indent})");
            let ends = |i: &usize| lines[*i] == close || (lines[*i].starts_with(&bare) && lines[*i].ends_with(';'));
            let end = if one_line { start } else { (start..lines.len()).find(ends).unwrap_or(start) };
            (start, end - start + 1)
        })
        .collect()
}

/// Names that a line declares.
fn declared(line: &str) -> impl Iterator<Item = &str> {
    let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
    let keywords = ["fn", "struct", "enum", "trait", "mod", "type", "const", "static", "let", "mut"];
    words.windows(2).filter(move |w| keywords.contains(&w[0])).map(|w| w[1]).collect::<Vec<_>>().into_iter()
}

fn word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

/// A quoted thing that names a place in the repository.
fn looks_like_path(quoted: &str) -> bool {
    let tops = [
        "models/",
        "net/",
        "doctor/",
        "logging/",
        "engine/",
        "coordinator/",
        "simulation/",
        "tests/",
        "benches/",
        "docs/",
        "scripts/",
        "fuzz/",
        ".ci/",
        ".config/",
    ];
    tops.iter().any(|t| quoted.starts_with(t)) && !quoted.contains([' ', '*', '<', '{'])
}

const BANNED: [&str; 14] = [
    "utils", "util", "common", "helper", "helpers", "manager", "handler", "data", "info", "ctx", "node", "rank",
    "master", "slave",
];
