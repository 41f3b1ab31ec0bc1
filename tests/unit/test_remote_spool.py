"""The local copy of the event log: what it keeps through cuts, kills, damage and full disks."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.domain.errors import LandingError
from tasks.remote.spool import Spool


def event(seq: int, kind: str = "BenchRow") -> dict:
    return {"seq": seq, "kind": kind, "note": "größe\n" + "x" * (seq % 50)}


def filled(path: Path, n: int) -> bytes:
    with Spool(path) as spool:
        for seq in range(1, n + 1):
            spool.append(event(seq))
    return path.read_bytes()


def test_what_is_appended_is_read_back_and_reopening_continues(tmp_path) -> None:
    path = tmp_path / "runs" / "one" / "events.jsonl"
    with Spool(path) as spool:
        assert (spool.last_seq, spool.read_all()) == (0, [])
        spool.append(event(1))
        spool.append(event(2))
        assert spool.last_seq == 2
    with Spool(path) as spool:
        assert spool.last_seq == 2
        spool.append(event(3, "Finished"))
        assert spool.read_all() == [event(1), event(2), event(3, "Finished")]
    spool.close()


def test_every_event_is_in_the_file_when_append_returns(tmp_path) -> None:
    with Spool(tmp_path / "e") as spool:
        for seq in range(1, 6):
            spool.append(event(seq, "DownloadProgress"))
            assert json.loads((tmp_path / "e").read_text().splitlines()[-1]) == event(seq, "DownloadProgress")


@pytest.mark.parametrize(
    ("kind", "reaches_disk"), [("BenchRow", True), ("Finished", True), ("DownloadProgress", False)]
)
def test_results_reach_the_disk_and_the_rest_costs_no_sync(tmp_path, monkeypatch, kind, reaches_disk) -> None:
    with Spool(tmp_path / "e") as spool:
        synced: list[int] = []
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real(fd)))
        spool.append(event(1, kind))
        assert bool(synced) == reaches_disk


def test_an_event_that_is_there_is_not_written_again(tmp_path) -> None:
    before = filled(tmp_path / "e", 5)
    with Spool(tmp_path / "e") as spool:
        for seq in (1, 5, 3):
            spool.append(event(seq))
    assert (tmp_path / "e").read_bytes() == before


def test_a_cut_at_every_byte_of_the_last_line_costs_that_line_only(tmp_path) -> None:
    path = tmp_path / "e"
    whole = filled(path, 4)
    last_line = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for length in range(last_line, len(whole)):
        path.write_bytes(whole[:length])
        with Spool(path) as spool:
            assert spool.last_seq == 3
            assert path.stat().st_size == last_line
            spool.append(event(4))
        assert path.read_bytes() == whole


def test_a_damaged_line_costs_itself_and_is_asked_for_again(tmp_path) -> None:
    path = tmp_path / "e"
    lines = filled(path, 6).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\x00" * 40 + b"\n", *lines[3:]]))
    with Spool(path) as spool:
        assert [e["seq"] for e in spool.read_all()] == [1, 2, 4, 5, 6]
        assert spool.last_seq == 2
        for seq in (3, 4, 5, 6):
            spool.append(event(seq))
        assert spool.read_all() == [event(seq) for seq in range(1, 7)]
        assert spool.last_seq == 6


def test_two_writers_of_one_file_do_not_harm_each_other(tmp_path) -> None:
    with Spool(tmp_path / "e") as one, Spool(tmp_path / "e") as two:
        for seq in range(1, 50):
            one.append(event(seq))
            two.append(event(seq))
        assert one.read_all() == two.read_all() == [event(seq) for seq in range(1, 50)]


WRITER = """
import sys
from pathlib import Path
from tasks.remote.spool import Spool
with Spool(Path(sys.argv[1])) as spool:
    seq = spool.last_seq
    print(seq, flush=True)
    while True:
        seq += 1
        spool.append({"seq": seq, "kind": "DownloadProgress", "note": "x" * 5000})
"""


def test_a_writer_that_is_killed_leaves_a_log_without_holes(tmp_path) -> None:
    path = tmp_path / "e"
    last = 0
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert int(writer.stdout.readline()) == last
        time.sleep(random.uniform(0.02, 0.1))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with Spool(path) as spool:
            assert [e["seq"] for e in spool.read_all()] == list(range(1, spool.last_seq + 1))
            assert spool.last_seq > last
            last = spool.last_seq


FULL_DISK = """
import resource, sys
from pathlib import Path
from tasks.domain.errors import LandingError
from tasks.remote.spool import Spool
with Spool(Path(sys.argv[1])) as spool:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    seq = 0
    try:
        while True:
            seq += 1
            spool.append({"seq": seq, "kind": "BenchRow", "note": "x" * 100})
    except LandingError as exc:
        assert sys.argv[1] in str(exc), exc
    assert spool.last_seq == seq - 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    spool.append({"seq": seq, "kind": "BenchRow", "note": "after room was made"})
    print(len(spool.read_all()), seq)
"""


def test_a_full_disk_is_an_error_and_harms_nothing_that_was_kept(tmp_path) -> None:
    argv = [sys.executable, "-c", FULL_DISK, str(tmp_path / "e")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept, seq = map(int, done.stdout.split())
    assert kept == seq > 5


def test_a_place_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LandingError, match=r"events\.jsonl"):
        Spool(tmp_path / "file" / "events.jsonl")
