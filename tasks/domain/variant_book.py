"""When which variant runs in a server run: the thread search first, anchors around the models, the rest after each."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Tuple

from tasks.domain.events import Probed, VariantEnded
from tasks.domain.model_state import ModelState, Stage
from tasks.domain.run_state import RunState
from tasks.domain.thread_search import (
    SEARCH_GEN,
    SEARCH_LIMIT_S,
    SEARCH_PROMPT,
    SEARCH_REPEATS,
    choose_threads,
    thread_candidates,
)
from tasks.domain.variants import (
    THREADS,
    Machine,
    Variant,
    VariantOptions,
    after_ladder,
    anchor_variant,
    sustain_variant,
)

START, MIDDLE, END = "start", "middle", "end"
LEAST_REMAINING_S = 30.0
"""What must be left of money and deadline beyond a variant's limit: the ladder goes first."""


class VariantBook:
    """Asked by the conductor whenever no process runs; remembers what has been done.

    `running` is the variant that runs, and `abort_at_s` when it has run too long.
    """

    def __init__(self, run: RunState) -> None:
        self.options = VariantOptions.from_dict(run.plan.variants)
        self.running: Optional[Variant] = None
        self.abort_at_s = math.inf
        self.abort_sent = False
        self._run = run
        self._machine = Machine()
        self._threads: Tuple[int, ...] = ()
        self._candidates: Tuple[int, ...] = ()
        self._queues: Dict[str, List[Variant]] = {}
        self._anchor = ""
        self._anchored: set[str] = set()
        self._sustain_since_s: Optional[float] = None

    def probed(self, event: Probed) -> None:
        cpu = event.hardware.get("cpu") or {}
        self._machine = Machine(
            tuple(event.vram_free_bytes),
            int(cpu.get("n_numa_nodes") or 1),
            tuple(event.hardware.get("programs") or ()),
        )
        if self.options.threads and not self._run.plan.gpu_builds:
            self._threads = thread_candidates(event.n_cpus, cpu.get("n_cores"), cpu.get("cgroup_cpus"))

    # ---- what is due -----------------------------------------------------------------------------------

    def before_ladder(self, model: ModelState) -> Optional[Variant]:
        """The thread search, once, with the first model that is there."""
        if len(self._threads) < 2:
            return None
        label = " ".join(map(str, self._threads))
        return Variant(THREADS, label, model.spec.name, n_prompt=(SEARCH_PROMPT,), n_gen=(SEARCH_GEN,),
                       n_threads=self._threads, n_repeats=SEARCH_REPEATS, limit_s=SEARCH_LIMIT_S)  # fmt: skip

    def after_ladder(self, model: ModelState) -> Optional[Variant]:
        """The next variant of a model whose ladder has ended; None when it is not needed any more."""
        name, view = model.spec.name, self._run.view
        if name not in self._queues:
            self._queues[name] = self._planned(name)
        while self._queues[name]:
            variant = self._queues[name].pop(0)
            if self._affordable(variant):
                return variant
        if self.options.sustain_s and model is self._run.models[0] and self._wants_more_sustain():
            elapsed_s = 0.0 if self._sustain_since_s is None else view.now_s - self._sustain_since_s
            variant_ = sustain_variant(view, name, elapsed_s)
            if variant_ is not None and self._affordable(variant_):
                self._sustain_since_s = view.now_s if self._sustain_since_s is None else self._sustain_since_s
                return variant_
            self._sustain_since_s = -math.inf
        return None

    def _planned(self, name: str) -> List[Variant]:
        view = self._run.view
        planned = after_ladder(view, self.options, self._machine, name)
        if self.options.anchor and name == self._run.models[0].spec.name and len(self._run.models) > 1:
            anchor = anchor_variant(view, name, START)
            if anchor is not None:
                self._anchor = name
                return [anchor, *planned]
        return planned

    def _wants_more_sustain(self) -> bool:
        since_s = self._sustain_since_s
        return since_s is None or self._run.view.now_s - since_s < self.options.sustain_s

    def between_models(self) -> Optional[Variant]:
        """The anchor again: when half of the models are done, and when all are."""
        if START not in self._anchored or END in self._anchored:
            return None
        models = self._run.models
        n_closed = sum(model.stage is Stage.CLOSED for model in models)
        label = END if n_closed == len(models) else MIDDLE if n_closed >= math.ceil(len(models) / 2) else ""
        if not label or label in self._anchored or (label == MIDDLE and len(models) < 3):
            return None
        self._anchored.add(label)
        variant = anchor_variant(self._run.view, self._anchor, label)
        return variant if variant is not None and self._affordable(variant) else None

    def keeps(self, model: str) -> bool:
        """Whether the model's file is needed although its ladder has ended."""
        return model == self._anchor and START in self._anchored and END not in self._anchored

    def kept(self) -> str:
        """The model whose file is to be removed now that the last anchor has run; "" when there is none."""
        done = bool(self._anchor) and END in self._anchored and self.running is None
        name, self._anchor = (self._anchor, "") if done else ("", self._anchor)
        return name

    def _affordable(self, variant: Variant) -> bool:
        enough = variant.limit_s / 2 + LEAST_REMAINING_S <= self._run.view.remaining_s
        if not enough:
            evidence = {"limit_s": variant.limit_s, "remaining_s": self._run.view.remaining_s}
            self._decide("skip_variant", variant, self._run.view.end_reason.value, evidence)
        return enough

    # ---- what happens to it ----------------------------------------------------------------------------

    def begin(self, variant: Variant) -> None:
        self.running, self.abort_sent = variant, False
        self.abort_at_s = self._run.view.now_s + variant.limit_s
        if variant.kind == THREADS:
            self._candidates, self._threads = self._threads, ()
        self._decide("start_variant", variant, "ok", {"limit_s": variant.limit_s})

    def ended(self, event: VariantEnded) -> None:
        variant, self.running = self.running, None
        if variant is None:
            return
        if variant.kind == THREADS:
            choice = choose_threads(event.rows, self._candidates)
            self._run.n_threads = choice.n_threads
            self._decide("choose_threads", variant, "ok" if choice.speeds else event.outcome, choice.evidence())
        elif variant.model == self._anchor and variant.label == START:
            self._anchored.add(START)
        if event.outcome != "measured":
            self._decide("variant_ended", variant, event.outcome, {"detail": event.detail[:300]})

    def _decide(self, action: str, variant: Variant, reason: str, evidence: Dict[str, Any]) -> None:
        subject = f"{variant.model} {variant.kind} {variant.label}"
        self._run.decide(self._run.view.now_s, action, subject, reason, evidence)
