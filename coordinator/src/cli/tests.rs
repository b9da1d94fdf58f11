//! What the command line understands, and how it refuses.

use std::{os::unix::ffi::OsStrExt, path::Path};

use qmesh_models::tokenizer::PretokenizerChoice;

use super::*;

fn parse(line: &str) -> Result<Cli, Failure> {
    Cli::parse_words(std::iter::once("coordinator").chain(line.split_whitespace()))
}

fn refusal(line: &str) -> String {
    let failure = parse(line).unwrap_err();
    assert_eq!(failure.exit, Exit::Usage, "{line}");
    failure.lines().join(" | ")
}

#[test]
fn the_declaration_is_sound_and_every_flag_has_its_variable() {
    command().debug_assert();
    let all = command();
    for command in all.get_subcommands().chain(all.get_subcommands().flat_map(|command| command.get_subcommands())) {
        for arg in command.get_arguments() {
            let Some(flag) = arg.get_long().filter(|flag| !["help", "version"].contains(flag)) else { continue };
            let variable = format!("QMESH_{}", flag.replace('-', "_").to_uppercase());
            assert_eq!(arg.get_env(), Some(variable.as_ref()), "{} --{flag}", command.get_name());
            assert!(arg.get_help().is_some(), "{} --{flag} has no help", command.get_name());
        }
    }
}

#[test]
fn a_models_path_need_not_be_utf_8() {
    let path = OsStr::from_bytes(b"caf\xe9.gguf");
    for line in ["inspect", "tokenize", "plan --workers 1", "serve", "run -p x", "chat", "demo", "eval --prompts p"] {
        let words = std::iter::once("coordinator").chain(line.split_whitespace()).map(OsStr::new).chain([path]);
        let parsed = Cli::parse_words(words).unwrap_or_else(|failure| panic!("{line}: {}", failure.text));
        assert!(format!("{parsed:?}").contains(r"caf\xE9.gguf"), "{parsed:?}");
    }
    let words =
        ["coordinator", "eval", "smollm2-135m", "-o", "x", "--prompts"].map(OsStr::new).into_iter().chain([path]);
    let Command::Eval(eval) = Cli::parse_words(words).unwrap().command else { panic!("not eval") };
    assert_eq!(eval.prompts, Path::new(path));
}

#[test]
fn what_is_advertised_can_be_reached() {
    for address in
        ["mesh.example:4433", "localhost:1", "my_host.:65535", "192.168.1.2:4433", "[fd00::1]:4433", "1and1:80"]
    {
        let Command::Serve(serve) = parse(&format!("serve --advertise {address}")).unwrap().command else { panic!() };
        assert_eq!(serve.reach.advertise, [address]);
    }
    for address in [
        "127.0.0.1",
        "mesh.example",
        "mesh.example:",
        "mesh.example:0",
        "mesh.example:65536",
        "mesh.example:+80",
        ":4433",
        "0.0.0.0:4433",
        "[::]:4433",
        "300.1.1.1:4433",
        "fd00::1:4433",
        "[fd00::1]",
        "a-.b:1",
        "a..b:1",
        "a/b:1",
        "a:1,b",
        "http://a:1",
        "é:1",
    ] {
        let refusal = refusal(&format!("serve --advertise {address}"));
        assert!(refusal.contains("for '--advertise <HOST:PORT>': HOST:PORT is needed"), "{address}: {refusal}");
    }
    let Command::Serve(serve) = parse("serve --advertise a:1,b:2 --advertise c:3").unwrap().command else { panic!() };
    assert_eq!(serve.reach.advertise, ["a:1", "b:2", "c:3"]);
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let heeded = |value: &str| {
        let command = command_in(|_| Some(value.into()));
        let args = command.get_subcommands().flat_map(|command| command.get_arguments());
        args.filter(|arg| arg.get_env().is_some()).count()
    };
    assert_eq!(heeded(""), 0);
    assert!(heeded("0") > 20);
}

