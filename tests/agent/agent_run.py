"""Runs of the whole agent: its archive, its processes, its event log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.domain.run_plan import LadderStep, ModelSpec, RunPlan
from tests.agent.model_server import sha256_of

LADDER = (LadderStep("pp", 16, 2.0), LadderStep("pp", 32, 2.0), LadderStep("tg", 8, 1.0))


def plan_for(models: dict[str, tuple[str, bytes]], **changes: Any) -> RunPlan:
    """A plan whose models are given as name -> (url, bytes)."""
    specs = tuple(ModelSpec(n, f"{n}.gguf", (url,), len(d), sha256_of(d)) for n, (url, d) in models.items())
    values: dict[str, Any] = {
        "sweep_id": "s", "server_run_id": "r", "server": "local", "models": specs, "ladder": LADDER,
        "policy": "dynamic", "price_usd_per_hour": 0.1, "max_usd": 10.0, "deadline_s": 3600.0, "guard": "off",
    }  # fmt: skip
    return RunPlan(**{**values, **changes})


@dataclass
class AgentRun:
    """One run directory. `environment` is the agent's, the engine stand-in's orders included."""

    pyz: Path
    folder: Path
    runtime: Path
    environment: dict[str, str] = field(default_factory=dict)

    def put(self, plan: RunPlan) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "plan.json").write_text(plan.to_json())

    def command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-I", "-S", str(self.pyz), name, "--dir", str(self.folder), *arguments]

    def call(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "FAKE_BENCH_COUNTER": str(self.folder / "counter"), **self.environment}
        return subprocess.run(
            self.command(name, *arguments), capture_output=True, text=True, timeout=280, env=environment, check=False
        )

    def start(self, *arguments: str) -> dict[str, Any]:
        done = self.call("start", "--runtime", str(self.runtime), *arguments)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def follow(self, after: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Every line until the end of the run, and tail's exit status."""
        done = self.call("tail", "--after", str(after), "--follow")
        return [json.loads(line) for line in done.stdout.splitlines() if line], done.returncode

    def finish(self, *arguments: str) -> list[dict[str, Any]]:
        """Start, and follow to the end."""
        self.start(*arguments)
        lines, rc = self.follow()
        assert rc == 0, (self.folder / "agent.out").read_text()
        return lines

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, kind: str, timeout_s: float = 30.0) -> dict[str, Any]:
        return self.wait_until(lambda e: e["kind"] == kind, timeout_s)

    def wait_until(self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = 30.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for event in self.events():
                if wanted(event):
                    return event
            time.sleep(0.05)
        raise AssertionError(f"not seen in {timeout_s} s; the log ends with {self.events()[-3:]}")

    def status(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.call("status").stdout)
        return values

    def processes(self) -> list[int]:
        """Live processes that name this run's folder or runtime, or that run in it."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                folder = str((entry / "cwd").readlink())
            except OSError:
                continue
            if command and (str(self.folder) in command or folder == str(self.folder)):
                found.append(int(entry.name))
        return found


def of_kind(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


def outcomes(lines: list[dict[str, Any]]) -> dict[tuple[str, str, int], str]:
    """(model, task, n_tokens) -> reason, of the Finished line."""
    (finished,) = of_kind(lines, "Finished")
    results = finished["results"]
    return {(r["cell"]["model"], r["cell"]["task"], r["cell"]["n_tokens"]): r["reason"] for r in results}
