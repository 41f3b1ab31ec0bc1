"""Which servers to measure for a given amount of money, and which to predict.

Every dollar goes where it takes away most uncertainty: a machine of a group of which nothing is known makes all its
twins known, a further one is known itself and makes its twins' predictions firmer. So the first of each group comes
first, large and cheap groups before small and dear ones, and what is so cheap that it need not be guessed is measured.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from typing import Callable, Optional, Sequence

from tasks.domain.predict import spread_class
from tasks.domain.stats import median
from tasks.domain.twins import Machine, TwinGroup, twin_groups

TWIN_INTERVALS = {
    0.5: (0.020, 0.042, 0.057, 0.129),
    0.8: (0.071, 0.117, 0.148, 0.384),
    0.9: (0.117, 0.193, 0.240, 0.699),
    0.95: (0.172, 0.281, 0.366, 1.048),
}
"""Half-width of log speed that held for this share of the cells of servers that were not run, by how far the repeats of
the measured twin lay apart (predict.SPREADS); fitted on the runs of Spare Cores (docs/gates.md says how well it held on
groups that it was not fitted on)."""

EXPECTED_ERROR = 0.039
"""Median relative error over those cells."""

UNCERTAINTY = (1.0, 0.097, 0.087, 0.083)
"""Mean absolute error of log speed by how many twins were measured (the last for more), on the same runs. Where none
was, nothing is foretold: that counts as not knowing the speed within a factor of e."""


@dataclass(frozen=True)
class Choice:
    """One machine. measure: run it; else it is predicted from `sources`, the measured machines of its group; from
    itself where it is known already.

    usd: what its run is expected to cost, 0 where it is not run.
    """

    machine: Machine
    measure: bool
    usd: float
    sources: tuple[Machine, ...] = ()
    why: str = ""

    @property
    def from_(self) -> Optional[Machine]:
        """The first of the sources."""
        return self.sources[0] if self.sources else None


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
    known = set(fresh)
    offers = [offer for number, group in enumerate(groups) for offer in _offers(number, group, known, usd_of_run)]
    heapq.heapify(offers)
    while offers:
        _, number, machine = heapq.heappop(offers)
        cost = usd_of_run(machine)
        if cost > left:
            continue
        run[machine.name] = cost
        left -= cost
        known.add(machine.name)
        for offer in _offers(number, groups[number], known, usd_of_run):
            heapq.heappush(offers, offer)
    choices = [c for group in groups for c in _choices(group, run, fresh)]
    found = Selection(tuple(choices), sum(run.values()), 0.0)
    return replace(found, expected_error=EXPECTED_ERROR if found.predicted else 0.0)


def _offers(
    number: int, group: TwinGroup, known: set[str], usd_of_run: Callable[[Machine], float]
) -> list[tuple[float, int, Machine]]:
    """The next machine of a group to measure, if any is left, with its dollars for the uncertainty that it takes away
    from all machines of the group: the first of the group, then the cheapest."""
    rest = [m for m in group.machines if m.name not in known]
    n_known = len(group.machines) - len(rest)
    if not rest:
        return []
    machine = min(rest, key=usd_of_run) if n_known else group.first
    before, after = (UNCERTAINTY[min(n, len(UNCERTAINTY) - 1)] for n in (n_known, n_known + 1))
    return [(usd_of_run(machine) / (before + (before - after) * (len(rest) - 1)), number, machine)]


def _choices(group: TwinGroup, run: dict[str, float], fresh: frozenset[str]) -> list[Choice]:
    known = [m for m in group.machines if m.name in fresh] + [m for m in group.machines if m.name in run]
    out = []
    for machine in group.machines:
        if machine.name in run:
            out.append(
                Choice(machine, True, run[machine.name], (), "first of its twins" if machine == known[0] else "")
            )
        elif machine.name in fresh:
            out.append(Choice(machine, False, 0.0, (machine,), "measured already"))
        else:
            out.append(Choice(machine, False, 0.0, tuple(known), "" if known else "no money left for its group"))
    return out


def interval(
    tok_per_s: Sequence[float], coverage: float, spreads: Sequence[Optional[float]] = ()
) -> tuple[float, float, float]:
    """Speed of a twin that was not run: (low, middle, high) from the measured ones. KeyError for a coverage that is
    not in TWIN_INTERVALS.

    spreads: coefficients of variation of the repeats behind each speed, None for a single repeat.
    """
    middle = math.exp(median([math.log(v) for v in tok_per_s]))
    half = TWIN_INTERVALS[coverage][twins_class(spreads)]
    return middle * math.exp(-half), middle, middle * math.exp(half)


def twins_class(spreads: Sequence[Optional[float]]) -> int:
    """Which half-width of TWIN_INTERVALS."""
    classes = sorted(spread_class(s) for s in spreads) or [spread_class(None)]
    return classes[len(classes) // 2]
