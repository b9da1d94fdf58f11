//! The one list of tensors: what the layers need against what the file holds. Both missing and left over are errors.

mod expected;

use std::collections::HashSet;

use self::expected::{Expected, resolve};
use super::{ModelError, metadata::Metadata};
use crate::{
    gguf::{Gguf, OptionalKey},
    spec::{
        AttentionSpec, Bias, BlockIndexerSpec, DeltaGates, DeltaInputs, DeltaOutputGate, ExpertForm, ExpertScales,
        ExpertsSpec, Ffn, GatedDeltaSpec, HeadMatrices, HeadMatrix, HeadSpec, IndexerSpec, KvSource, LatentQueries,
        LatentSpec, LayerIndex, LayerInputs, LayerSpec, LayerTensor, Mixer, NormKind, NormPlacement, OutputGate,
        OutputScale, QkNorm, RopeScaling, SharedExpert, SharedGate, Sinks, StateSpaceSpec, TensorRole, TensorSpec,
        Values,
    },
};

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const OUTPUT: &str = "output.weight";
/// What each head makes of the latent, keys and values, in files from before April 2025; of one layer.
pub(super) const JOINED: &str = "attn_kv_b.weight";
/// Of each expert its gate, and below it what that is multiplied by, in files that have both as one; of one layer.
pub(super) const GATES_AND_UPS: &str = "ffn_gate_up_exps.weight";
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
pub(super) const ROPE_FACTORS_LONG: &str = "rope_factors_long.weight";
pub(super) const ROPE_FACTORS_SHORT: &str = "rope_factors_short.weight";

/// Rows of the embedding, which the vocabulary must agree with.
pub(super) fn vocab(m: &Metadata<'_>) -> Result<usize, ModelError> {
    let missing = || ModelError::TensorsMissing { missing: vec![EMBEDDING.to_owned()] };
    let rows = m.gguf().tensor(EMBEDDING).ok_or_else(missing)?.ne.get(1).copied().unwrap_or(1);
    let rows = usize::try_from(rows).unwrap_or(usize::MAX);
    let tokens = match m.gguf().strings("tokenizer.ggml.tokens").optional()? {
        Some(tokens) => tokens.len(),
        None => m.count_or("vocab_size", rows, 1..=usize::MAX)?,
    };
    if tokens != rows { Err(ModelError::Vocabulary { tokens, rows }) } else { Ok(rows) }
}

/// Every tensor of the model in file order. Those of the file's layers behind `layers`, which draft ahead, are passed over.
pub(super) fn list(
    m: &Metadata<'_>,
    [hidden, vocab]: [usize; 2],
    layers: &[LayerSpec],
    layer_inputs: Option<&LayerInputs>,
    head: &HeadSpec,
) -> Result<Vec<TensorSpec>, ModelError> {
    let gguf = m.gguf();
    let mut expected = vec![
        Expected::one(EMBEDDING, TensorRole::Embedding, vocab, hidden),
        Expected::one("output_norm.weight", TensorRole::OutputNorm, 1, hidden),
    ];
    match head.norm.kind {
        NormKind::Rms | NormKind::LayerUnbiased => {}
        NormKind::Layer => expected.push(Expected::one("output_norm.bias", TensorRole::OutputNormBias, 1, hidden)),
    }
    if head.matrix == HeadMatrix::Own {
        expected.push(Expected::one(OUTPUT, TensorRole::Output, vocab, hidden));
    }
    let mut ropes = layers.iter().flat_map(LayerSpec::ropes);
    if let Some(tensors) = ropes.find_map(|rope| factors(&rope.scaling)) {
        let count = LayerSpec::rope_factors(layers);
        expected.extend(tensors.iter().map(|(name, role)| Expected::one(*name, *role, 1, count)));
    }
    if let Some(LayerInputs { width, .. }) = layer_inputs {
        let all = layers.len() * width;
        expected.push(Expected::one("per_layer_token_embd.weight", TensorRole::LayerEmbeddings, vocab, all));
        expected.push(Expected::one("per_layer_model_proj.weight", TensorRole::LayerProjection, all, hidden));
        expected.push(Expected::one("per_layer_proj_norm.weight", TensorRole::LayerProjectionNorm, 1, *width));
    }
    let mut unused = HashSet::new();
    for (index, layer) in layers.iter().enumerate() {
        let mut tensors = LayerTensors { gguf, hidden, index, expected: &mut expected };
        tensors.layer(layer, layer_inputs);
        // Files may have what would make keys and values where a layer makes none.
        if layer.attention().is_some_and(|attention| attention.source != KvSource::Own) {
            let names = ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"];
            unused.extend(names.map(|name| tensors.name(name)));
        }
    }
    resolve(gguf, &expected, &unused, layers.len()..m.block_count()?)
}

