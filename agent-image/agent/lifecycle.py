"""Start, stop and status of the agent of one run directory.

A lock on RUN_DIR/agent.pid lives exactly as long as the agent, so a stale number never counts as a live agent.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable

from agent.eventlog import EVENTS_FILE, TAIL_BLOCK_BYTES, seq_of

PID_FILE = "agent.pid"
OUTPUT_FILE = "agent.out"
STOP_REASON_FILE = "stop_reason"
PLAN_FILE = "plan.json"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def take_lock(run_dir: Path) -> int | None:
    """Become the agent of the run directory: the open lock, or None when there is a live one."""
    fd = os.open(run_dir / PID_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def hold_signals() -> None:
    """Keep requests to stop until the run can answer them (`Driver.run` lets them in)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def live_pid(run_dir: Path) -> int | None:
    """The process number of the live agent, or None."""
    try:
        fd = os.open(run_dir / PID_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        for _ in range(100):  # the lock is taken just before the number is written
            text = os.pread(fd, 32, 0).strip()
            if text:
                return int(text)
            time.sleep(0.01)
        return None
    finally:
        os.close(fd)
    return None


def last_line(run_dir: Path) -> dict[str, Any]:
    """The last complete line of the event log as values; empty where there is none."""
    try:
        with (run_dir / EVENTS_FILE).open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            start = size
            data = b""
            while start > 0:
                start = max(0, start - TAIL_BLOCK_BYTES)
                log.seek(start)
                data = log.read(size - start)
                lines = [line for line in data.split(b"\n")[1 if start else 0 : -1] if seq_of(line)]
                if lines:
                    values: dict[str, Any] = json.loads(lines[-1])
                    return values
    except FileNotFoundError:
        pass
    return {}


def status(run_dir: Path) -> dict[str, Any]:
    """What the run is doing. state: absent, running, finished, or dead (it ended without its Finished line)."""
    pid = live_pid(run_dir)
    last = last_line(run_dir)
    finished = last.get("kind") == "Finished"
    if pid is not None:
        state = "running"
    elif finished:
        state = "finished"
    else:
        state = "dead" if last else "absent"
    values = {"state": state, "pid": pid, "last_seq": last.get("seq", 0), "last_unix_s": last.get("unix_s")}
    if finished:
        values["reason"] = last.get("reason")
    return values


def start(run_dir: Path, run: Callable[[int], int]) -> dict[str, Any]:
    """Start the agent detached and return what to tell the caller; returns once it runs (or cannot).

    `run` gets the lock and returns the exit status. A second start of a live or finished run changes nothing.
    """
    pid = live_pid(run_dir)
    if pid is not None:
        return {"pid": pid, "state": "already_running"}
    if last_line(run_dir).get("kind") == "Finished":
        return {"pid": None, "state": "already_finished"}
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        if os.fork():
            os._exit(0)
        _live_detached(run_dir, run, writer)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read()
    if answer == b"locked":
        return {"pid": live_pid(run_dir), "state": "already_running"}
    if not answer.isdigit():
        return {"pid": None, "state": "failed", "detail": f"see {run_dir / OUTPUT_FILE}"}
    return {"pid": int(answer), "state": "started"}


def _live_detached(run_dir: Path, run: Callable[[int], int], writer: int) -> None:
    """The grandchild: nothing of the caller's terminal is kept, so an SSH channel closes at once."""
    rc = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        out = os.open(run_dir / OUTPUT_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(null, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(run_dir)
        hold_signals()
        lock = take_lock(run_dir)
        os.write(writer, b"locked" if lock is None else str(os.getpid()).encode())
        os.close(writer)
        rc = 0 if lock is None else run(lock)
    except BaseException:  # a forked child must not return into its parent's caller
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(rc)


def stop(run_dir: Path, reason: str) -> dict[str, Any]:
    """Ask the live agent to cancel its run. It finishes by itself: follow the log until its Finished line."""
    pid = live_pid(run_dir)
    if pid is None:
        return {**status(run_dir), "signalled": False}
    (run_dir / STOP_REASON_FILE).write_text(reason, encoding="utf-8")
    os.kill(pid, signal.SIGTERM)
    return {"state": "running", "pid": pid, "signalled": True}
