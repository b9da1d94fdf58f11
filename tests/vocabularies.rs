//! Tokenizers against the larger set of reference vectors, where it lies beside the repository; `models` tests the others.

use std::{fs, path::Path};

use qmesh_models::{
    gguf::Gguf,
    tokenizer::{Affixes, ControlTokens, PretokenizerChoice, Specials, Tokenizer, Vocabulary},
};
use qmesh_tests::root;

#[test]
fn the_extended_vectors_hold_where_they_are() {
    let folder = root().join("../shared/golden/vocab");
    if folder.exists() {
        let checked = check_folder(&folder);
        assert!(checked >= 8, "only {checked} vocabularies");
    } else {
        assert!(std::env::var_os("CI").is_none(), "{} is missing, and CI has it", folder.display());
    }
}

/// How many vocabularies the folder has; each must encode every string as the reference does, and decode it back.
fn check_folder(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let vocabularies: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    for path in &vocabularies {
        let with = |ending: &str| fs::read_to_string(format!("{}{ending}", path.display())).unwrap();
        let (texts, ids) = (with(".inp"), with(".out"));
        let tokenizer = tokenizer(path);
        let texts: Vec<&str> = texts.strip_suffix(SEPARATOR).unwrap_or(&texts).split(SEPARATOR).collect();
        let lines: Vec<&str> = ids.lines().collect();
        assert_eq!(texts.len(), lines.len(), "{}", path.display());
        for (text, line) in texts.iter().zip(lines) {
            let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let encoded = tokenizer.encode(text, Specials::Plain, Affixes::None).unwrap();
            assert_eq!(encoded, expected, "{}: {text:?}", path.display());
            assert_eq!(tokenizer.decode(&encoded, ControlTokens::Hide), *text, "{}", path.display());
        }
    }
    vocabularies.len()
}

fn tokenizer(path: &Path) -> Tokenizer {
    let gguf = Gguf::open(path).unwrap_or_else(|e| panic!("{e}"));
    let vocabulary = Vocabulary::from_gguf(&gguf).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Tokenizer::new(vocabulary, PretokenizerChoice::FromModel).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

const SEPARATOR: &str = "\n__ggml_vocab_test__\n";
