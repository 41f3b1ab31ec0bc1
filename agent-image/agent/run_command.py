"""One server run from plan to Finished line. Whatever goes wrong is written into the event log."""

from __future__ import annotations

import hashlib
import sys
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import agent
from agent.eventlog import EVENTS_FILE, EventLog, read_events
from agent.lifecycle import PLAN_FILE, STOP_REASON_FILE

if TYPE_CHECKING:
    from agent.driver import Driver
    from tasks.domain.cells import CellResult
    from tasks.domain.events import Event, Probed
    from tasks.domain.run_plan import RunPlan


def program_sha256() -> str:
    """Which agent this is: the digest of its archive, or "source" when it runs from the source tree."""
    archive = Path(agent.__file__).parent.parent
    return hashlib.sha256(archive.read_bytes()).hexdigest() if archive.is_file() else "source"


@dataclass(frozen=True)
class RunOptions:
    """runtime_dir: the llama.cpp runtime. fetch: see FetchSpec. bench_environment: for llama-bench alone."""

    runtime_dir: Path
    fetch: dict[str, Any]
    bench_environment: dict[str, str]


def run(run_dir: Path, options: RunOptions) -> int:
    """Carry out RUN_DIR/plan.json; 0 when the run finished as planned. The caller holds the run's lock.

    An agent that was killed is taken up: its rows count, its partial downloads are resumed, its time is spent.
    """
    before = read_events(run_dir / EVENTS_FILE)
    (run_dir / STOP_REASON_FILE).unlink(missing_ok=True)
    log = EventLog(run_dir / EVENTS_FILE)
    # A clock that was set back in between gives no time again.
    spent_s = max((line.get("t_s") or 0.0 for line in before), default=0.0)
    offset_s = max(spent_s, time.time() - before[0]["unix_s"]) if before else 0.0
    zero = time.monotonic() - offset_s
    session = _Session(run_dir, options, log, lambda: time.monotonic() - zero)
    try:
        return session.run(before)
    finally:
        log.close()


