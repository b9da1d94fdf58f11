//! llama-server's own endpoints: `POST /completion` and `POST /infill`.

mod answer;
pub(crate) mod completion;
pub(crate) mod infill;
mod wishes;
