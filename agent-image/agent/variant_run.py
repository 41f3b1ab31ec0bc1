"""One measurement beside the ladder: its processes, started at once, read to their end, and told as one event."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from agent.bench import RC_NO_PROGRAM, bench_environment
from agent.child import Kill, OutputPipe, exit_status, start_program
from tasks.domain.actions import StartVariant
from tasks.domain.build_choice import BuildFault
from tasks.domain.events import VariantEnded
from tasks.domain.gpu_faults import gpu_fault
from tasks.domain.variants import BATCHED, BATCHED_PROGRAM

KEPT_STDERR = 4096
NO_CUDA = b"failed to initialize CUDA"
KEPT_DETAIL = 300


def programs(runtime_dir: Path) -> list[str]:
    """Names of the runtime's programs."""
    folder = runtime_dir / "bin"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def variant_argv(runtime_dir: Path, model: Path, action: StartVariant, devices: str, n_threads: int) -> list[str]:
    """The command line of one process; what the variant does not change is as in the ladder."""
    variant = action.variant
    threads = ",".join(map(str, variant.n_threads)) or str(action.n_threads or n_threads)
    both = ["-m", str(model), "-t", threads, "-b", "2048", "-ub", "512", "-lm", "none"]
    if action.ngl is not None:
        both += ["-ngl", str(action.ngl)]
    if devices:
        both += ["-dev", devices]
    if variant.cache_type:
        both += ["-ctk", variant.cache_type, "-ctv", variant.cache_type]
    if variant.numa:
        both += ["--numa", variant.numa]
    if variant.kind == BATCHED:
        return [
            str(runtime_dir / "bin" / BATCHED_PROGRAM), *both, "-fa", "on", "-c", str(variant.n_ctx),
            "-npp", str(variant.n_prompt[0]), "-ntg", str(variant.n_gen[0]),
            "-npl", ",".join(map(str, variant.sequences)), "--output-format", "jsonl",
        ]  # fmt: skip
    argv = [str(runtime_dir / "bin" / "llama-bench"), *both, "-fa", "1", "-o", "jsonl",
            "-p", ",".join(map(str, variant.n_prompt)) or "0", "-n", ",".join(map(str, variant.n_gen)) or "0",
            "-r", str(variant.n_repeats)]  # fmt: skip
    for n_prompt, n_gen in variant.pg:
        argv += ["-pg", f"{n_prompt},{n_gen}"]
    return [*argv, "-d", str(variant.n_depth)] if variant.n_depth else argv


class _Process:
    """One of them. `rows` are complete lines of JSON so far."""

    def __init__(self, argv: list[str], environment: dict[str, str], instance: int, devices: str) -> None:
        self.rows: list[dict[str, Any]] = []
        self.stderr = b""
        self.without_gpu = False
        self.pipes: tuple[OutputPipe, ...] = ()
        self._marks = {"instance": instance, "device_set": devices}
        self._rest = b""
        self.process: subprocess.Popen[bytes] | None = None
        self.kill: Kill | None = None
        try:
            self.process = start_program(argv, environment)
            self.pipes = (OutputPipe(self.process.stdout), OutputPipe(self.process.stderr))
            self.kill = Kill(self.process)
        except OSError as exc:
            self.stderr = str(exc).encode()

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    @property
    def rc(self) -> int:
        return RC_NO_PROGRAM if self.process is None else exit_status(self.process.wait())

    def read(self) -> None:
        if not self.pipes:
            return
        stdout, stderr = self.pipes
        text = self.stderr + stderr.read()
        self.without_gpu = self.without_gpu or NO_CUDA in text
        self.stderr = text[-KEPT_STDERR:]
        *lines, self._rest = (self._rest + stdout.read()).split(b"\n")
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                self.without_gpu = self.without_gpu or row.get("gpu_info") == ""
                self.rows.append({**row, **self._marks})

    def close(self) -> None:
        self.read()
        for pipe in self.pipes:
            pipe.close()


class VariantRun:
    """Runs one StartVariant. Nothing blocks; `pipes` are to be watched, `ended` says when `reap` may be called."""

    def __init__(
        self, action: StartVariant, runtime_dir: Path, model: Path, n_threads: int, extra: dict[str, str], now_s: float
    ) -> None:
        self.action = action
        self.started_s = now_s
        self._aborted = False
        environment = bench_environment(runtime_dir, action.build, extra)
        self._processes = [
            _Process(variant_argv(runtime_dir, model, action, devices, n_threads), environment, instance, devices)
            for instance, devices in enumerate(action.variant.devices)
        ]

    @property
    def pipes(self) -> list[OutputPipe]:
        return [pipe for process in self._processes for pipe in process.pipes]

    @property
    def kills(self) -> list[Kill]:
        return [process.kill for process in self._processes if process.kill is not None]

    @property
    def pid(self) -> int:
        first = self._processes[0].process
        return 0 if first is None else first.pid

    @property
    def ended(self) -> bool:
        return all(process.ended for process in self._processes)

    def read(self) -> None:
        for process in self._processes:
            process.read()

    def abort(self) -> None:
        self._aborted = True
        for kill in self.kills:
            kill.send()

    def reap(self, now_s: float) -> VariantEnded:
        """The event of processes that have all ended. One that failed fails the whole: a sum needs every part."""
        for process in self._processes:
            process.close()
        variant = self.action.variant
        failed = next((process for process in self._processes if process.rc != 0), None)
        rows = [row for process in self._processes for row in process.rows]
        outcome, detail = "measured", ""
        if self.action.ngl and any(process.without_gpu for process in self._processes):
            # A CUDA build goes on without a GPU and ends well: these are the CPU's numbers.
            outcome, detail, rows = "failed", f"{BuildFault.GPU_NOT_USED.value}: the engine found no GPU any more", []
        elif failed is not None:
            text = failed.stderr.decode(errors="replace").strip()
            fault = gpu_fault(text)
            outcome = "timed_out" if self._aborted else "failed"
            told = f"{fault.value}: " if fault else ""
            detail = f"rc {failed.rc}: {told}{text[-KEPT_DETAIL:]}"
        return VariantEnded(
            now_s,
            variant.kind,
            variant.label,
            variant.model,
            outcome,
            self.started_s,
            self.action.build,
            {**variant.settings(), "ngl": self.action.ngl, "n_threads_used": self.action.n_threads},
            rows,
            detail,
        )
