//! A model whose arithmetic is a hash: cheap, and every bit of it depends on all that it should depend on.
//!
//! A layer's row depends on the layer, on the row before it, and on the rows of all earlier positions of its session in that
//! layer, as attention does. So a text comes out right only if every stage has seen the right ids at the right positions of
//! the right session, through the right layers, once.

use qmesh_coordinator::generate::Pooling;
use qmesh_models::{
    spec::{
        Activation, AttentionSpec, Bias, Ffn, HeadMatrix, HeadSpec, KvSource, LayerIndex, LayerSpec, LayerTensor,
        Mixer, ModelSpec, NormKind, NormPlacement, NormSpec, OutputGate, OutputScale, QkNorm, Sinks, TensorRole,
        TensorSpec, Values, Window,
    },
    tensor::TensorType,
};
use qmesh_net::{Sampled, Sampling};

use crate::random::mix;

/// Values of a row: a state of 64 bits in four of them, and in the other four what it must be at its position.
pub const HIDDEN: usize = 8;
/// Ids of the vocabulary.
pub const VOCAB: usize = 50;

/// The shape of a model of so many layers. Its layers are large on paper, so that memory decides who gets how many.
pub fn spec(layers: usize) -> ModelSpec {
    let norm = NormSpec { kind: NormKind::Rms, eps: 1e-5 };
    let attention = AttentionSpec {
        heads: 1,
        kv_heads: 1,
        head_dim: HIDDEN,
        scale: 1.0,
        soft_cap: None,
        sinks: Sinks::None,
        window: Window::Full,
        rope: None,
        qk_norm: QkNorm::None,
        temperature: None,
        source: KvSource::Own,
        values: Values::Own,
        blocks: None,
        qkv_bias: Bias::None,
        output_bias: Bias::None,
        output_gate: OutputGate::None,
    };
    let ffn = Ffn::Gated { inner: HIDDEN, activation: Activation::Silu, bias: Bias::None };
    let layer = LayerSpec {
        mixer: Mixer::Attention(attention),
        ffn,
        norms: NormPlacement::Pre,
        norm,
        residual_scale: 1.0,
        output_scale: OutputScale::None,
    };
    let in_layers = (0..layers).flat_map(|layer| {
        let role = |part| TensorRole::Layer(LayerIndex(layer), part);
        [(role(LayerTensor::Q), LAYER_ROWS / 2), (role(LayerTensor::Up), LAYER_ROWS)]
    });
    let all = [(TensorRole::Embedding, VOCAB)].into_iter().chain(in_layers).chain([(TensorRole::Output, VOCAB)]);
    let tensors = all.enumerate().map(|(number, (role, rows))| tensor(number, role, rows));
    ModelSpec {
        name: "hash".to_owned(),
        family: "hash".to_owned(),
        hidden: HIDDEN,
        vocab: VOCAB,
        context: 1 << 16,
        embedding_scale: 1.0,
        layer_inputs: None,
        layers: vec![layer; layers],
        head: HeadSpec { norm, matrix: HeadMatrix::Own, soft_cap: None, logit_scale: 1.0 },
        tensors: tensors.collect(),
    }
}

/// The state that a row enters the first layer with.
pub fn embed(id: u32) -> u64 {
    mix(u64::from(id), 0xe3b)
}

/// What a layer makes of a row: what it remembers of the positions so far, and the row's state after it. `before` is what it
/// remembered at the position before.
pub fn layer(layer: usize, before: Option<u64>, state: u64) -> (u64, u64) {
    let memory = mix(before.unwrap_or(layer as u64), state);
    (memory, mix(memory, layer as u64))
}

/// A state as a row of activations.
pub fn to_row(state: u64, position: usize) -> [f32; HIDDEN] {
    let parts = |word: u64| [0, 16, 32, 48].map(|shift| (word >> shift & 0xffff) as f32);
    let ([a, b, c, d], [e, f, g, h]) = (parts(state), parts(mix(state, position as u64)));
    [a, b, c, d, e, f, g, h]
}

