//! A model described from its header: what `inspect` prints, also for models that cannot be run.

mod layers;

use std::{borrow::Cow, collections::BTreeMap};

use qmesh_models::{
    bytes::ByteCount,
    family,
    footprint::Footprints,
    gguf::{Gguf, TensorEntry},
    spec::{HeadMatrix, LayerInputs, ModelSpec},
};
use serde::Serialize;

use self::layers::{ffn, mixer, rope, window};
use super::{
    table::{Align, pairs, table},
    vocabulary::VocabularyDescription,
};

/// What a header says.
#[derive(Debug, Serialize)]
pub struct Description {
    name: String,
    architecture: String,
    /// Why the model cannot be run; `None` if it can.
    unsupported: Option<String>,
    gguf_version: u32,
    files: Vec<String>,
    file_bytes: u64,
    parameters: u64,
    spec: Option<Shape>,
    tokenizer: Option<VocabularyDescription>,
    types: Vec<TypeShare>,
    /// Runs of layers that hold equally many bytes.
    layers: Vec<LayerRun>,
    /// Tensors that belong to no layer.
    outside_layers: Vec<Tensor>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<Tensor>,
}

/// Whether a description lists every tensor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TensorList {
    /// No.
    Brief,
    /// Yes.
    Full,
}

#[derive(Debug, Serialize)]
struct Shape {
    family: String,
    layers: usize,
    /// Layers of the file that draft ahead, which are left out.
    #[serde(skip_serializing_if = "is_zero")]
    drafting_layers: usize,
    hidden: usize,
    vocab: usize,
    context: usize,
    attention: String,
    windows: String,
    rope: String,
    ffn: String,
    /// Elements of a token that each layer takes in beside the hidden state.
    #[serde(skip_serializing_if = "is_zero")]
    layer_inputs: usize,
    head: &'static str,
    kv_bytes_per_position: u64,
    /// What layers with a state hold of a session, however long it is.
    state_bytes_per_session: u64,
}

#[derive(Debug, Serialize)]
struct TypeShare {
    r#type: String,
    tensors: usize,
    bytes: u64,
    percent: f64,
}

#[derive(Debug, Serialize)]
struct LayerRun {
    first: usize,
    end: usize,
    bytes_each: u64,
}

#[derive(Debug, Serialize)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    r#type: String,
    bytes: Option<u64>,
}

