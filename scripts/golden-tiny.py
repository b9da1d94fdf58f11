#!/usr/bin/env python3
"""Makes tiny random models (GGUF) and what llama.cpp computes for them (JSON), in the form of tests/golden/tiny.

    pip install numpy==2.4.6 gguf==0.19.0 llama-cpp-python==0.3.36
    scripts/golden-tiny.py tests/golden/tiny                   the GGUFs alone (needs numpy and gguf)
    scripts/golden-tiny.py tests/golden/tiny --reference       and the JSONs
    scripts/golden-tiny.py tests/golden/tiny --check llama     how far JSONs that are there are from a new run
    scripts/golden-tiny.py DIR --only gpt-oss phi3-longrope    some models
    scripts/golden-tiny.py tests/golden/tiny --vectors         the vectors that prompts become, of models that are there

A reference is the truth of the file: matrices dequantised to F32, F32 cache, no flash attention, one thread, the
prompt in one batch, then greedy steps of one token. Beside each, the script prints how far llama.cpp is when run as
people run it (the file as it is, F16 cache, flash attention). The models quant-TYPE are made of DIR/quant-base.gguf; all
types but MXFP4 are quantised by llama.cpp's own code, which they therefore need too.
"""

import argparse
import ctypes
import functools
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

GREEDY_STEPS, TOP = 8, 20
# Models whose vectors are compared: with and without biases in norms, scaled embeddings, states, experts.
VECTORS = ["llama", "starcoder2", "gemma3", "qwen35", "qwen3moe"]
VOCAB, HEADS, KV_HEADS, HEAD = 128, 4, 2, 16
KEY_HEADS, VALUE_HEADS, TAPS, GROUPS = 2, 4, 4, 2

# A tensor's shape is a word of size letters, in GGUF's order (input first).
ENDS = {"token_embd.weight": "EV", "output_norm.weight": "E"}
NORMS = {"attn_norm.weight": "E", "ffn_norm.weight": "E"}
POST_NORMS = {"post_attention_norm.weight": "E", "post_ffw_norm.weight": "E"}
ATTENTION = {"attn_q.weight": "EQ", "attn_k.weight": "EK", "attn_v.weight": "EK", "attn_output.weight": "QE"}
QKV_BIASES = {"attn_q.bias": "Q", "attn_k.bias": "K", "attn_v.bias": "K"}
GATED = {"ffn_gate.weight": "EF", "ffn_up.weight": "EF", "ffn_down.weight": "FE"}
FUSED = {"ffn_up.weight": "EG", "ffn_down.weight": "FE"}
ROUTER = {"ffn_gate_inp.weight": "EX"}
EXPERTS = {"ffn_gate_exps.weight": "ESX", "ffn_up_exps.weight": "ESX", "ffn_down_exps.weight": "SEX"}
# As files of some families have them: each expert's gate above its up.
JOINED_EXPERTS = {"ffn_gate_up_exps.weight": "EsX", "ffn_down_exps.weight": "SEX"}
SHARED = {"ffn_gate_shexp.weight": "ET", "ffn_up_shexp.weight": "ET", "ffn_down_shexp.weight": "TE"}
SHARED_GATE = {"ffn_gate_inp_shexp.weight": "E"}
CHOICE = {"exp_probs_b.bias": "X"}
HEAD_NORMS = {"attn_q_norm.weight": "B", "attn_k_norm.weight": "B"}
ROW_NORMS = {"attn_q_norm.weight": "Q", "attn_k_norm.weight": "K"}
# Latent attention: q is all heads' queries, p a query's part without positions, l the latent, k that and the rotated part,
# v a head's values, o all heads' values, r the queries' own latent.
LATENT = {"attn_kv_a_mqa.weight": "Ek", "attn_kv_a_norm.weight": "l", "attn_output.weight": "oE"}
LATENT |= {"attn_k_b.weight": "plH", "attn_v_b.weight": "lvH"}
# Small heads that choose the positions which are attended to: h heads of i elements.
INDEXER = {"indexer.attn_q_b.weight": "rj", "indexer.attn_k.weight": "Ei", "indexer.proj.weight": "Eh"}
INDEXER |= {"indexer.k_norm.weight": "i", "indexer.k_norm.bias": "i"}
LATENT_QUERIES = {"attn_q_a.weight": "Er", "attn_q_a_norm.weight": "r", "attn_q_b.weight": "rq"}

# Standard deviations: of a bias and of a norm's gain about 1, and, times sqrt(inputs), of the matrices that are not 1.
BIAS, GAIN = 0.4, 0.2
SCALES = {"output.weight": 2.0, "ffn_gate_inp.weight": 3.0, "ffn_gate_inp_shexp.weight": 2.0}
TIED_EMBEDDING = 1.6


