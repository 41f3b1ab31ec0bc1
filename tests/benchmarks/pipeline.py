"""Is the pipeline tight? Makespan of a real agent run against its lower bound, where downloads last as long as benches.

Several models of one size over a link of a chosen speed: the hardest case, because a gap between any two of them
lengthens the run. The guard's cost is what it adds to the makespan.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

from tasks.domain.cells import PP, TG, Cell
from tasks.domain.run_plan import ModelSpec
from tasks.domain.stats import median
from tasks.models.serve import ModelServer
from tests.benchmarks.result import Result, Table
from tests.benchmarks.spread import spread
from tests.benchmarks.timeline import Timeline, timeline
from tests.benchmarks.workbench import CpuSet, Workbench, fixed_plan, ladder

MODEL, LENGTHS = "smollm-135m", ((PP, 128), (TG, 32))
QUICK_MODEL, QUICK_LENGTHS = "tiny-15m", ((PP, 64), (TG, 16))
GUARDS = ("off", "pause", "auto")
TURN = ("off", "pause", "auto", "off")
N_MODELS = 4
LEAST_REPEATS, MOST_REPEATS = 3, 60
TARGET = 1.05
RUN_SHARE = 0.8
"""Of the time, for runs: the rest is for finding out how long a bench takes."""


def run(bench: Workbench) -> Result:
    where = bench.cpu_sets()[-1]
    one = bench.model(QUICK_MODEL if bench.quick else MODEL)
    lengths = QUICK_LENGTHS if bench.quick else LENGTHS
    cells = [Cell(one.name, *length) for length in lengths]
    bench_s, n_repeats = _calibrate(bench, one, cells, where)
    link_bytes_per_s = one.bytes / bench_s
    folder = bench.folder("models")
    models = []
    for number in range(N_MODELS):
        model = replace(one, name=f"{one.name}-{number}", file=f"{number}-{one.file}")
        (folder / model.file).symlink_to(bench.models_dir / one.file)
        models.append(model)
    seen: dict[str, list[Timeline]] = defaultdict(list)
    for guard in TURN:
        with ModelServer(folder, links={"link": link_bytes_per_s}) as files:
            served = [replace(m, urls=(files.url(m.file, "link"),)) for m in models]
            events = bench.agent(fixed_plan(served, ladder(*lengths), n_repeats, guard), where)
        seen[guard].append(timeline(events))
    result = Result(
        "pipeline",
        {
            "models": f"{N_MODELS} x {one.name}",
            "link": f"{link_bytes_per_s * 8 / 1e6:.0f} Mbit/s",
            "on": where.name,
            "repeats": n_repeats,
        },
    )
    _report(result, seen, bench_s)
    return result


def _calibrate(bench: Workbench, model: ModelSpec, cells: list[Cell], where: CpuSet) -> tuple[float, int]:
    """Seconds of one bench by hand, and with how many repeats, so that the runs take as long as they may."""
    first = bench.bare(model, cells, LEAST_REPEATS, where)
    repeat_s = sum(median(samples_s) for samples_s in first.samples_s.values())
    # A run is N + 1 benches long with the guard off, and 2 N where a guard lets nothing overlap.
    n_benches = sum(N_MODELS + 1 if guard == "off" else 2 * N_MODELS for guard in TURN)
    wanted_s = bench.seconds * RUN_SHARE / n_benches
    n_repeats = LEAST_REPEATS + math.ceil((wanted_s - first.wall_s) / repeat_s)
    n_repeats = max(LEAST_REPEATS, min(MOST_REPEATS, n_repeats))
    return median([bench.bare(model, cells, n_repeats, where).wall_s for _ in range(2)]), n_repeats


def _report(result: Result, seen: dict[str, list[Timeline]], bench_s: float) -> None:
    ideal_s = (N_MODELS + 1) * bench_s  # all downloads and the last bench, or the first download and all benches
    whole = Table(
        "makespan",
        ["guard", "makespan, s", "to its bound", "to the ideal", "to guard off", "paused, s", "benches to by hand"],
        [],
    )
    gaps = Table(
        "who waited, seconds of a run",
        ["guard", "before the first download", "between downloads", "bench late", "after the last bench"],
        [],
    )
    off_s = median([t.makespan_s for t in seen["off"]])
    for guard in GUARDS:
        runs = seen[guard]
        bound, ideal, off, stretch = (
            spread([t.makespan_s / t.bound_s for t in runs]),
            spread([t.makespan_s / ideal_s for t in runs]),
            spread([t.makespan_s / off_s for t in runs]),
            spread([t.benches_s / (N_MODELS * bench_s) for t in runs]),
        )
        makespan_s, paused_s = median([t.makespan_s for t in runs]), median([t.paused_s for t in runs])
        figures = [f"{makespan_s:.1f}", bound.ratio(), ideal.ratio(), off.ratio(), f"{paused_s:.1f}", stretch.ratio()]
        whole.rows.append([guard, *figures])
        gaps.rows.append(
            [
                guard,
                f"{median([t.before_first_download_s for t in runs]):.2f}",
                f"{median([t.between_downloads_s for t in runs]):.2f}",
                f"{median([t.bench_late_s for t in runs]):.2f}",
                f"{median([t.after_last_bench_s for t in runs]):.2f}",
            ]
        )
        result.raw[guard] = [_raw(t) for t in runs]
        if guard == "off":
            verdict = "at most" if bound.median <= TARGET else "NOT at most"
            result.findings.append(f"guard off: makespan to lower bound {bound.ratio()}, {verdict} {TARGET}")
        else:
            result.findings.append(f"guard {guard}: {off.median - 1:+.0%} of the time that the run takes without it")
    result.tables = [whole, gaps]
    result.raw["bench_by_hand_s"] = bench_s


def _raw(run: Timeline) -> dict[str, object]:
    return {
        "makespan_s": run.makespan_s,
        "bound_s": run.bound_s,
        "paused_s": run.paused_s,
        "downloads": [[d.began_s, d.ended_s] for d in run.downloads],
        "benches": [[b.began_s, b.ended_s] for b in run.benches],
    }