impl Description {
    /// Describes the model of `gguf`.
    pub fn new(gguf: &Gguf, list: TensorList) -> Self {
        let spec = family::spec(gguf);
        let text = |key: &str| gguf.text_lossy(key).ok().map(Cow::into_owned);
        let stem =
            gguf.parts().first().and_then(|part| part.path.file_stem()).map(|stem| stem.to_string_lossy().into_owned());
        let tensors = gguf.tensors();
        Self {
            name: text("general.name").or(stem).unwrap_or_default(),
            architecture: text("general.architecture").unwrap_or_else(|| "unknown".to_owned()),
            unsupported: match &spec {
                Ok(_) => None,
                Err(_) if tensors.is_empty() => Some(NO_TENSORS.to_owned()),
                Err(error) => Some(error.to_string()),
            },
            gguf_version: gguf.version(),
            files: gguf.parts().iter().map(|part| part.path.display().to_string()).collect(),
            file_bytes: gguf.parts().iter().map(|part| part.bytes).sum(),
            parameters: tensors.iter().map(elements).fold(0, u64::saturating_add),
            spec: spec.ok().map(|spec| Shape::new(&spec, family::drafting_layers(gguf))),
            tokenizer: VocabularyDescription::new(gguf),
            types: types(tensors),
            layers: layer_runs(tensors),
            outside_layers: tensors.iter().filter(|t| layer_of(&t.name).is_none()).map(Tensor::new).collect(),
            tensors: match list {
                TensorList::Brief => Vec::new(),
                TensorList::Full => tensors.iter().map(Tensor::new).collect(),
            },
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut lines = vec![
            ("name", self.name.clone()),
            ("architecture", self.architecture.clone()),
            ("parameters", format!("{:.1} M", self.parameters as f64 / 1e6)),
            (
                "file",
                format!(
                    "{} in {}, GGUF version {}",
                    ByteCount(self.file_bytes),
                    self.files.join(", "),
                    self.gguf_version
                ),
            ),
        ];
        if let Some(spec) = &self.spec {
            lines.extend(spec.lines());
        }
        match &self.tokenizer {
            Some(tokenizer) => lines.extend(tokenizer.lines()),
            None => lines.push(("tokenizer", "none".to_owned())),
        }
        if let Some(reason) = &self.unsupported {
            lines.push(("unsupported", reason.clone()));
        }
        let mut parts = vec![pairs(lines)];
        if !self.types.is_empty() {
            parts.extend([self.types_table(), self.layers_table()]);
        }
        if !self.tensors.is_empty() {
            parts.push(tensor_table(&self.tensors));
        }
        parts.join("\n\n")
    }

    fn types_table(&self) -> String {
        let columns =
            [("type", Align::Left), ("tensors", Align::Right), ("bytes", Align::Right), ("share", Align::Right)];
        table(
            &columns,
            self.types.iter().map(|t| {
                vec![
                    t.r#type.clone(),
                    t.tensors.to_string(),
                    ByteCount(t.bytes).to_string(),
                    format!("{:.1} %", t.percent),
                ]
            }),
        )
    }

    fn layers_table(&self) -> String {
        let runs = self.layers.iter().map(|run| match run.end - run.first {
            1 => vec![format!("layer {}", run.first), ByteCount(run.bytes_each).to_string()],
            count => {
                vec![
                    format!("layers {}..{} ({count})", run.first, run.end),
                    format!("{} each", ByteCount(run.bytes_each)),
                ]
            }
        });
        let outside = self.outside_layers.iter().map(|t| vec![t.name.clone(), size(t.bytes)]);
        table(&[("part", Align::Left), ("bytes", Align::Right)], runs.chain(outside))
    }
}

impl Shape {
    fn new(spec: &ModelSpec, drafting_layers: usize) -> Self {
        let layers = || spec.layers.iter();
        Self {
            family: spec.family.clone(),
            layers: spec.layers.len(),
            drafting_layers,
            hidden: spec.hidden,
            vocab: spec.vocab,
            context: spec.context,
            attention: kinds(layers().map(|layer| mixer(&layer.mixer))),
            windows: kinds(layers().filter_map(|layer| window(&layer.mixer))),
            rope: kinds(layers().map(rope)),
            ffn: kinds(layers().map(|l| ffn(&l.ffn))),
            layer_inputs: spec.layer_inputs.map_or(0, |LayerInputs { width, .. }| width),
            head: match spec.head.matrix {
                HeadMatrix::Tied => "tied to the embedding",
                HeadMatrix::Own => "its own matrix",
            },
            kv_bytes_per_position: spec.kv_bytes_per_position(&(0..spec.layers.len())),
            state_bytes_per_session: Footprints::new(spec).session_bytes(&(0..spec.layers.len())),
        }
    }

