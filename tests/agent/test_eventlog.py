"""The event log: numbered lines that no crash can spoil."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agent.eventlog import EventLog, read_events, seq_of
from agent.tail import LogReader


def write(path: Path, *kinds: str) -> None:
    log = EventLog(path)
    for kind in kinds:
        log.append(kind, {"t_s": 1.0})
    log.close()


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["seq"] for line in path.read_text().splitlines()]


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, "AgentStarted", "Tick")
    write(path, "AgentStarted", "BenchRow")
    assert numbers(path) == [1, 2, 3, 4]
    assert [seq_of(line) for line in path.read_bytes().splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize("rest", [b'{"seq":3,"unix_s":1.0,"kin', b"\0" * 5000, b"x\n\0\0\0\n", b'{"seq":'])
def test_what_a_crash_leaves_is_cut_off(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "events.jsonl"
    write(path, "AgentStarted", "Tick")
    with path.open("ab") as log:
        log.write(rest)
    write(path, "AgentStarted")
    assert numbers(path) == [1, 2, 3]


def test_a_log_of_only_a_piece_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"seq":1,"uni')
    write(path, "AgentStarted")
    assert numbers(path) == [1]


def test_long_lines_are_found_over_block_borders(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for n in (200_000, 10, 70_000):
        log.append("Probed", {"text": "x" * n})
    log.close()
    with path.open("ab") as rest:
        rest.write(b"y" * 100_000)
    write(path, "Tick")
    assert numbers(path) == [1, 2, 3, 4]


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("Decision", {"evidence": {"bound_tok_per_s": float("inf"), "list": [float("nan"), 1.0]}})
    log.close()
    (line,) = read_events(tmp_path / "events.jsonl")
    assert line["evidence"] == {"bound_tok_per_s": None, "list": [None, 1.0]}


def test_a_reader_sees_only_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = LogReader(path)
    assert list(reader.lines()) == []
    write(path, "AgentStarted")
    with path.open("ab") as log:
        log.write(b'{"seq":2,"unix_s":1')
    assert [seq_of(line) for line in reader.lines()] == [1]
    write(path, "AgentStarted", "Tick")
    assert [seq_of(line) for line in reader.lines()] == [2, 3], "the cut line is read as it was written anew"
