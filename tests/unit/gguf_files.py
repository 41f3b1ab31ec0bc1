"""Small GGUF files written byte by byte, so that each field can be made wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def string_value(value: str) -> bytes:
    return struct.pack("<I", STRING) + text(value)


def u32_value(value: int) -> bytes:
    return struct.pack("<II", U32, value)


def strings_value(values: list[str]) -> bytes:
    return struct.pack("<IIQ", ARRAY, STRING, len(values)) + b"".join(text(v) for v in values)


def u32s_value(values: list[int]) -> bytes:
    return struct.pack("<IIQ", ARRAY, U32, len(values)) + b"".join(struct.pack("<I", v) for v in values)


def tensor_entry(name: str, shape: tuple[int, ...], type_id: int, offset: int) -> bytes:
    dims = b"".join(struct.pack("<Q", d) for d in shape)
    return text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", type_id, offset)


def llama_metadata() -> dict[str, bytes]:
    return {
        "general.architecture": string_value("llama"),
        "general.file_type": u32_value(15),
        "llama.block_count": u32_value(2),
        "llama.context_length": u32_value(4096),
        "llama.embedding_length": u32_value(64),
        "llama.feed_forward_length": u32_value(128),
        "llama.attention.head_count": u32_value(4),
        "llama.attention.head_count_kv": u32_value(2),
        "tokenizer.ggml.tokens": strings_value([f"t{i}" for i in range(100)]),
        "tokenizer.ggml.scores": struct.pack("<IIQ", ARRAY, F32, 5000) + bytes(4 * 5000),
    }


@dataclass
class RawGguf:
    """A header in parts; `tensors` are (name, shape, type id, offset)."""

    metadata: dict[str, bytes] = field(default_factory=llama_metadata)
    tensors: list[tuple[str, tuple[int, ...], int, int]] = field(
        default_factory=lambda: [
            ("token_embd.weight", (64, 100), 8, 0),  # Q8_0: 6400 / 32 * 34 = 6800 bytes, padded to 6816
            ("blk.0.attn_q.weight", (64, 64), 0, 6816),  # F32: 16384 bytes
            ("blk.1.attn_q.weight", (64, 64), 0, 23200),
            ("output_norm.weight", (64,), 0, 39584),
        ]
    )
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.metadata) if self.n_keys is None else self.n_keys
        parts = [self.magic, struct.pack("<IQQ", self.version, n_tensors, n_keys)]
        parts += [text(key) + value for key, value in self.metadata.items()]
        parts += [tensor_entry(*t) for t in self.tensors]
        return b"".join(parts)

    def file(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % 32) + bytes(39584 + 256)
