#!/usr/bin/env python3
"""Makes tiny random models (GGUF) and what llama.cpp computes for them (JSON), in the form of tests/golden/tiny.

    pip install numpy==2.4.6 gguf==0.19.0 llama-cpp-python==0.3.36
    scripts/golden-tiny.py tests/golden/tiny                   the GGUFs alone (needs numpy and gguf)
    scripts/golden-tiny.py tests/golden/tiny --reference       and the JSONs
    scripts/golden-tiny.py tests/golden/tiny --check llama     how far JSONs that are there are from a new run
    scripts/golden-tiny.py DIR --only gpt-oss phi3-longrope    some models

A reference is the truth of the file: matrices dequantised to F32, F32 cache, no flash attention, one thread, the
prompt in one batch, then greedy steps of one token. Beside each, the script prints how far llama.cpp is when run as
people run it (the file as it is, F16 cache, flash attention). The models quant-TYPE are made of DIR/quant-base.gguf; all
types but MXFP4 are quantised by llama.cpp's own code, which they therefore need too.
"""

import argparse
import ctypes
import functools
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

GREEDY_STEPS, TOP = 8, 20
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
SHARED = {"ffn_gate_shexp.weight": "ET", "ffn_up_shexp.weight": "ET", "ffn_down_shexp.weight": "TE"}
SHARED |= {"ffn_gate_inp_shexp.weight": "E"}

# Standard deviations: of a bias and of a norm's gain about 1, and, times sqrt(inputs), of the matrices that are not 1.
BIAS, GAIN = 0.4, 0.2
SCALES = {"output.weight": 2.0, "ffn_gate_inp.weight": 3.0, "ffn_gate_inp_shexp.weight": 2.0}
TIED_EMBEDDING = 1.6


