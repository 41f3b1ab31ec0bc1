"""How many layers go to the GPUs (`-ngl`): by arithmetic first, and by bisection where a load shows it wrong.

The arithmetic is that of tasks/domain/memory.py on the GGUF header: bytes of each layer, KV cache of the longest test,
the buffer that llama.cpp reserves for one micro-batch, and its own margin per GPU. No GPU has confirmed it yet, so a
load that runs out of memory is answered with fewer layers, at most MAX_LOADS times for a model, instead of with a
ladder of fixed guesses or with the CPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence

from tasks.domain.gguf import GgufHeader
from tasks.domain.memory import VRAM_RESERVE_BYTES, kv_cache_bytes, memory_needed_bytes, ngl_for_vram

MAX_LOADS = 3
"""Loads of one model that may run out of GPU memory before its server is measured on the CPUs."""

ALL_LAYERS = 99
"""For a model whose header nobody has read: llama.cpp takes what there is."""

CAUTIOUS_VRAM = 0.85
"""Share of the free memory that the low end of the search reckons with."""

# Where weights may lie: a GPU's own memory, not the host's that is pinned for it ("CUDA_Host").
_GPU_BUFFER = re.compile(r"^(?:CUDA|ROCm|Vulkan|SYCL|MUSA|CANN|Metal)\d*(?:_Split)? (model|KV|compute)$")


@dataclass(frozen=True)
class Offload:
    """ngl: layers to offload, the output counted as one. n_layers: all of them, likewise; 0 while not known."""

    ngl: int
    n_layers: int
    vram_free_bytes: int
    gpu_bytes: int
    host_bytes: int

    @property
    def whole(self) -> bool:
        return self.ngl >= self.n_layers

    def evidence(self) -> dict[str, Any]:
        return {
            "ngl": self.ngl,
            "n_layers": self.n_layers,
            "vram_free_bytes": self.vram_free_bytes,
            "gpu_bytes": self.gpu_bytes,
            "host_bytes": self.host_bytes,
        }


def usable_vram_bytes(header: GgufHeader, vram_free_bytes: Sequence[int]) -> int:
    """Memory of all GPUs as if it were one: each further GPU has a margin of its own, and a layer is never divided."""
    largest_layer = max(header.layer_bytes, default=0)
    per_further_gpu = VRAM_RESERVE_BYTES + largest_layer
    return max(0, sum(vram_free_bytes) - per_further_gpu * max(0, len(vram_free_bytes) - 1))


def plan_offload(
    header: GgufHeader, vram_free_bytes: Sequence[int], n_ctx: int, kv_bytes_per_element: float = 2
) -> Offload:
    """As many layers as the free memory of the GPUs holds, and what is left to the host."""
    vram = usable_vram_bytes(header, vram_free_bytes)
    ngl = ngl_for_vram(header, vram, n_ctx, kv_bytes_per_element)
    on_gpu = gpu_bytes(header, ngl, n_ctx, kv_bytes_per_element)
    needed = memory_needed_bytes(header, n_ctx, kv_bytes_per_element)
    host = max(0, needed.weights + needed.kv_cache - on_gpu) + needed.compute
    return Offload(ngl, header.n_layers + 1, sum(vram_free_bytes), on_gpu, host)


def gpu_bytes(header: GgufHeader, ngl: int, n_ctx: int, kv_bytes_per_element: float = 2) -> int:
    """Weights and KV cache of the last `ngl` layers, of which the output is the first to be offloaded."""
    if ngl <= 0:
        return 0
    output = header.token_embd_bytes if header.tied_embeddings else header.output_bytes
    n_repeating = min(ngl - 1, header.n_layers)
    layers = sum(header.layer_bytes[len(header.layer_bytes) - n_repeating :]) if n_repeating else 0
    kv = kv_cache_bytes(header, n_ctx, kv_bytes_per_element) * n_repeating // max(1, header.n_layers)
    return output + layers + kv


def fits_server(
    header: GgufHeader, n_ctx: int, vram_free_bytes: Sequence[int], memory_bytes: int, margin: float = 1.1
) -> bool:
    """Whether GPUs and host together could hold the model at all; `margin` is in its favour."""
    needed = memory_needed_bytes(header, n_ctx).total
    return needed <= (sum(vram_free_bytes) + memory_bytes) * margin


class OffloadSearch:
    """The layers of one model on one server. `ngl` is what to load next; `failed()` takes in that it did not fit."""

    def __init__(self, header: Optional[GgufHeader], vram_free_bytes: Sequence[int], n_ctx: int) -> None:
        """vram_free_bytes: by GPU, 0 where nvidia-smi does not say, so that only a load can tell what fits."""
        floor = 0
        if header is None:
            first = Offload(ALL_LAYERS, 0, sum(vram_free_bytes), 0, 0)
        elif not all(vram_free_bytes):
            whole = header.n_layers + 1
            first = Offload(whole, whole, sum(vram_free_bytes), gpu_bytes(header, whole, n_ctx), 0)
        else:
            first = plan_offload(header, vram_free_bytes, n_ctx)
            cautious = [int(free * CAUTIOUS_VRAM) for free in vram_free_bytes]
            floor = plan_offload(header, cautious, n_ctx).ngl
        self.first = first
        self.ngl = first.ngl
        self.n_failed = 0
        self._floor = floor

    def failed(self) -> Optional[int]:
        """The next number of layers to try, fewer than the last; None when enough loads have failed."""
        self.n_failed += 1
        if self.n_failed >= MAX_LOADS or self.ngl <= 1:
            return None
        middle = (self._floor + self.ngl) // 2 if self.n_failed == 1 else self._floor
        self.ngl = middle if 0 < middle < self.ngl else max(1, self.ngl // 2)
        return self.ngl


def gpu_mib(buffers_mib: Mapping[str, float], what: str = "model") -> float:
    """MiB of one kind of buffer ("model", "KV", "compute") in GPU memory, from the engine's log of its buffers."""
    found = [(_GPU_BUFFER.match(name), mib) for name, mib in buffers_mib.items()]
    return sum(mib for match, mib in found if match and match.group(1) == what)


def backend_used(buffers_mib: Mapping[str, float], layers_offloaded: Optional[int], layers_total: Optional[int]) -> str:
    """Where the weights really are: "CUDA", "CPU", or "CUDA+CPU" for a model that is divided; "" while not known.

    buffers_mib: by device and kind, as the engine's log tells; the row's `backends` only lists what the build has.
    The input layer stays on the host always, so its share of the bytes says nothing: layers do.
    """
    if not buffers_mib:
        return ""
    on_gpu = gpu_mib(buffers_mib)
    if on_gpu <= 0:
        return "CPU"
    device = next(name for name in buffers_mib if _GPU_BUFFER.match(name) and name.endswith(" model"))
    kind = re.sub(r"\d.*", "", device.split(" ")[0])
    divided = layers_offloaded is not None and layers_total is not None and layers_offloaded < layers_total
    return f"{kind}+CPU" if divided else kind