/// The state that a row is, if it is one of this position.
pub fn from_row(row: &[f32], position: usize) -> Option<u64> {
    let word = |parts: &[f32]| parts.iter().rev().fold(0, |word, &part| word << 16 | part as u64);
    let (state, proof) = row.split_at_checked(HIDDEN / 2)?;
    let state = word(state);
    (word(proof) == mix(state, position as u64)).then_some(state)
}

/// What the head draws after a row: it often follows a pattern, so that drafts are sometimes right.
pub fn sample(state: u64, position: usize, sampling: &Drawing, target: Option<u32>) -> Sampled {
    let noise =
        if sampling.temperature > 0.0 { mix(sampling.seed, mix(sampling.sequence, position as u64)) } else { 0 };
    let drawn = mix(state, noise);
    let pattern = drawn % 8 < 6;
    let token = if pattern { (position as u64 + 1) % 5 } else { (drawn >> 8) % VOCAB as u64 };
    let target_logprob = target.map_or(f32::NAN, |id| id as f32);
    Sampled { token: token as u32, logprob: (drawn >> 40) as f32, target_logprob, digest: state, top: Vec::new() }
}

/// What decides how a token is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Drawing {
    /// 0 is greedy.
    pub temperature: f32,
    /// Key of the noise.
    pub seed: u64,
    /// Which of a request's sequences.
    pub sequence: u64,
}

impl From<&Sampling> for Drawing {
    fn from(sampling: &Sampling) -> Self {
        Self { temperature: sampling.temperature, seed: sampling.seed, sequence: sampling.sequence }
    }
}

/// The text that one process computes, all layers in it, one id after the other.
pub fn text(layers: usize, prompt: &[u32], most: usize, ends: &[u32], drawing: &Drawing) -> OneProcess {
    let mut memories: Vec<Option<u64>> = vec![None; layers];
    let mut prompt_rows = Vec::new();
    let mut tokens: Vec<Sampled> = Vec::new();
    let mut next = prompt.first().copied();
    let mut position = 0;
    while let Some(id) = next {
        let mut state = embed(id);
        for (number, memory) in memories.iter_mut().enumerate() {
            let (after, out) = layer(number, *memory, state);
            (*memory, state) = (Some(after), out);
        }
        let target = prompt.get(position + 1).copied();
        let row = sample(state, position, drawing, target);
        next = target;
        if position < prompt.len() {
            prompt_rows.push(row.clone());
        }
        position += 1;
        if position >= prompt.len() && tokens.len() < most {
            let token = row.token;
            tokens.push(Sampled { target_logprob: f32::NAN, ..row });
            next = (tokens.len() < most && !ends.contains(&token)).then_some(token);
        }
    }
    OneProcess { prompt: prompt_rows, tokens }
}

/// What one process makes of a request.
#[derive(Clone, Debug)]
pub struct OneProcess {
    /// A row after each id of the prompt.
    pub prompt: Vec<Sampled>,
    /// The tokens that follow.
    pub tokens: Vec<Sampled>,
}

impl OneProcess {
    /// The vector that the prompt becomes: its rows of activations, which are whole numbers, added up, in length 1.
    pub fn vector(&self, pooling: Pooling) -> Vec<f32> {
        let rows = self.prompt.iter().enumerate().map(|(position, row)| to_row(row.digest, position));
        let rows: Vec<_> = rows.collect();
        let rows = match pooling {
            Pooling::Mean => &rows[..],
            Pooling::First => &rows[..1],
            Pooling::Last => &rows[rows.len() - 1..],
        };
        let sum: Vec<f64> = (0..HIDDEN).map(|at| rows.iter().map(|row| f64::from(row[at])).sum()).collect();
        let length = sum.iter().fold(0.0, |squares, value| squares + value * value).sqrt();
        sum.iter().map(|value| (value * length.recip()) as f32).collect()
    }
}

fn tensor(number: usize, role: TensorRole, rows: usize) -> TensorSpec {
    let bytes = (rows * HIDDEN * 4) as u64;
    let offset = number as u64 * (LAYER_ROWS * HIDDEN * 4) as u64;
    let name = format!("tensor.{number}");
    TensorSpec { role, name, rows, cols: HIDDEN, dtype: TensorType::F32, part: 0, offset, bytes }
}

/// Rows of a layer's larger tensor.
const LAYER_ROWS: usize = 1 << 20;
