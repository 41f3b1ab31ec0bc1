"""Presets: named sweeps, one YAML file each in `deployments/presets/`.

A preset says what to measure where; it never holds credentials. Its content decides the sweep's id, so the
same preset on the same engine and models takes up where it stopped, and a changed one is another sweep.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.domain.classic import CLASSIC_MIN_TOK_PER_S
from tasks.domain.errors import ConfigError
from tasks.domain.policies import POLICIES, policy_for
from tasks.domain.run_plan import LadderStep
from tasks.domain.variants import VariantOptions

VendorName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{1,20}$")]
# Left out of a sweep's id where they are empty, so that older sweeps keep theirs.
_NEWER_FIELDS = ("places", "spot", "vendor_options")
Tokens = Annotated[int, Field(gt=0, le=1_000_000)]


class Step(BaseModel):
    """One length with its own gate, where the default table has none for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    n_tokens: Tokens
    min_tok_per_s: float = Field(gt=0)


class Variants(BaseModel):
    """Measurements beside the ladder (docs/measuring.md). The first two cost seconds and are on, the others are asked
    for. sustain_s: of servers that are fast only on credits."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    anchor: bool = True
    threads: bool = True
    depth: tuple[Tokens, ...] = ()
    combined: tuple[tuple[Tokens, Tokens], ...] = ()
    kv_types: tuple[str, ...] = ()
    gpus: bool = False
    instances: bool = False
    numa: bool = False
    sustain_s: float = Field(default=0.0, ge=0, le=7200)
    batched: tuple[Annotated[int, Field(gt=0, le=1000)], ...] = ()


class Preset(BaseModel):
    """A sweep. `servers: []` means the vendor's default selection.

    An entry of `servers` is a server type, `vendor/type` for another vendor than the preset's, or a pattern of either
    (`m7i.*`, `hetzner/c*`), of which `c*:20` takes 20, spread evenly. places: patterns of zones or regions that may be
    used; empty for all. vendor_options: what the preset's vendor understands (`sim`: docs/sim.md).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    description: str = ""
    vendor: VendorName = "local"
    servers: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    spot: bool = False
    vendor_options: dict[str, Any] = Field(default_factory=dict)
    models: tuple[str, ...] = Field(min_length=1)
    weights: Literal["real", "random", "simulated"] = "random"
    pp: tuple[Tokens | Step, ...] = ()
    tg: tuple[Tokens | Step, ...] = ()
    variants: Variants = Variants()
    policy: str = "dynamic"
    policy_options: dict[str, float | int | bool] = Field(default_factory=dict)
    guard: Literal["off", "pause", "auto"] = "auto"
    max_usd: Decimal = Field(gt=0)
    max_usd_per_server: Decimal = Field(gt=0)
    deadline_s: float = Field(gt=0, le=86_400, description="hard end of one server run")
    max_parallel: int = Field(default=1, ge=1, le=100)

    @model_validator(mode="after")
    def _known_policy(self) -> Preset:
        if self.policy not in POLICIES:
            raise ValueError(f"policy {self.policy!r} is unknown; known: {', '.join(sorted(POLICIES))}")
        try:
            policy_for(self.policy, self.policy_options)
        except ConfigError as exc:
            raise ValueError(str(exc)) from exc
        try:
            self.wanted_variants()
        except ConfigError as exc:
            raise ValueError(str(exc)) from exc
        if not self.pp and not self.tg:
            raise ValueError("a ladder needs at least one length in pp or tg")
        self.ladder()
        return self

    def wanted(self) -> dict[str, tuple[str, ...]]:
        """Names and patterns of server types by vendor; empty for the vendor's own selection."""
        by_vendor: dict[str, tuple[str, ...]] = {} if self.servers else {self.vendor: ()}
        for entry in self.servers:
            vendor, slash, name = entry.partition("/")
            vendor, name = (vendor, name) if slash else (self.vendor, entry)
            by_vendor[vendor] = (*by_vendor.get(vendor, ()), name)
        return by_vendor

    def ladder(self) -> tuple[LadderStep, ...]:
        """The steps with their gates; the predecessor's table fills in gates that the preset does not give."""
        steps = []
        for task, lengths in (("pp", self.pp), ("tg", self.tg)):
            for length in lengths:
                if isinstance(length, Step):
                    steps.append(LadderStep(task, length.n_tokens, length.min_tok_per_s))
                elif length in CLASSIC_MIN_TOK_PER_S[task]:
                    steps.append(LadderStep(task, length, CLASSIC_MIN_TOK_PER_S[task][length]))
                else:
                    known = sorted(CLASSIC_MIN_TOK_PER_S[task])
                    raise ValueError(
                        f"{task}{length} has no default gate (known: {known}); "
                        f"write it as {{n_tokens: {length}, min_tok_per_s: ...}}"
                    )
        return tuple(sorted(set(steps), key=lambda s: (s.task, s.n_tokens)))

    def wanted_variants(self, *, on_credits: bool = True) -> dict[str, Any]:
        """As a run plan has them. on_credits: whether the server is one that is fast only for a while."""
        wanted = self.variants.model_dump(mode="json")
        VariantOptions.from_dict(wanted)
        return {**wanted, "sustain_s": self.variants.sustain_s if on_credits else 0.0}

    def sweep_id(self, engine: str, label: str = "") -> str:
        """Identifies the sweep: the same preset, engine and label give the same id."""
        what = self.model_dump(mode="json", exclude={"description", "max_parallel", "max_usd"})
        what = {name: value for name, value in what.items() if value or name not in _NEWER_FIELDS}
        if self.variants == Variants():
            del what["variants"]
        text = json.dumps([what, engine, label], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _where(exc: yaml.YAMLError) -> str:
    """The problem with its place, on one line."""
    mark, problem = getattr(exc, "problem_mark", None), getattr(exc, "problem", None)
    if mark is None or problem is None:
        return str(exc).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def preset_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.stem for p in folder.glob("*.yaml")))


def load_preset(name: str, folder: Path, overrides: dict[str, Any] | None = None) -> Preset:
    """Read a preset by name, or by path to a YAML file. Raises ConfigError that names file and field."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = preset_names(folder)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known presets: {', '.join(known) or 'none'}."
        raise ConfigError(f"There is no preset {name!r} ({path}).", next_step=hint)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"Preset {path} cannot be read: {why}.", next_step="Mend the file and try again.") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(
            f"Preset {path} is not valid YAML: {_where(exc)}.", next_step="Mend the file and try again."
        ) from exc
    if not isinstance(raw, dict):
        raise ConfigError(f"Preset {path} must be a mapping of field to value.", next_step="See docs/presets.md.")
    try:
        return Preset.model_validate({"name": path.stem, **raw, **(overrides or {})})
    except ValidationError as exc:
        problems = "; ".join(f"{'.'.join(str(x) for x in e['loc']) or 'preset'}: {e['msg']}" for e in exc.errors())
        raise ConfigError(f"Preset {path}: {problems}.", next_step="Nothing was started.") from exc
