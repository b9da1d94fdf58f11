//! Templates of models, and small ones for the dialect, compared with what transformers made of them:
//! `scripts/golden-chat.py`.

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use serde::de::DeserializeOwned;

use super::*;

/// What came of a render: a text, what the template raised, or an error of the engine, whose words are its own.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Text(String),
    Raised(String),
    Error(String),
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Json>,
    add_generation_prompt: Option<bool>,
    #[serde(default)]
    variables: Map<String, Json>,
}

#[derive(Deserialize)]
struct Origin {
    bos_token: String,
    eos_token: String,
}

#[derive(Deserialize)]
struct Dialect {
    variables: Map<String, Json>,
    renders: BTreeMap<String, Outcome>,
}

fn text(name: &str) -> String {
    let path = format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/chat/{}"), name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn render(template: Result<&ChatTemplate, &TemplateError>, conversation: &Conversation) -> Outcome {
    let mut options = RenderOptions::new(UNIX_EPOCH + Duration::from_secs(1_709_213_696));
    options.tools = &conversation.tools;
    options.extra = conversation.variables.clone();
    if conversation.add_generation_prompt == Some(false) {
        options.generation_prompt = GenerationPrompt::Omit;
    }
    let template = match template {
        Ok(template) => template,
        Err(error) => return Outcome::Error(error.to_string()),
    };
    match template.render(&conversation.messages, &options) {
        Ok(text) => Outcome::Text(text),
        Err(TemplateError::Raised { message }) => Outcome::Raised(message),
        Err(error) => Outcome::Error(error.to_string()),
    }
}

fn agree(got: &Outcome, wanted: &Outcome) -> bool {
    match (got, wanted) {
        (Outcome::Text(got), Outcome::Text(wanted)) | (Outcome::Raised(got), Outcome::Raised(wanted)) => got == wanted,
        (Outcome::Error(got), Outcome::Error(_)) => !got.is_empty(),
        (Outcome::Text(_) | Outcome::Raised(_) | Outcome::Error(_), _) => false,
    }
}

#[test]
fn templates_of_models_render_as_in_transformers() {
    let conversations: BTreeMap<String, Conversation> = read("conversations.json");
    let origins: BTreeMap<String, Origin> = read("templates.json");
    assert!(origins.len() >= 43 && conversations.len() >= 20);
    for (name, Origin { bos_token, eos_token }) in origins {
        let template = ChatTemplate::new(&text(&format!("{name}.jinja")), &bos_token, &eos_token);
        let outcomes: BTreeMap<String, Outcome> = read(&format!("{name}.json"));
        assert_eq!(outcomes.len(), conversations.len(), "{name}");
        for (case, wanted) in outcomes {
            let got = render(template.as_ref(), &conversations[&case]);
            assert!(agree(&got, &wanted), "{name}, {case}\n got: {got:?}\nwant: {wanted:?}");
        }
    }
}

#[test]
fn the_dialect_is_that_of_transformers() {
    let Dialect { variables, renders } = read("dialect.json");
    let conversation =
        Conversation { messages: Vec::new(), tools: Vec::new(), add_generation_prompt: Some(false), variables };
    for (source, wanted) in renders {
        let got = render(ChatTemplate::new(&source, "", "").as_ref(), &conversation);
        assert!(agree(&got, &wanted), "{source}\n got: {got:?}\nwant: {wanted:?}");
    }
}
