//! Where a model's grammars are compiled, and those that were asked for last are kept.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use qmesh_models::tokenizer::Tokenizer;

use super::{CompiledGrammar, Grammar, GrammarCompiler, GrammarError};

/// Where a model's grammars are compiled. Clones share what it takes.
#[derive(Clone, Debug, Default)]
pub struct GrammarDesk(Arc<Desk>);

#[derive(Debug, Default)]
struct Desk {
    /// Made for the first one.
    compiler: OnceLock<Result<GrammarCompiler, GrammarError>>,
    shelf: Mutex<Shelf>,
}

/// What came of a grammar, once it is compiled. Whoever asks meanwhile waits.
type Slot = Arc<OnceLock<Result<Arc<CompiledGrammar>, GrammarError>>>;

/// Grammars by what they say, those that were asked for last at the end.
#[derive(Debug, Default)]
struct Shelf(Vec<(String, Slot)>);

/// Most grammars that are kept.
const KEPT: usize = 32;
/// Most bytes that they say together.
const KEPT_BYTES: usize = 2 << 20;

impl GrammarDesk {
    /// Compiles a grammar for texts of these tokens, which are always the same ones, or finds it. Blocks: the first time for as
    /// long as it takes to sort the vocabulary.
    ///
    /// # Errors
    /// What is wrong with the grammar; a model whose texts have no end.
    pub fn compile(
        &self,
        grammar: &Grammar,
        tokenizer: &Tokenizer,
        ends: &Arc<[u32]>,
    ) -> Result<Arc<CompiledGrammar>, GrammarError> {
        let compiler = self.0.compiler.get_or_init(|| GrammarCompiler::new(tokenizer, ends));
        let compiler = compiler.as_ref().map_err(Clone::clone)?;
        // All that a grammar is is in its words.
        let said = format!("{grammar:?}");
        let slot = self.shelf(|shelf| shelf.slot(&said));
        let compiled = slot.get_or_init(|| compiler.compile(grammar).map(Arc::new)).clone();
        if compiled.is_err() {
            self.shelf(|shelf| shelf.drop_slot(&said));
        }
        compiled
    }

    fn shelf<T>(&self, work: impl FnOnce(&mut Shelf) -> T) -> T {
        work(&mut self.0.shelf.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shelf {
    /// The place of a grammar, from which those go that were asked for longest ago.
    fn slot(&mut self, said: &str) -> Slot {
        let found = self.0.iter().position(|(kept, _)| kept == said);
        let (said, slot) = match found {
            Some(at) => self.0.remove(at),
            None => (said.to_owned(), Slot::default()),
        };
        self.0.push((said, Arc::clone(&slot)));
        let bytes = |kept: &[(String, Slot)]| kept.iter().map(|(said, _)| said.len()).sum::<usize>();
        while self.0.len() > KEPT || bytes(&self.0) > KEPT_BYTES {
            self.0.remove(0);
        }
        slot
    }

    fn drop_slot(&mut self, said: &str) {
        self.0.retain(|(kept, _)| kept != said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::fake::model;

    fn choice(text: &str) -> Grammar {
        Grammar::choice(&[text]).expect("a grammar")
    }

    #[test]
    fn what_is_asked_for_again_is_compiled_once() {
        let (desk, model) = (GrammarDesk::default(), model());
        let compile = |grammar: &Grammar| desk.compile(grammar, &model.tokenizer, &model.ends);
        let first = compile(&choice("a")).expect("compiled");
        assert!(Arc::ptr_eq(&first, &compile(&choice("a")).expect("compiled")));
        assert!(!Arc::ptr_eq(&first, &compile(&choice("b")).expect("compiled")));
        let wrong = Grammar::lark("start: b").expect("short enough");
        assert!(compile(&wrong).is_err() && compile(&wrong).is_err());
        assert_eq!(desk.shelf(|shelf| shelf.0.len()), 2, "what is wrong is not kept");
        for number in 0..KEPT {
            compile(&choice("b")).expect("compiled");
            desk.shelf(|shelf| drop(shelf.slot(&number.to_string())));
        }
        assert_eq!(desk.shelf(|shelf| shelf.0.len()), KEPT);
        assert!(!Arc::ptr_eq(&first, &compile(&choice("a")).expect("compiled")), "it was asked for longest ago");
        let long = "x".repeat(KEPT_BYTES);
        desk.shelf(|shelf| drop(shelf.slot(&long)));
        assert!(desk.shelf(|shelf| shelf.0.iter().map(|(said, _)| said.len()).sum::<usize>()) <= KEPT_BYTES);
    }

    #[test]
    fn those_who_ask_at_once_wait_for_one() {
        let (desk, model) = (GrammarDesk::default(), model());
        let compile = || desk.compile(&choice("a"), &model.tokenizer, &model.ends).expect("compiled");
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(compile)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        });
        assert!(all.iter().all(|one| Arc::ptr_eq(one, &all[0])));
    }
}
