"""A model's header by ranged requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent.header_command import FIRST_BYTES, read_header

from tests.agent.model_server import ModelServer, cut_after, silent_after, status
from tests.agent.small_gguf import small_gguf


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """Long enough that the header is the smaller part."""
    return small_gguf(tmp_path / "m.gguf", n_embd=1024)


def test_only_the_first_bytes_are_fetched(server: ModelServer, data: bytes) -> None:
    answer = read_header((server.put("/m", data),), len(data))
    assert answer["kind"] == "header"
    assert answer["header"]["arch"] == "llama"
    assert answer["header"]["n_layers"] == 2
    assert [r[1] for r in server.requests] == [f"bytes=0-{FIRST_BYTES - 1}"]
    assert len(data) > FIRST_BYTES


def test_a_long_header_is_asked_for_in_growing_pieces(
    server: ModelServer, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.header_command.FIRST_BYTES", 64)
    answer = read_header((server.put("/m", data),), len(data))
    assert answer["header"]["n_layers"] == 2
    firsts = [int(r[1][6:].split("-")[0]) for r in server.requests]
    assert firsts[:2] == [0, 64], "what is there is not fetched again"


@pytest.mark.parametrize("ranges", [True, False])
def test_an_unknown_size_does_not_matter(server: ModelServer, tmp_path: Path, ranges: bool) -> None:
    data = small_gguf(tmp_path / "small.gguf", n_embd=64)
    assert read_header((server.put("/m", data, ranges=ranges),), 0)["kind"] == "header"


def test_faults_are_survived(server: ModelServer, data: bytes) -> None:
    url = server.put("/m", data, status(500), cut_after(100_000), silent_after(10))
    assert read_header((server.url("/absent"), url), len(data), stall_s=0.3)["kind"] == "header"


def test_what_is_no_gguf_is_told(server: ModelServer) -> None:
    page = b"<!doctype html>" + bytes(2_000_000)
    answer = read_header((server.put("/m", page),), len(page))
    assert (answer["kind"], answer["reason"]) == ("header_failed", "not_gguf")


def test_a_file_that_is_cut_short_is_told(server: ModelServer, data: bytes) -> None:
    cut = data[:-1000]
    answer = read_header((server.put("/m", cut),), len(cut))
    assert (answer["kind"], answer["reason"]) == ("header_failed", "not_gguf")
    assert "cut short" in answer["detail"]


def test_an_absent_file_is_told(server: ModelServer) -> None:
    answer = read_header((server.url("/absent"),), 1000)
    assert (answer["kind"], answer["reason"]) == ("header_failed", "download_failed")
    assert "404" in answer["detail"]


def test_a_silent_server_is_dead() -> None:
    answer = read_header(("http://127.0.0.1:9/m",), 1000, stall_s=0.2, dead_s=0.5)
    assert (answer["kind"], answer["reason"]) == ("header_failed", "download_dead")
