//! A chat in the words of no dialect: what all of them are read into, and what their answers come from.

use std::{sync::Arc, time::SystemTime};

use axum::{
    http::{HeaderName, HeaderValue},
    response::Response,
};
use qmesh_models::{
    chat::{GenerationPrompt, Message, RenderOptions},
    tokenizer::LeadingSpace,
};
use qmesh_net::Sampling;
use serde_json::{Map, Value};

use super::{
    thinking::Thinking,
    tools::{ToolParams, Toolbox},
};
use crate::{
    api::{
        Api, blocking,
        body::Share,
        caller::{Caller, Client},
        choices::{Choices, Job, ShownProgress},
        error::ApiError,
        grammar::{AskedGrammar, Form},
        params::Params,
    },
    generate::PromptRows,
    grammar::CompiledGrammar,
    text::{ChatPrompt, ChatWanted, PromptError, Reading, TextModel, ThoughtsWanted, TokenDetail, ToolsShown},
};

/// Says how the model was told of the tools, where its template does not know any.
const TOOLS_HEADER: HeaderName = HeaderName::from_static("x-qmesh-tools");

/// A conversation whose next turn is the model's.
#[derive(Debug)]
pub(crate) struct Turn {
    /// The parameter that it came in.
    pub(super) param: &'static str,
    pub(super) messages: Vec<Message>,
    /// As templates know them; none where none may be called.
    pub(super) tools: Vec<Value>,
    pub(super) wanted: ChatWanted,
    /// Further variables of the template.
    pub(super) variables: Map<String, Value>,
    /// Whether the last message is one to be answered, or the beginning of the answer.
    pub(super) ending: GenerationPrompt,
}

/// A conversation as another dialect than OpenAI's says it.
#[derive(Debug)]
pub(crate) struct Said {
    /// The parameter that it came in.
    pub(crate) param: &'static str,
    pub(crate) messages: Vec<Message>,
    /// As OpenAI's chats describe them.
    pub(crate) tools: Vec<Value>,
    /// As OpenAI's chats say it.
    pub(crate) tool_choice: Option<Value>,
    pub(crate) parallel_calls: Option<bool>,
    /// Whether the model shall think, where that is said.
    pub(crate) thinks: Option<bool>,
    /// How much it shall think, in OpenAI's words.
    pub(crate) effort: Option<String>,
    /// Where thoughts go.
    pub(crate) thoughts: ThoughtsWanted,
    /// As in [`Turn`].
    pub(crate) ending: GenerationPrompt,
}

/// How answers are drawn, and where they end.
#[derive(Debug)]
pub(crate) struct Drawing {
    pub(crate) choices: u64,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampling: Sampling,
    pub(crate) stops: Vec<String>,
    pub(crate) ends: Arc<[u32]>,
    pub(crate) detail: TokenDetail,
    pub(crate) client: Client,
    /// Whether the client hears how far the prompt is.
    pub(crate) progress: ShownProgress,
    /// What the text must look like.
    pub(crate) grammar: Option<AskedGrammar>,
}

/// An answer that has begun.
pub(crate) struct Begun {
    pub(crate) choices: Choices,
    /// How the model was told of its tools.
    tools: ToolsShown,
}

impl Turn {
    /// Looks at a conversation.
    ///
    /// # Errors
    /// `Invalid` and `Unsupported` with the place of what is wrong, as OpenAI's chats name it.
    pub(crate) fn read(said: Said) -> Result<Self, ApiError> {
        let Said { param, messages, tools, tool_choice, parallel_calls, thinks, effort, thoughts, ending } = said;
        let mut variables = Map::new();
        Thinking { effort, enable: thinks, ..Thinking::default() }.set(&mut variables)?;
        let tools = Some(tools);
        let params = ToolParams { tools, tool_choice, parallel_tool_calls: parallel_calls, ..ToolParams::default() };
        let Toolbox { mut tools, choice, calls, strict, .. } = params.read()?;
        // These dialects do not have it in what templates show.
        tools.iter_mut().filter_map(|tool| tool["function"].as_object_mut()).for_each(|function| {
            function.shift_remove("strict");
        });
        Ok(Self { param, messages, tools, wanted: ChatWanted { choice, calls, strict, thoughts }, variables, ending })
    }

    /// Hands it to the mesh.
    ///
    /// # Errors
    /// Whatever keeps it from being a prompt, or the mesh from taking it.
    pub(crate) async fn begin(self, api: &Api, mut drawing: Drawing, share: Share) -> Result<Begun, ApiError> {
        api.check_ready()?;
        let param = self.param;
        let asked = drawing.grammar.take();
        let prompt = self.prompt(api, share).await?;
        let ChatPrompt { ids, reading, tools, forced, possible, held, thoughts_end, leading_space } = prompt;
        let asked = match (&forced, asked) {
            (Some(forced), asked) => Some(AskedGrammar::call(forced, thoughts_end, asked.is_some())?),
            (None, Some(asked)) => Some(asked.or_calls(&possible)?.behind(thoughts_end)),
            (None, None) => held.map(AskedGrammar::held).transpose()?,
        };
        let grammar = api.compile(asked).await?;
        let job = Job { leading_space, ..drawing.job(param, ids, Some(reading), grammar) };
        Ok(Begun { choices: Choices::start(api, job)?, tools })
    }