/// The tensors that a scaling comes with.
fn factors(scaling: &RopeScaling) -> Option<&'static [(&'static str, TensorRole)]> {
    match scaling {
        RopeScaling::None | RopeScaling::Linear(_) | RopeScaling::Yarn { .. } => None,
        RopeScaling::Factors => Some(&[(ROPE_FACTORS, TensorRole::RopeFactors)]),
        RopeScaling::LongRope { .. } => Some(&[
            (ROPE_FACTORS_LONG, TensorRole::RopeFactorsLong),
            (ROPE_FACTORS_SHORT, TensorRole::RopeFactorsShort),
        ]),
    }
}

/// Collects the tensors of one layer.
struct LayerTensors<'a> {
    gguf: &'a Gguf,
    hidden: usize,
    index: usize,
    expected: &'a mut Vec<Expected>,
}

impl LayerTensors<'_> {
    fn layer(&mut self, layer: &LayerSpec, inputs: Option<&LayerInputs>) {
        use LayerTensor::{AttnNorm, AttnNormBias, FfnNorm, FfnNormBias, PostAttnNorm, PostFfnNorm};
        let (mixes, has_ffn) = (layer.mixer != Mixer::None, layer.ffn != Ffn::None);
        let (first, second, after) = match layer.norms {
            NormPlacement::Pre => (true, true, false),
            NormPlacement::PreAndPost => (true, true, true),
            NormPlacement::Post => (false, false, true),
            NormPlacement::Beside => (true, false, false),
        };
        if first && mixes {
            self.norm(["attn_norm.weight", "attn_norm.bias"], [AttnNorm, AttnNormBias], layer.norm.kind);
        }
        match &layer.mixer {
            Mixer::Attention(attention) => self.attention(attention),
            Mixer::GatedDelta(delta) => self.gated_delta(delta),
            Mixer::Latent(latent) => self.latent(latent),
            Mixer::StateSpace(space) => self.state_space(space),
            Mixer::None => {}
        }
        if after && mixes {
            self.vector("post_attention_norm.weight", PostAttnNorm, self.hidden);
        }
        if second && has_ffn {
            // Where no norm follows the attention, its name may mean the one before the FFN (gpt-oss), and where there is nothing
            // before that, the first name does (Nemotron-H).
            let by_attention = !after && self.gguf.tensor(&self.name("ffn_norm.weight")).is_none();
            let name = match (by_attention, mixes) {
                (false, _) => "ffn_norm.weight",
                (true, true) => "post_attention_norm.weight",
                (true, false) => "attn_norm.weight",
            };
            self.norm([name, "ffn_norm.bias"], [FfnNorm, FfnNormBias], layer.norm.kind);
        }
        self.ffn(&layer.ffn);
        if after && has_ffn {
            self.vector("post_ffw_norm.weight", PostFfnNorm, self.hidden);
        }
        if let Some(LayerInputs { width, .. }) = inputs {
            self.tensor("inp_gate.weight", LayerTensor::InputGate, *width, self.hidden);
            self.tensor("proj.weight", LayerTensor::InputProjection, self.hidden, *width);
            self.vector("post_norm.weight", LayerTensor::InputNorm, self.hidden);
        }
        match layer.output_scale {
            OutputScale::None => {}
            OutputScale::Learned => self.vector("layer_output_scale.weight", LayerTensor::OutputScale, 1),
        }
    }

    fn norm(&mut self, [weight, bias]: [&str; 2], [gain, gain_bias]: [LayerTensor; 2], kind: NormKind) {
        self.vector(weight, gain, self.hidden);
        match kind {
            NormKind::Rms | NormKind::LayerUnbiased => {}
            NormKind::Layer => self.vector(bias, gain_bias, self.hidden),
        }
    }

    fn attention(&mut self, a: &AttentionSpec) {
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        match (a.source, a.values) {
            (KvSource::Own, Values::Own | Values::OwnNormed) => {
                let weights = [(LayerTensor::Q, a.query_outputs()), (LayerTensor::K, kv), (LayerTensor::V, kv)];
                self.fusible("attn_qkv.weight", ["attn_q.weight", "attn_k.weight", "attn_v.weight"], weights);
            }
            (KvSource::Layer(_), _) => self.tensor("attn_q.weight", LayerTensor::Q, a.query_outputs(), self.hidden),
            (KvSource::Own, Values::KeysNormed) => {
                self.tensor("attn_q.weight", LayerTensor::Q, a.query_outputs(), self.hidden);
                self.tensor("attn_k.weight", LayerTensor::K, kv, self.hidden);
            }
        }
        match a.qkv_bias {
            Bias::None => {}
            Bias::Present => {
                self.vector("attn_q.bias", LayerTensor::QBias, a.query_outputs());
                self.vector("attn_k.bias", LayerTensor::KBias, kv);
                self.vector("attn_v.bias", LayerTensor::VBias, kv);
            }
        }
        let normed = match a.qk_norm {
            QkNorm::None | QkNorm::PerHeadRotatedBare => None,
            QkNorm::PerHead | QkNorm::PerHeadRotated => Some((a.head_dim, a.head_dim)),
            QkNorm::AllHeads => Some((q, kv)),
        };
        if let Some((q, k)) = normed {
            self.vector("attn_q_norm.weight", LayerTensor::QNorm, q);
            if a.source == KvSource::Own {
                self.vector("attn_k_norm.weight", LayerTensor::KNorm, k);
            }
        }
        match a.sinks {
            Sinks::None => {}
            Sinks::PerHead => self.vector("attn_sinks.weight", LayerTensor::Sinks, a.heads),
        }
        if let Some(indexer) = &a.blocks {
            self.block_indexer(indexer, a.kv_heads);
        }
        match a.output_gate {
            OutputGate::None | OutputGate::WithQuery => {}
            OutputGate::PerHead => self.tensor("attn_gate.weight", LayerTensor::HeadGates, a.heads, self.hidden),
        }
        self.tensor("attn_output.weight", LayerTensor::AttnOutput, self.hidden, q);
        self.bias("attn_output.bias", LayerTensor::AttnOutputBias, self.hidden, a.output_bias);
    }

    fn gated_delta(&mut self, d: &GatedDeltaSpec) {
        use LayerTensor as Part;
        let (hidden, heads, keys) = (self.hidden, d.value_heads, d.key_heads * d.head_dim);
        let output = match d.inputs {
            DeltaInputs::Apart => {
                let weights = [(Part::Q, keys), (Part::K, keys), (Part::V, d.values())];
                self.fusible("attn_qkv.weight", ["attn_q.weight", "attn_k.weight", "attn_v.weight"], weights);
                // Each channel's factors are a matrix of one row.
                self.stacked("ssm_conv1d_q.weight", Part::QueryTaps, [keys, 1, d.taps]);
                self.stacked("ssm_conv1d_k.weight", Part::KeyTaps, [keys, 1, d.taps]);
                self.stacked("ssm_conv1d_v.weight", Part::ValueTaps, [d.values(), 1, d.taps]);
                "attn_output.weight"
            }
            DeltaInputs::Together => {
                self.tensor("attn_qkv.weight", Part::DeltaQkv, d.channels(), hidden);
                self.tensor("ssm_conv1d.weight", Part::ConvolutionTaps, d.channels(), d.taps);
                "ssm_out.weight"
            }
        };
        match d.output_gate {
            DeltaOutputGate::SigmoidNarrow(rank) => {
                self.tensor("ssm_g_a.weight", Part::StateGateDown, rank, hidden);
                self.tensor("ssm_g_b.weight", Part::StateGateUp, d.values(), rank);
            }
            DeltaOutputGate::Silu => self.tensor("attn_gate.weight", Part::StateGate, d.values(), hidden),
        }
        match d.gates {
            DeltaGates::Apart => {
                self.tensor("ssm_alpha.weight", Part::Alpha, heads, hidden);
                self.tensor("ssm_beta.weight", Part::Beta, heads, hidden);
                self.vector("ssm_a", Part::Decay, heads);
            }
            DeltaGates::EachElement(rank) => {
                self.tensor("ssm_f_a.weight", Part::AlphaDown, rank, hidden);
                self.tensor("ssm_f_b.weight", Part::AlphaUp, d.values(), rank);
                self.tensor("ssm_beta.weight", Part::Beta, heads, hidden);
                self.tensor("ssm_a", Part::HeadDecay, heads, 1);
            }
            DeltaGates::Together => {
                self.tensor("ssm_ba.weight", Part::BetaAlpha, 2 * heads, hidden);
                self.vector("ssm_a", Part::Decay, heads);
            }
        }
        self.vector("ssm_dt.bias", Part::TimeStepBias, d.alphas());
        self.vector("ssm_norm.weight", Part::StateNorm, d.head_dim);
        self.tensor(output, Part::StateOutput, hidden, d.values());
    }

    fn latent(&mut self, l: &LatentSpec) {
        let (hidden, heads, queries) = (self.hidden, l.heads, l.heads * l.query_dim());
        match l.queries {
            LatentQueries::Direct => self.tensor("attn_q.weight", LayerTensor::Q, queries, hidden),
            LatentQueries::Latent(rank) => {
                self.tensor("attn_q_a.weight", LayerTensor::QA, rank, hidden);
                self.vector("attn_q_a_norm.weight", LayerTensor::QANorm, rank);
                self.tensor("attn_q_b.weight", LayerTensor::QB, queries, rank);
                if let Some(indexer) = l.indexer() {
                    self.indexer(indexer, rank);
                }
            }
        }
        self.tensor("attn_kv_a_mqa.weight", LayerTensor::KvA, l.key_dim(), hidden);
        self.vector("attn_kv_a_norm.weight", LayerTensor::KvANorm, l.latent_dim);
        match l.matrices {
            HeadMatrices::Apart => {
                self.stacked("attn_k_b.weight", LayerTensor::KB, [heads, l.latent_dim, l.plain_dim]);
                self.stacked("attn_v_b.weight", LayerTensor::VB, [heads, l.value_dim, l.latent_dim]);
            }
            HeadMatrices::Joined => {
                self.tensor(JOINED, LayerTensor::KvB, heads * (l.plain_dim + l.value_dim), l.latent_dim);
            }
        }
        self.tensor("attn_output.weight", LayerTensor::AttnOutput, hidden, heads * l.value_dim);
    }

    fn indexer(&mut self, i: &IndexerSpec, rank: usize) {
        use LayerTensor as Part;
        self.tensor("indexer.attn_q_b.weight", Part::IndexQueries, i.queries(), rank);
        self.tensor("indexer.attn_k.weight", Part::IndexKey, i.head_dim, self.hidden);
        self.vector("indexer.k_norm.weight", Part::IndexKeyNorm, i.head_dim);
        self.vector("indexer.k_norm.bias", Part::IndexKeyNormBias, i.head_dim);
        self.tensor("indexer.proj.weight", Part::IndexWeights, i.heads, self.hidden);
    }

    fn block_indexer(&mut self, i: &BlockIndexerSpec, kv_heads: usize) {
        self.tensor("indexer.q_proj.weight", LayerTensor::IndexQueries, kv_heads * i.head_dim, self.hidden);
        self.tensor("indexer.k_proj.weight", LayerTensor::IndexKey, i.head_dim, self.hidden);
        self.vector("indexer.q_norm.weight", LayerTensor::IndexQueryNorm, i.head_dim);
        self.vector("indexer.k_norm.weight", LayerTensor::IndexKeyNorm, i.head_dim);
    }

    fn state_space(&mut self, s: &StateSpaceSpec) {
        use LayerTensor as Part;
        let (hidden, heads) = (self.hidden, s.heads);
        let pieces = [(Part::StateGate, s.values()), (Part::StateInput, s.channels()), (Part::TimeStep, heads)];
        let pieces = pieces.map(|(tensor, rows)| (self.role(tensor), rows)).to_vec();
        self.expected.push(Expected { name: self.name("ssm_in.weight"), cols: hidden, pieces, stacked: 1 });
        self.tensor("ssm_conv1d.weight", Part::ConvolutionTaps, s.channels(), s.taps);
        self.bias("ssm_conv1d.bias", Part::ConvolutionBias, s.channels(), s.bias);
        self.vector("ssm_dt.bias", Part::TimeStepBias, heads);
        self.tensor("ssm_a", Part::HeadDecay, heads, 1);
        self.tensor("ssm_d", Part::HeadSkip, heads, 1);
        self.tensor("ssm_norm.weight", Part::GroupNorm, s.groups, s.values() / s.groups.max(1));
        self.tensor("ssm_out.weight", Part::StateOutput, hidden, s.values());
    }

    fn ffn(&mut self, ffn: &Ffn) {
        let hidden = self.hidden;
        match *ffn {
            Ffn::Gated { inner, bias, .. } => self.gated(inner, bias),
            Ffn::Plain { inner, bias, .. } => {
                self.tensor("ffn_up.weight", LayerTensor::Up, inner, hidden);
                self.tensor("ffn_down.weight", LayerTensor::Down, hidden, inner);
                self.bias("ffn_up.bias", LayerTensor::UpBias, inner, bias);
                self.bias("ffn_down.bias", LayerTensor::DownBias, hidden, bias);
            }
            Ffn::Experts(ref experts) => self.experts(experts),
            Ffn::Both { inner, ref experts } => {
                self.gated(inner, Bias::None);
                self.vector("post_ffw_norm_1.weight", LayerTensor::PostGatedNorm, hidden);
                self.vector("pre_ffw_norm_2.weight", LayerTensor::ExpertsNorm, hidden);
                self.vector("ffn_gate_inp.scale", LayerTensor::RouterNorm, hidden);
                self.experts(experts);
                self.vector("post_ffw_norm_2.weight", LayerTensor::PostExpertsNorm, hidden);
            }
            Ffn::None => {}
        }
    }

    fn gated(&mut self, inner: usize, bias: Bias) {
        let hidden = self.hidden;
        let weights = [(LayerTensor::Gate, inner), (LayerTensor::Up, inner)];
        self.fusible("ffn_up.weight", ["ffn_gate.weight", "ffn_up.weight"], weights);
        self.tensor("ffn_down.weight", LayerTensor::Down, hidden, inner);
        self.bias("ffn_gate.bias", LayerTensor::GateBias, inner, bias);
        self.bias("ffn_up.bias", LayerTensor::UpBias, inner, bias);
        self.bias("ffn_down.bias", LayerTensor::DownBias, hidden, bias);
    }

    fn experts(&mut self, e: &ExpertsSpec) {
        use LayerTensor as Part;
        let (hidden, inner, count, width) = (self.hidden, e.inner, e.count, e.latent.unwrap_or(self.hidden));
        self.tensor("ffn_gate_inp.weight", Part::Router, count, hidden);
        if let Some(latent) = e.latent {
            self.tensor("ffn_latent_down.weight", Part::ExpertLatentDown, latent, hidden);
            self.tensor("ffn_latent_up.weight", Part::ExpertLatentUp, hidden, latent);
        }
        let (gates, ups) = (("ffn_gate_exps.weight", Part::ExpertGates), ("ffn_up_exps.weight", Part::ExpertUps));
        let matrices: &[_] = match e.form {
            ExpertForm::Gated => &[(gates, inner), (ups, inner)],
            ExpertForm::GatedTogether => &[((GATES_AND_UPS, Part::ExpertGateUps), 2 * inner)],
            ExpertForm::Plain => &[(ups, inner)],
        };
        matrices.iter().for_each(|((name, part), rows)| self.stacked(name, *part, [count, *rows, width]));
        self.stacked("ffn_down_exps.weight", Part::ExpertDowns, [count, width, inner]);
        match e.bias {
            Bias::None => {}
            Bias::Present => {
                self.vector("ffn_gate_inp.bias", Part::RouterBias, count);
                self.tensor("ffn_gate_exps.bias", Part::ExpertGateBiases, count, inner);
                self.tensor("ffn_up_exps.bias", Part::ExpertUpBiases, count, inner);
                self.tensor("ffn_down_exps.bias", Part::ExpertDownBiases, count, hidden);
            }
        }
        self.bias("exp_probs_b.bias", Part::ChoiceBias, count, e.routing.choice_bias);
        match e.routing.expert_scales {
            ExpertScales::None => {}
            ExpertScales::Learned => self.vector("ffn_down_exps.scale", Part::ExpertScales, count),
        }
        if let Some(SharedExpert { inner, gate, .. }) = e.shared {
            match gate {
                SharedGate::None => {}
                SharedGate::Sigmoid => self.vector("ffn_gate_inp_shexp.weight", Part::SharedRouter, hidden),
            }
            match e.form {
                ExpertForm::Gated | ExpertForm::GatedTogether => {
                    self.tensor("ffn_gate_shexp.weight", Part::SharedGate, inner, hidden);
                }
                ExpertForm::Plain => {}
            }
            self.tensor("ffn_up_shexp.weight", Part::SharedUp, inner, hidden);
            self.tensor("ffn_down_shexp.weight", Part::SharedDown, hidden, inner);
        }
    }

    /// Matrices that the file may hold as one, rows after rows; told by its shape, as its name may be one of theirs.
    fn fusible<const N: usize>(&mut self, fused: &str, single: [&str; N], weights: [(LayerTensor, usize); N]) {
        let pieces = weights.map(|(tensor, rows)| (self.role(tensor), rows)).to_vec();
        let fused = Expected { name: self.name(fused), cols: self.hidden, pieces, stacked: 1 };
        if self.gguf.tensor(&fused.name).is_some_and(|entry| entry.ne == [fused.cols as u64, fused.rows() as u64]) {
            self.expected.push(fused);
            return;
        }
        for (suffix, (tensor, rows)) in single.into_iter().zip(weights) {
            self.tensor(suffix, tensor, rows, self.hidden);
        }
    }

    fn tensor(&mut self, suffix: &str, tensor: LayerTensor, rows: usize, cols: usize) {
        self.expected.push(Expected::one(self.name(suffix), self.role(tensor), rows, cols));
    }

    fn vector(&mut self, suffix: &str, tensor: LayerTensor, len: usize) {
        self.tensor(suffix, tensor, 1, len);
    }

    fn bias(&mut self, suffix: &str, tensor: LayerTensor, len: usize, bias: Bias) {
        match bias {
            Bias::None => {}
            Bias::Present => self.vector(suffix, tensor, len),
        }
    }

    fn stacked(&mut self, suffix: &str, tensor: LayerTensor, [stacked, rows, cols]: [usize; 3]) {
        let all = Expected::one(self.name(suffix), self.role(tensor), stacked * rows, cols);
        self.expected.push(Expected { stacked, ..all });
    }

    fn name(&self, suffix: &str) -> String {
        format!("blk.{}.{suffix}", self.index)
    }

    fn role(&self, tensor: LayerTensor) -> TensorRole {
        TensorRole::Layer(LayerIndex(self.index), tensor)
    }
}
