"""Which servers to measure for a given amount of money, and which to predict.

First pass: the cheapest run in each twin group, groups in order of price. Then, while money is left, one more of the
group in which the predictions are least certain for the dollar: a second twin tells how far twins lie apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Callable, Optional, Sequence

from tasks.domain.stats import median
from tasks.domain.twins import Machine, TwinGroup, twin_groups

TWIN_INTERVALS = {0.5: 0.056, 0.8: 0.194, 0.9: 0.34, 0.95: 0.55}
"""Half-width of log speed that held for this share of the cells of servers that were not run; fitted on the runs of
Spare Cores (docs/gates.md says how well it held on groups that it was not fitted on)."""


@dataclass(frozen=True)
class Choice:
    """One machine. measure: run it; else it is predicted `from_`, a machine of its group; from itself where it
    is known already.

    usd: what its run is expected to cost, 0 where it is not run.
    """

    machine: Machine
    measure: bool
    usd: float
    from_: Optional[Machine] = None
    why: str = ""


@dataclass(frozen=True)
class Selection:
    """What a budget buys. expected_error: median relative error over the machines that are predicted.

    unreached: machines of whose group nothing is run.
    """

    choices: tuple[Choice, ...]
    usd: float
    expected_error: float

    @property
    def measured(self) -> tuple[Choice, ...]:
        return tuple(c for c in self.choices if c.measure)

    @property
    def predicted(self) -> tuple[Choice, ...]:
        return tuple(c for c in self.choices if not c.measure and c.from_ not in (None, c.machine))

    @property
    def known(self) -> tuple[Choice, ...]:
        """Measured already."""
        return tuple(c for c in self.choices if c.from_ == c.machine)

    @property
    def unreached(self) -> tuple[Choice, ...]:
        return tuple(c for c in self.choices if not c.measure and c.from_ is None)


def select(
    machines: Sequence[Machine],
    usd_of_run: Callable[[Machine], float],
    max_usd: float,
    *,
    fresh: frozenset[str] = frozenset(),
) -> Selection:
    """Spend at most max_usd. fresh: names of machines measured already; they cost nothing and predict their twins.

    usd_of_run: expected cost of one run, billing minimum and increment included.
    """
    groups = twin_groups(machines)
    left = max_usd
    run: dict[str, float] = {}
    for group in sorted(groups, key=lambda g: usd_of_run(g.first)):
        if any(m.name in fresh for m in group.machines):
            continue
        cost = usd_of_run(group.first)
        if cost <= left:
            run[group.first.name] = cost
            left -= cost
    for _, machine, cost in sorted(_seconds(groups, run, fresh, usd_of_run), key=lambda s: s[0]):
        if cost <= left:
            run[machine.name] = cost
            left -= cost
    choices = [c for group in groups for c in _choices(group, run, fresh)]
    found = Selection(tuple(choices), sum(run.values()), 0.0)
    return replace(found, expected_error=math.expm1(TWIN_INTERVALS[0.5]) if found.predicted else 0.0)


def _seconds(
    groups: Sequence[TwinGroup], run: dict[str, float], fresh: frozenset[str], usd_of_run: Callable[[Machine], float]
) -> list[tuple[float, Machine, float]]:
    """Machines for a second look, the best value first: dollars for each machine whose prediction gets firmer."""
    out = []
    for group in groups:
        rest = [m for m in group.machines if m.name not in run and m.name not in fresh]
        if not rest or len(rest) == len(group.machines):
            continue
        cheapest = min(rest, key=usd_of_run)
        cost = usd_of_run(cheapest)
        out.append((cost / len(rest), cheapest, cost))
    return out


def _choices(group: TwinGroup, run: dict[str, float], fresh: frozenset[str]) -> list[Choice]:
    known = [m for m in group.machines if m.name in fresh] + [m for m in group.machines if m.name in run]
    out = []
    for machine in group.machines:
        if machine.name in run:
            out.append(Choice(machine, True, run[machine.name], None, "first of its twins" if known else ""))
        elif machine.name in fresh:
            out.append(Choice(machine, False, 0.0, machine, "measured already"))
        else:
            source = known[0] if known else None
            out.append(Choice(machine, False, 0.0, source, "" if source else "no money left for its group"))
    return out


def interval(tok_per_s: Sequence[float], coverage: float) -> tuple[float, float, float]:
    """Speed of a twin that was not run: (low, middle, high) from the measured ones. KeyError for a coverage that is
    not in TWIN_INTERVALS. Two measured twins narrow it by the square root of two at most, never below a half."""
    middle = math.exp(median([math.log(v) for v in tok_per_s]))
    half = TWIN_INTERVALS[coverage] / min(math.sqrt(2.0), math.sqrt(len(tok_per_s)))
    return middle * math.exp(-half), middle, middle * math.exp(half)
