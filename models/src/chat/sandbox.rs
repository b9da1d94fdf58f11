//! Compiles and runs templates on a thread of their own, whose stack is deep enough for whatever the limits allow.

use std::{collections::BTreeMap, error::Error as _, sync::LazyLock, thread, time::SystemTime};

use fancy_regex::Regex;
use minijinja::{
    AutoEscape, Error, ErrorKind, Value,
    machinery::{CodeGenerator, Instructions, ast::Stmt, eval, make_string_output, parse},
    syntax::SyntaxConfig,
    value::Serde,
};
use serde_json::{Map, Value as Json};

use super::{
    RENDERED_BYTES_MAX, TemplateError,
    budget::{OverBudget, RenderBudget},
    builtins::{self, Raised},
    guard,
};

/// Instructions of a render. A long conversation with tools takes some 100 a message.
const FUEL: u64 = 1 << 21;
/// Units of a render's budget: these, and some for each byte of input, since templates look at a text more than once.
const BUDGET_UNITS: usize = 4 << 20;
const BUDGET_UNITS_PER_BYTE: usize = 32;
/// minijinja recurses over syntax trees and values, and limits the depth of neither: the source's length and the fuel
/// do. Only the pages that are touched cost memory.
const STACK_BYTES: usize = 256 << 20;
/// Longest message of an error.
const MESSAGE_CHARS_MAX: usize = 1000;
const NAME: &str = "chat_template";

/// The source as minijinja reads it: lines end in a line feed, and `{% generation %}`, which marks what to train on and
/// only trainers know, is a scope.
pub(super) fn readable(source: &str) -> String {
    static TAG: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})").expect("a constant expression compiles, tests use it")
    });
    let replace = |tag: &fancy_regex::Captures<'_, str>| {
        let word = if tag.get(2).is_some() { "endwith" } else { "with" };
        format!("{}{word}{}", &tag[1], &tag[3])
    };
    TAG.replace_all(&source.replace("\r\n", "\n").replace('\r', "\n"), replace).into_owned()
}

/// Compiles the template and throws the result away.
pub(super) fn check(source: &str) -> Result<(), TemplateError> {
    on_deep_stack(|| {
        let template = guarded(source)?;
        CodeGenerator::new(NAME, source).compile_stmt(&template);
        Ok(())
    })
}

/// A template that is ready to be rendered; its source outlives it.
pub(super) struct Compiled<'s> {
    instructions: Instructions<'s>,
    blocks: BTreeMap<&'s str, Instructions<'s>>,
}

impl<'s> Compiled<'s> {
    /// Compiles the template. Needs a deep stack.
    pub(super) fn of(source: &'s str) -> Result<Self, TemplateError> {
        let template = guarded(source)?;
        let mut generator = CodeGenerator::new(NAME, source);
        generator.compile_stmt(&template);
        let (instructions, blocks) = generator.finish();
        Ok(Self { instructions, blocks })
    }

    /// Renders the template with these variables. Needs a deep stack.
    pub(super) fn render(&self, variables: &Map<String, Json>, now: SystemTime) -> Result<String, TemplateError> {
        let input_bytes = variables.values().map(bytes).sum::<usize>();
        let budget = RenderBudget::new(BUDGET_UNITS.saturating_add(input_bytes.saturating_mul(BUDGET_UNITS_PER_BYTE)));
        let mut env = builtins::environment(&budget, now);
        env.set_fuel(Some(FUEL));
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        let Self { instructions, blocks } = self;
        eval(&env, instructions, Value::from(Serde(variables)), blocks, &mut out, AutoEscape::None)
            .map_err(|error| fault(&error))?;
        drop(out);
        if text.len() > RENDERED_BYTES_MAX {
            return Err(TemplateError::Limit { what: "rendered bytes" });
        }
        Ok(text)
    }
}

/// A thread whose stack is deep enough.
pub(super) fn deep_thread() -> thread::Builder {
    thread::Builder::new().name("chat-template".to_owned()).stack_size(STACK_BYTES)
}

/// The syntax tree of the template, guarded.
fn guarded(source: &str) -> Result<Stmt<'_>, TemplateError> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let syntax_error = |error: Error| TemplateError::Syntax { message: shortened(&error.to_string()) };
    guard::statement(&parse(source, NAME, syntax.map_err(syntax_error)?).map_err(syntax_error)?)
}

/// Whose fault it is that a render ended.
fn fault(error: &Error) -> TemplateError {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TemplateError::Raised { message: shortened(message) };
        }
        if cause.is::<OverBudget>() {
            return TemplateError::Limit { what: "memory and time" };
        }
        source = cause.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::Limit { what: "instructions" };
    }
    TemplateError::Failed { message: shortened(&error.to_string()) }
}

/// The first characters of a message, which may hold anything that the template made.
fn shortened(message: &str) -> String {
    message.chars().take(MESSAGE_CHARS_MAX).collect()
}

/// Length in bytes of the texts in a variable, and one for each value.
fn bytes(value: &Json) -> usize {
    1 + match value {
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(bytes).sum(),
        Json::Object(fields) => fields.iter().map(|(key, value)| key.len() + bytes(value)).sum(),
    }
}

/// Runs `work` on a thread with a deep stack. A panic in minijinja is the template's fault.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, TemplateError> + Send) -> Result<T, TemplateError> {
    thread::scope(|scope| {
        deep_thread().spawn_scoped(scope, work)?.join().unwrap_or_else(|_| Err(TemplateError::panicked()))
    })
}
