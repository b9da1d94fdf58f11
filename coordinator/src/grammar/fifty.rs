//! A vocabulary of fifty tokens for tests: one character each from '0' on, and an end.

use std::sync::{Arc, LazyLock};

use serde_json::json;

use super::{CompiledGrammar, Grammar, GrammarCompiler, HeldArguments, HeldCalls, Lead, LeadPiece, LeadPlace};

/// Ends a text.
pub(crate) const END: u32 = 49;

static COMPILER: LazyLock<GrammarCompiler> = LazyLock::new(|| {
    let tokens = (0..=END).map(|id| vec![b'0' + id as u8]).collect();
    let ends: Arc<[u32]> = Arc::new([END]);
    GrammarCompiler::of_tokens(tokens, Vec::new(), &ends).expect("a sound vocabulary")
});

/// Texts that an expression matches.
pub(crate) fn grammar(expression: &str) -> Arc<CompiledGrammar> {
    let grammar = Grammar::regex(expression).expect("a short expression");
    Arc::new(COMPILER.compile(&grammar).expect("a sound expression"))
}

/// Texts in which a number of three digits in brackets comes behind each "34".
pub(crate) fn held() -> Arc<CompiledGrammar> {
    let lead = Lead::new(vec![LeadPiece::Text("34".to_owned())], LeadPlace::Anywhere);
    let number = json!({"type": "integer", "minimum": 100, "maximum": 999});
    let list = json!({"type": "array", "items": number, "minItems": 1, "maxItems": 1});
    let held = HeldCalls { calls: vec![(lead, HeldArguments::Json(list))], marks: Vec::new(), thoughts: None };
    let grammar = Grammar::held(held).expect("a short schema");
    Arc::new(COMPILER.compile(&grammar).expect("a sound schema"))
}

/// Low and high ones by turns, for a while.
pub(crate) fn zigzag() -> Arc<CompiledGrammar> {
    static ZIGZAG: LazyLock<Arc<CompiledGrammar>> = LazyLock::new(|| grammar("([0-4]{2,7}[5-9A-Z]){3,9}"));
    Arc::clone(&ZIGZAG)
}

/// The text of these tokens, without its end.
pub(crate) fn text(tokens: &[u32]) -> String {
    tokens.iter().filter(|id| **id != END).map(|id| char::from(b'0' + *id as u8)).collect()
}
