"""The agent's commands. Every import that a command does not need is left out: `tail` starts in a moment."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

MIN_PYTHON = (3, 9)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agent.pyz", description="Runs one server run and records all that happens.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("start", "start the run detached; a second start of the same run changes nothing"),
        ("run", "the same in the foreground"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--dir", type=Path, required=True, help="run directory with plan.json")
        command.add_argument("--runtime", type=Path, help="llama.cpp runtime (default: DIR/runtime)")
        command.add_argument(
            "--option", action="append", default=[], metavar="NAME=VALUE",
            help="of downloads: stall_s, dead_s, slow_bytes_per_s, trial_s, max_connections, scheduling",
        )  # fmt: skip
        command.add_argument(
            "--bench-env", action="append", default=[], metavar="NAME=VALUE", help="for llama-bench's environment"
        )
    command = commands.add_parser("tail", help="print numbered lines of the event log")
    command.add_argument("--dir", type=Path, required=True)
    command.add_argument("--after", type=int, default=0, help="only lines with a higher number")
    command.add_argument("--follow", action="store_true", help="until the run has finished; 3 when the agent died")
    command = commands.add_parser("stop", help="ask the run to cancel")
    command.add_argument("--dir", type=Path, required=True)
    command.add_argument("--reason", default="stopped by the controller")
    command = commands.add_parser("status", help="what the run is doing, as one JSON line")
    command.add_argument("--dir", type=Path, required=True)
    command = commands.add_parser("probe", help="the hardware fingerprint, as one JSON line")
    command.add_argument("--dir", type=Path, default=Path(), help="whose disk is meant")
    command = commands.add_parser("fetch", help="(internal) one download; specification from stdin")
    commands.add_parser("header", help="(internal) one model's header; specification from stdin")
    return parser


def _options(pairs: list[str]) -> dict[str, Any]:
    """Thresholds by name. Raises ValueError with what is wrong."""
    from dataclasses import fields

    from agent.download import FetchSpec

    known = {f.name: str(f.type) for f in fields(FetchSpec) if f.name not in ("urls", "path", "bytes", "sha256")}
    options: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in known:
            raise ValueError(f"There is no option {name!r}. Known: {', '.join(sorted(known))}.")
        kind: Any = {"int": int, "float": float}.get(known[name], str)
        options[name] = kind(value)
    return options


def _say(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _start(args: argparse.Namespace) -> int:
    from agent.lifecycle import PLAN_FILE, hold_signals, last_line, start, take_lock

    run_dir = args.dir.resolve()
    runtime_dir = (args.runtime or run_dir / "runtime").resolve()
    try:
        fetch_options = _options(args.option)
        environment = dict(pair.split("=", 1) for pair in args.bench_env)
    except ValueError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    if not (run_dir / PLAN_FILE).is_file():
        sys.stderr.write(f"There is no {run_dir / PLAN_FILE}. Put the run's plan there first.\n")
        return 2

    def carry_out(_lock: int) -> int:
        from agent.run_command import RunOptions, run

        return run(run_dir, RunOptions(runtime_dir, fetch_options, environment))

    if args.command == "start":
        answer = start(run_dir, carry_out)
        _say(answer)
        return 1 if answer["state"] == "failed" else 0
    hold_signals()
    lock = take_lock(run_dir)
    if lock is None:
        _say({"state": "already_running"})
        return 0
    if last_line(run_dir).get("kind") == "Finished":
        _say({"state": "already_finished"})
        return 0
    return carry_out(lock)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    if sys.version_info < MIN_PYTHON:
        sys.stderr.write(f"The agent needs Python 3.9 or newer; this is {sys.version.split()[0]}.\n")
        return 2
    args = _parser().parse_args(argv)
    if args.command in ("start", "run"):
        return _start(args)
    if args.command == "tail":
        from agent.tail import tail

        return tail(args.dir, args.after, args.follow)
    if args.command in ("stop", "status"):
        from agent.lifecycle import status, stop

        _say(stop(args.dir, args.reason) if args.command == "stop" else status(args.dir))
        return 0
    if args.command == "probe":
        from agent.hardware import fingerprint

        _say(fingerprint(args.dir))
        return 0
    if args.command == "fetch":
        from agent.fetch_command import main as fetch

        return fetch()
    from agent.header_command import main as header

    return header()