@dataclass(frozen=True)
class Model:
    """A family's shape: `keys` stand below the architecture's name, `block` tensors in each block but those for which
    `other` has some of their own (and `fourth` in every fourth, where given), `whole` ones once."""

    arch: str
    seed: int
    block: dict
    fourth: dict | None = None
    blocks: int = 2
    width: int = 32
    feed_forward: int = 48
    rotary: int = HEAD
    context: int = 2048
    tied: bool = False
    keys: dict = field(default_factory=dict)
    other: dict = field(default_factory=dict)
    whole: dict = field(default_factory=dict)
    scales: dict = field(default_factory=dict)
    fixed: dict = field(default_factory=dict)
    grid: str | None = None
    packed: bool = False
    # Whether each head's matrices of the latent are one, as in files from before April 2025.
    joined: bool = False

    def sizes(self):
        """What the letters of the shapes mean."""
        kv_heads = self.keys.get("attention.head_count_kv", KV_HEADS)
        # Where it is said of each block, those that attend have as many as each other.
        kv_heads = max(kv_heads) if isinstance(kv_heads, list) else kv_heads
        q, k, f = HEADS * HEAD, kv_heads * HEAD, self.feed_forward
        sizes = {"V": VOCAB, "E": self.width, "Q": q, "K": k, "P": q + 2 * k, "H": HEADS, "F": f, "G": 2 * f}
        # The heads of q, k and v in a block with a state are as wide as those of its attention.
        sizes |= {"J": 2 * q, "Y": HEAD, "A": TAPS, "C": (2 * KEY_HEADS + VALUE_HEADS) * HEAD, "D": VALUE_HEADS * HEAD}
        sizes |= {"M": 2 * VALUE_HEADS, "N": VALUE_HEADS, "1": 1, "2": GROUPS}
        sizes |= {"B": HEAD, "L": 2 * self.width}
        space = (VALUE_HEADS + 2 * GROUPS) * HEAD
        sizes |= {"W": space, "I": VALUE_HEADS * HEAD + space + VALUE_HEADS, "Z": VALUE_HEADS * HEAD // GROUPS}
        keys = {"X": "expert_count", "S": "expert_feed_forward_length", "T": "expert_shared_feed_forward_length"}
        sizes |= {"R": self.rotary // 2} | {letter: self.keys.get(key) for letter, key in keys.items()}
        sizes |= {"e": self.keys.get("moe_latent_size"), "s": sizes["S"] and 2 * sizes["S"]}
        wide = self.keys.get("attention.key_length", HEAD)
        per_layer = self.keys.get("embedding_length_per_layer_input", 0)
        sizes |= {"y": per_layer, "z": per_layer * self.blocks}
        sizes |= {"w": wide, "x": HEADS * wide, "u": HEADS + KV_HEADS, "U": q + KV_HEADS * HEAD}
        indexer = [self.keys.get(f"attention.indexer.{key}", 0) for key in ("key_length", "head_count")]
        sizes |= {"i": indexer[0], "h": indexer[1], "j": indexer[0] * indexer[1]}
        shared = self.keys.get("expert_shared_count")
        return sizes | ({"T": sizes["S"] * shared} if shared and not sizes["T"] else {}) | self.latent_sizes()

    def latent_sizes(self):
        """Those of latent attention, where the model has it."""
        latent = self.keys.get("attention.kv_lora_rank")
        if latent is None:
            return {}
        suffix = "" if self.joined else "_mla"
        key, value = (self.keys[f"attention.{name}_length{suffix}"] for name in ("key", "value"))
        sizes = {"l": latent, "k": latent + self.rotary, "p": key - self.rotary, "v": value}
        return sizes | {"q": HEADS * key, "o": HEADS * value, "r": self.keys["attention.q_lora_rank"]}

    def shapes(self):
        """Every tensor's name and shape, in the file's order."""
        whole = ENDS | ({} if self.tied else {"output.weight": "EV"}) | self.whole
        block = lambda i: self.fourth if self.fourth and i % 4 == 3 else self.other.get(i, self.block)
        blocks = {f"blk.{i}.{name}": shape for i in range(self.blocks) for name, shape in block(i).items()}
        sizes = self.sizes()
        return {name: [sizes[letter] for letter in shape] for name, shape in (whole | blocks).items()}

    def values(self):
        """Every tensor's values, seeded, in numpy's order (input last)."""
        values = self.apart()
        return join(values) if self.joined else values

    def apart(self):
        """Every tensor's values, where each head has its matrices of the latent apart."""
        random = np.random.default_rng(self.seed)
        for name, shape in self.shapes().items():
            stem = name.split(".", 2)[2] if name.startswith("blk.") else name
            if stem in self.fixed:
                yield name, np.array(self.fixed[stem], np.float32)
                continue
            mean, deviation = self.distribution(stem, shape[0])
            yield name, random.normal(mean, deviation, shape[::-1]).astype(np.float32)

    def distribution(self, stem, inputs):
        """Mean and standard deviation of a tensor."""
        if stem.endswith(".bias"):
            return 0.0, self.scales.get(stem, BIAS)
        if "norm" in stem:
            mean = self.scales.get(stem, 1.0)
            return mean, mean * GAIN
        if stem == "attn_sinks.weight":
            return 1.0, 1.0
        if "scale" in stem:
            return 1.0, GAIN
        if stem in ("ssm_a", "ssm_d"):
            return {"ssm_a": -0.3, "ssm_d": 1.0}[stem], 0.1
        if stem == "token_embd.weight":
            return 0.0, TIED_EMBEDDING / inputs**0.5 if self.tied else 1.0
        return 0.0, self.scales.get(stem, SCALES.get(stem, 1.0)) / inputs**0.5

    def metadata(self):
        """Every key that stands below the architecture's name."""
        keys = {
            "block_count": self.blocks,
            "context_length": self.context,
            "embedding_length": self.width,
            "feed_forward_length": self.feed_forward,
            "attention.head_count": HEADS,
            "attention.head_count_kv": KV_HEADS,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.key_length": HEAD,
            "attention.value_length": HEAD,
            "rope.dimension_count": self.rotary,
            "rope.freq_base": 10000.0,
            "vocab_size": VOCAB,
        } | self.keys
        return {key: value for key, value in keys.items() if value is not None}

    def write(self, path, name):
        """Writes the GGUF. Matrices whose name ends in `grid` take values of MXFP4, and are stored so when `packed`."""
        writer = gguf.GGUFWriter(path, self.arch)
        writer.add_name(f"tiny random {name}")
        for key, value in self.metadata().items():
            add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32, bool: writer.add_bool}
            add |= {list: writer.add_array}
            add[type(value)](f"{self.arch}.{key}", value)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_MXFP4_MOE if self.packed else gguf.LlamaFileType.ALL_F32)
        writer.add_tokenizer_model("none")
        for tensor, values in self.values():
            if not self.grid or not tensor.endswith(self.grid):
                writer.add_tensor(tensor, values)
            elif self.packed:
                writer.add_tensor(tensor, quantize(values, Type.MXFP4), raw_dtype=Type.MXFP4)
            else:
                writer.add_tensor(tensor, dequantize(quantize(values, Type.MXFP4), Type.MXFP4))
        finish(writer)


def join(values):
    """The same tensors, with what makes keys of a latent, head by head, above what makes values of it."""
    values = dict(values)
    for name, keys in [(name, values[name]) for name in values if name.endswith("attn_k_b.weight")]:
        del values[name]
        of_values = values.pop(name.replace("k_b", "v_b"))
        both = np.concatenate([keys.transpose(0, 2, 1), of_values], 1)
        values[name.replace("k_b", "kv_b")] = np.ascontiguousarray(both.reshape(-1, both.shape[2]))
    return values.items()


def joined(keys):
    """What keys of latent attention were before April 2025: about heads, not about the row that they share."""
    old = {"key_length": "key_length_mla", "value_length": "value_length_mla"}
    heads = {f"attention.{key}": keys[f"attention.{new}"] for key, new in old.items()}
    without = {key: value for key, value in keys.items() if not key.endswith("_mla")}
    return without | heads | {"attention.head_count_kv": HEADS}


def scaling(**keys):
    """The keys of a rope's scaling."""
    return {f"rope.scaling.{key}": value for key, value in keys.items()}


def yarn(factor, original, **more):
    """The keys of YaRN scaling."""
    return scaling(type="yarn", factor=factor, original_context_length=original, **more)


