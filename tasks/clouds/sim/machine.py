"""How fast a simulated server is, and what will go wrong on it.

Text generation is bound by reading the weights from memory, prompt processing by arithmetic: two numbers of the server
type give both. The rest is noise, drawn for this server type and this start of an agent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tasks.clouds.base import ServerType
from tasks.clouds.sim.catalog import Silicon
from tasks.clouds.sim.draws import Draws
from tasks.domain.cells import PP, Cell
from tasks.domain.gguf import GgufHeader
from tasks.domain.run_plan import ModelSpec

MIB = 2**20
GIB = 2**30
BITS_PER_WEIGHT = 4.85  # Q4_K_M
MIRROR_BYTES_PER_S = 250e6
CPU_TOKEN_OVERHEAD_S = 0.3e-3
GPU_TOKEN_OVERHEAD_S = 3.5e-3
N_UBATCH = 512
SLOW_BYTES_PER_S = 30e3
NEIGHBOUR_STEAL = 0.33


@dataclass(frozen=True)
class Machine:
    """n_agent: which start of an agent on this server type it is; a repeated run of the sweep draws the same."""

    kind: ServerType
    silicon: Silicon
    draws: Draws
    n_agent: int

    def key(self, *what: object) -> tuple[object, ...]:
        return (self.kind.name, "agent", self.n_agent, *what)

    def happens(self, fault: str, *what: object) -> bool:
        return self.draws.happens(fault, *self.key(*what))

    def between(self, low: float, high: float, *what: object) -> float:
        return self.draws.between(low, high, *self.key(*what))

    # ---- what it has --------------------------------------------------------------------------------

    @property
    def on_gpu(self) -> bool:
        """Whether the engine finds a GPU that works."""
        return self.kind.gpus > 0 and not self.happens("cpu_fallback")

    @property
    def memory_total_bytes(self) -> int:
        return int(self.kind.memory_bytes * 0.97)

    @property
    def memory_available_bytes(self) -> int:
        return max(self.memory_total_bytes - 450 * MIB, 64 * MIB)

    @property
    def disk_free_bytes(self) -> int:
        return max(self.kind.disk_bytes - 4 * GIB, GIB)

    @property
    def vram_free_bytes(self) -> tuple[int, ...]:
        return (int(self.kind.gpu_memory_bytes * 0.985),) * self.kind.gpus

    @property
    def link_bytes_per_s(self) -> float:
        return min(self.kind.link_bytes_per_s * self.between(0.5, 0.95, "link"), MIRROR_BYTES_PER_S)

    @property
    def steal_share(self) -> float:
        return NEIGHBOUR_STEAL if self.happens("noisy_neighbour") else 0.0

    # ---- how fast it is -----------------------------------------------------------------------------

    def load_s(self, model: ModelSpec) -> float:
        return 0.2 + model.planned_bytes / self.between(0.5e9, 2.0e9, "disk")

    def repeat_s(self, model: ModelSpec, cell: Cell, process: int, k: int) -> float:
        """Seconds of one repeat, with its noise."""
        spread = 0.05 if self.kind.name.startswith("b") else 0.008
        factor = 1.0
        if self.steal_share:
            spread, factor = 0.08, 1.0 / (1.0 - self.steal_share)
        noise = math.exp(spread * self.draws.normal(*self.key("noise", cell, process, k)))
        return self._ideal_s(model, cell) * factor * noise

    def _ideal_s(self, model: ModelSpec, cell: Cell) -> float:
        chip, on_gpu = self.silicon, self.on_gpu
        bandwidth = chip.gpu_bandwidth_bytes_per_s if on_gpu else chip.bandwidth_bytes_per_s
        flops = 1e9 * (chip.gpu_gflops if on_gpu else chip.gflops)
        overhead_s = GPU_TOKEN_OVERHEAD_S if on_gpu else CPU_TOKEN_OVERHEAD_S
        read_s = model.planned_bytes / bandwidth
        n, n_params = cell.n_tokens, n_params_of(model)
        longer = 1.0 + n / 16_384
        if cell.task != PP:
            return n * (read_s + overhead_s) * longer
        n_batches = -(-n // N_UBATCH)
        short = 1.0 + (192.0 if on_gpu else 12.0) / n  # a short prompt does not fill the machine
        return n * 2.0 * n_params / flops * longer * short + n_batches * (read_s + overhead_s)

    def fits(self, model: ModelSpec) -> bool:
        room = sum(self.vram_free_bytes) * 0.95 if self.on_gpu else self.memory_available_bytes
        return model.planned_bytes * 1.05 < room

    # ---- what the agent would say of it -------------------------------------------------------------

    def hardware(self) -> dict[str, Any]:
        kind = self.kind
        gpu = {
            "name": kind.gpu_model,
            "driver_version": "simulated",
            "memory_total_bytes": kind.gpu_memory_bytes,
            "memory_free_bytes": int(kind.gpu_memory_bytes * 0.985),
        }
        return {
            "cpu": {
                "model_name": kind.cpu_model,
                "vendor": "simulated",
                "flags": [],
                "n_threads": kind.vcpus,
                "n_cores": max(kind.vcpus // 2, 1),
                "n_sockets": 2 if kind.vcpus > 96 else 1,
                "n_numa_nodes": 2 if kind.vcpus > 96 else 1,
                "threads_per_core": 2 if kind.vcpus > 1 else 1,
                "n_usable_cpus": kind.vcpus,
            },
            "memory": {"total_bytes": self.memory_total_bytes, "swap_bytes": 0, "limited_by": "simulated"},
            "disk": {"total_bytes": kind.disk_bytes, "free_bytes": self.disk_free_bytes},
            "gpus": [{"index": i, **gpu} for i in range(kind.gpus)],
            "virtualization": {"hypervisor": True, "dmi": {"sys_vendor": "simulated", "product_name": kind.name}},
            "system": {"os": "simulated", "kernel": "simulated", "arch": kind.arch, "libc": "simulated"},
        }


def n_params_of(model: ModelSpec) -> float:
    return model.planned_bytes * 8.0 / BITS_PER_WEIGHT


def header_of(model: ModelSpec) -> GgufHeader:
    """The header of a dense model of that size, as decisions need it; its bytes are right, its shape is plausible."""
    n_params = n_params_of(model)
    n_layers = max(6, min(80, round(12 + 8 * math.log2(max(n_params, 1.0) / 1e8))))
    n_embd = max(256, int(math.sqrt(n_params / (12 * n_layers))) // 64 * 64)
    embedding_bytes = model.planned_bytes // 20
    return GgufHeader(
        arch="llama", name=model.name, n_layers=n_layers, n_embd=n_embd, n_ff=n_embd * 8 // 3, n_head=n_embd // 64,
        n_head_kv=n_embd // 64, kv_heads_total=n_layers * (n_embd // 64), head_dim_k=64, head_dim_v=64,
        n_ctx_train=32_768, n_vocab=32_000, n_experts=0, n_experts_used=0, n_params=int(n_params),
        n_tensors=9 * n_layers + 3, tensor_bytes=model.planned_bytes, token_embd_bytes=embedding_bytes,
        output_bytes=embedding_bytes, expert_bytes=0, tied_embeddings=False, file_type=15, quant="Q4_K_M",
        weights_random=False, data_offset=4096, end_of_file_bytes=4096 + model.planned_bytes,
        layer_bytes=((model.planned_bytes - 2 * embedding_bytes) // n_layers,) * n_layers,
    )  # fmt: skip
