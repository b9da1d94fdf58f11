//! A conversation as a prompt, and how its answer is to be read.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use qmesh_models::{
    chat::{ChatTemplate, GenerationPrompt, Message, RenderOptions, TemplateError},
    tokenizer::{LeadingSpace, Specials},
};
use serde_json::Value;

use super::{
    PromptError, TextModel,
    calls::{ForcedCall, Format, ToolChoice, Tools, forced_call, held_calls, possible_calls},
    history,
    outside::Outside,
    reading::{CallsWanted, Manner, Opening, Reading, Tags, ThoughtsWanted},
};
use crate::grammar::{HeldCalls, Thoughts};

/// What a client wants of an answer.
#[derive(Clone, Debug)]
pub struct ChatWanted {
    /// Which tools may be called, or must be.
    pub choice: ToolChoice,
    /// How many calls.
    pub calls: CallsWanted,
    /// The tools whose calls are by their schemas.
    pub strict: Vec<String>,
    /// Where thoughts go.
    pub thoughts: ThoughtsWanted,
}

/// A conversation that is ready to be answered.
#[derive(Clone, Debug)]
pub struct ChatPrompt {
    /// The prompt.
    pub ids: Vec<u32>,
    /// Reads the answer.
    pub reading: Reading,
    /// How the model was told of its tools.
    pub tools: ToolsShown,
    /// What the answer must be, where a call is demanded.
    pub forced: Option<ForcedCall>,
    /// What calls the answer may be, where it need not be one.
    pub possible: Vec<ForcedCall>,
    /// What of the answer is held where nothing is demanded: the arguments of strict tools.
    pub held: Option<HeldCalls>,
    /// Where the prompt has begun thoughts: what ends them. A demanded call, or the answer's form, comes behind it.
    pub thoughts_end: Option<&'static str>,
    /// Whether the space that some tokenizers put before a text is text of the answer, as it is where a text goes on.
    pub leading_space: LeadingSpace,
}

/// How a model was told of its tools.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ToolsShown {
    /// There are none.
    None,
    /// By its own template.
    Native,
    /// By our instructions, since its template knows no tools.
    Generic,
}

/// A conversation as text, whose control tokens are those without this mark.
#[derive(Debug)]
struct Rendered {
    text: String,
    mark: char,
}

