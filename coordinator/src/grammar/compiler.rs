//! From what a text must look like to what may follow in one vocabulary's tokens.

use std::{
    fmt::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use llguidance::{
    Matcher, ParserFactory,
    api::{GrammarWithLexer, ParserLimits, TopLevelGrammar},
    earley::SlicedBiasComputer,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie},
};
use qmesh_models::tokenizer::Tokenizer;

use super::{CompiledGrammar, Form, Grammar, GrammarError, HeldArguments, controls::Controls, quoted, tagged};

/// Compiles grammars for one vocabulary. Making one takes tenths of a second and some tens of megabytes.
pub struct GrammarCompiler {
    factory: ParserFactory,
    /// Tokens that are no text.
    controls: Controls,
    ends: Arc<[u32]>,
    /// One grammar is compiled at a time: whoever sends many of them has one core for it.
    busy: Mutex<()>,
}

impl GrammarCompiler {
    /// A compiler for the tokens of a model, whose texts end with one of `ends`.
    ///
    /// # Errors
    /// There are no ends, or the vocabulary cannot be searched.
    pub fn new(tokenizer: &Tokenizer, ends: &Arc<[u32]>) -> Result<Self, GrammarError> {
        let count = u32::try_from(tokenizer.vocab_len()).unwrap_or(u32::MAX);
        let is_control = |id: u32| tokenizer.is_control(id) || ends.contains(&id);
        let controls = (0..count).filter(|&id| is_control(id));
        let controls = controls.map(|id| (tokenizer.text(id).unwrap_or_default().to_owned(), id)).collect();
        let text = |id| if is_control(id) { Vec::new() } else { tokenizer.bytes(id).to_vec() };
        Self::of_tokens((0..count).map(text).collect(), controls, ends)
    }

