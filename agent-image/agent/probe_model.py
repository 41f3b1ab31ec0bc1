"""A tiny GGUF file, made here, with which a build of the runtime shows that it runs on this server.

Two layers of a llama, 0.7 MB, and every tensor type that the usual Q4_K_M files hold, so that the kernels which the
ladder will need are executed: the first instruction that a CPU or GPU does not have ends a probe, not a measurement.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

PROBE_FILE = "probe.gguf"
N_LAYERS = 2
_N_EMBD, _N_FF, _N_VOCAB, _N_HEAD = 256, 512, 256, 4
_ALIGNMENT = 32
_U32, _F32, _STRING = 4, 6, 8
_SCALE = struct.pack("<e", 0.001)
# Type name -> (id, elements of a block, bytes of a block, where in it the half-precision scales are).
_TYPES: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "F32": (0, 1, 4, ()),
    "Q4_0": (2, 32, 18, (0,)),
    "Q5_0": (6, 32, 22, (0,)),
    "Q8_0": (8, 32, 34, (0,)),
    "Q4_K": (12, 256, 144, (0, 2)),
    "Q6_K": (14, 256, 210, (208,)),
}


def write_probe_model(folder: Path) -> Path:
    """Write the file into `folder` unless it is there, and return it."""
    path = folder / PROBE_FILE
    if not path.exists():
        part = path.with_name(PROBE_FILE + ".part")
        part.write_bytes(probe_model())
        part.replace(path)
    return path


def probe_model() -> bytes:
    """The whole file; always the same bytes."""
    tensors = _tensors()
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(_metadata()))]
    head += [_string(key) + _value(value) for key, value in _metadata()]
    dice = random.Random(1)
    data = bytearray()
    for name, kind, shape in tensors:
        type_id = _TYPES[kind][0]
        head.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_id, len(data)))
        data += _blocks(kind, shape, dice)
        data += bytes(-len(data) % _ALIGNMENT)
    header = b"".join(head)
    return header + bytes(-len(header) % _ALIGNMENT) + bytes(data)


def _metadata() -> list[tuple[str, Any]]:
    return [
        ("general.architecture", "llama"),
        ("general.name", "probe"),
        ("tokensweep.weights", "random"),
        ("llama.block_count", N_LAYERS),
        ("llama.context_length", 512),
        ("llama.embedding_length", _N_EMBD),
        ("llama.feed_forward_length", _N_FF),
        ("llama.attention.head_count", _N_HEAD),
        ("llama.attention.head_count_kv", _N_HEAD),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5),
        ("llama.rope.dimension_count", _N_EMBD // _N_HEAD),
        ("llama.vocab_size", _N_VOCAB),
        ("tokenizer.ggml.model", "no_vocab"),
    ]


def _tensors() -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape; the first dimension is the length of a row."""
    square = (_N_EMBD, _N_EMBD)
    out: list[tuple[str, str, tuple[int, ...]]] = [
        ("token_embd.weight", "Q8_0", (_N_EMBD, _N_VOCAB)),
        ("output_norm.weight", "F32", (_N_EMBD,)),
        ("output.weight", "Q6_K", (_N_EMBD, _N_VOCAB)),
    ]
    for layer in range(N_LAYERS):
        k_type, v_type = ("Q4_K", "Q6_K") if layer == 0 else ("Q5_0", "Q8_0")
        out += [
            (f"blk.{layer}.attn_norm.weight", "F32", (_N_EMBD,)),
            (f"blk.{layer}.attn_q.weight", "Q4_K", square),
            (f"blk.{layer}.attn_k.weight", k_type, square),
            (f"blk.{layer}.attn_v.weight", v_type, square),
            (f"blk.{layer}.attn_output.weight", "Q4_0", square),
            (f"blk.{layer}.ffn_norm.weight", "F32", (_N_EMBD,)),
            (f"blk.{layer}.ffn_gate.weight", "Q4_K", (_N_EMBD, _N_FF)),
            (f"blk.{layer}.ffn_up.weight", "Q4_K", (_N_EMBD, _N_FF)),
            (f"blk.{layer}.ffn_down.weight", "Q6_K", (_N_FF, _N_EMBD)),
        ]
    return out


def _blocks(kind: str, shape: tuple[int, ...], dice: random.Random) -> bytes:
    _, block_elements, block_bytes, scales_at = _TYPES[kind]
    n_elements = 1
    for dimension in shape:
        n_elements *= dimension
    if kind == "F32":
        return struct.pack("<f", 1.0) * n_elements
    blocks = bytearray(dice.getrandbits(8 * block_bytes * 16).to_bytes(block_bytes * 16, "little"))
    for start in range(0, len(blocks), block_bytes):
        for at in scales_at:
            blocks[start + at : start + at + 2] = _SCALE
    n_blocks = n_elements // block_elements
    return bytes((blocks * (n_blocks // 16 + 1))[: n_blocks * block_bytes])


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    return struct.pack("<II", _U32, value)