#[test]
fn a_mesh_for_others_listens_to_them() {
    let listens = |line: &str| {
        let Command::Serve(serve) = parse(line).unwrap().command else { panic!("not serve") };
        serve.listen().to_string()
    };
    assert_eq!(listens("serve"), "127.0.0.1:4433");
    assert_eq!(listens("serve --open"), "0.0.0.0:4433");
    assert_eq!(listens("serve --dht"), "0.0.0.0:4433");
    assert_eq!(listens("serve --open --listen 10.0.0.1:1"), "10.0.0.1:1");
    assert!(refusal("serve --open --no-mdns").contains("--no-mdns"));
    assert!(refusal("serve --dht-bootstrap a.example:1").contains("--dht"));
    assert!(refusal("serve --dht --dht-bootstrap a.example").contains("HOST:PORT"));
}

#[test]
fn commands_parse() {
    let Command::Serve(serve) = parse("serve -np 2 -c 512 --new-ticket").unwrap().command else { panic!("not serve") };
    assert_eq!((serve.parallel, serve.room.context, serve.new_ticket), (2, Some(512), true));
    assert_eq!(serve.model.model.to_string(), "smollm2-135m");
    let Command::Eval(eval) = parse("eval smollm2-135m --prompts p.jsonl --cut 5,17").unwrap().command else {
        panic!("not eval")
    };
    assert_eq!((eval.split.cut.as_deref(), eval.split.worker_count()), (Some(&[5, 17][..]), 3));
    let Command::Plan(plan) = parse("plan m.gguf --workers 3 --memory 1GB").unwrap().command else {
        panic!("not plan")
    };
    assert_eq!(plan.memory, Some(qmesh_models::bytes::ByteCount(1_000_000_000)));
    let Command::Run(run) = parse("run m.gguf -p hi --temp 0 --frequency-penalty -1 --typical 0.9").unwrap().command
    else {
        panic!("not run")
    };
    let Command::Tokenize(tokenize) = parse("tokenize m.gguf - --raw --pre qwen2").unwrap().command else {
        panic!("not tokenize")
    };
    assert_eq!((tokenize.text.as_deref(), tokenize.raw, tokenize.pieces), (Some("-"), true, false));
    assert_eq!(tokenize.tokenizer.choice(), PretokenizerChoice::Named("qwen2"));
    assert_eq!(run.tokenizer.choice(), PretokenizerChoice::FromModel);
    let sampling = run.sampling.sampling(0.7, 9);
    assert_eq!((sampling.temperature, sampling.frequency_penalty, sampling.seed), (0.0, -1.0, 9));
    assert_eq!((sampling.typical_p, sampling.xtc_probability), (0.9, 0.0));
}

#[test]
fn refusals_are_one_line_and_say_what_to_do() {
    for (line, expected) in [
        (
            "plan m.gguf",
            "error: the following required arguments were not provided: <--workers <N|LIST>|--cluster <FILE>|--live [<URL>]> \
             | try: coordinator plan --help",
        ),
        (
            "demo smolm2-135m",
            "error: invalid value 'smolm2-135m' for '[MODEL]': no model is called `smolm2-135m` \
             (did you mean smollm2-135m?)",
        ),
        ("serve --pot 1", "error: unexpected argument '--pot' found | try: a similar argument exists: '--port'"),
        (
            "run m.gguf -p x --temp nan",
            "error: invalid value 'nan' for '--temp <T>': a number from 0 to 100 is needed \
             | try: coordinator run --help",
        ),
        (
            "plan m.gguf --workers 0",
            "error: invalid value '0' for '--workers <N|LIST>': a number of workers from 1 to 1024 is needed",
        ),
        (
            "chat m.gguf --pre klingon",
            "error: invalid value 'klingon' for '--pre <NAME>': no pre-tokenizer has that name; known: gpt-2, ",
        ),
        ("serve --api-key=", "error: invalid value '' for '--api-key <KEY>': an empty key would lock everybody out"),
        (
            "serve --api-key=schlüssel",
            "error: invalid value 'schlüssel' for '--api-key <KEY>': a key may hold printable ASCII characters only",
        ),
        ("", "error: no command | try: coordinator --help"),
        ("fly", "error: unrecognized subcommand 'fly' | try: coordinator --help"),
    ] {
        let refusal = refusal(line);
        assert!(refusal.starts_with(expected), "{line}: {refusal}");
    }
}