    /// The same for a list of tokens: the bytes that each stands for, none for one that is no text; the spellings of some of
    /// the latter; and those that end a text, which are no text either.
    ///
    /// # Errors
    /// As [`GrammarCompiler::new`].
    pub fn of_tokens(
        mut tokens: Vec<Vec<u8>>,
        mut controls: Vec<(String, u32)>,
        ends: &Arc<[u32]>,
    ) -> Result<Self, GrammarError> {
        let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let ends: Arc<[u32]> = ends.iter().copied().filter(|end| *end < count).collect();
        let first = *ends.first().ok_or(GrammarError::NoEnd)?;
        for (id, token) in (0..count).zip(&mut tokens) {
            // Longer ones cannot be searched, and none begins with the byte that marks what is no text.
            if ends.contains(&id) || token.len() > TOKEN_BYTES || token.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER)
            {
                token.clear();
            }
        }
        for (spelling, id) in controls.iter().filter(|(spelling, _)| spelling.len() < TOKEN_BYTES) {
            if let Some(token) = tokens.get_mut(*id as usize) {
                *token = [&[TokTrie::SPECIAL_TOKEN_MARKER], spelling.as_bytes()].concat();
            }
        }
        controls.retain(|(_, id)| *id < count);
        let trie = TokTrie::from(&TokRxInfo::new(count, first), &tokens).with_eos_tokens(&ends);
        // It forces no tokens: a model may spell what must come in any way that it likes.
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| GrammarError::Refused { text: in_words(&error.to_string()) })?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, controls: Controls::new(controls), ends, busy: Mutex::new(()) })
    }

    /// Compiles a grammar. Blocks, as a rule for a few milliseconds; the limits on what may be spent bound it to a second or
    /// so.
    ///
    /// # Errors
    /// The grammar makes no sense, asks for what cannot be followed, or is too complex.
    pub fn compile(&self, grammar: &Grammar) -> Result<CompiledGrammar, GrammarError> {
        let _turn = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let compile = || self.compiled(&grammar.0);
        // What is nested in a grammar is gone through by recursion.
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("qmesh-grammar".to_owned()).stack_size(STACK_BYTES);
            let refused = |text: String| GrammarError::Refused { text };
            let thread = thread.spawn_scoped(scope, compile).map_err(|error| refused(error.to_string()))?;
            thread.join().unwrap_or_else(|_| Err(refused("it made the compiler fail".to_owned())))
        })
    }

    fn compiled(&self, form: &Form) -> Result<CompiledGrammar, GrammarError> {
        let ends = Arc::clone(&self.ends);
        let Form::Held(held) = form else {
            return CompiledGrammar::bound(self.matcher(self.source(form))?, ends);
        };
        let arguments = held.calls.iter().map(|(_, arguments)| {
            let lark = match arguments {
                HeldArguments::Json(schema) => {
                    format!("start: SPACE? json\nSPACE: /[ \\n]{{1,8}}/\njson: %json {schema}\n")
                }
                HeldArguments::Tagged { pairs, schema } => tagged::lark(pairs, schema, &self.controls)?,
            };
            self.matcher(TopLevelGrammar::from_lark(lark))
        });
        CompiledGrammar::held(held.clone(), arguments.collect::<Result<_, _>>()?, self.factory.tok_env().clone(), ends)
    }

    fn matcher(&self, source: TopLevelGrammar) -> Result<Matcher, GrammarError> {
        let matcher = Matcher::new(self.factory.create_parser(source));
        match matcher.get_error() {
            Some(error) => Err(GrammarError::Refused { text: in_words(&error) }),
            None => Ok(matcher),
        }
    }

    fn source(&self, form: &Form) -> TopLevelGrammar {
        match form {
            Form::Json(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Form::Regex(expression) => TopLevelGrammar::from_regex(expression),
            Form::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
            Form::Tagged { .. } => self.one_of(std::slice::from_ref(form)),
            Form::Either(forms) => self.one_of(forms),
            Form::Behind { end, form } => self.behind(end, form),
            // It has a grammar for each of its calls.
            Form::Held(_) => TopLevelGrammar::from_lark("start: /(.|\\n)*/".to_owned()),
        }
    }

    /// A grammar of its own behind what comes first.
    fn behind(&self, end: &str, form: &Form) -> TopLevelGrammar {
        let first = match self.controls.id(end) {
            Some(id) => format!("start: TEXT? <[{id}]> BREAKS? @form\nTEXT: /(.|\\n)+/\n"),
            None => format!("start: text BREAKS? @form\ntext[suffix={}]: /(.|\\n)*/\n", quoted(end)),
        };
        let mut whole = TopLevelGrammar::from_lark(format!("{first}BREAKS: /\\n{{1,2}}/\n"));
        let forms = self.source(form).grammars.into_iter();
        whole.grammars.extend(forms.map(|form| GrammarWithLexer { name: Some("form".to_owned()), ..form }));
        whole
    }

    /// A grammar of several forms of JSON.
    fn one_of(&self, forms: &[Form]) -> TopLevelGrammar {
        let (mut start, mut rules) = (Vec::new(), String::new());
        for (place, form) in forms.iter().enumerate() {
            let (prefix, schema, suffix) = match form {
                Form::Json(schema) => (String::new(), schema, String::new()),
                Form::Tagged { prefix, schema, suffix } => {
                    (self.controls.spelled(prefix), schema, self.controls.spelled(suffix))
                }
                // There are none of these among them.
                Form::Regex(_) | Form::Lark(_) | Form::Either(_) | Form::Behind { .. } | Form::Held(_) => continue,
            };
            start.push(format!("{prefix} json{place} {suffix}"));
            // Writing to a string cannot fail.
            let _ = writeln!(rules, "json{place}: %json {schema}");
        }
        TopLevelGrammar::from_lark(format!("start: {}\n{rules}", start.join(" | ")))
    }
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").field("ends", &self.ends).finish_non_exhaustive()
    }
}

/// What an error of llguidance says to people: its first lines, without what only its authors understand.
pub(super) fn in_words(error: &str) -> String {
    let text = error.split("\n<").next().unwrap_or_default().trim();
    match text.char_indices().nth(ERROR_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What may be spent on a grammar, and on each token along it. The speeds are those of one core, as llguidance states them.
fn limits() -> ParserLimits {
    ParserLimits {
        // 20 ms.
        initial_lexer_fuel: 1_000_000,
        max_grammar_size: 200_000,
        // 7 ms for a token.
        step_lexer_fuel: 100_000,
        // 1.3 ms for a token, as a rule.
        step_max_items: 25_000,
        // 2 KB each, for one text.
        max_lexer_states: 20_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Most bytes of a token that can be searched for.
const TOKEN_BYTES: usize = 1000;
/// Most characters of an error.
const ERROR_CHARS: usize = 400;
/// Room for grammars whose rules are nested as deep as their length allows; what is not used takes no memory.
const STACK_BYTES: usize = 256 << 20;
