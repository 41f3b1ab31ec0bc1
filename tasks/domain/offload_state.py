"""What one server run knows of its GPUs: their free memory, and how many layers of each model go there."""

from __future__ import annotations

from typing import Optional

from tasks.domain.build_choice import BuildFault
from tasks.domain.events import EngineLoaded
from tasks.domain.gguf import GgufHeader
from tasks.domain.gpu_faults import GpuFault
from tasks.domain.offload import OffloadSearch, gpu_mib


class Offloads:
    """gpu_builds: names of the builds that use a GPU; without one nothing here is asked."""

    def __init__(self, gpu_builds: frozenset[str]) -> None:
        self.vram_free_bytes: tuple[int, ...] = ()
        self.searches: dict[str, OffloadSearch] = {}
        self._gpu_builds = gpu_builds

    def on_gpu(self, build: str) -> bool:
        return build in self._gpu_builds

    def search(self, model: str, header: Optional[GgufHeader], n_ctx: int) -> tuple[OffloadSearch, bool]:
        """The model's search, and whether it has just begun. n_ctx: of its longest cell, so that all have one ngl."""
        new = model not in self.searches
        if new:
            self.searches[model] = OffloadSearch(header, self.vram_free_bytes, n_ctx)
        return self.searches[model], new

    def missed_the_gpu(self, build: str, event: EngineLoaded) -> Optional[str]:
        """What is wrong where a build for the GPU has loaded a model that was meant for it: nothing of it is there, or
        one of several GPUs is not used, as when it was lost since the probe. None where all is well."""
        search = self.searches.get(event.model)
        if not self.on_gpu(build) or search is None or search.ngl <= 0:
            return None
        if event.buffers_mib and gpu_mib(event.buffers_mib) <= 0:
            return BuildFault.GPU_NOT_USED.value
        if event.n_gpus_used is not None and event.n_gpus_used < len(self.vram_free_bytes):
            return GpuFault.NOT_ALL_USED.value
        return None
