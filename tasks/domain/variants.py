"""Measurements beside the ladder: the same model and engine, with one thing changed.

They answer questions that a cell cannot (does the server keep its speed, what does a second GPU bring) and never mix
with cells. Each is one process, or one per GPU at once, with a limit of seconds drawn from what the ladder has shown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple

from tasks.domain.cells import PP, TG, Outcome
from tasks.domain.errors import ConfigError
from tasks.domain.memory import KV_CELL_PADDING, memory_needed_bytes
from tasks.domain.offload import plan_offload
from tasks.domain.policy import RunView

ANCHOR, THREADS, DEPTH, COMBINED, KV_TYPE = "anchor", "threads", "depth", "combined", "kv_type"
GPU, GPU_SET, INSTANCES, NUMA, SUSTAIN, BATCHED = "gpu", "gpu_set", "instances", "numa", "sustain", "batched"
KINDS = (ANCHOR, THREADS, DEPTH, COMBINED, KV_TYPE, GPU, GPU_SET, INSTANCES, NUMA, SUSTAIN, BATCHED)

BATCHED_PROGRAM = "llama-batched-bench"
BATCHED_PROMPT, BATCHED_GEN = 128, 32
NUMA_MODES = ("distribute", "isolate")
LONGEST_REPEAT_S = 5.0
ANCHOR_REPEAT_S = 0.5
ANCHOR_LIMIT_S = 10.0
SUSTAIN_CHUNK_S = 10.0
REPEATS = 3
LIMIT_FACTOR = 5.0
LEAST_LIMIT_S = 20.0
MEMORY_RATIO = 0.9
# Bytes of an element, from llama.cpp's block sizes.
CACHE_BYTES = {"f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
               "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """devices: one process for each entry, all at once; an entry may be a set ("CUDA0/CUDA1"), "" leaves it open.

    ngl, n_threads: None and () take what the ladder takes. sequences: of llama-batched-bench.
    """

    kind: str
    label: str
    model: str
    n_prompt: Tuple[int, ...] = ()
    n_gen: Tuple[int, ...] = ()
    pg: Tuple[Tuple[int, int], ...] = ()
    n_depth: int = 0
    sequences: Tuple[int, ...] = ()
    n_ctx: int = 0
    n_repeats: int = REPEATS
    n_threads: Tuple[int, ...] = ()
    ngl: Optional[int] = None
    devices: Tuple[str, ...] = ("",)
    cache_type: str = ""
    numa: str = ""
    limit_s: float = LEAST_LIMIT_S

    def settings(self) -> Dict[str, Any]:
        """What was changed, for the log."""
        return {name: value for name, value in asdict(self).items() if name not in ("kind", "label", "model")}


@dataclass(frozen=True)
class VariantOptions:
    """Which are wanted. Nothing by default: the controller's preset decides."""

    anchor: bool = False
    threads: bool = False
    depth: Tuple[int, ...] = ()
    combined: Tuple[Tuple[int, int], ...] = ()
    kv_types: Tuple[str, ...] = ()
    gpus: bool = False
    instances: bool = False
    numa: bool = False
    sustain_s: float = 0.0
    batched: Tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> VariantOptions:
        """Raises ConfigError for a name or a cache type that does not exist."""
        unknown = sorted(set(raw) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ConfigError(f"There is no variant {unknown[0]!r}.", next_step=f"Known: {known}.")
        values = dict(raw)
        for name in ("depth", "kv_types", "batched"):
            values[name] = tuple(raw.get(name) or ())
        values["combined"] = tuple((int(p), int(g)) for p, g in raw.get("combined") or ())
        wrong = [kind for kind in values["kv_types"] if kind not in CACHE_BYTES]
        if wrong:
            raise ConfigError(f"There is no cache type {wrong[0]!r}.", next_step=f"Known: {', '.join(CACHE_BYTES)}.")
        return cls(**values)


@dataclass(frozen=True)
class Shape:
    """The longest measured prompt and generation of a model that repeat within seconds; 0 where there is none."""

    n_prompt: int
    n_gen: int
    pp_tok_per_s: float
    tg_tok_per_s: float

    def seconds(self, n_prompt: int, n_gen: int, n_repeats: int) -> float:
        """Of so many repeats and the warm-up, at the ladder's speed."""
        prompt_s = n_prompt / self.pp_tok_per_s if self.pp_tok_per_s else 0.0
        gen_s = n_gen / self.tg_tok_per_s if self.tg_tok_per_s else 0.0
        return prompt_s * (n_repeats + 1) + gen_s * n_repeats


def shape_of(view: RunView, model: str, longest_repeat_s: float = LONGEST_REPEAT_S) -> Optional[Shape]:
    """None where nothing of the model was measured. Where even the shortest takes longer, it is taken all the same."""
    found: Dict[str, Tuple[int, float]] = {}
    for task in (PP, TG):
        measured = sorted(
            (cell.n_tokens, speed.median_tok_per_s)
            for cell, result in view.results.items()
            if cell.model == model and cell.task == task and result.outcome is Outcome.MEASURED
            for speed in [view.speed(cell)]
            if speed is not None
        )
        quick = [(n, speed) for n, speed in measured if n / speed <= longest_repeat_s] or measured[:1]
        found[task] = quick[-1] if quick else (0, 0.0)
    if not found[PP][0] and not found[TG][0]:
        return None
    return Shape(found[PP][0], found[TG][0], found[PP][1], found[TG][1])


@dataclass(frozen=True)
class Machine:
    """What the planning looks at. vram_free_bytes: by GPU; () where none is used. programs: of the runtime."""

    vram_free_bytes: Tuple[int, ...] = ()
    n_numa_nodes: int = 1
    programs: Tuple[str, ...] = ()
    device: str = "CUDA"


def anchor_variant(view: RunView, model: str, label: str) -> Optional[Variant]:
    """The same short test at the beginning, the middle and the end of a run; None where it would take too long."""
    shape = shape_of(view, model, ANCHOR_REPEAT_S)
    if shape is None or shape.seconds(shape.n_prompt, shape.n_gen, REPEATS) > ANCHOR_LIMIT_S:
        return None
    return _of_shape(ANCHOR, label, model, shape)


def sustain_variant(view: RunView, model: str, elapsed_s: float) -> Optional[Variant]:
    """One piece of a long run of the same test; together they show whether the speed falls to a baseline."""
    shape = shape_of(view, model, ANCHOR_REPEAT_S)
    if shape is None or not shape.n_gen:
        return None
    n_repeats = max(2, int(SUSTAIN_CHUNK_S / (shape.n_gen / shape.tg_tok_per_s)))
    limit_s = max(LEAST_LIMIT_S, LIMIT_FACTOR * 4 * SUSTAIN_CHUNK_S)
    return Variant(
        SUSTAIN, f"{elapsed_s:.0f} s", model, n_gen=(shape.n_gen,), n_repeats=min(n_repeats, 10_000), limit_s=limit_s
    )


def after_ladder(view: RunView, options: VariantOptions, machine: Machine, model: str) -> List[Variant]:
    """What is wanted of a model whose ladder has ended, in the order of running. What cannot fit is left out."""
    shape = shape_of(view, model)
    if shape is None:
        return []
    out: List[Variant] = []
    for depth in options.depth:
        if _fits(view, machine, model, depth + shape.n_prompt + shape.n_gen, "f16"):
            out.append(_of_shape(DEPTH, f"d{depth}", model, shape, n_depth=depth))
    for n_prompt, n_gen in options.combined:
        if _fits(view, machine, model, n_prompt + n_gen, "f16"):
            limit_s = _limit_s(shape.seconds(n_prompt, n_gen, REPEATS))
            out.append(Variant(COMBINED, f"pg{n_prompt}+{n_gen}", model, pg=((n_prompt, n_gen),), limit_s=limit_s))
    for kind in options.kv_types:
        if _cache_holds(view, model, kind):
            out.append(_of_shape(KV_TYPE, kind, model, shape, cache_type=kind))
    if options.numa and machine.n_numa_nodes > 1 and not machine.vram_free_bytes:
        out += [_of_shape(NUMA, mode, model, shape, numa=mode) for mode in NUMA_MODES]
    out += _of_gpus(view, options, machine, model, shape)
    if options.batched and BATCHED_PROGRAM in machine.programs:
        out += _batched(view, options, machine, model, shape)
    return out


def _of_shape(kind: str, label: str, model: str, shape: Shape, *, n_depth: int = 0, **changes: Any) -> Variant:
    expected_s = shape.seconds(n_depth + shape.n_prompt, shape.n_gen, REPEATS)
    return Variant(
        kind,
        label,
        model,
        n_prompt=(shape.n_prompt,) if shape.n_prompt else (),
        n_gen=(shape.n_gen,) if shape.n_gen else (),
        n_depth=n_depth,
        limit_s=_limit_s(expected_s),
        **changes,
    )


def _limit_s(expected_s: float) -> float:
    return max(LEAST_LIMIT_S, LIMIT_FACTOR * expected_s)


def _of_gpus(view: RunView, options: VariantOptions, machine: Machine, model: str, shape: Shape) -> List[Variant]:
    """Each GPU alone, 1, 2, 4, ... and all of them together, and one instance on each at once."""
    n_gpus = len(machine.vram_free_bytes)
    header = view.headers.get(model)
    if n_gpus < 2 or header is None:
        return []
    n_ctx = shape.n_prompt + shape.n_gen
    if not all(plan_offload(header, [free], n_ctx).whole for free in machine.vram_free_bytes):
        return []  # what one GPU cannot hold has no base to scale from
    names = [f"{machine.device}{i}" for i in range(n_gpus)]
    ngl = header.n_layers + 1
    out: List[Variant] = []
    if options.gpus:
        out += [_of_shape(GPU, name, model, shape, ngl=ngl, devices=(name,)) for name in names]
        sizes = [n for n in (2, 4, 8, 16) if n < n_gpus] + [n_gpus]
        out += [_of_shape(GPU_SET, f"{n} GPUs", model, shape, ngl=ngl, devices=("/".join(names[:n]),)) for n in sizes]
    if options.instances:
        out.append(_of_shape(INSTANCES, f"{n_gpus} instances", model, shape, ngl=ngl, devices=tuple(names)))
    return out


def _batched(view: RunView, options: VariantOptions, machine: Machine, model: str, shape: Shape) -> List[Variant]:
    """As many sequences as memory has room for; one process, which measures each number once.

    llama.cpp gives every sequence a context of its own, rounded up like any other.
    """
    per_sequence = -(-(BATCHED_PROMPT + BATCHED_GEN) // KV_CELL_PADDING) * KV_CELL_PADDING
    fitting = tuple(n for n in sorted(options.batched) if _fits(view, machine, model, n * per_sequence, "f16"))
    if not fitting:
        return []
    alone_s = shape.seconds(BATCHED_PROMPT, BATCHED_GEN, 1)
    limit_s = _limit_s(alone_s * sum(fitting))
    return [Variant(BATCHED, "-".join(map(str, fitting)), model, n_prompt=(BATCHED_PROMPT,), n_gen=(BATCHED_GEN,),
                    sequences=fitting, n_ctx=max(fitting) * per_sequence, n_repeats=1, limit_s=limit_s)]  # fmt: skip


def _cache_holds(view: RunView, model: str, cache_type: str) -> bool:
    """Quantised caches are made of blocks of 32, which the size of a head must be a multiple of."""
    header = view.headers.get(model)
    whole = cache_type in ("f16", "bf16")
    return header is None or whole or (header.head_dim_k % 32 == 0 and header.head_dim_v % 32 == 0)


def _fits(view: RunView, machine: Machine, model: str, n_ctx: int, cache_type: str) -> bool:
    header = view.headers.get(model)
    if header is None:
        return True
    kv = CACHE_BYTES[cache_type]
    if machine.vram_free_bytes:
        offload = plan_offload(header, machine.vram_free_bytes, n_ctx, kv)
        return offload.ngl > 0 and offload.host_bytes <= view.memory_available_bytes * MEMORY_RATIO
    return memory_needed_bytes(header, n_ctx, kv).total <= view.memory_available_bytes * MEMORY_RATIO
