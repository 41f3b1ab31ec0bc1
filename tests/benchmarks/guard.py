"""How much does a running download change pp and tg here? By experiment: this decides what guard=auto has to do.

One llama-bench repeats one short test many times; before each repeat, as its progress marks tell, another download is
let run. So all conditions are met in turns a fraction of a second apart, and drift of the machine cancels. Each
condition lasts two repeats and the second one counts.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from agent.bench import bench_argv
from agent.download import FetchSpec

from tasks.domain.actions import StartBench
from tasks.domain.cells import PP, TASKS, TG, Cell
from tasks.domain.run_plan import ModelSpec
from tasks.domain.stats import median
from tests.benchmarks import this_machine
from tests.benchmarks.downloads import Download, Used, closing_all, endless_file
from tests.benchmarks.result import Result, Table
from tests.benchmarks.sender import Sender
from tests.benchmarks.spread import speed_ratios, spread
from tests.benchmarks.workbench import CpuSet, Workbench

MODEL, QUICK_MODEL = "smollm-135m", "tiny-15m"
SLOW_BYTES_PER_S = 100e6 / 8
REPEAT_S = 0.2
"""Long against the milliseconds that a switch takes, short against the drift of a machine."""

ROUNDS_OF_A_PROCESS = 2
SETTLING = 2
"""Repeats of each condition; the last of them counts."""

MARK = re.compile(r"llama-bench: benchmark 1/1: (?:prompt|generation) run (\d+)/\d+")
SEED = 1
LATE_SHARE = 0.1


@dataclass(frozen=True)
class Condition:
    """scheduling: of the download, None for the agent's own. link: name of a link, "" for none; None: no download."""

    name: str
    link: str | None = None
    scheduling: str | None = None
    paused: bool = False


QUIET = Condition("no download")
PRODUCT = FetchSpec.scheduling
CONDITIONS = (
    QUIET,
    Condition("paused", "", None, paused=True),
    Condition(f"100 Mbit/s, as the agent does it ({PRODUCT})", "slow"),
    Condition("100 Mbit/s, normal priority", "slow", "normal"),
    Condition(f"unlimited, as the agent does it ({PRODUCT})", ""),
    Condition("unlimited, SCHED_IDLE", "", "idle"),
    Condition("unlimited, normal priority", "", "normal"),
)


@dataclass(frozen=True)
class Meanwhile:
    """What happened between the marks of a counted repeat, as far as it could be seen from here."""

    elapsed_s: float
    download: Used
    sender_cpu_s: float


@dataclass
class Seen:
    """samples_s: seconds of the counted repeats, one dictionary a round. n_late: repeats that were left out."""

    samples_s: list[dict[Condition, float]] = field(default_factory=list)
    meanwhile: dict[Condition, list[Meanwhile]] = field(default_factory=lambda: defaultdict(list))
    n_late: int = 0

    def ratios(self, condition: Condition) -> list[float]:
        """Speed under the condition to speed without a download in the same round."""
        rounds = [r for r in self.samples_s if condition in r and QUIET in r]
        return speed_ratios([r[condition] for r in rounds], [r[QUIET] for r in rounds])

    def share(self, condition: Condition, of: Callable[[Meanwhile], float]) -> float:
        """`of` per second of the counted repeats."""
        seen = self.meanwhile[condition]
        return sum(of(m) for m in seen) / max(sum(m.elapsed_s for m in seen), 1e-9)


def run(bench: Workbench) -> Result:
    model = bench.model(QUICK_MODEL if bench.quick else MODEL)
    served = bench.folder("served")
    path, n_bytes = endless_file(served)
    sets = {where: [_cell_that_takes(REPEAT_S, bench, model, where, task) for task in TASKS] for where in _sets(bench)}
    seen = {(where, cell.task): Seen() for where, cells in sets.items() for cell in cells}
    chance = random.Random(SEED)
    began, n_turns = time.monotonic(), 0
    while n_turns == 0 or (time.monotonic() - began) * (n_turns + 1) / n_turns < bench.seconds:
        for where, cells in sets.items():
            with Sender(served, {"slow": SLOW_BYTES_PER_S}, _sender_cpus(where)) as sender:
                downloads = {
                    c: Download(bench, sender.url(path.name, c.link), n_bytes, where, c.scheduling)
                    for c in CONDITIONS
                    if c.link is not None
                }
                with closing_all(list(downloads.values())), _first_in_line():
                    for cell in cells:
                        _one_process(bench, model, cell, where, chance, sender, downloads, seen[where, cell.task])
        n_turns += 1
    result = Result("guard", {"build": bench.build, "model": model.name})
    for where, cells in sets.items():
        _report(result, where, cells, {cell.task: seen[where, cell.task] for cell in cells})
    return result


def _sender_cpus(where: CpuSet) -> list[int]:
    """A real sender is another machine; here it is at least on another CPU where there is one."""
    return [c for c in this_machine.cpus() if c not in where.cpus] or list(where.cpus)