#[test]
fn a_failure_is_one_line_even_if_its_cause_is_not() {
    let failure = Failure::from(anyhow::anyhow!("first\n  second").context("cannot do it")).with_advice("that\nthere");
    assert_eq!(failure.lines(), ["error: cannot do it: first second", "try: that there"]);
    let closed = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
    assert_eq!(Failure::from(closed), Failure::done());
}

#[test]
fn what_the_packages_start_is_understood() {
    let packaging = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging"));
    let read = |file: &str| std::fs::read_to_string(packaging.join(file)).unwrap();
    let unit = read("systemd/qmesh-coordinator.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/coordinator ")).unwrap();
    assert!(matches!(parse(&start.replace("$QMESH_MODEL", "smollm2-135m")).unwrap().command, Command::Serve(_)));
    let compose = read("compose.yaml");
    let command = compose.split("command: >-").nth(1).unwrap().split("environment:").next().unwrap();
    let words = command.replace("${QMESH_MODEL:-smollm2-135m}", "smollm2-135m");
    let Command::Serve(serve) = parse(words.trim().strip_prefix("coordinator").unwrap()).unwrap().command else {
        panic!()
    };
    assert_eq!((serve.min_workers, serve.reach.advertise), (Some(2), vec!["coordinator:4433".to_owned()]));
    assert_eq!(serve.ticket_file.as_deref(), Some(Path::new("/run/qmesh/ticket")));
}

#[test]
fn containers_have_a_key_and_tell_whether_they_are_well() {
    let packaging = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging"));
    let read = |file: &str| std::fs::read_to_string(packaging.join(file)).unwrap();
    // Who listens on all addresses without a key is refused, so compose says so before it starts anything.
    let (compose, dockerfile) = (read("compose.yaml"), read("Dockerfile"));
    assert!(compose.contains("--host 0.0.0.0") && compose.contains("QMESH_API_KEY: ${QMESH_API_KEY:?"));
    let example = dockerfile.split("docker run").nth(1).and_then(|rest| rest.split("FROM").next()).unwrap();
    assert!(example.contains("--host 0.0.0.0") && example.contains("-e QMESH_API_KEY="), "{example}");
    let well = dockerfile.split("HEALTHCHECK").nth(1).unwrap();
    assert!(well.contains("/health") && well.contains("QMESH_PORT"));
    let Command::Serve(serve) = parse("serve smollm2-135m").unwrap().command else { panic!() };
    assert_eq!(serve.addresses.port, 8080, "where the check asks");
    assert_eq!(compose.matches("depends_on: *coordinator-answers").count(), 2);
    assert!(compose.contains("condition: service_healthy"));
}

#[test]
fn shells_and_manuals_know_every_command() {
    let mut script = Vec::new();
    clap_complete::generate(clap_complete::Shell::Bash, &mut description(), "coordinator", &mut script);
    let script = String::from_utf8(script).unwrap();
    let folder = tempfile::tempdir().unwrap();
    clap_mangen::generate_to(description(), folder.path()).unwrap();
    for command in description().get_subcommands().filter(|command| !command.is_hide_set()) {
        assert!(script.contains(command.get_name()), "{}", command.get_name());
        assert!(folder.path().join(format!("coordinator-{}.1", command.get_name())).exists(), "{}", command.get_name());
    }
}
