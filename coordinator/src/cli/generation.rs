//! Arguments of the commands that generate on this machine: `run`, `chat`, `demo`, `eval`.

use std::path::PathBuf;

use clap::Args;
use qmesh_models::pull::ModelRef;
use qmesh_net::Sampling;

use super::{
    DryArgs, ModelArg, RemoteArgs, TokenizerArgs,
    draft::DraftArgs,
    mesh::{PipelineArgs, RoomArgs, WorkloadArgs, parse_count},
    model_ref,
};

/// Arguments of `run`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator run smollm2-135m -p \"Why is the sky blue?\"
  coordinator run qwen2.5-coder-1.5b --workers 3 -p \"Write a Rust function that reverses a string.\"
  coordinator run gemma3-270m --raw -n 32 --temp 0 -p \"The capital of France is\" > answer.txt
  coordinator run --url http://10.0.0.5:8080 -p \"Why is the sky blue?\"

The answer goes to standard output, everything else to standard error.")]
pub struct RunArgs {
    /// A catalog name, a GGUF file, `hf:org/repo[:QUANT]`, a URL or a `qmesh:` link
    #[arg(value_parser = model_ref(), required_unless_present = "url")]
    pub model: Option<ModelRef>,
    /// By which coordinator, where one runs.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// What to answer, or with --raw to continue
    #[arg(short, long, env = "QMESH_PROMPT")]
    pub prompt: String,
    /// Continue the prompt as it is, without the model's chat template
    #[arg(long, env = "QMESH_RAW", conflicts_with = "system")]
    pub raw: bool,
    /// System message before the prompt
    #[arg(long, value_name = "TEXT", env = "QMESH_SYSTEM")]
    pub system: Option<String>,
    /// How text is cut.
    #[command(flatten)]
    pub tokenizer: TokenizerArgs,
    /// Over which workers.
    #[command(flatten)]
    pub split: SplitArgs,
    /// How long.
    #[command(flatten)]
    pub length: LengthArgs,
    /// Which tokens.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// What keeps them from repeating themselves.
    #[command(flatten)]
    pub dry: DryArgs,
}

/// Arguments of `chat`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator chat smollm2-135m
  coordinator chat qwen2.5-coder-0.5b --workers 2 --system \"Answer in one sentence.\"
  coordinator chat --url http://10.0.0.5:8080

Inside: /retry answers the last question anew, /help lists the commands, a line that ends with \\ goes on in the next,
Ctrl-C stops an answer, Ctrl-D leaves.")]
pub struct ChatArgs {
    /// A catalog name, a GGUF file, `hf:org/repo[:QUANT]`, a URL or a `qmesh:` link
    #[arg(value_parser = model_ref(), required_unless_present = "url")]
    pub model: Option<ModelRef>,
    /// By which coordinator, where one runs.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// System message at the start
    #[arg(long, value_name = "TEXT", env = "QMESH_SYSTEM")]
    pub system: Option<String>,
    /// Neither read nor keep the lines of earlier conversations, which the arrow keys bring back
    #[arg(long, env = "QMESH_NO_HISTORY")]
    pub no_history: bool,
    /// How text is cut.
    #[command(flatten)]
    pub tokenizer: TokenizerArgs,
    /// Over which workers.
    #[command(flatten)]
    pub split: SplitArgs,
    /// How long.
    #[command(flatten)]
    pub length: LengthArgs,
    /// Which tokens.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// What keeps them from repeating themselves.
    #[command(flatten)]
    pub dry: DryArgs,
}

/// Arguments of `demo`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  coordinator demo\n  coordinator demo qwen2.5-coder-0.5b")]
pub struct DemoArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArg,
    /// What drafts beside the text.
    #[command(flatten)]
    pub draft: DraftArgs,
}

/// Arguments of `eval`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator eval smollm2-135m --prompts prompts.jsonl --greedy 32 -o whole.json
  coordinator eval smollm2-135m --prompts prompts.jsonl --greedy 32 --cut 5,17 -o split.json

