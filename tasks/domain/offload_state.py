"""What one server run knows of its GPUs: their free memory, and how many layers of each model go there."""

from __future__ import annotations

from typing import Optional

from tasks.domain.events import EngineLoaded
from tasks.domain.gguf import GgufHeader
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

    def missed_the_gpu(self, build: str, event: EngineLoaded) -> bool:
        """Whether a build for the GPU has loaded a model that was meant for it, and put nothing of it there."""
        search = self.searches.get(event.model)
        meant = self.on_gpu(build) and search is not None and search.ngl > 0
        return meant and bool(event.buffers_mib) and gpu_mib(event.buffers_mib) <= 0
