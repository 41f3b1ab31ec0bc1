"""Which tensors a model of a given shape has, and the type that Q4_K_M gives to each.

Q4_K_M spends its extra bits where they matter most. All matrices are Q4_K, but the output matrix (or the embedding that
serves as one) is Q6_K; half of the value projections and of the feed-forward down projections are Q6_K (the first and
the last eighth of the layers and every third between); a fused query-key-value matrix is Q5_K. In 70B models, where 8
query heads share a value head, the other value projections are Q5_K: they are small and much used. K-quants come in
blocks of 256, and a matrix whose rows 256 does not divide falls back to a type with blocks of 32. Norms and biases are
F32.

The sums agree to the byte with what llama-bench reports of the six real files (see the catalogue's tensor_bytes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.domain.errors import ConfigError
from tasks.domain.gguf_types import TENSOR_TYPES
from tasks.models.catalogue import Shape

TYPE_IDS = {name: type_id for type_id, (name, _, _) in TENSOR_TYPES.items()}
K_BLOCK = 256
NARROW_ROW_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True)
class TensorPlan:
    """One tensor; `shape` has the row length first, as GGUF does."""

    name: str
    shape: tuple[int, ...]
    type_name: str

    @property
    def n_elements(self) -> int:
        product = 1
        for dimension in self.shape:
            product *= dimension
        return product

    @property
    def n_bytes(self) -> int:
        _, block_elements, block_bytes = TENSOR_TYPES[TYPE_IDS[self.type_name]]
        return self.n_elements // block_elements * block_bytes


def plan_tensors(shape: Shape) -> list[TensorPlan]:
    """Every tensor of the model, in file order. Raises ConfigError for an architecture that cannot be made."""
    layers = {"llama": _llama_layer, "gemma": _llama_layer, "qwen2": _qwen2_layer, "phi3": _phi3_layer}
    layer = layers.get(shape.arch)
    if layer is None:
        raise ConfigError(
            f"Models of the architecture {shape.arch!r} cannot be made with random weights.",
            next_step=f"Architectures that can: {', '.join(sorted(layers))}.",
        )
    embedding_type = shape.embedding_type or ("Q6_K" if shape.tied_embeddings else "Q4_K")
    tensors = [_matrix("token_embd.weight", shape.n_embd, shape.n_vocab, embedding_type)]
    if shape.rope_scaling_factor > 1:
        tensors.append(TensorPlan("rope_freqs.weight", (shape.head_dim // 2,), "F32"))
    for i in range(shape.n_layers):
        tensors += layer(shape, i)
    tensors.append(_vector("output_norm.weight", shape.n_embd))
    if not shape.tied_embeddings:
        tensors.append(_matrix("output.weight", shape.n_embd, shape.n_vocab, "Q6_K"))
    return tensors


def _llama_layer(shape: Shape, i: int) -> Iterator[TensorPlan]:
    q_rows, kv_rows = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    many_bits = _gets_more_bits(i, shape.n_layers)
    yield _vector(f"blk.{i}.attn_norm.weight", shape.n_embd)
    yield _matrix(f"blk.{i}.attn_q.weight", shape.n_embd, q_rows, "Q4_K")
    yield _matrix(f"blk.{i}.attn_k.weight", shape.n_embd, kv_rows, "Q4_K")
    yield _matrix(f"blk.{i}.attn_v.weight", shape.n_embd, kv_rows, _value_type(shape, many_bits))
    yield _matrix(f"blk.{i}.attn_output.weight", q_rows, shape.n_embd, "Q4_K")
    yield _vector(f"blk.{i}.ffn_norm.weight", shape.n_embd)
    yield _matrix(f"blk.{i}.ffn_gate.weight", shape.n_embd, shape.n_ff, "Q4_K")
    yield _matrix(f"blk.{i}.ffn_up.weight", shape.n_embd, shape.n_ff, "Q4_K")
    yield _matrix(f"blk.{i}.ffn_down.weight", shape.n_ff, shape.n_embd, "Q6_K" if many_bits else "Q4_K")


def _qwen2_layer(shape: Shape, i: int) -> Iterator[TensorPlan]:
    yield from _llama_layer(shape, i)
    yield _vector(f"blk.{i}.attn_q.bias", shape.n_head * shape.head_dim)
    yield _vector(f"blk.{i}.attn_k.bias", shape.n_head_kv * shape.head_dim)
    yield _vector(f"blk.{i}.attn_v.bias", shape.n_head_kv * shape.head_dim)


def _phi3_layer(shape: Shape, i: int) -> Iterator[TensorPlan]:
    q_rows, kv_rows = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    down_type = "Q6_K" if _gets_more_bits(i, shape.n_layers) else "Q4_K"
    yield _vector(f"blk.{i}.attn_norm.weight", shape.n_embd)
    yield _matrix(f"blk.{i}.attn_qkv.weight", shape.n_embd, q_rows + 2 * kv_rows, "Q5_K")
    yield _matrix(f"blk.{i}.attn_output.weight", q_rows, shape.n_embd, "Q4_K")
    yield _vector(f"blk.{i}.ffn_norm.weight", shape.n_embd)
    yield _matrix(f"blk.{i}.ffn_up.weight", shape.n_embd, 2 * shape.n_ff, "Q4_K")
    yield _matrix(f"blk.{i}.ffn_down.weight", shape.n_ff, shape.n_embd, down_type)


def _gets_more_bits(i: int, n_layers: int) -> bool:
    eighth = n_layers // 8
    return i < eighth or i >= 7 * n_layers // 8 or (i - eighth) % 3 == 2


def _value_type(shape: Shape, many_bits: bool) -> str:
    if many_bits:
        return "Q6_K"
    return "Q5_K" if shape.n_layers == 80 and shape.n_head == 8 * shape.n_head_kv else "Q4_K"


def _matrix(name: str, row: int, n_rows: int, type_name: str) -> TensorPlan:
    return TensorPlan(name, (row, n_rows), NARROW_ROW_FALLBACK[type_name] if row % K_BLOCK else type_name)


def _vector(name: str, length: int) -> TensorPlan:
    return TensorPlan(name, (length,), "F32")
