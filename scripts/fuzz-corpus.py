#!/usr/bin/env python3
"""Makes the files in fuzz/corpus that fuzzers start from and that tests/corpora.rs replays.

    scripts/fuzz-corpus.py            writes all of them; files that fuzzers have found stay

A file whose name begins with `valid` must be accepted, one with `bad` must be refused; others must only cause no panic.
Needs nothing but Python. The layouts are those of docs/wire.md and of the GGUF specification.
"""

import struct
from pathlib import Path

CORPUS = Path(__file__).resolve().parent.parent / "fuzz" / "corpus"

# A ticket ends with a checksum by BLAKE3, which Python does not have: so it is written out here.
TICKET = (
    "qmesh1aeawgaaaaebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d5sgkzthnbuwu23mnvxg64drojzqbmz7oeaaaa"
    "aaaihdcojsfyyc4mroge5dinbtgmjfwmrqgaytuzdcha5dumk5hi2dimztrebwbta"
)


def text(value):
    """A string in GGUF and in a message: its length and its bytes."""
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def crc32c(data):
    """CRC-32C (Castagnoli), bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def gguf(keys, tensors=(), version=3, counts=None):
    """A header: `keys` are (name, type, bytes of the value), `tensors` (name, dimensions, type, offset)."""
    stated = counts or (len(tensors), len(keys))
    out = b"GGUF" + struct.pack("<IQQ", version, *stated)
    for name, kind, value in keys:
        out += text(name) + struct.pack("<I", kind) + value
    for name, dimensions, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        out += struct.pack("<IQ", kind, offset)
    return out + bytes(-len(out) % 32)


def llama():
    """The keys and tensors of a llama of one layer, with a vocabulary of 4."""
    number = lambda name, value: (f"llama.{name}", 4, struct.pack("<I", value))
    strings = lambda values: struct.pack("<IQ", 8, len(values)) + b"".join(text(value) for value in values)
    keys = [
        ("general.architecture", 8, text("llama")),
        number("block_count", 1),
        number("context_length", 64),
        number("embedding_length", 32),
        number("feed_forward_length", 32),
        number("attention.head_count", 2),
        ("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        ("tokenizer.ggml.model", 8, text("llama")),
        ("tokenizer.ggml.tokens", 9, strings(["<unk>", "<s>", "</s>", "a"])),
        ("tokenizer.ggml.scores", 9, struct.pack("<IQ4f", 6, 4, 0, 0, 0, 0)),
        ("tokenizer.ggml.token_type", 9, struct.pack("<IQ4i", 5, 4, 2, 3, 3, 1)),
    ]
    square = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes = [("token_embd.weight", [32, 4]), ("output_norm.weight", [32])]
    shapes += [(f"blk.0.{name}_norm.weight", [32]) for name in ["attn", "ffn"]]
    shapes += [(f"blk.0.{name}.weight", [32, 32]) for name in square]
    tensors = [(name, shape, 0, 4096 * i) for i, (name, shape) in enumerate(shapes)]
    return keys, tensors


def gguf_header():
    keys, tensors = llama()
    architecture = keys[0]
    whole = gguf(keys, tensors)
    boolean = ("a", 7, b"\2")
    nested = ("a", 9, struct.pack("<IQ", 9, 1) * 12 + struct.pack("<IQ", 4, 0))
    yield "valid-llama", whole
    yield "valid-vocabulary", gguf(keys)
    yield "valid-empty", gguf([architecture])
    yield "valid-unknown-family", gguf([("general.architecture", 8, text("nobody"))], tensors)
    yield "valid-text-that-is-not-utf8", gguf([architecture, ("general.name", 8, text(b"\xff\xfe"))])
    yield "bad-magic", b"GGML" + whole[4:]
    yield "bad-version", gguf(keys, version=1)
    yield "bad-torn-name", whole[:40]
    yield "bad-torn-tensors", whole[: len(whole) - 200]
    yield "bad-counts", gguf(keys, counts=(1 << 62, 1 << 62))
    yield "bad-text-length", gguf([("a", 8, struct.pack("<Q", 1 << 63))])
    yield "bad-array-length", gguf([("a", 9, struct.pack("<IQ", 8, 1 << 60))])
    yield "bad-nesting", gguf([nested])
    yield "bad-boolean", gguf([boolean])
    yield "bad-value-type", gguf([("a", 99, b"")])
    yield "bad-key-twice", gguf([architecture, architecture])
    yield "bad-alignment", gguf([architecture, ("general.alignment", 4, struct.pack("<I", 3))])
    yield "bad-dimension", gguf([architecture], [("a", [0, 1], 0, 0)])
    yield "bad-size", gguf([architecture], [("a", [1 << 40, 1 << 40], 0, 0)])
    yield "bad-overlap", gguf([architecture], [("a", [32], 0, 0), ("b", [32], 0, 32)])
    yield "bad-offset", gguf([architecture], [("a", [32], 0, 1 << 62)])
    yield "bad-empty", b""


def frame(kind=2, wire=0, flags=0, width=0, segments=((7, 3, 2, 1),), ids=(5, 6), crc=None, rows=None, payload=None):
    """The head of a frame; a segment is (session, position, rows, flags)."""
    bytes_per_row = 4 * width if kind == 1 else 0
    rows = len(ids) if rows is None else rows
    payload = bytes_per_row * rows % (1 << 32) if payload is None else payload
    head = struct.pack("<HBBHHIIIII", 0x514D, kind, wire, flags, len(segments), 9, 1, width, rows, payload)
    head += struct.pack("<5I", 0, 100, 50, 10, 0)
    for session, position, count, word in segments:
        head += struct.pack("<QIIIIQ", session, position, count, word, 0, 0x0123456789ABCDEF)
    head += b"".join(struct.pack("<I", token) for token in ids)
    head += bytes(-len(head) % 32)
    return head[:28] + struct.pack("<I", crc32c(head) if crc is None else crc) + head[32:]


def frame_head():
    yield "valid-tokens", frame()
    yield "valid-hidden", frame(kind=1, width=64)
    yield "valid-several-sequences", frame(segments=((7, 3, 1, 0), (8, 0, 2, 2)), ids=(5, 6, 7))
    yield "valid-end", frame(kind=5, segments=(), ids=())
    yield "valid-sums", frame(kind=4, segments=((7, 9, 0, 3), (8, 0, 1, 1)), ids=(5,), payload=20 + 16)
    yield "bad-sums", frame(kind=4, segments=((7, 9, 0, 3), (8, 0, 1, 1)), ids=(5,), payload=20 + 12)
    yield "bad-magic", b"xx" + frame()[2:]
    yield "bad-kind", frame(kind=9)
    yield "bad-wire-type", frame(wire=7)
    yield "bad-flags", frame(flags=0x80)
    yield "bad-checksum", frame(crc=1)
    yield "bad-rows", frame(rows=1 << 31)
    yield "bad-row-count", frame(segments=((7, 3, 5, 1),))
    yield "bad-position", frame(segments=((7, 0xFFFFFFFF, 2, 1),))
    yield "bad-payload", frame(kind=1, width=64, payload=12)
    yield "bad-width", frame(kind=1, width=1 << 30)
    yield "bad-torn", frame()[:50]
    yield "bad-longer", frame() + bytes(32)
    yield "bad-empty", b""


def message():
    number = lambda kind: struct.pack("<H", kind)
    hello = number(0) + struct.pack("<H", 3) + text("0.1.0") + struct.pack("<Q", 0) + text("attic") + text("linux x86_64")
    hello += text("1-abc") + struct.pack("<QI", 1 << 33, 4) + bytes(8) + bytes(32)
    welcome = number(1) + text("mesh") + text("attic")
    section = lambda tag, content: struct.pack("<HI", tag, len(content)) + content
    keep = number(16) + struct.pack("<IQI", 1, 7, 64)
    yield "valid-hello", hello
    yield "valid-welcome", welcome
    yield "valid-reject", number(2) + struct.pack("<I", 1) + text("another secret")
    yield "valid-linked", number(6) + struct.pack("<I", 1)
    yield "valid-close", number(10) + struct.pack("<IQ", 1, 7)
    yield "valid-keep", keep
    yield "valid-measured", number(18) + struct.pack("<QIQQ", 1, 8, 5000, 6000) + text("")
    yield "bad-measured-points", number(18) + struct.pack("<QI", 1 << 60, 8)
    mask = number(19) + struct.pack("<IIQI", 1, 2, 7, 64)
    yield "valid-mask-bits", mask + struct.pack("<IQ", 0, 3) + b"\1\2\3"
    yield "valid-mask-ids", mask + struct.pack("<IQ3I", 1, 3, 0, 7, 90000)
    yield "bad-mask-order", mask + struct.pack("<IQ2I", 1, 2, 7, 7)
    yield "bad-mask-ids", mask + struct.pack("<IQI", 1, 1, 1 << 31)
    yield "bad-mask-length", mask + struct.pack("<IQ", 0, 1 << 50)
    yield "valid-section-to-skip", keep + section(0x7000, b"whatever")
    yield "bad-section-to-understand", keep + section(0x7001, b"whatever")
    yield "bad-sections-out-of-order", keep + section(0x7002, b"") + section(0x7000, b"")
    yield "bad-section-length", keep + struct.pack("<HI", 0x7000, 1 << 31)
    yield "bad-type", number(999)
    yield "bad-optional-type", number(0x8001) + b"whatever"
    yield "bad-torn", hello[:30]
    yield "bad-trailing", keep + b"\0"
    yield "bad-code", number(2) + struct.pack("<I", 99) + text("")
    yield "bad-text-length", number(1) + struct.pack("<Q", 1 << 63)
    yield "bad-text", number(1) + text(b"\xff") + text("")
    yield "bad-load-hashes", number(3) + struct.pack("<IHH", 1, 0, 1) + bytes(32) + text("m") + struct.pack("<Q", 1 << 50)
    yield "bad-empty", b""


def ticket():
    yield "valid", TICKET
    yield "valid-pasted", f"“{TICKET[:40].upper()}\n {TICKET[40:]}”"
    yield "bad-checksum", TICKET[:-1] + ("a" if TICKET[-1] != "a" else "e")
    yield "bad-torn", TICKET[:60]
    yield "bad-version", "qmesh2" + TICKET[6:]
    yield "bad-character", TICKET[:20] + "1" + TICKET[21:]
    yield "bad-prefix-alone", "qmesh1"
    yield "bad-other-word", "qmeshed"
    yield "bad-utf8", b"qmesh1\xff\xfe"
    yield "bad-empty", ""


def chat_template():
    loop = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    yield "valid-loop", loop
    yield "valid-python", "{{ messages[0]['content'].strip().split(' ')[::-1] | join('_') | upper }}"
    yield "valid-namespace", "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    yield "valid-macro", "{% macro show(m) %}[{{ m.content }}]{% endmacro %}{% for m in messages %}{{ show(m) }}{% endfor %}"
    yield "valid-date", "{{ strftime_now('%Y-%m-%d') }}{{ messages | tojson }}"
    yield "bad-syntax", "{% for message in messages %}"
    yield "bad-raise", "{{ raise_exception('no') }}"
    yield "bad-doubling", "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
    yield "bad-repeat", "{{ 'x' * 1000000000000 }}"
    yield "bad-loops", "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}"
    yield "bad-recursion", "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}"
    yield "bad-nesting", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"
    yield "bad-include", "{% include 'other' %}"
    yield "bad-number", "{{ 9223372036854775807 * 9223372036854775807 * messages[99999999999] }}"


def api_body():
    yield "valid-chat", '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}'
    yield "valid-parts", '{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "stream": true}'
    yield "valid-completion", '{"prompt": "Once", "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["\\n"], "logprobs": 2}'
    yield "valid-ids", '{"prompt": [3, 4, 5], "logit_bias": {"3": -100}}'
    form = '"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}'
    yield "valid-grammar", '{"messages": [{"role": "user", "content": "Hi"}], ' + form + "}"
    yield "bad-grammars", '{"prompt": "a", "messages": [{"role": "user", "content": "a"}], "regex": "a", ' + form + "}"
    yield "bad-json", '{"messages": ['
    yield "bad-list", "[]"
    yield "bad-types", '{"messages": "Hi", "prompt": {"a": 1}}'
    yield "bad-numbers", '{"prompt": "a", "messages": [], "temperature": 1e400, "max_tokens": -1}'
    yield "bad-ids", '{"prompt": [-1, 99999999999999999999]}'
    yield "bad-model", '{"model": "another", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}'
    yield "bad-surrogate", '{"prompt": "\\ud800", "messages": [{"role": "\\ud800", "content": 1}]}'
    yield "bad-nesting", '{"prompt": ' + "[" * 3000 + "]" * 3000 + "}"
    yield "bad-field-twice", '{"prompt": "a", "prompt": "b", "messages": [], "messages": []}'
    yield "bad-utf8", b'{"prompt": "\xff"}'
    yield "bad-empty", ""


def main():
    """Writes every file, and takes away those that an earlier version of this script wrote."""
    for make in [gguf_header, frame_head, message, ticket, chat_template, api_body]:
        folder = CORPUS / make.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for old in [*folder.glob("valid*"), *folder.glob("bad*")]:
            old.unlink()
        for name, content in make():
            (folder / f"{name}.bin").write_bytes(content.encode() if isinstance(content, str) else content)


if __name__ == "__main__":
    main()
