"""What a GGUF file says about itself, read from its first bytes.

The header holds everything a decision needs before a download: exact bytes, layers, heads, experts. Only the
tokenizer makes it large (a vocabulary of 256,000 tokens is several MB), and it is skipped without being kept.
Nothing in it is trusted: every count and length is bounded before it is used. The same rules as llama.cpp's own
reader apply (offsets in order and padded, no duplicate names), so a file refused here would not load there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Union

from tasks.domain.errors import AgentError
from tasks.domain.gguf_cursor import ARRAY_TYPE, SCALAR_TYPES, STRING_TYPE, Cursor, NeedMoreBytes, NotGguf
from tasks.domain.gguf_types import FILE_TYPES, TENSOR_TYPES

__all__ = ["WEIGHTS_KEY", "GgufHeader", "NeedMoreBytes", "NotGguf", "parse_header"]

WEIGHTS_KEY = "tokensweep.weights"
"""Metadata key whose value `random` marks a file made without a download."""

MAX_TENSORS = 1 << 16
MAX_METADATA_KEYS = 1 << 16
MAX_DIMENSIONS = 4
MAX_DIMENSION = 1 << 40
MAX_TENSOR_BYTES = 1 << 50
MAX_LAYERS = 4096


@dataclass(frozen=True)
class GgufHeader:
    """One model's header.

    n_head_kv: the largest over the layers; kv_heads_total: summed over the layers (0 for layers without a KV cache).
    layer_bytes: tensor bytes of each layer. expert_bytes: the part of tensor_bytes that belongs to routed experts.
    tied_embeddings: there is no output matrix, the token embedding serves as one.
    data_offset: where the tensors begin. end_of_file_bytes: the least size of a whole file.
    """

    arch: str
    name: str
    n_layers: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    kv_heads_total: int
    head_dim_k: int
    head_dim_v: int
    n_ctx_train: int
    n_vocab: int
    n_experts: int
    n_experts_used: int
    n_params: int
    n_tensors: int
    tensor_bytes: int
    token_embd_bytes: int
    output_bytes: int
    expert_bytes: int
    tied_embeddings: bool
    file_type: int
    quant: str
    weights_random: bool
    data_offset: int
    end_of_file_bytes: int
    layer_bytes: tuple[int, ...] = ()
    tensor_types: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The header as JSON-ready values."""
        raw = asdict(self)
        raw["layer_bytes"] = list(self.layer_bytes)
        return raw

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> GgufHeader:
        """Rebuild a header; keys that this version does not know are ignored. Raises AgentError when one is missing."""
        try:
            values = {f.name: raw[f.name] for f in fields(cls)}
            values["layer_bytes"] = tuple(values["layer_bytes"])
            return cls(**values)
        except (KeyError, TypeError) as exc:
            raise AgentError(f"An event carries a GGUF header that is none: {exc!r} in {str(raw)[:200]}.") from exc


_Kept = Union[int, float, str, "tuple[Any, ...]"]


def parse_header(data: bytes | bytearray | memoryview, file_bytes: int | None = None) -> GgufHeader:
    """Read the header from a prefix of the file (`data`); `file_bytes` is the whole file's size where it is known.

    Raises NeedMoreBytes when the prefix ends inside the header and NotGguf when no longer prefix would help.
    """
    cursor = Cursor(data, file_bytes)
    n_tensors, n_keys = _read_preamble(cursor)
    metadata, array_lengths = _read_metadata(cursor, n_keys)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise NotGguf(f"general.alignment is {alignment!r}, which is no power of two.")
    tensors = _read_tensors(cursor, n_tensors, alignment)
    data_offset = _padded(cursor.pos, alignment)
    end_bytes = data_offset + tensors.end_offset
    if file_bytes is not None and end_bytes > file_bytes:
        raise NotGguf(
            f"The file has {file_bytes} bytes, but its tensors end at byte {end_bytes}: it is cut short.",
            next_step="Download it again.",
        )
    return _header(metadata, array_lengths, tensors, data_offset, end_bytes)