def experts(count, used, width):
    """The keys of a mixture of experts."""
    return {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": width}


def latent(queries, latent, **more):
    """The keys of latent attention with heads of 16 elements, and the rotated ones, whose queries have a latent or not."""
    keys = {"q_lora_rank": queries, "kv_lora_rank": latent, "key_length_mla": 24, "value_length_mla": 16}
    keys |= {"head_count_kv": 1, "key_length": latent + 8, "value_length": latent}
    return {f"attention.{key}": value for key, value in keys.items()} | {"leading_dense_block_count": 1} | more


LLAMA = NORMS | ATTENTION | GATED
# In an architecture llama, the keys with yarn_ are what converters write and llama.cpp does not read.
LLAMA_YARN = {"rope.freq_base": 500.0}
LLAMA_YARN |= yarn(4.0, 512, attn_factor=0.9, yarn_attn_factor=1.5, yarn_beta_fast=8.0, yarn_beta_slow=2.0)
QWEN2MOE = NORMS | ATTENTION | QKV_BIASES | ROUTER | EXPERTS | SHARED | SHARED_GATE
SHARED_EXPERT = {"expert_shared_feed_forward_length": 32}
DEEPSEEK_ROUTER = {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.8}
DEEPSEEK_ROUTER |= {"expert_shared_count": 1, "leading_dense_block_count": 1}
# The spread of a bias for the choice among affinities between 0 and 1.
CHOICE_SCALES = {"exp_probs_b.bias": 0.2}
GLM4_MOE = {"attn_norm.weight": "E", "post_attention_norm.weight": "E"} | ATTENTION | QKV_BIASES | HEAD_NORMS
GLM4_MOE_EXPERTS = GLM4_MOE | ROUTER | CHOICE | EXPERTS | SHARED
NEXTN = {"nextn.eh_proj.weight": "LE", "nextn.enorm.weight": "E", "nextn.hnorm.weight": "E"}
NEXTN |= {"nextn.shared_head_norm.weight": "E"}
BAILING = NORMS | {"attn_qkv.weight": "EP", "attn_output.weight": "QE"} | HEAD_NORMS
PARALLEL = {"attn_norm.weight": "E"} | ATTENTION | GATED
LAYER_NORM = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5}
GRANITE = {"embedding_scale": 2.0, "residual_scale": 0.6, "attention.scale": 0.15, "logit_scale": 0.7}
GPT_OSS = {
    "arch": "gpt-oss",
    "seed": 79,
    "width": 64,
    "feed_forward": 32,
    "keys": {"rope.freq_base": 100.0, "attention.sliding_window": 8, **experts(4, 2, 32), **yarn(4.0, 32)},
    "block": {"attn_norm.weight": "E", **ATTENTION, **QKV_BIASES, "attn_output.bias": "E", "attn_sinks.weight": "H"}
    | {"post_attention_norm.weight": "E", **ROUTER, "ffn_gate_inp.bias": "X", **EXPERTS}
    | {"ffn_gate_exps.bias": "SX", "ffn_up_exps.bias": "SX", "ffn_down_exps.bias": "EX"},
    # Gate and up so wide that a part of them meets the clamp at 7, down so narrow that the residual keeps its size.
    "scales": {"ffn_gate_exps.weight": 3.0, "ffn_up_exps.weight": 3.0, "ffn_down_exps.weight": 0.2},
    "grid": "_exps.weight",
}
# The gated delta rule, and the gated attention beside it.
GATED_NORMS = {"attn_norm.weight": "E", "post_attention_norm.weight": "E"}
DELTA = GATED_NORMS | {"attn_qkv.weight": "EC", "attn_gate.weight": "ED", "ssm_conv1d.weight": "AC", "ssm_dt.bias": "N"}
DELTA |= {"ssm_a": "N", "ssm_norm.weight": "Y", "ssm_out.weight": "DE"}
DELTA_APART = DELTA | {"ssm_beta.weight": "EN", "ssm_alpha.weight": "EN"}
GATED_ATTENTION = GATED_NORMS | ATTENTION | {"attn_q.weight": "EJ", "attn_q_norm.weight": "Y", "attn_k_norm.weight": "Y"}
GATED_DELTA = {"rotary": 8, "width": 32, "blocks": 4}
DELTA_KEYS = {"ssm.conv_kernel": TAPS, "ssm.state_size": HEAD, "ssm.group_count": KEY_HEADS, "full_attention_interval": 4}
DELTA_KEYS |= {"ssm.time_step_rank": VALUE_HEADS, "ssm.inner_size": VALUE_HEADS * HEAD}
SECTIONS = {"rope.dimension_sections": [2, 1, 1, 0]}
SHARED_SPARSE = ROUTER | EXPERTS | SHARED
SPARSE_KEYS = experts(4, 2, 16) | {"expert_shared_feed_forward_length": 16}
# A rank of 0 for the queries is none, with any number of layers; without the key, llama.cpp looks at that number.
DEEPSEEK2_LITE = NORMS | {"attn_q.weight": "Eq"} | LATENT
DEEPSEEK2 = NORMS | LATENT_QUERIES | LATENT
SIGMOID_GROUPS = {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 2.5}
SIGMOID_GROUPS |= {"expert_group_count": 4, "expert_group_used_count": 2}
INDEXED = DEEPSEEK2 | INDEXER
INDEXER_KEYS = {"attention.indexer.head_count": 8, "attention.indexer.key_length": 64, "attention.indexer.top_k": 32}
# The delta rule with a decay of each element of a key, and latent attention without positions in every fourth block.
KDA = NORMS | {f"ssm_conv1d_{of}.weight": "A1D" for of in "qkv"} | {f"attn_{of}.weight": "ED" for of in "qkv"}
KDA |= {"ssm_f_a.weight": "EY", "ssm_f_b.weight": "YD", "ssm_g_a.weight": "EY", "ssm_g_b.weight": "YD"}
KDA |= {"ssm_beta.weight": "EN", "ssm_a": "1N", "ssm_dt.bias": "D", "ssm_norm.weight": "Y", "attn_output.weight": "DE"}
KDA_KEYS = {"ssm.conv_kernel": TAPS, "kda.head_dim": HEAD, "expert_gating_func": 2, "expert_weights_scale": 1.8}
LITE = {
    "arch": "deepseek2",
    "seed": 327,
    "block": DEEPSEEK2_LITE | ROUTER | EXPERTS | SHARED,
    "blocks": 3,
    "other": {0: DEEPSEEK2_LITE | GATED},
    "rotary": 8,
}
LITE_KEYS = latent(0, 32, expert_shared_count=2, **experts(4, 2, 16), **yarn(4.0, 32, yarn_log_multiplier=0.0707))
# A state space; its B and C are as long as a head of attention.
SPACE_IN = {"ssm_in.weight": "EI", "ssm_conv1d.weight": "AW", "ssm_conv1d.bias": "W", "ssm_dt.bias": "N"}
SPACE = NORMS | GATED | SPACE_IN | {"ssm_a": "1N", "ssm_d": "1N", "ssm_norm.weight": "Z2", "ssm_out.weight": "DE"}
SPACE_KEYS = {"ssm.conv_kernel": TAPS, "ssm.state_size": HEAD, "ssm.group_count": GROUPS}
SPACE_KEYS |= {"ssm.time_step_rank": VALUE_HEADS, "ssm.inner_size": VALUE_HEADS * HEAD}
GRANITE_KEYS = {"embedding_scale": 2.0, "residual_scale": 0.6, "attention.scale": 0.2, "logit_scale": 1.5}
# Blocks of one half alone, whose norm has the first half's name.
ALONE = {"attn_norm.weight": "E"}
SPACE_ALONE = {name: shape for name, shape in SPACE.items() if not name.startswith("ffn")}
PLAIN = {"ffn_up.weight": "EF", "ffn_down.weight": "FE"}
PLAIN_EXPERTS = ROUTER | CHOICE | {"ffn_up_exps.weight": "ESX", "ffn_down_exps.weight": "SEX"}
PLAIN_EXPERTS |= {"ffn_up_shexp.weight": "ET", "ffn_down_shexp.weight": "TE"}
# What the experts read and write is narrower than a row.
NARROW_EXPERTS = PLAIN_EXPERTS | {"ffn_latent_down.weight": "Ee", "ffn_latent_up.weight": "eE"}
NARROW_EXPERTS |= {"ffn_up_exps.weight": "eSX", "ffn_down_exps.weight": "SeX"}
NEMOTRON_KEYS = SPACE_KEYS | {"attention.head_count_kv": [0, 0, KV_HEADS, 0, 0], "attention.layer_norm_epsilon": 1e-5}
NEMOTRON_MOE = experts(6, 2, 16) | {"expert_shared_feed_forward_length": 32, "expert_shared_count": 1}
NEMOTRON_MOE |= {"expert_weights_norm": True, "expert_weights_scale": 2.5, "expert_group_count": 1}
NEMOTRON_MOE |= {"feed_forward_length": [0, 16, 0, 0, 16]}


