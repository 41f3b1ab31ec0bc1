"""The fleet of deployments/compose.yaml, tried as docs/scale.md says: set up, a sweep, a worker stopped, down and up.

    python -m tests.lab.compose_up [--compose "docker compose"] [--redis]

Needs the image tokensweep:latest and a free port (TOKENSWEEP_PORT, 4200). A project of its own, whose volumes are
deleted at the end. Simulated servers; no account, no money.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PORT = os.environ.get("TOKENSWEEP_PORT", "4200")
PROJECT = "tokensweep-trial"
SHARDS = "TOKENSWEEP_SHARD_SERVERS=20"  # two for the two workers
SWEEP = ("tokensweep", "run", "sim", "--yes", "--fan-out", "workers", "--max-usd", "200")
CLI = ("--profile", "cli", "run", "--rm", "--no-deps", "-T", "-e", SHARDS, "cli")
PATIENCE_S = 600.0
POLL_S = 2.0
N_SERVERS = 40  # of the preset sim


def say(line: str) -> None:
    print(f"compose: {line}", file=sys.stderr, flush=True)


def eventually(what: str, is_so: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > end:
            raise SystemExit(f"compose: {what}: not within {PATIENCE_S:.0f} s")
        time.sleep(POLL_S)
    say(what)


@dataclass
class Fleet:
    """What `docker compose` does with our files. before: the command and its options."""

    before: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        return [*self.before, *arguments]

    def __call__(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            self.command(*arguments), cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode not in ok:
            raise SystemExit(f"compose: {shlex.join(arguments)} ended with {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout

    def cli(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
        return self(*CLI, *arguments, ok=ok)

    def open_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.cli("tokensweep", "status", "--json"))["open"]
        return rows

    def is_clean(self) -> bool:
        """After a pass of the reaper: a deletion is proven when a second listing is without it."""
        self.cli("tokensweep", "reap", ok=(0, 6))
        return json.loads(self.cli("tokensweep", "leaks", "--json", ok=(0, 6)))["clean"] is True

    def completed(self) -> int:
        sql = "SELECT count(*) AS n FROM v_server_runs WHERE outcome IN ('completed', 'gated')"
        return int(json.loads(self.cli("tokensweep", "query", sql, "--json"))[0]["n"])

    def deployments(self) -> set[str]:
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}/api/deployments/filter", b"{}", method="POST")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return {found["name"] for found in json.load(answer)}


def is_healthy() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/api/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def settings_of_the_ui() -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ui-settings", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def try_it(fleet: Fleet) -> None:
    fleet("up", "-d")
    eventually("Prefect's API answers", is_healthy)
    assert settings_of_the_ui()["api_url"].startswith("http://127.0.0.1"), "what the browser calls"
    fleet.cli("deployments/setup.sh")
    say(f"set up: {', '.join(sorted(fleet.deployments()))}")
    fleet.cli(*SWEEP)
    n_completed = fleet.completed()
    assert n_completed == N_SERVERS, n_completed
    fleet.cli("tokensweep", "leaks")
    say(f"a sweep has landed {n_completed} servers, nothing is left")

    again = fleet.command(*CLI, *SWEEP, "--label", "stopped")
    with subprocess.Popen(again, cwd=ROOT, env=fleet.environment) as sweep:
        eventually("servers of a second sweep live", lambda: any(r["state"] == "live" for r in fleet.open_rows()))
        fleet("stop", "worker")
        states = {row["state"] for row in fleet.open_rows()}
        assert states <= {"deleting"}, f"what its workers left: {states}"
        say("its workers have been stopped, and have deleted their servers first")
        assert sweep.wait(PATIENCE_S) in (0, 4), "some servers failed"

    eventually("nothing is left", lambda: fleet.is_clean())
    n_completed, names = fleet.completed(), fleet.deployments()
    fleet("down")
    fleet("up", "-d")
    eventually("down and up again: Prefect's API answers", is_healthy)
    assert (fleet.completed(), fleet.deployments()) == (n_completed, names), "lake, ledger and Prefect's data"
    fleet.cli(*SWEEP, "--label", "stopped")
    fleet.cli("tokensweep", "leaks")
    n_runs = fleet.completed()
    assert n_runs == 2 * N_SERVERS, n_runs
    say(f"all data is there, and the stopped sweep took up where it was: {n_runs} servers completed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compose", default="docker compose", help="command of Compose")
    parser.add_argument("--redis", action="store_true", help="with deployments/compose.redis.yaml")
    parser.add_argument("--override", action="append", default=[], metavar="FILE", help="one more file, after ours")
    chosen = parser.parse_args()
    files = [
        "deployments/compose.yaml",
        *(["deployments/compose.redis.yaml"] if chosen.redis else []),
        *chosen.override,
    ]
    before = [*shlex.split(chosen.compose), "-p", PROJECT, *(word for file in files for word in ("-f", file))]
    fleet = Fleet(before, {**os.environ, "POSTGRES_PASSWORD": secrets.token_hex(16)})
    try:
        try_it(fleet)
    finally:
        fleet("logs", "--tail", "20", ok=tuple(range(256)))
        fleet("down", "--volumes")


if __name__ == "__main__":
    main()
