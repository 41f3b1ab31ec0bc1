"""One llama-bench process: started, read, killed, and its end explained."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from agent.bench_output import BenchOutput, in_run_order, lengths
from agent.child import Kill, OutputPipe, exit_status, start_program
from agent.limits import oom_kills
from tasks.domain.actions import StartBench
from tasks.domain.cells import PP, TG
from tasks.domain.events import BenchExited, BenchStarted, EngineLoaded, Event

RC_NO_PROGRAM = 127
RC_NOT_EXECUTABLE = 126
RC_SIGKILL = 137
ALLOCATION_FAILED = (
    "failed to allocate", "bad_alloc", "unable to allocate", "out of memory", "cannot allocate memory",
    "insufficient memory",
)  # fmt: skip

NOT_NEEDED = "of pinned memory"
"""llama.cpp goes on with ordinary memory where the host's cannot be pinned for a GPU."""


def bench_argv(runtime_dir: Path, model_path: Path, start: StartBench, n_threads: int) -> list[str]:
    """The command line.

    -lm none loads the whole model before the first repeat: none of them pays for page faults, and what does not
    fit ends at once instead of reading the disk for ever. -v tells why a load failed and where layers went; in a
    repeat it writes one line, at its beginning.
    """
    layers = [] if start.ngl is None else ["-ngl", str(start.ngl)]
    return [
        str(runtime_dir / "bin" / "llama-bench"),
        "-m", str(model_path),
        "-p", lengths(start.cells, PP),
        "-n", lengths(start.cells, TG),
        "-r", str(start.n_repeats),
        "-t", str(n_threads),
        "-b", "2048", "-ub", "512", "-fa", "1",
        "-lm", "none",
        *layers,
        "-o", "jsonl",
        "--progress", "-v",
    ]  # fmt: skip


def bench_environment(runtime_dir: Path, build: str, extra: dict[str, str]) -> dict[str, str]:
    """The agent's own environment, the build's libraries, and `extra`; nothing else is set for the engine.

    OpenMP's waiting is left at its default, as in a llama-bench by hand. Where CPUs are shared with other work,
    OMP_WAIT_POLICY=passive made it four times as fast (two threads on two busy CPUs), so a lab may ask for it.
    """
    libraries = os.pathsep.join([str(runtime_dir / "builds" / build), str(runtime_dir / "lib")])
    return {**os.environ, "LC_ALL": "C", **extra, "LD_LIBRARY_PATH": libraries}


class Bench:
    """Runs the cells of one StartBench. `read` and `reap` return events; nothing blocks."""

    def __init__(self, start: StartBench, argv: list[str], environment: dict[str, str]) -> None:
        self.start = start
        self.cells = in_run_order(start.cells)
        self.process: subprocess.Popen[bytes] | None = None
        self._output = BenchOutput(self.cells)
        self._aborted = False
        self._spawn_failure: tuple[int, str] | None = None
        self._oom_kills_before = oom_kills()
        try:
            self.process = start_program(argv, environment)
        except FileNotFoundError as exc:
            self._spawn_failure = (RC_NO_PROGRAM, str(exc))
        except OSError as exc:
            self._spawn_failure = (RC_NOT_EXECUTABLE, str(exc))
        self.pipes: tuple[OutputPipe, ...] = ()
        self.kill = None if self.process is None else Kill(self.process)
        if self.process is not None:
            self.pipes = (OutputPipe(self.process.stderr), OutputPipe(self.process.stdout))

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def started(self, now_s: float) -> BenchStarted:
        pid = self.process.pid if self.process is not None else 0
        return BenchStarted(now_s, self.start.model, self.start.build, self.cells, pid)

    def read(self, now_s: float) -> list[Event]:
        """Events of what arrived since the last call.

        stderr is read again after a row: what was written before the row is then there for certain, and the
        two streams can be put into one order.
        """
        if not self.pipes:
            return []
        stderr_pipe, stdout_pipe = self.pipes
        stderr = stderr_pipe.read()
        stdout = stdout_pipe.read()
        if stdout:
            stderr += stderr_pipe.read()
        return self._output.feed(now_s, stdout, stderr)

    def loaded(self, now_s: float, gpu_memory_used_bytes: int | None) -> EngineLoaded:
        """Where the model was put: buffers by device, layers on the GPU. Complete at the first warm-up."""
        engine = self._output.engine
        return EngineLoaded(
            now_s,
            self.start.model,
            self.start.build,
            dict(engine["buffers_mib"]),
            engine["layers_offloaded"],
            engine["layers_total"],
            gpu_memory_used_bytes,
            len(engine["gpus_used"]) or None,
        )

    def abort(self) -> None:
        """Kill it with all it started; a llama-bench holds nothing that it would have to put away."""
        self._aborted = True
        if self.kill is not None:
            self.kill.send()

    def reap(self, now_s: float) -> list[Event]:
        """Last events and BenchExited of a process that has ended."""
        if self.process is None:
            rc, detail = self._spawn_failure or (RC_NO_PROGRAM, "")
            return [BenchExited(now_s, self.start.model, rc, self._aborted, detail)]
        rc = exit_status(self.process.wait())
        events = self.read(now_s)
        for pipe in self.pipes:
            pipe.close()
        aborted = self._aborted and rc == RC_SIGKILL
        tail = self._output.tail() if rc != 0 and not aborted else ""
        oom = not aborted and self._out_of_memory(rc, tail)
        return [*events, BenchExited(now_s, self.start.model, rc, aborted, tail, oom)]

    def _out_of_memory(self, rc: int, tail: str) -> bool:
        if rc == RC_SIGKILL:
            kills = oom_kills()
            return kills is None or self._oom_kills_before is None or kills > self._oom_kills_before
        lines = [line for line in tail.lower().splitlines() if NOT_NEEDED not in line]
        return rc != 0 and any(text in line for line in lines for text in ALLOCATION_FAILED)