@dataclass(frozen=True)
class Model:
    """A family's shape: `keys` stand below the architecture's name, `block` tensors in each block (but `fourth` in every
    fourth, where given), `whole` once."""

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
    whole: dict = field(default_factory=dict)
    scales: dict = field(default_factory=dict)
    fixed: dict = field(default_factory=dict)
    grid: str | None = None
    packed: bool = False

    def sizes(self):
        """What the letters of the shapes mean."""
        q, k, f = HEADS * HEAD, KV_HEADS * HEAD, self.feed_forward
        sizes = {"V": VOCAB, "E": self.width, "Q": q, "K": k, "P": q + 2 * k, "H": HEADS, "F": f, "G": 2 * f}
        # The heads of q, k and v in a block with a state are as wide as those of its attention.
        sizes |= {"J": 2 * q, "Y": HEAD, "A": TAPS, "C": (2 * KEY_HEADS + VALUE_HEADS) * HEAD, "D": VALUE_HEADS * HEAD}
        sizes |= {"M": 2 * VALUE_HEADS, "N": VALUE_HEADS, "1": 1, "2": GROUPS}
        space = (VALUE_HEADS + 2 * GROUPS) * HEAD
        sizes |= {"W": space, "I": VALUE_HEADS * HEAD + space + VALUE_HEADS, "Z": VALUE_HEADS * HEAD // GROUPS}
        keys = {"X": "expert_count", "S": "expert_feed_forward_length", "T": "expert_shared_feed_forward_length"}
        return sizes | {"R": self.rotary // 2} | {letter: self.keys.get(key) for letter, key in keys.items()}

    def shapes(self):
        """Every tensor's name and shape, in the file's order."""
        whole = ENDS | ({} if self.tied else {"output.weight": "EV"}) | self.whole
        block = lambda i: self.fourth if self.fourth and i % 4 == 3 else self.block
        blocks = {f"blk.{i}.{name}": shape for i in range(self.blocks) for name, shape in block(i).items()}
        sizes = self.sizes()
        return {name: [sizes[letter] for letter in shape] for name, shape in (whole | blocks).items()}

    def values(self):
        """Every tensor's values, seeded, in numpy's order (input last)."""
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
            return 1.0, GAIN
        if stem == "attn_sinks.weight":
            return 1.0, 1.0
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
            add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32, list: writer.add_array}
            add |= {bool: writer.add_bool}
            add = add[type(value)]
            add(f"{self.arch}.{key}", value)
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


def scaling(**keys):
    """The keys of a rope's scaling."""
    return {f"rope.scaling.{key}": value for key, value in keys.items()}


def yarn(factor, original, **more):
    """The keys of YaRN scaling."""
    return scaling(type="yarn", factor=factor, original_context_length=original, **more)


def experts(count, used, width):
    """The keys of a mixture of experts."""
    return {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": width}


LLAMA = NORMS | ATTENTION | GATED
# In an architecture llama, the keys with yarn_ are what converters write and llama.cpp does not read.
LLAMA_YARN = {"rope.freq_base": 500.0}
LLAMA_YARN |= yarn(4.0, 512, attn_factor=0.9, yarn_attn_factor=1.5, yarn_beta_fast=8.0, yarn_beta_slow=2.0)
QWEN2MOE = NORMS | ATTENTION | QKV_BIASES | ROUTER | EXPERTS | SHARED
SHARED_EXPERT = {"expert_shared_feed_forward_length": 32}
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
# A state space; its B and C are as long as a head of attention.
SPACE_IN = {"ssm_in.weight": "EI", "ssm_conv1d.weight": "AW", "ssm_conv1d.bias": "W", "ssm_dt.bias": "N"}
SPACE = NORMS | GATED | SPACE_IN | {"ssm_a": "1N", "ssm_d": "1N", "ssm_norm.weight": "Z2", "ssm_out.weight": "DE"}
SPACE_KEYS = {"ssm.conv_kernel": TAPS, "ssm.state_size": HEAD, "ssm.group_count": GROUPS}
SPACE_KEYS |= {"ssm.time_step_rank": VALUE_HEADS, "ssm.inner_size": VALUE_HEADS * HEAD}
GRANITE_KEYS = {"embedding_scale": 2.0, "residual_scale": 0.6, "attention.scale": 0.2, "logit_scale": 1.5}
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
    "llama-yarn": Model("llama", 120, LLAMA, tied=True, keys=LLAMA_YARN),
    "llama-linear": Model("llama", 140, LLAMA, tied=True, keys=scaling(type="linear", factor=4.0)),
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


class Run:
    """A model in llama.cpp, in F32 throughout or as people run it."""

    def __init__(self, path, context=0, exact=True):
        self.cpp = cpp = engine()
        self.model = cpp.llama_model_load_from_file(str(path).encode(), cpp.llama_model_default_params())
        settings = cpp.llama_context_default_params()
        settings.n_ctx = context
        settings.n_threads = settings.n_threads_batch = 1
        settings.flash_attn_type = 0 if exact else 1
        settings.type_k = settings.type_v = cpp.GGML_TYPE_F32 if exact else cpp.GGML_TYPE_F16
        self.state = cpp.llama_init_from_model(self.model, settings)
        assert self.state, f"llama.cpp does not take {path}"
        self.vocab = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self.model))

    def logits(self, ids, position):
        """The logits after each id, fed at `position` and on."""
        batch = self.cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position + i, 1, 1
            batch.seq_id[i][0] = 0
        assert self.cpp.llama_decode(self.state, batch) == 0
        rows = [self.cpp.llama_get_logits_ith(self.state, i) for i in range(len(ids))]
        rows = np.array([np.ctypeslib.as_array(row, (self.vocab,)) for row in rows])
        self.cpp.llama_batch_free(batch)
        return rows

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
    """The reference for a file."""
    with tempfile.NamedTemporaryFile(suffix=".gguf") as plain:
        copy(path, plain.name, in_f32)
        return Run(plain.name, context).results(prompts)


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
        reference = truth(path, context, prompts)
        (folder / f"{label}.json").write_text(json.dumps(reference, indent=1) + "\n")
        print(f"{label:20} {distance(reference, Run(path, context, exact=False).results(prompts))}")


def check(folder, name, prompts):
    """Prints how far a JSON that is there is from a new run of either kind."""
    reference, path = json.loads((folder / f"{name}.json").read_text()), folder / f"{name}.gguf"
    print(f"{name:20} exact: {distance(reference, truth(path, 0, prompts))}")
    print(f"{name:20} usual: {distance(reference, Run(path, exact=False).results(prompts))}")


def main():
    """Reads the arguments and does what they say."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--only", nargs="+", default=[*MODELS, *QUANTS], metavar="NAME")
    arguments.add_argument("--reference", action="store_true")
    arguments.add_argument("--check", nargs="+", default=[], metavar="NAME")
    given = arguments.parse_args()
    prompts = [json.loads(line) for line in (given.folder / "prompts.jsonl").read_text().splitlines()]
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