# Heads of a block that attends to all are twice as wide as those of one with a window, and there is one of keys.
GEMMA4 = NORMS | POST_NORMS | {"layer_output_scale.weight": "1"}
GEMMA4_WINDOW = GEMMA4 | ATTENTION | HEAD_NORMS
GEMMA4_FULL = GEMMA4 | {"attn_q.weight": "Ex", "attn_k.weight": "Ew", "attn_output.weight": "xE"}
GEMMA4_FULL |= {"attn_q_norm.weight": "w", "attn_k_norm.weight": "w"}
GEMMA4_BOTH = GATED | ROUTER | JOINED_EXPERTS | {"ffn_gate_inp.scale": "E", "ffn_down_exps.scale": "X"}
GEMMA4_BOTH |= {"post_ffw_norm_1.weight": "E", "pre_ffw_norm_2.weight": "E", "post_ffw_norm_2.weight": "E"}
GEMMA4_KEYS = {"attention.head_count_kv": [KV_HEADS] * 3 + [1], "attention.key_length": 2 * HEAD}
GEMMA4_KEYS |= {"attention.value_length": 2 * HEAD, "attention.key_length_swa": HEAD, "attention.value_length_swa": HEAD}
GEMMA4_KEYS |= {"rope.dimension_count": 2 * HEAD, "rope.dimension_count_swa": HEAD, "rope.freq_base": 1e6}
GEMMA4_KEYS |= {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True] * 3 + [False]}
GEMMA4_KEYS |= {"rope.freq_base_swa": 1e4, "final_logit_softcapping": 30.0}
GEMMA4_KEYS |= {"embedding_length_per_layer_input": 0, "attention.shared_kv_layers": 0}


# MiniMax M3: each KV head chooses the 3 of up to 6 blocks of 8 positions that it attends to. No dense block: with flash attention,
# without which llama.cpp attends to all, it rounds keys and values to F16 in those.
M3_SPARSE = NORMS | ATTENTION | HEAD_NORMS | {"indexer.q_proj.weight": "Ej", "indexer.k_proj.weight": "Ei", "indexer.q_norm.weight": "i"}
M3_SPARSE |= {"indexer.k_norm.weight": "i"} | ROUTER | CHOICE | EXPERTS | SHARED
M3_KEYS = {"head_count": KV_HEADS, "key_length": 32, "top_k": 3, "block_size": 8, "local_blocks": 1}
M3_KEYS = {f"attention.indexer.{key}": value for key, value in M3_KEYS.items()}
M3_KEYS |= {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.8, "expert_shared_count": 1}
# Gate and up so wide that a part of them meets the clamp at 7, down so narrow that the residual keeps its size.
WIDE = {"gate": 3.0, "up": 3.0, "down": 0.2}
M3_SCALES = {f"ffn_{name}{of}.weight": scale for name, scale in WIDE.items() for of in ("_exps", "_shexp")}

# Step 3.5: a gate for each head of what it attends; blocks with a window have more heads.
STEP = NORMS | ATTENTION | HEAD_NORMS | {"attn_gate.weight": "EH"}
STEP_WINDOW = STEP | {"attn_q.weight": "EU", "attn_output.weight": "UE", "attn_gate.weight": "Eu"}
STEP_EXPERTS = ROUTER | CHOICE | EXPERTS | SHARED
STEP_KEYS = {"attention.head_count": [HEADS] + [HEADS + KV_HEADS] * 2 + [HEADS] + [HEADS + KV_HEADS]}
STEP_KEYS |= {"attention.head_count_kv": [KV_HEADS] * 5, "attention.sliding_window": 8, "nextn_predict_layers": 1}
STEP_KEYS |= {"attention.sliding_window_pattern": [False, True, True, False, True], "rope.freq_base_swa": 100.0}
# Met by many: as wide as the products are, σ(x)·x is about 0.2, and what it is multiplied by about 1.
STEP_KEYS |= {"swiglu_clamp_exp": [0.0, 0.0, 0.0, 0.5, 0.0], "swiglu_clamp_shexp": [0.7, 0.0, 0.6, 0.8, 0.0]}
STEP_KEYS |= {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.8}
STEP_KEYS |= {"leading_dense_block_count": 2, "rope.freq_base": 500.0}


def gemma4(seed, ffn, **keys):
    """Three blocks with a window, then one that attends to all, a quarter of whose pairs are rotated."""
    return Model(
        "gemma4",
        seed,
        GEMMA4_WINDOW | ffn,
        GEMMA4_FULL | ffn,
        blocks=4,
        tied=True,
        keys=GEMMA4_KEYS | keys,
        whole={"rope_freqs.weight": "H"},
        fixed={"rope_freqs.weight": [1.0] * 4 + [1e30] * 12},
        # Scores are not scaled: with gains of one, a head would see one position alone. Those of experts are divided.
        scales={"attn_q_norm.weight": 0.5, "attn_k_norm.weight": 0.5, "ffn_gate_inp.weight": 17.0},
    )


# Gemma 4 E2B: each block takes in an embedding of its own, and the last three meet the keys and values of blocks 2 and 3.
PER_LAYER = {"inp_gate.weight": "Ey", "proj.weight": "yE", "post_norm.weight": "E"}
E2B_WINDOW = GEMMA4_WINDOW | PER_LAYER
E2B_FULL = GEMMA4_FULL | {"attn_v.weight": "Ew"} | PER_LAYER
WIDER = {"ffn_gate.weight": "EG", "ffn_up.weight": "EG", "ffn_down.weight": "GE"}
KEYS_VALUES = ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")
E2B_SHARING = {name: shape for name, shape in E2B_WINDOW.items() if name not in KEYS_VALUES} | WIDER
E2B_KEYS = {"feed_forward_length": [48] * 4 + [96] * 3, "attention.head_count_kv": [KV_HEADS] * 3 + [1, KV_HEADS, 1, KV_HEADS]}
E2B_KEYS |= {"attention.sliding_window_pattern": [True, True, True, False, True, False, True]}
E2B_KEYS |= {"embedding_length_per_layer_input": 16, "attention.shared_kv_layers": 3}


def nemotron(seed, ffn, arch="nemotron_h_moe", **keys):
    """A state space, a feed-forward half, attention, and the first two again, each alone in its block."""
    return Model(
        arch,
        seed,
        SPACE_ALONE,
        blocks=5,
        keys=NEMOTRON_KEYS | keys,
        other={1: ALONE | ffn, 2: ALONE | ATTENTION, 4: ALONE | ffn},
        scales=CHOICE_SCALES,
    )