def _read_preamble(cursor: Cursor) -> tuple[int, int]:
    magic = bytes(cursor.data[:4])
    if magic != b"GGUF"[: len(magic)]:
        raise NotGguf(f"The file begins with {magic!r}, not with GGUF.")
    cursor.skip(4, "the magic")
    version = cursor.u32("the version")
    if version not in (2, 3):
        hint = " (a big-endian file)" if version in (2 << 24, 3 << 24) else ""
        raise NotGguf(f"GGUF version {version}{hint} is not one that llama.cpp reads today (2 or 3).")
    n_tensors = cursor.u64("the number of tensors")
    n_keys = cursor.u64("the number of metadata keys")
    if not 0 < n_tensors <= MAX_TENSORS:
        raise NotGguf(f"The header claims {n_tensors} tensors.")
    if not 0 < n_keys <= MAX_METADATA_KEYS:
        raise NotGguf(f"The header claims {n_keys} metadata keys.")
    return n_tensors, n_keys


def _read_metadata(cursor: Cursor, n_keys: int) -> tuple[dict[str, _Kept], dict[str, int]]:
    values: dict[str, _Kept] = {}
    lengths: dict[str, int] = {}
    seen: set[str] = set()
    for _ in range(n_keys):
        key = cursor.name("a metadata key")
        if key in seen:
            raise NotGguf(f"The metadata key {key!r} occurs twice.")
        seen.add(key)
        what = f"the value of {key!r}"
        kind = cursor.u32(what)
        value: _Kept | None
        if kind == STRING_TYPE:
            value = cursor.string_value(what)
        elif kind == ARRAY_TYPE:
            lengths[key], value = cursor.array(what)
        elif kind in SCALAR_TYPES:
            value = cursor.scalar(kind, what)
        else:
            raise NotGguf(f"The metadata key {key!r} has type {kind}, which GGUF does not have.")
        if value is not None:
            values[key] = value
    return values, lengths


@dataclass
class _Tensors:
    """Sums over the tensor table."""

    names: set[str] = field(default_factory=set)
    types: dict[str, int] = field(default_factory=dict)
    layer_bytes: dict[int, int] = field(default_factory=dict)
    embedding_rows: int = 0
    embedding_bytes: int = 0
    output_bytes: int = 0
    expert_bytes: int = 0
    n_params: int = 0
    total_bytes: int = 0
    end_offset: int = 0


def _read_tensors(cursor: Cursor, n_tensors: int, alignment: int) -> _Tensors:
    sums = _Tensors()
    expected_offset = 0
    for _ in range(n_tensors):
        name = cursor.name("a tensor name")
        if name in sums.names:
            raise NotGguf(f"The tensor {name!r} occurs twice.")
        sums.names.add(name)
        n_dims = cursor.u32(f"the shape of {name!r}")
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise NotGguf(f"The tensor {name!r} has {n_dims} dimensions.")
        shape = [cursor.u64(f"the shape of {name!r}") for _ in range(n_dims)]
        n_bytes = _tensor_bytes(name, shape, cursor.u32(f"the type of {name!r}"), sums)
        offset = cursor.u64(f"the offset of {name!r}")
        if offset != expected_offset:
            raise NotGguf(f"The tensor {name!r} is said to lie at {offset}, but {expected_offset} is its place.")
        sums.end_offset = offset + n_bytes
        expected_offset = _padded(sums.end_offset, alignment)
    return sums


def _tensor_bytes(name: str, shape: list[int], type_id: int, sums: _Tensors) -> int:
    """Check one tensor and add it to the sums; its size in bytes."""
    if type_id not in TENSOR_TYPES:
        raise NotGguf(f"The tensor {name!r} has type {type_id}, which this version does not know.")
    type_name, block_elements, block_bytes = TENSOR_TYPES[type_id]
    n_elements = 1
    for dimension in shape:
        if not 0 < dimension <= MAX_DIMENSION:
            raise NotGguf(f"The tensor {name!r} has the shape {shape}.")
        n_elements *= dimension
    if shape[0] % block_elements:
        raise NotGguf(f"The tensor {name!r} has rows of {shape[0]}, which {type_name} cannot hold.")
    n_bytes = n_elements // block_elements * block_bytes
    if n_bytes > MAX_TENSOR_BYTES:
        raise NotGguf(f"The tensor {name!r} claims {n_bytes} bytes.")
    sums.n_params += n_elements
    sums.total_bytes += n_bytes
    sums.types[type_name] = sums.types.get(type_name, 0) + 1
    if name == "token_embd.weight":
        sums.embedding_bytes = n_bytes
        sums.embedding_rows = shape[1] if len(shape) > 1 else 0
    elif name == "output.weight":
        sums.output_bytes = n_bytes
    elif name.startswith("blk."):
        layer = name.split(".", 2)[1]
        if layer.isascii() and layer.isdigit() and len(layer) <= 4:
            sums.layer_bytes[int(layer)] = sums.layer_bytes.get(int(layer), 0) + n_bytes
    if "_exps." in name:
        sums.expert_bytes += n_bytes
    return n_bytes


