//! Arguments of the commands about models: `list`, `inspect`, `tokenize`.

use clap::{
    Args,
    builder::{OsStringValueParser, TypedValueParser},
};
use qmesh_models::{
    catalog,
    pull::ModelRef,
    tokenizer::{PretokenizerChoice, pretokenizers},
};

/// The model, where it may be left out.
#[derive(Args, Clone, Debug)]
pub struct ModelArg {
    /// A catalog name, a GGUF file, `hf:org/repo[:QUANT]`, a URL or a `qmesh:` link
    #[arg(value_name = "MODEL", env = "QMESH_MODEL", default_value = catalog::DEFAULT, value_parser = model_ref())]
    pub model: ModelRef,
}

/// How text is cut, for all commands that turn text into tokens.
#[derive(Args, Clone, Debug)]
pub struct TokenizerArgs {
    /// Cut text as the pre-tokenizer NAME does, whatever the model's file says
    #[arg(long, value_name = "NAME", env = "QMESH_PRE", value_parser = pretokenizer)]
    pub pre: Option<String>,
}

impl TokenizerArgs {
    /// The named one, else the model's own.
    pub fn choice(&self) -> PretokenizerChoice<'_> {
        self.pre.as_deref().map_or(PretokenizerChoice::FromModel, PretokenizerChoice::Named)
    }
}

/// Arguments of `list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator inspect smollm2-135m
  coordinator inspect model.gguf --tensors
  coordinator inspect model.gguf --json | jq .types

A model that cannot be run is described as far as its header goes.")]
pub struct InspectArgs {
    /// A catalog name, a GGUF file, `hf:org/repo[:QUANT]`, a URL or a `qmesh:` link
    #[arg(value_parser = model_ref())]
    pub model: ModelRef,
    /// Print JSON
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
    /// List every tensor
    #[arg(long, env = "QMESH_TENSORS")]
    pub tensors: bool,
}

/// Arguments of `tokenize`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator tokenize smollm2-135m \"<|im_start|>user\"
  coordinator tokenize vocabulary.gguf --raw --pieces < essay.txt

A file that holds only a vocabulary will do.")]
pub struct TokenizeArgs {
    /// A catalog name, a GGUF file, `hf:org/repo[:QUANT]`, a URL or a `qmesh:` link
    #[arg(value_parser = model_ref())]
    pub model: ModelRef,
    /// The text; standard input where it is left out or `-`
    pub text: Option<String>,
    /// The text alone: no BOS or EOS around it, control tokens in it are plain text
    #[arg(long, env = "QMESH_RAW")]
    pub raw: bool,
    /// Print an object with id and text for each token
    #[arg(long, env = "QMESH_PIECES")]
    pub pieces: bool,
    /// How the text is cut.
    #[command(flatten)]
    pub tokenizer: TokenizerArgs,
}

/// What every MODEL is parsed by: a path need not be UTF-8.
pub(super) fn model_ref() -> impl TypedValueParser<Value = ModelRef> {
    OsStringValueParser::new().try_map(|word| ModelRef::from_os_str(&word))
}

fn pretokenizer(name: &str) -> Result<String, String> {
    if pretokenizers().any(|known| known == name) {
        return Ok(name.to_owned());
    }
    Err(format!("no pre-tokenizer has that name; known: {}", pretokenizers().collect::<Vec<_>>().join(", ")))
}