@contextmanager
def _first_in_line() -> Iterator[None]:
    """Read marks without delay where root may; what is started meanwhile is scheduled as usual."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _cell_that_takes(wanted_s: float, bench: Workbench, model: ModelSpec, where: CpuSet, task: str) -> Cell:
    """As many tokens, a multiple of 8, as one repeat of about that length has."""
    probe = Cell(model.name, task, 64 if task == PP else 16)
    probe_s = median(bench.bare(model, [probe], 3, where).samples_s[probe])
    return Cell(model.name, task, max(8, min(512, int(probe.n_tokens * wanted_s / probe_s) // 8 * 8)))


def _sets(bench: Workbench) -> list[CpuSet]:
    """One CPU; two, both used by llama-bench; and two, of which one is free for the download."""
    sets = bench.cpu_sets()
    if len(sets) == 1:
        return sets
    two = sets[1].cpus[:2]
    return [sets[0], CpuSet(two, 2), CpuSet(two, 1)]


def _one_process(
    bench: Workbench,
    model: ModelSpec,
    cell: Cell,
    where: CpuSet,
    chance: random.Random,
    sender: Sender,
    downloads: dict[Condition, Download],
    seen: Seen,
) -> None:
    """One llama-bench over all conditions, a few times, each time in another order."""
    order = [c for _ in range(ROUNDS_OF_A_PROCESS) for c in chance.sample(CONDITIONS, len(CONDITIONS))]
    start = StartBench(model.name, bench.build, (cell,), SETTLING * len(order))
    argv = bench_argv(bench.engine.runtime_dir, bench.models_dir / model.file, start, where.n_threads)
    process = subprocess.Popen(
        [*where.pin(), *argv],
        env=bench.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    meanwhile = _follow(process, order, sender, downloads)
    rows = process.communicate()[0].splitlines()
    if process.returncode != 0 or len(rows) != 1:
        raise RuntimeError(f"llama-bench ended with rc {process.returncode} and {len(rows)} rows")
    samples_s = [ns / 1e9 for ns in json.loads(rows[0])["samples_ns"]][SETTLING - 1 :: SETTLING]
    for first in range(0, len(order), len(CONDITIONS)):
        one_round = {}
        for number in range(first, first + len(CONDITIONS)):
            condition, sample_s, window = order[number], samples_s[number], meanwhile[number]
            if abs(window.elapsed_s - sample_s) > LATE_SHARE * sample_s:
                seen.n_late += 1  # the marks were read too late on a busy machine: another download ran meanwhile
                continue
            one_round[condition] = sample_s
            seen.meanwhile[condition].append(window)
        seen.samples_s.append(one_round)


def _follow(
    process: subprocess.Popen[str], order: list[Condition], sender: Sender, downloads: dict[Condition, Download]
) -> list[Meanwhile]:
    """Switch the downloads at the marks of the repeats, until llama-bench closes its stderr."""
    assert process.stderr is not None
    seen: list[Meanwhile] = []
    before = _look(QUIET, sender, downloads)
    number = -1
    for line in process.stderr:
        mark = MARK.match(line)
        if mark is None:
            if number == len(order) - 1 and "perf_context_print" in line:
                break  # the last repeat is over
            continue
        number, settling = divmod(int(mark.group(1)) - 1, SETTLING)
        condition = order[number]
        if settling == 0:
            if number > 0:
                seen.append(_leave(order[number - 1], sender, downloads, before))
            if condition in downloads:
                downloads[condition].go()
        if settling == SETTLING - 1:
            if condition.paused:
                downloads[condition].stand_still()
            before = _look(condition, sender, downloads)
    seen.append(_leave(order[-1], sender, downloads, before))
    return seen


def _look(condition: Condition, sender: Sender, downloads: dict[Condition, Download]) -> Meanwhile:
    """Clocks and counters as they stand."""
    used = downloads[condition].used() if condition in downloads else Used()
    return Meanwhile(time.monotonic(), used, sender.cpu_s())


def _leave(condition: Condition, sender: Sender, downloads: dict[Condition, Download], before: Meanwhile) -> Meanwhile:
    """Stop the condition's download; what has been since `before`."""
    after = _look(condition, sender, downloads)
    if condition in downloads:
        downloads[condition].stand_still()
    return Meanwhile(
        after.elapsed_s - before.elapsed_s,
        after.download.since(before.download),
        after.sender_cpu_s - before.sender_cpu_s,
    )


def _report(result: Result, where: CpuSet, cells: list[Cell], seen: dict[str, Seen]) -> None:
    beside = "on another CPU" if not set(_sender_cpus(where)) & set(where.cpus) else "on the same CPUs"
    lengths = ", ".join(f"{cell.task}{cell.n_tokens}" for cell in cells)
    table = Table(
        f"{where.name}, {lengths}, {len(seen[PP].samples_s)} rounds, sender {beside}",
        ["download", "pp to no download", "tg to no download", "MB/s downloaded", "CPU of download", "CPU of sender"],
        [],
    )
    for condition in CONDITIONS[1:]:
        ratios = {task: found.ratios(condition) for task, found in seen.items()}
        figures = {
            key: sum(found.share(condition, of) for found in seen.values()) / len(seen)
            for key, of in (
                ("bytes_per_s", lambda m: m.download.bytes_written),
                ("cpu_share", lambda m: m.download.cpu_s),
                ("sender_cpu_share", lambda m: m.sender_cpu_s),
            )
        }
        result.raw[f"{where.name}: {condition.name}"] = {**ratios, **figures}
        if not all(ratios.values()):
            continue
        pp, tg = spread(ratios[PP]), spread(ratios[TG])
        table.rows.append(
            [
                condition.name,
                pp.ratio(),
                tg.ratio(),
                f"{figures['bytes_per_s'] / 1e6:.1f}",
                f"{figures['cpu_share']:.0%}",
                f"{figures['sender_cpu_share']:.0%}",
            ]
        )
        if condition.scheduling is None:
            result.findings.append(f"{where.name}, {condition.name}: pp {pp.median - 1:+.1%}, tg {tg.median - 1:+.1%}")
    n_late = sum(found.n_late for found in seen.values())
    if n_late:
        result.warnings.append(f"{where.name}: {n_late} repeats left out because a download was switched too late")
    result.tables.append(table)