# The seeds are chosen: no near tie among the experts or the greedy tokens, and little change when the cache is in F16.
MODELS = {
    "granitehybrid": Model(
        "granitehybrid",
        1,
        SPACE,
        LLAMA,
        blocks=4,
        width=32,
        tied=True,
        keys=SPACE_KEYS | GRANITE_KEYS | {"attention.head_count_kv": [0, 0, 0, KV_HEADS], "rope.scaling.finetuned": False},
    ),
    "granitehybrid-moe": Model(
        "granitehybrid",
        1379,
        SPACE_ALONE | {"ffn_norm.weight": "E"} | SHARED_SPARSE,
        NORMS | ATTENTION | SHARED_SPARSE,
        blocks=4,
        feed_forward=16,
        tied=True,
        keys=SPACE_KEYS
        | GRANITE_KEYS
        | SPARSE_KEYS
        | {"attention.head_count_kv": [0, 0, 0, KV_HEADS], "rope.scaling.finetuned": False},
    ),
    "nemotron_h": nemotron(
        10,
        PLAIN,
        "nemotron_h",
        **{"feed_forward_length": [0, 48, 0, 0, 48], "attention.layer_norm_rms_epsilon": None},
    ),
    "nemotron_h_moe": nemotron(3039, PLAIN_EXPERTS, **NEMOTRON_MOE),
    "nemotron_h_moe-latent": nemotron(316, NARROW_EXPERTS, **NEMOTRON_MOE | {"expert_count": 4, "moe_latent_size": 16}),
    "mistral3": Model(
        "mistral3",
        4,
        LLAMA,
        keys={"rope.freq_base": 100.0, "attention.temperature_scale": 0.4}
        | yarn(4.0, 16, yarn_beta_fast=1.0, yarn_beta_slow=0.1, yarn_log_multiplier=1.0),
    ),
    "llama4": Model(
        "llama4",
        27,
        NORMS | ATTENTION | ROUTER | EXPERTS | SHARED,
        blocks=4,
        keys=experts(4, 1, 16) | {"interleave_moe_layer_step": 2, "expert_shared_feed_forward_length": 16},
        other=dict.fromkeys((0, 2), LLAMA),
        whole={"rope_freqs.weight": "R"},
        fixed={"rope_freqs.weight": [1.0, 1.0, 1.2, 1.7, 3.0, 5.0, 8.0, 8.0]},
    ),
    "mistral4": Model(
        "mistral4",
        751,
        DEEPSEEK2 | ROUTER | JOINED_EXPERTS | SHARED,
        blocks=3,
        other={0: DEEPSEEK2 | GATED},
        rotary=8,
        keys=latent(24, 32, expert_shared_count=1, **experts(8, 3, 16))
        | {"rope.freq_base": 100.0, "expert_weights_norm": True}
        | {"attention.temperature_scale": 0.4, "attention.temperature_length": 16}
        | yarn(4.0, 16, yarn_log_multiplier=0.1),
    ),
    "gemma4": gemma4(3, GATED),
    "gemma4-moe": gemma4(66, GEMMA4_BOTH, **experts(4, 2, 16)),
    "gemma4-e2b": Model(
        "gemma4",
        8,
        E2B_WINDOW | GATED,
        blocks=7,
        tied=True,
        keys=GEMMA4_KEYS | E2B_KEYS,
        # A file may have what would make keys and values where nothing does.
        other={3: E2B_FULL | GATED, 4: E2B_SHARING, 5: E2B_FULL | WIDER, 6: E2B_SHARING},
        whole={"rope_freqs.weight": "H", "per_layer_token_embd.weight": "zV", "per_layer_model_proj.weight": "Ez"}
        | {"per_layer_proj_norm.weight": "y"},
        fixed={"rope_freqs.weight": [1.0] * 4 + [1e30] * 12},
        scales={"attn_q_norm.weight": 0.5, "attn_k_norm.weight": 0.5, "per_layer_token_embd.weight": 2.0},
    ),
    "minimax-m3": Model(
        "minimax-m3",
        640,
        M3_SPARSE,
        rotary=8,
        keys=M3_KEYS | experts(4, 2, 16),
        scales=CHOICE_SCALES | M3_SCALES,
    ),
    "step35": Model(
        "step35",
        1421,
        STEP | STEP_EXPERTS,
        blocks=5,
        keys=STEP_KEYS | SHARED_EXPERT | experts(6, 2, 16),
        other={0: STEP | GATED, 1: STEP_WINDOW | GATED, 2: STEP_WINDOW | STEP_EXPERTS}
        | {4: STEP_WINDOW | GATED | NEXTN},
        whole={"rope_freqs.weight": "R"},
        fixed={"rope_freqs.weight": [1.0, 1.5, 3.0, 8.0, 1.0, 1.0, 1.0, 1.0]},
        scales=CHOICE_SCALES | {"attn_gate.weight": 2.0},
    ),
    "qwen3next": Model(
        "qwen3next",
        10,
        DELTA | {"ssm_ba.weight": "EM"} | SHARED_SPARSE,
        GATED_ATTENTION | SHARED_SPARSE,
        **GATED_DELTA,
        tied=True,
        keys=DELTA_KEYS | SPARSE_KEYS,
    ),
    "qwen35": Model(
        "qwen35", 2, DELTA_APART | GATED, GATED_ATTENTION | GATED, **GATED_DELTA, keys=DELTA_KEYS | SECTIONS
    ),
    "qwen35moe": Model(
        "qwen35moe",
        12,
        DELTA_APART | SHARED_SPARSE,
        GATED_ATTENTION | SHARED_SPARSE,
        **GATED_DELTA,
        tied=True,
        keys=DELTA_KEYS | SECTIONS | SPARSE_KEYS,
    ),
    "qwen2moe": Model("qwen2moe", 112, QWEN2MOE, width=64, keys=experts(6, 3, 16) | SHARED_EXPERT),
    "starcoder2": Model(
        "starcoder2",
        40,
        {"attn_norm.bias": "E", "ffn_norm.bias": "E", "attn_output.bias": "E"}
        | {"ffn_up.weight": "EF", "ffn_up.bias": "F", "ffn_down.weight": "FE", "ffn_down.bias": "E"}
        | (NORMS | ATTENTION | QKV_BIASES),
        width=64,
        feed_forward=96,
        tied=True,
        keys={"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5},
        whole={"output_norm.bias": "E"},
        # As large as elsewhere, these would make one token win everywhere.
        scales={"output_norm.bias": 0.15, "ffn_down.bias": 0.15, "attn_output.bias": 0.2},
    ),
    "glm4": Model("glm4", 35, NORMS | POST_NORMS | ATTENTION | QKV_BIASES | FUSED, rotary=8),
    "seed_oss": Model(
        "seed_oss",
        160,
        {"attn_norm.weight": "E", "post_attention_norm.weight": "E"} | ATTENTION | QKV_BIASES | GATED,
    ),
    "smollm3": Model("smollm3", 147, LLAMA, blocks=4, tied=True),
    "gpt-oss": Model(**GPT_OSS),
    "gpt-oss-mxfp4": Model(**GPT_OSS, packed=True),
    "glm4moe": Model(
        "glm4moe",
        276,
        GLM4_MOE_EXPERTS,
        blocks=3,
        rotary=8,
        keys=experts(6, 2, 16) | DEEPSEEK_ROUTER | {"nextn_predict_layers": 1},
        other={0: GLM4_MOE | GATED, 2: GLM4_MOE_EXPERTS | NEXTN},
        scales=CHOICE_SCALES,
    ),
    "minimax-m2": Model(
        "minimax-m2",
        1282,
        NORMS | ATTENTION | ROW_NORMS | ROUTER | CHOICE | EXPERTS,
        feed_forward=16,
        rotary=8,
        keys=experts(6, 2, 16) | {"expert_gating_func": 2},
        scales=CHOICE_SCALES,
    ),
    "ernie4_5-moe": Model(
        "ernie4_5-moe",
        160,
        NORMS | ATTENTION | ROUTER | CHOICE | EXPERTS | SHARED,
        tied=True,
        keys=experts(6, 2, 16) | SHARED_EXPERT | {"interleave_moe_layer_step": 1, "leading_dense_block_count": 1},
        other={0: NORMS | ATTENTION | GATED},
        scales=CHOICE_SCALES,
    ),
    "ernie4_5": Model("ernie4_5", 4, LLAMA, tied=True),
    "dots1": Model(
        "dots1",
        110,
        NORMS | ATTENTION | HEAD_NORMS | ROUTER | CHOICE | EXPERTS | SHARED,
        keys=experts(6, 2, 16) | DEEPSEEK_ROUTER | {"attention.head_count_kv": HEADS, "expert_shared_count": 2},
        other={0: NORMS | ATTENTION | HEAD_NORMS | GATED},
        scales=CHOICE_SCALES,
    ),
    "bailingmoe2": Model(
        "bailingmoe2",
        456,
        BAILING | ROUTER | CHOICE | EXPERTS | SHARED,
        width=64,
        feed_forward=32,
        rotary=8,
        keys=experts(9, 3, 16) | DEEPSEEK_ROUTER | {"expert_group_count": 3, "expert_group_used_count": 2},
        other={0: BAILING | GATED},
        scales=CHOICE_SCALES,
    ),
    "hunyuan-moe": Model(
        "hunyuan-moe",
        297,
        NORMS | ATTENTION | HEAD_NORMS | ROUTER | EXPERTS | SHARED,
        feed_forward=16,
        tied=True,
        keys=experts(6, 2, 16) | SHARED_EXPERT,
    ),
    "hunyuan-dense": Model("hunyuan-dense", 2, LLAMA | HEAD_NORMS, tied=True),
    "granitemoe": Model(
        "granitemoe",
        6,
        NORMS | ATTENTION | ROUTER | EXPERTS | SHARED,
        feed_forward=16,
        tied=True,
        keys=experts(6, 2, 16) | SHARED_EXPERT | GRANITE,
    ),
    "olmoe": Model(
        "olmoe",
        17,
        NORMS | ATTENTION | ROW_NORMS | ROUTER | EXPERTS,
        width=64,
        feed_forward=16,
        keys=experts(4, 2, 16) | {"attention.head_count_kv": HEADS},
    ),
    "command-r": Model("command-r", 7, PARALLEL, width=64, tied=True, keys=LAYER_NORM | {"logit_scale": 0.5}),
    "cohere2": Model(
        "cohere2",
        10,
        PARALLEL,
        blocks=4,
        width=64,
        feed_forward=16,
        tied=True,
        keys=LAYER_NORM | {"logit_scale": 0.5, "attention.sliding_window": 8},
    ),
    "exaone4": Model("exaone4", 8, POST_NORMS | ATTENTION | HEAD_NORMS | GATED, width=64, tied=True),
    "exaone-moe": Model(
        "exaone-moe",
        515,
        NORMS | ATTENTION | HEAD_NORMS | ROUTER | CHOICE | EXPERTS | SHARED,
        blocks=4,
        feed_forward=32,
        keys=experts(6, 2, 16)
        | DEEPSEEK_ROUTER
        | SHARED_EXPERT
        | {"attention.sliding_window": 8, "leading_dense_block_count": 3},
        other=dict.fromkeys(range(3), NORMS | ATTENTION | HEAD_NORMS | GATED),
        scales=CHOICE_SCALES,
    ),
    "deepseek": Model(
        "deepseek",
        59,
        NORMS | ATTENTION | ROUTER | EXPERTS | SHARED,
        width=64,
        tied=True,
        keys=experts(6, 3, 16) | {"expert_shared_count": 2, "leading_dense_block_count": 1},
        other={0: NORMS | ATTENTION | GATED},
    ),
    "bailingmoe": Model(
        "bailingmoe",
        268,
        NORMS | ATTENTION | ROUTER | EXPERTS | SHARED,
        keys=experts(6, 2, 16) | {"expert_shared_count": 2, "expert_weights_norm": True},
    ),
    "gemma": Model("gemma", 4, LLAMA, tied=True),
    "qwen3vl": Model("qwen3vl", 5, LLAMA | HEAD_NORMS, tied=True, keys={"rope.dimension_sections": [3, 3, 2, 0]}),
    "qwen3vlmoe": Model(
        "qwen3vlmoe",
        10,
        NORMS | ATTENTION | HEAD_NORMS | ROUTER | EXPERTS,
        tied=True,
        keys=experts(6, 2, 16) | {"rope.dimension_sections": [3, 3, 2, 0]},
    ),
    "llama-yarn": Model("llama", 120, LLAMA, tied=True, keys=LLAMA_YARN),
    "llama-linear": Model("llama", 140, LLAMA, tied=True, keys=scaling(type="linear", factor=4.0)),
    "deepseek2-lite": Model(**LITE, keys=LITE_KEYS),
    "deepseek2-lite-joined": Model(**LITE, keys=joined(LITE_KEYS), joined=True),
    "deepseek2": Model(
        "deepseek2",
        204,
        DEEPSEEK2 | ROUTER | {"exp_probs_b.bias": "X"} | EXPERTS | SHARED,
        blocks=3,
        other={0: DEEPSEEK2 | GATED},
        rotary=8,
        keys=latent(24, 32, expert_shared_count=1, **experts(8, 3, 16), **SIGMOID_GROUPS)
        | {"rope.freq_base": 100.0}
        | yarn(4.0, 32, yarn_log_multiplier=0.1),
    ),
    "deepseek32": Model(
        "deepseek32",
        1648,
        INDEXED | ROUTER | CHOICE | EXPERTS | SHARED,
        blocks=3,
        other=dict.fromkeys(range(2), INDEXED | GATED),
        rotary=8,
        keys=latent(24, 32, expert_shared_count=1, **experts(8, 3, 16), **SIGMOID_GROUPS)
        | INDEXER_KEYS
        | {"rope.freq_base": 100.0, "leading_dense_block_count": 2}
        | yarn(4.0, 32, yarn_log_multiplier=0.1),
        scales=CHOICE_SCALES,
    ),
    "glm-dsa": Model(
        "glm-dsa",
        872,
        INDEXED | ROUTER | CHOICE | EXPERTS | SHARED,
        blocks=4,
        other=dict.fromkeys((0, 2), INDEXED | GATED) | {1: DEEPSEEK2 | GATED},
        rotary=8,
        keys=latent(24, 32, expert_shared_count=1, **experts(6, 2, 16), **INDEXER_KEYS)
        | {"expert_weights_norm": True, "expert_weights_scale": 2.5, "leading_dense_block_count": 3}
        | {"attention.indexer.types": [True, False, True, True]},
        # Less sharp than elsewhere: what an f16 costs grows from block to block.
        scales=CHOICE_SCALES | {"attn_q_b.weight": 0.5},
    ),
    "kimi-linear": Model(
        "kimi-linear",
        3888,
        KDA | ROUTER | CHOICE | EXPERTS | SHARED,
        DEEPSEEK2_LITE | ROUTER | CHOICE | EXPERTS | SHARED,
        blocks=4,
        other=dict.fromkeys(range(2), KDA | GATED),
        rotary=8,
        keys=latent(None, 32, expert_shared_count=1, **experts(6, 2, 16), **KDA_KEYS)
        | {"attention.head_count_kv": [0, 0, 0, 1], "leading_dense_block_count": 2},
        scales=CHOICE_SCALES,
    ),
    "phi3-longrope": Model(
        "phi3",
        129,
        NORMS | {"attn_qkv.weight": "EP", "attn_output.weight": "QE"} | FUSED,
        width=64,
        rotary=12,
        context=512,
        tied=True,
        keys={"attention.sliding_window": 8} | scaling(original_context_length=256, attn_factor=1.0606602),
        whole={"rope_factors_long.weight": "R", "rope_factors_short.weight": "R"},
        fixed={
            "rope_factors_long.weight": [1.1, 1.6, 2.7, 4.9, 8.8, 15.5],
            "rope_factors_short.weight": [1.0, 1.05, 1.2, 1.35, 1.8, 2.2],
        },
    ),
}
# Types that quant-base is quantised to, and llama.cpp's number for such a file.
QUANTISED = {
    "MXFP4": 38,
    "IQ1_S": 24,
    "IQ1_M": 31,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "IQ2_S": 28,
    "IQ3_XXS": 23,
    "IQ3_S": 26,
    "NVFP4": 39,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "Q1_0": 40,
}
QUANTS = [f"quant-{name}" for name in QUANTISED]
# Further references of a file, for the length of context given: that is by what llama.cpp chooses the factors.
CONTEXTS = {"phi3-longrope": {"phi3-longrope-short": 256}}


def finish(writer):
    """Writes what was added and closes the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy(source, target, store, **changed):
    """Copies a GGUF, its tensors stored by `store(writer, tensor)`, with some values of its metadata changed."""
    reader = gguf.GGUFReader(source)
    values = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    writer = gguf.GGUFWriter(target, values.pop("general.architecture").contents())
    for key, entry in values.items():
        inner = entry.types[1] if len(entry.types) > 1 else None
        name = key.split(".")[-1]
        writer.add_key_value(key, changed.pop(name, entry.contents()), entry.types[0], inner)
    for name, value in changed.items():
        writer.add_uint32(f"general.{name}", value)
    for tensor in reader.tensors:
        store(writer, tensor)
    finish(writer)


def in_f32(writer, tensor):
    """Stores a tensor's values as F32."""
    if tensor.tensor_type == Type.Q1_0:
        # The Python package does not dequantise it: an F16, and a bit for each of 128 elements.
        blocks = tensor.data.reshape(-1, 18)
        signs = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32) * 2 - 1
        values = (signs * blocks[:, :2].copy().view(np.float16).astype(np.float32)).reshape(len(tensor.data), -1)
    else:
        values = dequantize(tensor.data, tensor.tensor_type)
    writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))


