//! `POST /v1/embeddings`, and `POST /embedding` as llama-server has it: texts as vectors.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    caller::Caller,
    error::ApiError,
    prompts::{SentPrompts, prompts},
    unsupported::Kind,
    vectors::{VectorJob, Vectors},
};

/// Most texts of one request, as OpenAI has it.
const TEXTS: usize = 2048;

#[derive(Debug, Deserialize)]
struct EmbeddingRequest {
    model: Option<String>,
    input: Option<SentPrompts>,
    encoding_format: Option<String>,
    dimensions: Option<i64>,
    user: Option<String>,
}

/// llama-server's own, which knows both words for the texts.
#[derive(Debug, Deserialize)]
struct LlamaRequest {
    model: Option<String>,
    content: Option<SentPrompts>,
    input: Option<SentPrompts>,
}

impl Kind for LlamaRequest {
    const HONOURED: &'static [&'static str] = &[];
}

/// llama-server's answer: a list of vectors for each text, of which there is one as they are pooled.
#[derive(Debug, Serialize)]
pub(crate) struct LlamaVector {
    index: usize,
    embedding: [Vec<f32>; 1],
}

impl Kind for EmbeddingRequest {
    const HONOURED: &'static [&'static str] = &[];
}

/// How numbers are written.
#[derive(Clone, Copy, Debug)]
enum Encoding {
    Float,
    Base64,
}

#[derive(Debug, Serialize)]
struct EmbeddingList {
    object: &'static str,
    data: Vec<EmbeddingObject>,
    model: String,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct EmbeddingObject {
    object: &'static str,
    index: usize,
    embedding: Written,
}

/// A vector as it is written.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Written {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Makes vectors of texts.
pub(crate) async fn embeddings(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&request);
    let (asked, share) = api.read_own::<EmbeddingRequest>(request).await?;
    api.check_model(asked.model.as_deref())?;
    let encoding = Encoding::named(asked.encoding_format.as_deref())?;
    let job = VectorJob {
        param: "input",
        prompts: prompts("input", asked.input, TEXTS)?,
        dimensions: asked.dimensions,
        client: caller.client(asked.user.as_deref()),
    };
    let Vectors { vectors, prompt_tokens, .. } = job.run(&api, share).await?;
    let objects = vectors.into_iter().enumerate().map(|(index, vector)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: encoding.write(vector),
    });
    let list = EmbeddingList {
        object: "list",
        data: objects.collect(),
        model: api.state.text.name.clone(),
        usage: Usage { prompt_tokens, total_tokens: prompt_tokens },
    };
    Ok(Json(list).into_response())
}

/// Makes vectors of texts, as llama-server has it.
pub(crate) async fn embedding(
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<Json<Vec<LlamaVector>>, ApiError> {
    let caller = Caller::of(&request);
    let (asked, share) = api.read_own::<LlamaRequest>(request).await?;
    api.check_model(asked.model.as_deref())?;
    let (param, sent) = if asked.input.is_some() { ("input", asked.input) } else { ("content", asked.content) };
    let (prompts, client) = (prompts(param, sent, TEXTS)?, caller.client(None));
    let Vectors { vectors, .. } = VectorJob { param, prompts, dimensions: None, client }.run(&api, share).await?;
    let vectors = vectors.into_iter().enumerate();
    Ok(Json(vectors.map(|(index, vector)| LlamaVector { index, embedding: [vector] }).collect()))
}

impl Encoding {
    fn named(name: Option<&str>) -> Result<Self, ApiError> {
        match name {
            None | Some("float") => Ok(Self::Float),
            Some("base64") => Ok(Self::Base64),
            Some(_) => Err(ApiError::invalid("encoding_format", "'encoding_format' is float or base64")),
        }
    }

    fn write(self, vector: Vec<f32>) -> Written {
        match self {
            Self::Float => Written::Floats(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                Written::Base64(BASE64.encode(&bytes))
            }
        }
    }
}
