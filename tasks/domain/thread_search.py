"""How many threads: one per physical core, per usable CPU, or per CPU's worth of the cgroup's quota.

Which is fastest depends on what a virtual machine calls a CPU: two hyperthreads of one core share its arithmetic, and
a quota stops all threads at once. So where these numbers differ, the smallest model is run with each for a moment. It
is not asked more than that, because what a small model prefers says little of a large one: fewer threads than cores
would often win there and lose with the next model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from tasks.domain.stats import median

WORTH_A_CHANGE = 1.05
"""How much faster than one thread per usable CPU another number must be: less is noise of a run this short."""

SEARCH_PROMPT, SEARCH_GEN, SEARCH_REPEATS, SEARCH_LIMIT_S = 64, 8, 2, 3.0
FEW_CPUS = 2


@dataclass(frozen=True)
class ThreadChoice:
    """speeds: by threads, the geometric mean of pp and tg relative to the default."""

    n_threads: int
    speeds: Tuple[Tuple[int, float], ...]

    def evidence(self) -> Dict[str, Any]:
        return {"n_threads": self.n_threads, "relative_speed": {str(n): round(v, 4) for n, v in self.speeds}}


def thread_candidates(n_cpus: int, n_cores: Optional[int], quota_cpus: Optional[float]) -> Tuple[int, ...]:
    """Numbers worth trying, the default first; a single one where there is nothing to choose.

    n_cpus: usable, limits included. n_cores: physical, as visible, of the machine. quota_cpus: the cgroup's.
    """
    found = [n_cpus]
    if n_cpus > FEW_CPUS:
        if n_cores:
            found.append(min(n_cores, n_cpus))
        if quota_cpus:
            found.append(math.ceil(quota_cpus - 0.01))
    return tuple(dict.fromkeys(n for n in found if n >= 1))


def choose_threads(rows: Sequence[Mapping[str, Any]], candidates: Sequence[int]) -> ThreadChoice:
    """From llama-bench's rows. Stays with the first candidate where a row is missing or none is clearly faster."""
    default = candidates[0]
    speeds: Dict[Tuple[int, bool], float] = {}
    for row in rows:
        samples = [s for s in row.get("samples_ns") or () if isinstance(s, (int, float)) and s > 0]
        n_tokens = (row.get("n_prompt") or 0) + (row.get("n_gen") or 0)
        if samples and n_tokens and isinstance(row.get("n_threads"), int):
            speeds[row["n_threads"], bool(row.get("n_prompt"))] = n_tokens / median(samples)
    if any((n, pp) not in speeds for n in candidates for pp in (True, False)):
        return ThreadChoice(default, ())
    relative = {
        n: math.sqrt(speeds[n, True] / speeds[default, True] * speeds[n, False] / speeds[default, False])
        for n in candidates
    }
    best = max(candidates, key=lambda n: relative[n])
    return ThreadChoice(best if relative[best] >= WORTH_A_CHANGE else default, tuple(relative.items()))