Each line of the file is {\"id\": …, \"text\": …} or {\"id\": …, \"ids\": […]}; with \"special\": true, control tokens
in the text are parsed as such.")]
pub struct EvalArgs {
    /// A catalog name, a GGUF file, `hf:org/repo[:QUANT]`, a URL or a `qmesh:` link
    #[arg(value_parser = model_ref())]
    pub model: ModelRef,
    /// The prompts, one JSON object a line
    #[arg(long, value_name = "FILE", env = "QMESH_PROMPTS")]
    pub prompts: PathBuf,
    /// Continue each prompt by up to N tokens: the likeliest ones, unless --temp says otherwise
    #[arg(long, value_name = "N", env = "QMESH_GREEDY", default_value_t = 0)]
    pub greedy: usize,
    /// Add a digest of the logits of every row
    #[arg(long, env = "QMESH_DIGESTS")]
    pub digests: bool,
    /// Prompts computed at the same time
    #[arg(long, value_name = "N", env = "QMESH_PARALLEL", default_value_t = 1, value_parser = parse_count)]
    pub parallel: usize,
    /// How text is cut.
    #[command(flatten)]
    pub tokenizer: TokenizerArgs,
    /// Over which workers.
    #[command(flatten)]
    pub split: SplitArgs,
    /// Which tokens.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Write here instead of to standard output
    #[arg(short, long, value_name = "FILE", env = "QMESH_OUTPUT")]
    pub output: Option<PathBuf>,
}

/// Arguments of `verify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator verify smollm2-135m --workers 3
  coordinator verify model.gguf --cut 5,17 --prompts prompts.jsonl --json

Prompts are computed on one worker and on several; the bits of every row's logits are compared. Exit code 1 if any \
differ, with the first row, and the first boundary that makes it differ.")]
pub struct VerifyArgs {
    /// A catalog name, a GGUF file, `hf:org/repo[:QUANT]`, a URL or a `qmesh:` link
    #[arg(value_parser = model_ref())]
    pub model: ModelRef,
    /// The prompts, one JSON object a line, as for eval [default: ids of several lengths]
    #[arg(long, value_name = "FILE", env = "QMESH_PROMPTS")]
    pub prompts: Option<PathBuf>,
    /// Continue each prompt by up to N tokens
    #[arg(long, value_name = "N", env = "QMESH_GREEDY", default_value_t = 16)]
    pub greedy: usize,
    /// How text is cut.
    #[command(flatten)]
    pub tokenizer: TokenizerArgs,
    /// Over which workers.
    #[command(flatten)]
    pub split: SplitArgs,
    /// Print JSON
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
}

/// How the model is split over workers on this machine.
#[derive(Args, Clone, Debug)]
pub struct SplitArgs {
    /// Workers to start on this machine [default: 1, or what --cut needs]
    #[arg(long, value_name = "N", env = "QMESH_WORKERS", value_parser = parse_count)]
    pub workers: Option<usize>,
    /// Cut before these layers, instead of where the planner would
    #[arg(long, value_name = "LAYER,…", env = "QMESH_CUT", value_delimiter = ',')]
    pub cut: Option<Vec<usize>>,
    /// Threads of each worker [default: this machine's cores, shared]
    #[arg(short, long, value_name = "N", env = "QMESH_THREADS", value_parser = parse_count)]
    pub threads: Option<usize>,
    /// How much text fits.
    #[command(flatten)]
    pub room: RoomArgs,
    /// What of it there is most.
    #[command(flatten)]
    pub workload: WorkloadArgs,
    /// What makes it quicker.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
}

impl SplitArgs {
    /// Workers to start: as asked for, or as many as the cut has stages.
    pub fn worker_count(&self) -> usize {
        self.workers.unwrap_or_else(|| self.cut.as_ref().map_or(1, |cut| cut.len() + 1))
    }
}

/// How long an answer may be.
#[derive(Args, Clone, Copy, Debug)]
pub struct LengthArgs {
    /// The most tokens to generate
    #[arg(
        short = 'n', long = "n-predict", value_name = "N", env = "QMESH_N_PREDICT", default_value_t = 512,
        value_parser = parse_length
    )]
    pub max_tokens: usize,
}