def quantised(dtype):
    """What stores a matrix in `dtype`, a vector as it is."""

    def store(writer, tensor):
        if tensor.data.ndim == 1:
            return writer.add_tensor(tensor.name, tensor.data)
        data = quantize(tensor.data, dtype) if dtype == Type.MXFP4 else quantised_by_ggml(tensor.data, dtype)
        return writer.add_tensor(tensor.name, data, raw_dtype=dtype)

    return store


def ggml():
    """The library in which llama.cpp quantises."""
    import llama_cpp

    return ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))


def quantised_by_ggml(values, dtype):
    """A matrix's rows in `dtype`, every column of them as important as the others."""
    values = np.ascontiguousarray(values, np.float32)
    rows, cols = values.shape
    length, size = gguf.GGML_QUANT_SIZES[dtype]
    data, importance = np.zeros((rows, cols // length * size), np.uint8), np.ones(cols, np.float32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (values, data, importance)]
    counts = [ctypes.c_int64(count) for count in (0, rows, cols)]
    written = ggml().ggml_quantize_chunk(ctypes.c_int(dtype), *pointers[:2], *counts, pointers[2])
    assert written == data.nbytes, f"{dtype.name}: {written} bytes instead of {data.nbytes}"
    return data


@functools.cache
def engine():
    """llama.cpp, made quiet."""
    import llama_cpp as cpp

    cpp.quiet = cpp.llama_log_callback(lambda level, text, data: None)
    cpp.llama_log_set(cpp.quiet, ctypes.c_void_p())
    cpp.llama_backend_init()
    return cpp


class Choices:
    """How near a run's routers came to another choice: the least distance between the last that was chosen and the first
    that was not, among experts and among groups, in what they are chosen by."""

    # In the order of computing: the last one that a graph has is what it chooses by.
    NAMES = ["ffn_moe_logits", "ffn_moe_logits_biased", "ffn_moe_probs_biased", "ffn_moe_probs_masked"]
    # Of positions, or of blocks of them, where only some are attended to; those behind a row are masked.
    SCORES = ["indexer_score", "msa_bs"]

    def __init__(self, path):
        fields = gguf.GGUFReader(path).fields
        keys = {name.split(".", 1)[1]: entry.contents() for name, entry in fields.items() if "." in name}
        self.experts, self.used = keys.get("expert_count"), keys.get("expert_used_count")
        self.groups, self.groups_used = keys.get("expert_group_count"), keys.get("expert_group_used_count")
        # A row's last blocks are always among the chosen.
        self.always = keys.get("attention.indexer.local_blocks", 0)
        self.positions = keys.get("attention.indexer.top_k", 0) - self.always
        self.least, self.least_position, self.seen = np.inf, np.inf, {}
        libraries = os.environ.get("LLAMA_CPP_LIB_PATH", Path(engine().__file__).parent / "lib")
        self.base = ctypes.CDLL(str(Path(libraries) / "libggml-base.so"))
        self.base.ggml_get_name.restype, self.base.ggml_nbytes.restype = ctypes.c_char_p, ctypes.c_size_t
        self.callback = engine().ggml_backend_sched_eval_callback(self.see)

    def see(self, tensor, before, _):
        """Told of each tensor before and after it is computed; says before whether it wants to see it."""
        name, _, layer = self.base.ggml_get_name(ctypes.c_void_p(tensor)).decode().rpartition("-")
        wanted = name in [*self.NAMES, *self.SCORES] and layer.isdigit()
        if before or not wanted:
            return wanted
        values = np.empty(self.base.ggml_nbytes(ctypes.c_void_p(tensor)) // 4, np.float32)
        self.base.ggml_backend_tensor_get(
            ctypes.c_void_p(tensor), values.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(0), ctypes.c_size_t(values.nbytes)
        )
        if name in self.SCORES:
            # A row's length is the first of the sizes, which stand behind the type and a pointer.
            self.score(values.reshape(-1, ctypes.c_int64.from_address(tensor + 16).value))
            return True
        if name == self.NAMES[0]:
            self.count(self.seen.pop(layer, []))
        self.seen.setdefault(layer, []).append(values)
        return True

    def count(self, seen):
        """Takes in one layer's values, which are those of whole rows."""
        if not seen:
            return
        *before, rows = [values.reshape(-1, self.experts) for values in seen]
        self.near(rows, self.used)
        if (self.groups or 1) > 1:
            best = np.sort(before[-1].reshape(len(rows), self.groups, -1))[:, :, -2:].sum(2)
            self.near(best, self.groups_used)

    def near(self, rows, used):
        """Takes in rows of values of which the `used` highest are chosen."""
        ordered = np.sort(rows)[:, ::-1]
        self.least = min(self.least, float((ordered[:, used - 1] - ordered[:, used]).min()))

    def score(self, rows):
        """Takes in rows of scores of positions or blocks, as a share of the range of each row's."""
        for row in rows:
            # What is masked is infinite, or the least number that there is.
            seen = row[row > np.finfo(np.float32).min]
            seen = np.sort(seen[: len(seen) - self.always])[::-1]
            if self.positions < len(seen) < len(row):
                apart = (seen[self.positions - 1] - seen[self.positions]) / (seen[0] - seen[-1])
                self.least_position = min(self.least_position, float(apart))

    def finish(self):
        """The least distances of all, or nothing where nothing was chosen."""
        for layer in list(self.seen):
            self.count(self.seen.pop(layer))
        experts = f"  choice {self.least:.4f}" if np.isfinite(self.least) else ""
        return experts + (f"  position {self.least_position:.5f}" if np.isfinite(self.least_position) else "")


class Run:
    """A model in llama.cpp, in F32 throughout or as people run it."""

    def __init__(self, path, context=0, exact=True, pooling=None):
        self.cpp = cpp = engine()
        self.choices = Choices(path)
        self.model = cpp.llama_model_load_from_file(str(path).encode(), cpp.llama_model_default_params())
        settings = cpp.llama_context_default_params()
        settings.n_ctx = context
        settings.n_threads = settings.n_threads_batch = 1
        # Without it, llama.cpp attends to all blocks; exact is what it computes of keys and values in F32.
        settings.flash_attn_type = 0 if exact and not self.choices.always else 1
        settings.cb_eval = self.choices.callback
        if pooling is not None:
            settings.embeddings, settings.pooling_type = True, pooling
        settings.type_k = settings.type_v = cpp.GGML_TYPE_F32 if exact else cpp.GGML_TYPE_F16
        self.state = cpp.llama_init_from_model(self.model, settings)
        assert self.state, f"llama.cpp does not take {path}"
        self.vocab = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self.model))

    def decode(self, ids, position):
        """Computes rows of ids, fed at `position` and on."""
        batch = self.cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position + i, 1, 1
            batch.seq_id[i][0] = 0
        assert self.cpp.llama_decode(self.state, batch) == 0
        self.cpp.llama_batch_free(batch)

    def logits(self, ids, position):
        """The logits after each of these."""
        self.decode(ids, position)
        rows = [self.cpp.llama_get_logits_ith(self.state, i) for i in range(len(ids))]
        return np.array([np.ctypeslib.as_array(row, (self.vocab,)) for row in rows])

    def vector(self, ids):
        """What a prompt is pooled to, in length 1."""
        self.cpp.llama_memory_clear(self.cpp.llama_get_memory(self.state), True)
        self.decode(ids, 0)
        width = self.cpp.llama_model_n_embd(self.model)
        vector = np.ctypeslib.as_array(self.cpp.llama_get_embeddings_seq(self.state, 0), (width,)).astype(np.float64)
        return [round(float(value), 7) for value in vector / np.linalg.norm(vector)]

    def result(self, prompt):
        """One prompt's entry in the JSON."""
        ids = prompt["ids"]
        self.cpp.llama_memory_clear(self.cpp.llama_get_memory(self.state), True)
        rows = self.logits(ids, 0)
        shifted = rows.astype(np.float64) - rows.max(1, keepdims=True)
        logprobs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        scores = [logprobs[i, token] for i, token in enumerate(ids[1:])]
        top = [int(token) for token in np.argsort(-rows[-1], kind="stable")[:TOP]]
        row, greedy, margins = rows[-1], [], []
        for step in range(GREEDY_STEPS):
            first, second = np.argsort(-row, kind="stable")[:2]
            greedy.append(int(first))
            margins.append(round(float(row[first]) - float(row[second]), 4))
            row = self.logits(greedy[-1:], len(ids) + step)[0]
        return {
            "id": prompt["id"],
            "tokens": ids,
            "token_logprobs": [round(float(score), 5) for score in scores],
            "mean_nll": float(-np.mean(scores)) if scores else 0.0,
            "last_top20": [{"id": t, "logit": float(rows[-1, t]), "logprob": float(logprobs[-1, t])} for t in top],
            "greedy": greedy,
            "greedy_margin": margins,
            "greedy_text": "",
            "ended": False,
        }

    def results(self, prompts):
        """Every prompt's entry; frees the model."""
        entries = [self.result(prompt) for prompt in prompts]
        self.cpp.llama_free(self.state)
        self.cpp.llama_model_free(self.model)
        return {"prompts": entries}


def truth(path, context, prompts):
    """The reference for a file, and how near its routers' choices were."""
    with tempfile.NamedTemporaryFile(suffix=".gguf") as plain:
        copy(path, plain.name, in_f32)
        run = Run(plain.name, context)
        return run.results(prompts), run.choices.finish()


def distance(reference, other):
    """Mean and largest |Δ token_logprob|, largest |Δ logit| in the top's range, largest margin overturned."""
    scores, share, margin = [0.0], 0.0, 0.0
    for one, two in zip(reference["prompts"], other["prompts"], strict=True):
        scores += [abs(a - b) for a, b in zip(one["token_logprobs"], two["token_logprobs"], strict=True)]
        logits = {entry["id"]: entry["logit"] for entry in two["last_top20"]}
        top = one["last_top20"]
        apart = max(abs(entry["logit"] - logits[entry["id"]]) for entry in top if entry["id"] in logits)
        share = max(share, apart / (top[0]["logit"] - top[-1]["logit"]))
        steps = zip(one["greedy"], two["greedy"], one["greedy_margin"], strict=True)
        margin = max(margin, next((m for a, b, m in steps if a != b), 0.0))
    return f"d {np.mean(scores[1:]):.5f}  largest {max(scores):.5f}  share {share:.5f}  overturned {margin:.2f}"


def refer(folder, name, prompts):
    """Writes a file's references and prints llama.cpp's own distance from them."""
    path = folder / f"{name}.gguf"
    for label, context in {name: 0, **CONTEXTS.get(name, {})}.items():
        reference, choices = truth(path, context, prompts)
        (folder / f"{label}.json").write_text(json.dumps(reference, indent=1) + "\n")
        margin = min(min(prompt["greedy_margin"]) for prompt in reference["prompts"])
        apart = distance(reference, Run(path, context, exact=False).results(prompts))
        print(f"{label:20} {apart}  margin {margin:.3f}{choices}")


def write_vectors(folder, prompts):
    """Writes what prompts become as vectors, by each kind of pooling."""
    cpp, vectors = engine(), {}
    kinds = {"mean": cpp.LLAMA_POOLING_TYPE_MEAN, "first": cpp.LLAMA_POOLING_TYPE_CLS, "last": cpp.LLAMA_POOLING_TYPE_LAST}
    for name in VECTORS:
        runs = {kind: Run(folder / f"{name}.gguf", pooling=pooling) for kind, pooling in kinds.items()}
        vectors[name] = [
            {"tokens": prompt["ids"]} | {kind: run.vector(prompt["ids"]) for kind, run in runs.items()}
            for prompt in prompts
        ]
    (folder.parent / "vectors.json").write_text(json.dumps(vectors) + "\n")


def check(folder, name, prompts):
    """Prints how far a JSON that is there is from a new run of either kind."""
    reference, path = json.loads((folder / f"{name}.json").read_text()), folder / f"{name}.gguf"
    print(f"{name:20} exact: {distance(reference, truth(path, 0, prompts)[0])}")
    print(f"{name:20} usual: {distance(reference, Run(path, exact=False).results(prompts))}")


def main():
    """Reads the arguments and does what they say."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--only", nargs="+", default=[*MODELS, *QUANTS], metavar="NAME")
    arguments.add_argument("--reference", action="store_true")
    arguments.add_argument("--check", nargs="+", default=[], metavar="NAME")
    arguments.add_argument("--vectors", action="store_true")
    given = arguments.parse_args()
    prompts = [json.loads(line) for line in (given.folder / "prompts.jsonl").read_text().splitlines()]
    if given.vectors:
        write_vectors(given.folder, prompts)
        return
    for name in given.check:
        check(given.folder, name, prompts)
    for name in [] if given.check else given.only:
        path = given.folder / f"{name}.gguf"
        if name in QUANTS:
            dtype = name.removeprefix("quant-")
            changed = {"file_type": QUANTISED[dtype], "quantization_version": 2}
            copy(given.folder / "quant-base.gguf", path, quantised(Type[dtype]), **changed)
        else:
            MODELS[name].write(path, name)
        if given.reference:
            refer(given.folder, name, prompts)


if __name__ == "__main__":
    main()