    /// Which layers of the file are left out.
    fn left_out(&self) -> String {
        match self.drafting_layers {
            0 => String::new(),
            1 => "; one more, which drafts ahead (NextN), is left out".to_owned(),
            more => format!("; {more} more, which draft ahead (NextN), are left out"),
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("family", self.family.clone()),
            ("layers", self.layers.to_string() + &self.left_out()),
            ("hidden", self.hidden.to_string()),
            ("vocabulary", self.vocab.to_string()),
            ("context", self.context.to_string()),
            ("attention", self.attention.clone()),
            ("windows", self.windows.clone()),
            ("RoPE", self.rope.clone()),
            ("FFN", self.ffn.clone()),
            ("head", self.head.to_owned()),
            ("KV cache", format!("{} a position", ByteCount(self.kv_bytes_per_position))),
        ];
        if self.layer_inputs > 0 {
            lines.push(("layer inputs", format!("{} elements of a token for each layer", self.layer_inputs)));
        }
        if self.state_bytes_per_session > 0 {
            lines.push(("states", format!("{} a session", ByteCount(self.state_bytes_per_session))));
        }
        lines
    }
}

impl Tensor {
    fn new(entry: &TensorEntry) -> Self {
        Self { name: entry.name.clone(), shape: entry.ne.clone(), r#type: entry.kind.to_string(), bytes: entry.bytes }
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What the layers have, in the order of first use; with counts where they differ.
fn kinds(of_layers: impl Iterator<Item = String>) -> String {
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for kind in of_layers {
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    match &kinds[..] {
        [(kind, _)] => kind.clone(),
        kinds => kinds.iter().map(|(kind, count)| format!("{count} × {kind}")).collect::<Vec<_>>().join("; "),
    }
}

fn types(tensors: &[TensorEntry]) -> Vec<TypeShare> {
    let mut by_type: BTreeMap<_, (usize, u64)> = BTreeMap::new();
    for tensor in tensors {
        let (count, bytes) = by_type.entry(tensor.kind).or_default();
        *count += 1;
        *bytes += tensor.bytes.unwrap_or(0);
    }
    let total: u64 = by_type.values().map(|(_, bytes)| bytes).sum();
    let share = |bytes: u64| if total == 0 { 0.0 } else { bytes as f64 * 100.0 / total as f64 };
    let mut types: Vec<_> = by_type
        .into_iter()
        .map(|(kind, (tensors, bytes))| TypeShare { r#type: kind.to_string(), tensors, bytes, percent: share(bytes) })
        .collect();
    types.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    types
}

fn layer_runs(tensors: &[TensorEntry]) -> Vec<LayerRun> {
    let mut by_layer: BTreeMap<usize, u64> = BTreeMap::new();
    for tensor in tensors {
        if let Some(layer) = layer_of(&tensor.name) {
            *by_layer.entry(layer).or_default() += tensor.bytes.unwrap_or(0);
        }
    }
    let mut runs: Vec<LayerRun> = Vec::new();
    for (layer, bytes) in by_layer {
        match runs.last_mut() {
            Some(run) if run.end == layer && run.bytes_each == bytes => run.end += 1,
            Some(_) | None => runs.push(LayerRun { first: layer, end: layer.saturating_add(1), bytes_each: bytes }),
        }
    }
    runs
}

/// GGUF names the tensors of layer 7 `blk.7.…`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

fn elements(tensor: &TensorEntry) -> u64 {
    tensor.ne.iter().copied().fold(1, u64::saturating_mul)
}

fn tensor_table(tensors: &[Tensor]) -> String {
    let columns = [("tensor", Align::Left), ("type", Align::Left), ("shape", Align::Left), ("bytes", Align::Right)];
    let shape = |shape: &[u64]| shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ");
    table(&columns, tensors.iter().map(|t| vec![t.name.clone(), t.r#type.clone(), shape(&t.shape), size(t.bytes)]))
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |bytes| ByteCount(bytes).to_string())
}

const NO_TENSORS: &str = "the file has no tensors: `tokenize` can use it, nothing else";

#[cfg(test)]
mod tests {
    use qmesh_models::{
        gguf::{GgufWriter, Value},
        tensor::TensorType,
    };

    use super::*;

    #[test]
    fn an_unknown_architecture_is_described_as_far_as_it_goes() {
        let mut writer = GgufWriter::new("lorem").set("general.name", "Lorem 1M").set("tokenizer.ggml.model", "gpt2");
        writer = writer.tensor("token_embd.weight", &[64, 100], TensorType::F32);
        for layer in 0..3 {
            let dtype = if layer == 2 { TensorType::F32 } else { TensorType::Q8_0 };
            writer = writer.tensor(&format!("blk.{layer}.odd.weight"), &[64, 64], dtype);
        }
        let bytes = writer.to_bytes(|_, bytes| bytes.fill(0));
        let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
        let description = Description::new(&gguf, TensorList::Full);
        let text = description.text();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        for line in [
            "architecture lorem",
            "tokenizer gpt2",
            "F32 2 42.0 kB 82.8 %",
            "layers 0..2 (2) 4.35 kB each",
            "layer 2 16.4 kB",
            "token_embd.weight 25.6 kB",
            "blk.2.odd.weight F32 64 × 64 16.4 kB",
        ] {
            assert!(text.lines().any(|shown| words(shown) == line), "{line:?} is missing from\n{text}");
        }
        let unsupported = text.lines().find(|line| line.starts_with("unsupported")).unwrap();
        assert!(unsupported.contains("\"lorem\" is not supported; supported: "), "{unsupported}");
    }

    #[test]
    fn names_of_any_bytes_are_shown_and_steer_no_terminal() {
        let writer = GgufWriter::new("lorem\x1b[31m")
            .set("general.name", Value::Bytes(b"caf\xe9\x1b]0;owned\x07".to_vec()))
            .tensor("odd\u{9b}31m\n.weight", &[64], TensorType::F32);
        let bytes = writer.to_bytes(|_, bytes| bytes.fill(0));
        let text = Description::new(&Gguf::parse(&bytes, bytes.len() as u64).unwrap(), TensorList::Full).text();
        for shown in ["caf\u{fffd}\\u{1b}]0;owned\\u{7}\n", "lorem\\u{1b}[31m\n", "odd\\u{9b}31m\\n.weight"] {
            assert!(text.contains(shown), "{shown:?} is missing from\n{text}");
        }
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    }

    #[test]
    fn differing_layers_are_counted() {
        let windows = ["sliding 512", "sliding 512", "full"];
        assert_eq!(kinds(windows.iter().map(ToString::to_string)), "2 × sliding 512; 1 × full");
        assert_eq!(kinds(std::iter::repeat_n("full".to_owned(), 4)), "full");
    }
}