/// How tokens are chosen.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// Temperature; 0 always takes the likeliest token [default: 0.7, for eval 0]
    #[arg(long = "temp", value_name = "T", env = "QMESH_TEMP", value_parser = temperature)]
    pub temperature: Option<f32>,
    /// Choose among the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K", env = "QMESH_TOP_K", default_value_t = 40)]
    pub top_k: u32,
    /// Choose among the likeliest tokens that together have this probability; 1 for all
    #[arg(long, value_name = "P", env = "QMESH_TOP_P", default_value_t = 0.95, value_parser = share)]
    pub top_p: f32,
    /// Choose among tokens at least this likely relative to the likeliest; 0 for all
    #[arg(long, value_name = "P", env = "QMESH_MIN_P", default_value_t = 0.05, value_parser = probability)]
    pub min_p: f32,
    /// Choose among tokens that surprise about as much as is expected and together have this probability; 1 for all
    #[arg(long = "typical", value_name = "P", env = "QMESH_TYPICAL", default_value_t = 1.0, value_parser = share)]
    pub typical_p: f32,
    /// Leave the likeliest tokens out so often: all but the last of those that are as likely as --xtc-threshold; 0 is never
    #[arg(long, value_name = "P", env = "QMESH_XTC_PROBABILITY", default_value_t = 0.0, value_parser = probability)]
    pub xtc_probability: f32,
    /// How likely tokens are that may be left out
    #[arg(long, value_name = "P", env = "QMESH_XTC_THRESHOLD", default_value_t = 0.1, value_parser = probability)]
    pub xtc_threshold: f32,
    /// Make tokens of the last 64 less likely by this factor; 1 is off
    #[arg(long, value_name = "F", env = "QMESH_REPEAT_PENALTY", default_value_t = 1.0, value_parser = factor)]
    pub repeat_penalty: f32,
    /// Subtract this from a token's logit for each time it is among the last 64; 0 is off
    #[arg(
        long, value_name = "X", env = "QMESH_FREQUENCY_PENALTY", default_value_t = 0.0,
        allow_negative_numbers = true, value_parser = logit
    )]
    pub frequency_penalty: f32,
    /// Subtract this from a token's logit if it is among the last 64; 0 is off
    #[arg(
        long, value_name = "X", env = "QMESH_PRESENCE_PENALTY", default_value_t = 0.0,
        allow_negative_numbers = true, value_parser = logit
    )]
    pub presence_penalty: f32,
    /// Key of the random choices: the same seed gives the same answer [default: another each time, for eval 0]
    #[arg(long, env = "QMESH_SEED")]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// The sampling parameters, with `temperature` and `seed` where none were given.
    pub fn sampling(&self, temperature: f32, seed: u64) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold,
            repeat_penalty: self.repeat_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            seed: self.seed.unwrap_or(seed),
            ..Sampling::default()
        }
    }
}

pub(crate) fn parse_length(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or_else(|| "a whole number from 1 on is needed".to_owned())
}

pub(crate) fn temperature(text: &str) -> Result<f32, String> {
    within(text, 0.0, 100.0)
}

fn probability(text: &str) -> Result<f32, String> {
    within(text, 0.0, 1.0)
}

pub(crate) fn share(text: &str) -> Result<f32, String> {
    within(text, 0.001, 1.0)
}

fn factor(text: &str) -> Result<f32, String> {
    within(text, 0.01, 100.0)
}

fn logit(text: &str) -> Result<f32, String> {
    within(text, -100.0, 100.0)
}

pub(super) fn within(text: &str, least: f32, most: f32) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("a number from {least} to {most} is needed"))
}