class _Session:
    def __init__(self, run_dir: Path, options: RunOptions, log: EventLog, clock: Callable[[], float]) -> None:
        self._run_dir = run_dir
        self._runtime_dir = options.runtime_dir
        self._options = options
        self._log = log
        self._clock = clock
        self._plan: RunPlan | None = None
        self._driver: Driver | None = None

    def run(self, before: list[dict[str, Any]]) -> int:
        try:
            self._announce(bool(before))
            reason, results = self._drive(before)
        except Exception as exc:  # the last line of defence: nothing ends in silence
            text = traceback.format_exc()
            sys.stderr.write(text)
            values = {"t_s": self._clock(), "error": str(exc) or repr(exc), "traceback": text}
            self._log.append("AgentError", {**values, "error_kind": type(exc).__name__})
            self._finished("agent_error", self._results_without_conductor(exc))
            return 1
        self._finished(reason, results)
        return 0

    def _announce(self, resumed: bool) -> None:
        from agent.hardware import boot_unix_s
        from agent.part_file import boot_id
        from agent.runtime import read_manifest

        manifest = read_manifest(self._runtime_dir)
        values = {
            "agent_sha256": program_sha256(),
            "python": sys.version.split()[0],
            "runtime_dir": str(self._runtime_dir),
            "runtime": {key: value for key, value in manifest.items() if isinstance(value, (str, int, float))},
            "boot_id": boot_id(),
            "boot_unix_s": boot_unix_s(),
            "options": {**self._options.fetch, **self._options.bench_environment},
            "resumed": resumed,
        }
        self._log.append("AgentStarted", {"t_s": self._clock(), **values})

    def _drive(self, before: list[dict[str, Any]]) -> tuple[str, tuple[CellResult, ...]]:
        from agent.driver import Driver
        from agent.limits import usable
        from agent.runtime import read_manifest
        from agent.runtime_choice import choose_runtime
        from tasks.domain.conductor import Conductor
        from tasks.domain.events import NoWorkingBuild
        from tasks.domain.policies import policy_for
        from tasks.domain.run_plan import RunPlan

        plan = RunPlan.from_json((self._run_dir / PLAN_FILE).read_text(encoding="utf-8"))
        manifest = read_manifest(self._runtime_dir)
        choice = choose_runtime(
            self._runtime_dir, manifest, plan.builds, self._run_dir, self._clock, self._options.bench_environment
        )
        self._plan = plan = replace(
            plan,
            measured=_with_rows(plan, before),
            builds=choice.builds,
            gpu_builds=choice.gpu_builds,
            n_threads=plan.n_threads or usable().n_cpus,
        )
        conductor = Conductor(plan, policy_for(plan.policy, plan.policy_options))
        self._driver = Driver(
            plan,
            conductor,
            self._log,
            run_dir=self._run_dir,
            runtime_dir=self._runtime_dir,
            clock=self._clock,
            options=self._options.fetch,
            bench_extra=self._options.bench_environment,
        )
        first: list[Event] = [probed(self._run_dir, self._runtime_dir, self._clock, on_gpu=bool(choice.gpu_builds))]
        if choice.broken:
            first.append(NoWorkingBuild(self._clock(), f"no build of the runtime works here: {choice.broken}"))
        reason = self._driver.run(first, choice.decisions)
        return reason, conductor.results()

    def _finished(self, reason: str, results: tuple[CellResult, ...]) -> None:
        rows = [{**asdict(r), "outcome": r.outcome.value, "reason": r.reason.value} for r in results]
        self._log.append("Finished", {"t_s": self._clock(), "reason": reason, "results": rows})

    def _results_without_conductor(self, exc: Exception) -> tuple[CellResult, ...]:
        """Every cell when the conductor cannot be asked: measured where its row arrived, failed where not."""
        from tasks.domain.cells import CellResult, Reason

        if self._plan is None:
            return ()
        samples = dict(self._plan.measured)
        if self._driver is not None:
            samples.update({cell: row.samples_s for cell, row in self._driver.rows.items()})
        detail = f"the agent failed: {exc!r}"[:500]
        return tuple(
            CellResult(cell, Reason.OK, "", samples[cell])
            if cell in samples
            else CellResult(cell, Reason.SERVER_FAILED, detail)
            for cell in self._plan.cells()
        )


def _with_rows(plan: RunPlan, before: list[dict[str, Any]]) -> Any:
    """The plan's measured cells and those that an interrupted agent of this run has measured."""
    from tasks.domain.events import BenchRow, event_from_dict

    measured = dict(plan.measured)
    for raw in before:
        if raw["kind"] == "BenchRow":
            row = event_from_dict(raw)
            if isinstance(row, BenchRow):
                measured[row.cell] = row.samples_s
    return tuple(measured.items())


def probed(run_dir: Path, runtime_dir: Path, clock: Callable[[], float], *, on_gpu: bool) -> Probed:
    """What the server has, as the run's first event. on_gpu: a build for its GPUs works; else their memory is none."""
    from agent.hardware import fingerprint
    from agent.limits import usable
    from agent.part_file import free_bytes
    from agent.variant_run import programs
    from tasks.domain.events import Probed
    from tasks.domain.gpu_faults import listed_gpus

    hardware = {**fingerprint(run_dir), "programs": programs(runtime_dir)}
    here = usable()
    return Probed(
        clock(),
        memory_total_bytes=here.memory_total_bytes,
        memory_available_bytes=here.memory_available_bytes,
        disk_free_bytes=free_bytes(run_dir),
        n_cpus=here.n_cpus,
        vram_free_bytes=tuple(gpu["memory_free_bytes"] or 0 for gpu in listed_gpus(hardware["gpus"]) if on_gpu),
        hardware=hardware,
    )