    /// Its prompt, and how the answer is to be read.
    ///
    /// # Errors
    /// Whatever keeps it from being one.
    pub(crate) async fn prompt(self, api: &Api, share: Share) -> Result<ChatPrompt, ApiError> {
        let text = Arc::clone(&api.state.text);
        let Self { param, messages, tools, wanted, variables, ending } = self;
        let encode = move || {
            let _held = share;
            text.chat(&messages, &options(variables, &tools, ending), &wanted)
        };
        blocking(encode).await?.map_err(|error| ApiError::text(param, &error))
    }

    /// Its prompt as text.
    ///
    /// # Errors
    /// Whatever keeps it from being one.
    pub(crate) async fn text(self, api: &Api, share: Share) -> Result<String, ApiError> {
        let text = Arc::clone(&api.state.text);
        let Self { param, messages, tools, variables, ending, .. } = self;
        let render = move || {
            let _held = share;
            text.chat_text(&messages, &options(variables, &tools, ending))
        };
        blocking(render).await?.map_err(|error| ApiError::text(param, &error))
    }
}

impl Drawing {
    /// One answer, of text alone, as the shared parameters say but for its length.
    ///
    /// # Errors
    /// `Invalid` with the parameter's name.
    pub(crate) fn single(
        api: &Api,
        params: Params,
        max_tokens: Option<usize>,
        caller: Caller,
    ) -> Result<Self, ApiError> {
        if params.choices()? != 1 {
            return Err(ApiError::Unsupported { param: "n", hint: "an answer of this API has one choice" });
        }
        Ok(Self {
            choices: 1,
            max_tokens,
            sampling: params.sampling(&api.state.text, 0)?,
            stops: params.stops()?,
            ends: params.ends(&api.state.text)?,
            detail: TokenDetail::Off,
            progress: ShownProgress::No,
            client: caller.client(params.user.as_deref()),
            grammar: params.grammar,
        })
    }

    /// Takes a form of the answer that a dialect asks for in a way of its own, as the parameter of this name.
    ///
    /// # Errors
    /// What is wrong with it; another form that is asked for as well.
    pub(crate) async fn take_form(&mut self, param: &'static str, form: Option<Form>) -> Result<(), ApiError> {
        let Some(form) = form else { return Ok(()) };
        if self.grammar.is_some() {
            return Err(ApiError::invalid(param, format!("'{param}' comes beside another form: ask for one of them")));
        }
        self.grammar = Some(blocking(move || AskedGrammar::of_form(param, form)).await??);
        Ok(())
    }

    /// Continues a text, whose ids `encode` makes: a prompt as it is, or what comes around a middle.
    ///
    /// # Errors
    /// Whatever keeps it from being a prompt, or the mesh from taking it.
    pub(crate) async fn go_on(
        mut self,
        api: &Api,
        param: &'static str,
        share: Share,
        encode: impl FnOnce(&TextModel) -> Result<Vec<u32>, PromptError> + Send + 'static,
    ) -> Result<Choices, ApiError> {
        api.check_ready()?;
        let grammar = api.compile(self.grammar.take()).await?;
        let text = Arc::clone(&api.state.text);
        let effort = share.effort;
        let encode = move || {
            let _held = share;
            encode(&text)
        };
        let ids = effort.run(encode).await?.map_err(|error| ApiError::text(param, &error))?;
        Choices::start(api, self.job(param, ids, None, grammar))
    }

    /// The prompt came in `param`; without a `reading` it is a text that goes on.
    fn job(
        self,
        param: &'static str,
        ids: Vec<u32>,
        reading: Option<Reading>,
        grammar: Option<Arc<CompiledGrammar>>,
    ) -> Job {
        let Self { choices, max_tokens, sampling, stops, ends, detail, client, progress, .. } = self;
        Job {
            prompts: vec![ids],
            param,
            choices,
            max_tokens,
            sampling,
            stops,
            ends,
            detail,
            leading_space: LeadingSpace::Keep,
            reading,
            grammar,
            prompt_rows: PromptRows::Last,
            progress,
            client,
        }
    }
}

impl Begun {
    /// The choices, and what the answer's head says of the tools.
    pub(crate) fn parted(self) -> (Choices, ToolsShown) {
        (self.choices, self.tools)
    }
}

/// Says in an answer's head how the model was told of its tools.
pub(crate) fn told(mut response: Response, tools: ToolsShown) -> Response {
    if tools == ToolsShown::Generic {
        response.headers_mut().insert(TOOLS_HEADER, HeaderValue::from_static("generic"));
    }
    response
}

fn options(variables: Map<String, Value>, tools: &[Value], ending: GenerationPrompt) -> RenderOptions<'_> {
    let mut options = RenderOptions { tools, generation_prompt: ending, ..RenderOptions::dated(SystemTime::now()) };
    options.extra.extend(variables);
    options
}