impl TextModel {
    /// The ids of a conversation. Control tokens come from the template alone, whatever the messages and tools spell.
    ///
    /// # Errors
    /// No usable template, one that refuses the messages or knows no tools when there are some, or text that cannot be
    /// split.
    pub fn chat_prompt(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<Vec<u32>, PromptError> {
        let rendered = self.rendered(self.usable_template()?, messages, options)?;
        self.raw_prompt(&rendered.text, Specials::ParseUnmarked(rendered.mark))
    }

    /// The ids of a conversation with the tools of `options`, and how its answer is to be read. Where the template knows no tools, or
    /// does not look at calls and their results, the model is told of them in words.
    ///
    /// # Errors
    /// As `chat_prompt`, but for templates that know no tools.
    pub fn chat(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
        wanted: &ChatWanted,
    ) -> Result<ChatPrompt, PromptError> {
        let template = self.usable_template()?;
        let messages = history::with_ids_for(template, messages);
        let (rendered, tools) = self.told(template, &messages, options)?;
        let mut manner = Manner::of_template(template.source());
        manner.thoughts = wanted.thoughts;
        manner.calls = match (tools, &wanted.choice) {
            (ToolsShown::None, _) | (_, ToolChoice::None) => CallsWanted::None,
            // Such a template also refuses the next turn of a conversation in which there were several calls.
            _ if template.source().contains("only supports single tool-calls at once") => CallsWanted::One,
            _ => wanted.calls,
        };
        manner.tools = Arc::new(Tools::new(options.tools));
        if tools == ToolsShown::Generic && manner.format != Format::CHANNELS {
            manner.format = Format::GENERIC;
        }
        let forced = forced_call(&manner.tools, &wanted.choice, manner.format);
        if let Some(forced) = &forced {
            manner.format = forced.format;
        }
        let possible = match manner.calls {
            CallsWanted::All | CallsWanted::One if forced.is_none() => possible_calls(&manner.tools, manner.format),
            CallsWanted::All | CallsWanted::One | CallsWanted::None => Vec::new(),
        };
        let begun = manner.tags.filter(|tags| rendered.text.trim_end().ends_with(tags.open));
        if begun.is_some() {
            manner.opening = Opening::Thoughts;
        }
        let control = |text: &str| self.tokenizer.find(text).filter(|&id| self.tokenizer.is_control(id));
        let reading = Reading::new(&manner, control);
        let thoughts = manner.tags.map(|Tags { open, close }| Thoughts { open, close, begun: begun.is_some() });
        let held = match manner.calls {
            CallsWanted::All | CallsWanted::One if forced.is_none() => {
                held_calls(&manner.tools, &wanted.strict, manner.format, thoughts)
            }
            CallsWanted::All | CallsWanted::One | CallsWanted::None => None,
        };
        let ids = self.raw_prompt(&rendered.text, Specials::ParseUnmarked(rendered.mark))?;
        let leading_space = match options.generation_prompt {
            GenerationPrompt::Continue => LeadingSpace::Keep,
            GenerationPrompt::Add | GenerationPrompt::Omit => LeadingSpace::Strip,
        };
        let thoughts_end = begun.map(|tags| tags.close);
        Ok(ChatPrompt { ids, reading, tools, forced, possible, held, thoughts_end, leading_space })
    }

    /// The text of a conversation as `chat` makes ids of it.
    ///
    /// # Errors
    /// As `chat_prompt`, but for templates that know no tools.
    pub fn chat_text(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<String, PromptError> {
        let template = self.usable_template()?;
        let messages = history::with_ids_for(template, messages);
        let (Rendered { text, mark }, _) = self.told(template, &messages, options)?;
        Ok(if text.contains(mark) { text.replace(mark, "") } else { text })
    }

    /// The conversation as text, in the way that tells the model most of it.
    fn told(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<(Rendered, ToolsShown), PromptError> {
        let native = if options.tools.is_empty() { ToolsShown::None } else { ToolsShown::Native };
        let mut first = self.rendered(template, messages, options);
        let refused =
            matches!(first, Err(PromptError::Template(TemplateError::Raised { .. } | TemplateError::Failed { .. })));
        let passed_over = first.as_ref().is_ok_and(|first| self.passes_over(template, messages, options, first));
        if history::has_calls(messages) && (refused || passed_over) {
            match self.rendered(template, &history::as_text(messages), options) {
                // What the template says of the conversation as it came is what its client can do something about.
                Err(PromptError::Template(_)) => {}
                second => first = second,
            }
        }
        match first {
            Err(PromptError::NoTools { .. }) => {
                Ok((self.instructed(template, messages, options)?, ToolsShown::Generic))
            }
            first => Ok((first?, native)),
        }
    }

    /// Whether a template makes the same text of a conversation without its calls, or without their results.
    fn passes_over(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        options: &RenderOptions<'_>,
        rendered: &Rendered,
    ) -> bool {
        let blind = |less: Vec<Message>| {
            let written =
                self.outside(&less, options).map(|outside| written(template, &outside, &outside.tools, options));
            written.is_ok_and(|without| without.is_ok_and(|text| text == rendered.text))
        };
        history::WITHOUT.into_iter().filter_map(|without| without(messages)).any(blind)
    }

    /// A conversation with our own instructions about tools.
    fn instructed(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<Rendered, PromptError> {
        let told = history::instructed(&history::as_text(messages), &history::instructions(options.tools));
        let options = RenderOptions { tools: &[], ..options.clone() };
        match self.rendered(template, &told, &options) {
            Err(PromptError::Template(TemplateError::Raised { .. } | TemplateError::Failed { .. })) => {
                self.rendered(template, &history::without_system(&told), &options)
            }
            rendered => rendered,
        }
    }

    fn usable_template(&self) -> Result<&ChatTemplate, PromptError> {
        let unusable = |reason: &String| PromptError::NoTemplate { name: self.name.clone(), reason: reason.clone() };
        self.template.as_deref().map_err(unusable)
    }

    /// The conversation as the template writes it, which looks at the tools, where there are some: else they would be
    /// ignored in silence.
    fn rendered(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<Rendered, PromptError> {
        let outside = self.outside(messages, options)?;
        let text = written(template, &outside, &outside.tools, options)?;
        // A variable whose name is nowhere in the source is not looked at.
        let is_blind = || {
            !template.source().contains("tools")
                || written(template, &outside, &[], options).is_ok_and(|without| without == text)
        };
        if !outside.tools.is_empty() && is_blind() {
            return Err(PromptError::NoTools { name: self.name.clone() });
        }
        Ok(Rendered { text, mark: outside.mark })
    }

    fn outside(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<Outside, PromptError> {
        Outside::new(&self.tokenizer, messages, options).ok_or(PromptError::Noncharacters)
    }
}

/// The text of a conversation with these tools, whatever the template looks at.
fn written(
    template: &ChatTemplate,
    outside: &Outside,
    tools: &[Value],
    options: &RenderOptions<'_>,
) -> Result<String, TemplateError> {
    render(template, &outside.messages, &RenderOptions { tools, extra: outside.extra.clone(), ..options.clone() })
}

/// The text of a conversation. Clients send null as the content of tool calls, and some templates fail on it, as they
/// do in transformers: those get an empty text.
fn render(template: &ChatTemplate, messages: &[Message], options: &RenderOptions<'_>) -> Result<String, TemplateError> {
    let null = |message: &Message| message.content == Some(Value::Null);
    let mut options = options.clone();
    // Firefunction's template has the tools as a text, by a name of its own, and fails without it.
    if template.source().contains("functools[") {
        let listed = Value::from(options.tools);
        let text = if options.tools.is_empty() { String::new() } else { format!("{listed:#}") };
        options.extra.entry("functions").or_insert(text.into());
    }
    let options = &options;
    match template.render(messages, options) {
        Err(TemplateError::Failed { .. }) if messages.iter().any(null) => {
            let mut messages = messages.to_vec();
            messages.iter_mut().filter(|message| null(message)).for_each(|message| message.content = Some("".into()));
            template.render(&messages, options)
        }
        rendered => rendered,
    }
}
