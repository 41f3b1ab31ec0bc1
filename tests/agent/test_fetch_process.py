"""The process of a download: killed, stopped for long, and on a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent.fetch_command import NICE
from agent.model_fetch import ModelFetch

from tasks.domain.events import DownloadFailed, DownloadFinished, DownloadProgress, DownloadStarted, Event
from tasks.domain.run_plan import ModelSpec
from tests.agent.model_server import ModelServer, gguf_like, sha256_of

SIZE = 4_000_000
DATA = gguf_like(SIZE)
OPTIONS = {"stall_s": 1.0, "dead_s": 4.0, "progress_s": 0.1}


def model(url: str) -> ModelSpec:
    return ModelSpec("m", "m.gguf", (url,), SIZE, sha256_of(DATA))


@pytest.fixture
def fetching() -> Iterator[list[ModelFetch]]:
    """Downloads to end with the test."""
    started: list[ModelFetch] = []
    yield started
    for fetch in started:
        fetch.child.close()


def follow(fetch: ModelFetch, until: Any = None, timeout_s: float = 30.0) -> list[Event]:
    """Events until the download ends, or until one of a kind that satisfies `until`."""
    events: list[Event] = []
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        new = fetch.reap(0.0)[0] if fetch.child.ended else fetch.read(0.0)
        events += new
        if fetch.ended or (until is not None and any(until(e) for e in new)):
            return events
        time.sleep(0.02)
    raise AssertionError(f"no end after {timeout_s} s: {events[-3:]}")


def some_bytes(event: Event) -> bool:
    return isinstance(event, DownloadProgress) and event.bytes_done > SIZE // 8


def test_a_killed_process_is_started_again_and_resumes(
    server: ModelServer, tmp_path: Path, fetching: list[ModelFetch]
) -> None:
    fetch = ModelFetch(model(server.put("/m", DATA, bytes_per_s=3e6)), tmp_path / "m.gguf", OPTIONS)
    fetching.append(fetch)
    events = follow(fetch, some_bytes)
    os.kill(fetch.child.process.pid, signal.SIGKILL)
    events += follow(fetch)
    finished = events[-1]
    assert isinstance(finished, DownloadFinished)
    assert finished.n_retries == 1
    assert (tmp_path / "m.gguf").read_bytes() == DATA
    assert sum(isinstance(e, DownloadStarted) for e in events) == 1
    first_bytes = [int(r[1][6:].split("-")[0]) for r in server.requests]
    assert first_bytes[0] == 0
    assert first_bytes[1] > SIZE // 16, "what was there is not fetched again"


def test_a_process_that_keeps_dying_fails_the_download(
    server: ModelServer, tmp_path: Path, fetching: list[ModelFetch]
) -> None:
    fetch = ModelFetch(model(server.put("/m", DATA, bytes_per_s=1e4)), tmp_path / "m.gguf", OPTIONS)
    fetching.append(fetch)
    while not fetch.ended:
        os.kill(fetch.child.process.pid, signal.SIGKILL)
        fetch.child.process.wait()
        events = fetch.reap(0.0)[0]
    failed = events[-1]
    assert isinstance(failed, DownloadFailed)
    assert failed.reason == "download_failed"
    assert "4 times, last with rc 137" in failed.detail


def test_a_long_pause_is_no_stall(server: ModelServer, tmp_path: Path, fetching: list[ModelFetch]) -> None:
    """The pause is longer than stall_s and dead_s together."""
    fetch = ModelFetch(model(server.put("/m", DATA, bytes_per_s=3e6)), tmp_path / "m.gguf", OPTIONS)
    fetching.append(fetch)
    follow(fetch, some_bytes)
    fetch.pause(0.0)
    time.sleep(0.2)
    fetch.read(0.0)
    requests = len(server.requests)
    time.sleep(6.0)
    assert fetch.read(0.0) == [], "a paused download does nothing"
    assert len(server.requests) == requests
    fetch.resume(0.0)
    finished = follow(fetch)[-1]
    assert isinstance(finished, DownloadFinished), finished
    assert finished.n_retries == 0


def test_a_connection_that_was_lost_in_a_pause_is_made_again(
    server: ModelServer, tmp_path: Path, fetching: list[ModelFetch]
) -> None:
    fetch = ModelFetch(model(server.put("/m", DATA, bytes_per_s=2e6)), tmp_path / "m.gguf", OPTIONS)
    fetching.append(fetch)
    follow(fetch, some_bytes)
    fetch.pause(0.0)
    server.drop_connections()
    time.sleep(0.5)
    fetch.resume(0.0)
    assert isinstance(follow(fetch)[-1], DownloadFinished)
    assert (tmp_path / "m.gguf").read_bytes() == DATA


def test_an_aborted_download_leaves_nothing(server: ModelServer, tmp_path: Path, fetching: list[ModelFetch]) -> None:
    fetch = ModelFetch(model(server.put("/m", DATA, bytes_per_s=2e6)), tmp_path / "m.gguf", OPTIONS)
    fetching.append(fetch)
    follow(fetch, some_bytes)
    fetch.pause(0.0)
    (cancelled,) = fetch.abort(0.0)
    assert isinstance(cancelled, DownloadFailed)
    assert cancelled.reason == "cancelled"
    assert list(tmp_path.iterdir()) == []


def test_a_finished_file_of_an_earlier_agent_is_used(
    server: ModelServer, tmp_path: Path, fetching: list[ModelFetch]
) -> None:
    (tmp_path / "m.gguf").write_bytes(DATA)
    fetch = ModelFetch(model(server.put("/m", DATA)), tmp_path / "m.gguf", OPTIONS)
    fetching.append(fetch)
    assert isinstance(follow(fetch)[-1], DownloadFinished)
    assert server.requests == []


def test_a_part_of_another_version_is_not_resumed(
    server: ModelServer, tmp_path: Path, fetching: list[ModelFetch]
) -> None:
    url = server.put("/m", DATA, bytes_per_s=3e6)
    fetch = ModelFetch(model(url), tmp_path / "m.gguf", OPTIONS)
    fetching.append(fetch)
    follow(fetch, some_bytes)
    fetch.child.close()
    other = gguf_like(SIZE, seed=9)
    server.put("/m", other)
    again = ModelFetch(ModelSpec("m", "m.gguf", (url,), SIZE, sha256_of(other)), tmp_path / "m.gguf", OPTIONS)
    fetching.append(again)
    started, *_, finished = follow(again)
    assert isinstance(started, DownloadStarted)
    assert started.bytes_resumed == 0
    assert isinstance(finished, DownloadFinished)
    assert (tmp_path / "m.gguf").read_bytes() == other


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_ends_the_download_and_is_given_back(
    server: ModelServer, small_disk: Path, fetching: list[ModelFetch]
) -> None:
    """The space is there at the start and taken by somebody else later."""
    fetch = ModelFetch(model(server.put("/m", DATA, bytes_per_s=2e6)), small_disk / "m.gguf", OPTIONS)
    fetching.append(fetch)
    follow(fetch, some_bytes)
    try:
        with (small_disk / "other").open("wb") as other:
            while True:
                other.write(bytes(65536))
                other.flush()
    except OSError:
        pass
    failed = follow(fetch)[-1]
    assert isinstance(failed, DownloadFailed)
    assert failed.reason == "disk_full"
    fetch.child.process.wait()
    assert [p.name for p in small_disk.iterdir()] == ["other"]


def test_a_download_stands_back_within_its_session_and_as_a_session(
    server: ModelServer, tmp_path: Path, fetching: list[ModelFetch]
) -> None:
    fetch = ModelFetch(model(server.put("/m", DATA, bytes_per_s=1e6)), tmp_path / "m.gguf", OPTIONS)
    fetching.append(fetch)
    follow(fetch, some_bytes)
    pid = fetch.child.process.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)
    autogroup = Path(f"/proc/{pid}/autogroup")
    if autogroup.exists() and Path("/proc/sys/kernel/sched_autogroup_enabled").read_text().strip() == "1":
        assert autogroup.read_text().split()[-1] == str(NICE)
