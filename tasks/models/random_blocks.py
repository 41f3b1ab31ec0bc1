"""Random weights, written directly as quantised blocks.

A block is filled with random bytes and its scales are then set so that a matrix keeps the size of what it multiplies
(weights of mean 0 and standard deviation 1/√row length). The engine does the same work on them as on trained weights,
and nothing overflows or turns into NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.domain.gguf_types import TENSOR_TYPES
from tasks.models.tensor_plan import TYPE_IDS, TensorPlan

CHUNK_BYTES = 4 * 1024 * 1024
SUB_BLOCK_SCALE = 4
"""Integer scale of every sub-block of a K-quant: small, so that the fp16 scale above it stays a normal number."""

Blocks = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Layout:
    """quant_std: standard deviation of the block's random integers, its sub-block scale included."""

    quant_std: float
    write_scales: Callable[[Blocks, Scales], None]


def tensor_chunks(tensor: TensorPlan, seed: int, index: int) -> Iterator[bytes]:
    """The bytes of one tensor in order; the same seed and index give the same bytes."""
    if tensor.type_name == "F32":
        yield _vector_values(tensor, seed, index).astype("<f4").tobytes()
        return
    layout = _LAYOUTS[tensor.type_name]
    _, block_elements, block_bytes = TENSOR_TYPES[TYPE_IDS[tensor.type_name]]
    generator = np.random.Generator(np.random.SFC64([seed, index]))
    scale = 1.0 / (layout.quant_std * float(np.sqrt(tensor.shape[0])))
    left = tensor.n_elements // block_elements
    while left:
        n_blocks = min(left, CHUNK_BYTES // block_bytes)
        left -= n_blocks
        n_words = -(-n_blocks * block_bytes // 8)
        words = generator.integers(0, 1 << 64, size=n_words, dtype=np.uint64).astype("<u8", copy=False)
        blocks = words.view(np.uint8)[: n_blocks * block_bytes].reshape(n_blocks, block_bytes)
        layout.write_scales(blocks, generator.uniform(0.75 * scale, 1.25 * scale, n_blocks).astype(np.float32))
        yield blocks.tobytes()


def rope_frequency_factors(
    half_dim: int, base: float, scaling_factor: float, original_context: int
) -> npt.NDArray[np.float64]:
    """Llama 3's rescaling of positions: long waves are stretched, short ones kept, those between are blended.

    The bounds are 1 and 4 original contexts to a wave, from the model's published configuration.
    """
    low_frequency_factor, high_frequency_factor = 1.0, 4.0
    wavelengths = 2 * np.pi * base ** (np.arange(half_dim, dtype=np.float64) / half_dim)
    blend = (original_context / wavelengths - low_frequency_factor) / (high_frequency_factor - low_frequency_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - blend) / scaling_factor + blend))


def _vector_values(tensor: TensorPlan, seed: int, index: int) -> npt.NDArray[np.float64]:
    if tensor.name.endswith(".bias"):
        return np.random.Generator(np.random.SFC64([seed, index])).normal(0.0, 0.02, tensor.shape)
    return np.ones(tensor.shape)


def _put_half(blocks: Blocks, at: int, values: Scales) -> None:
    blocks[:, at : at + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _scale_first(blocks: Blocks, scales: Scales) -> None:
    _put_half(blocks, 0, scales)


def _q5_1(blocks: Blocks, scales: Scales) -> None:
    _put_half(blocks, 0, scales)
    _put_half(blocks, 2, -15.5 * scales)


def _k_with_minimum(centre: float) -> Callable[[Blocks, Scales], None]:
    """Q4_K and Q5_K: w = d·scale·q − dmin·min, with scale = min in every sub-block and dmin = centre·d."""

    def write(blocks: Blocks, scales: Scales) -> None:
        _put_half(blocks, 0, scales)
        _put_half(blocks, 2, np.float32(centre) * scales)
        blocks[:, 4:12] = SUB_BLOCK_SCALE  # 6-bit scales and minimums of the first four sub-blocks
        blocks[:, 12:16] = SUB_BLOCK_SCALE | SUB_BLOCK_SCALE << 4  # low nibbles of the other four

    return write


def _q6_k(blocks: Blocks, scales: Scales) -> None:
    blocks[:, 192:208] = SUB_BLOCK_SCALE
    _put_half(blocks, 208, scales)


def _uniform_std(n_values: int) -> float:
    return float(np.sqrt((n_values * n_values - 1) / 12))


_LAYOUTS: dict[str, _Layout] = {
    "Q5_0": _Layout(_uniform_std(32), _scale_first),
    "Q5_1": _Layout(_uniform_std(32), _q5_1),
    "Q8_0": _Layout(_uniform_std(256), _scale_first),
    "Q4_K": _Layout(SUB_BLOCK_SCALE * _uniform_std(16), _k_with_minimum(7.5)),
    "Q5_K": _Layout(SUB_BLOCK_SCALE * _uniform_std(32), _k_with_minimum(15.5)),
    "Q6_K": _Layout(SUB_BLOCK_SCALE * _uniform_std(64), _q6_k),
}