def _header(
    metadata: dict[str, _Kept], lengths: dict[str, int], tensors: _Tensors, data_offset: int, end_bytes: int
) -> GgufHeader:
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        raise NotGguf("The header names no architecture (general.architecture).")
    numbers = _ArchNumbers(arch, metadata)
    n_layers = numbers.one("block_count", required=True)
    if n_layers > MAX_LAYERS:
        raise NotGguf(f"{arch}.block_count is {n_layers}.")
    n_embd = numbers.one("embedding_length", required=True)
    heads = numbers.per_layer("attention.head_count", n_layers, default=0)
    kv_heads = numbers.per_layer("attention.head_count_kv", n_layers, default=heads)
    n_head = max(heads)
    head_dim = n_embd // n_head if n_head else 0
    file_type = metadata.get("general.file_type", -1)
    file_type = file_type if isinstance(file_type, int) else -1
    name = metadata.get("general.name", "")
    return GgufHeader(
        arch=arch,
        name=name if isinstance(name, str) else "",
        n_layers=n_layers,
        n_embd=n_embd,
        n_ff=max(numbers.per_layer("feed_forward_length", n_layers, default=0)),
        n_head=n_head,
        n_head_kv=max(kv_heads),
        kv_heads_total=sum(kv_heads),
        head_dim_k=numbers.one("attention.key_length", default=head_dim),
        head_dim_v=numbers.one("attention.value_length", default=head_dim),
        n_ctx_train=numbers.one("context_length"),
        n_vocab=tensors.embedding_rows or lengths.get("tokenizer.ggml.tokens", 0) or numbers.one("vocab_size"),
        n_experts=numbers.one("expert_count"),
        n_experts_used=numbers.one("expert_used_count"),
        n_params=tensors.n_params,
        n_tensors=len(tensors.names),
        tensor_bytes=tensors.total_bytes,
        token_embd_bytes=tensors.embedding_bytes,
        output_bytes=tensors.output_bytes,
        expert_bytes=tensors.expert_bytes,
        tied_embeddings=tensors.output_bytes == 0 and tensors.embedding_bytes > 0,
        file_type=file_type,
        quant=FILE_TYPES.get(file_type, "unknown"),
        weights_random=metadata.get(WEIGHTS_KEY) == "random",
        data_offset=data_offset,
        end_of_file_bytes=end_bytes,
        layer_bytes=tuple(tensors.layer_bytes.get(i, 0) for i in range(n_layers)),
        tensor_types=dict(sorted(tensors.types.items())),
    )


class _ArchNumbers:
    """The whole numbers under `<arch>.`, some of which may be given per layer."""

    def __init__(self, arch: str, metadata: dict[str, _Kept]) -> None:
        self.arch = arch
        self.metadata = metadata

    def one(self, key: str, default: int = 0, required: bool = False) -> int:
        value = self.metadata.get(f"{self.arch}.{key}", None if required else default)
        return self._checked(key, value, least=1 if required else 0)

    def per_layer(self, key: str, n_layers: int, default: int | list[int]) -> list[int]:
        value = self.metadata.get(f"{self.arch}.{key}", default)
        if not isinstance(value, (tuple, list)):
            return [self._checked(key, value, least=0)] * n_layers
        if len(value) < n_layers:
            raise NotGguf(f"{self.arch}.{key} has {len(value)} values for {n_layers} layers.")
        return [self._checked(key, item, least=0) for item in value[:n_layers]]

    def _checked(self, key: str, value: object, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_DIMENSION:
            raise NotGguf(f"{self.arch}.{key} is {value!r}.")
        return value


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment
