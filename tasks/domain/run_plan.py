"""What one server run is told to do: the contract between controller and agent.

`RunPlan.to_json()` is what the controller puts on the server as `plan.json`; `RunPlan.from_json()` is
what the agent reads. Both ends run the same module, so there is one definition of every field.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks.domain.billing import Billing
from tasks.domain.cells import Cell
from tasks.domain.errors import ConfigError
from tasks.domain.known import KnownCell

PLAN_VERSION = 1


@dataclass(frozen=True)
class ModelSpec:
    """A GGUF model to download and benchmark.

    bytes: exact file size, or 0 where it is not known; listed_bytes: a size near enough for planning.
    sha256: of the file, or "" where it is not known.
    weights: "real" or "random" (files of a real architecture made without a download).
    urls: mirrors of the same bytes, tried in order.
    """

    name: str
    file: str
    urls: tuple[str, ...]
    bytes: int
    sha256: str = ""
    weights: str = "real"
    revision: str = ""
    listed_bytes: int = 0

    @property
    def planned_bytes(self) -> int:
        """The size that order, fit and time are reckoned with."""
        return self.bytes or self.listed_bytes


@dataclass(frozen=True)
class LadderStep:
    """One length of a task's ladder and the least speed at which it is worth measuring."""

    task: str
    n_tokens: int
    min_tok_per_s: float


@dataclass(frozen=True)
class RunPlan:
    """One server run.

    billed_before_s: seconds already billed when the agent starts (create, boot, connect).
    teardown_reserve_s: seconds of the budget kept for landing and deletion.
    billing_minimum_s, billing_increment_s: how the vendor rounds what it bills.
    max_usd: money cap of this server run; deadline_s: hard end, seconds after the agent starts.
    builds: runtime builds to try, best first (names of folders in the runtime).
    gpu_builds: those of them that use a GPU; the agent, which knows the runtime, fills it in.
    n_threads: 0 lets the agent use one thread per CPU that it may run on.
    measured: cells already measured by an interrupted run of this sweep, with their samples in seconds.
    known: what earlier runs of this server type or of its twins showed.
    variants: which measurements beside the ladder are wanted, see VariantOptions.
    guard: "off", "pause" or "auto": how downloads make way for timed repeats.
    """

    sweep_id: str
    server_run_id: str
    server: str
    models: tuple[ModelSpec, ...]
    ladder: tuple[LadderStep, ...]
    policy: str
    price_usd_per_hour: float
    max_usd: float
    deadline_s: float
    policy_options: dict[str, Any] = field(default_factory=dict)
    billed_before_s: float = 0.0
    billing_minimum_s: float = 0.0
    billing_increment_s: float = 1.0
    teardown_reserve_s: float = 30.0
    builds: tuple[str, ...] = ()
    n_threads: int = 0
    guard: str = "auto"
    gpu_builds: tuple[str, ...] = ()
    variants: dict[str, Any] = field(default_factory=dict)
    measured: tuple[tuple[Cell, tuple[float, ...]], ...] = ()
    known: tuple[KnownCell, ...] = ()
    plan_version: int = PLAN_VERSION

    def cells(self) -> tuple[Cell, ...]:
        """Every cell of the ladder, in the order in which they would be measured."""
        return tuple(Cell(m.name, s.task, s.n_tokens) for m in self.models for s in self.ladder)

    @property
    def billing(self) -> Billing:
        return Billing(self.price_usd_per_hour, self.billing_minimum_s, self.billing_increment_s)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunPlan:
        """Read a plan. Raises ConfigError when it is of another version or not a plan."""
        try:
            raw = json.loads(text)
            if raw["plan_version"] != PLAN_VERSION:
                raise ConfigError(
                    f"The run plan has version {raw['plan_version']}, this agent reads version {PLAN_VERSION}.",
                    next_step="Start the agent of the controller's own version.",
                )
            raw["models"] = tuple(ModelSpec(**{**m, "urls": tuple(m["urls"])}) for m in raw["models"])
            raw["ladder"] = tuple(LadderStep(**s) for s in raw["ladder"])
            raw["builds"] = tuple(raw["builds"])
            raw["gpu_builds"] = tuple(raw.get("gpu_builds", ()))
            raw["measured"] = tuple((Cell(**c), tuple(s)) for c, s in raw["measured"])
            raw["known"] = tuple(KnownCell.from_dict(k) for k in raw.get("known", ()))
            return cls(**raw)
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigError(f"The run plan cannot be read: {exc!r}.") from exc
