"""One download against a real server with real faults."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent import http_range
from agent.download import FetchSpec, fetch

from tests.agent.model_server import ModelServer, cut_after, gguf_like, sha256_of, silent_after, status, wrong_start

SIZE = 3_000_000
DATA = gguf_like(SIZE)
SHA256 = sha256_of(DATA)


@pytest.fixture(autouse=True)
def fresh_certificates() -> Iterator[None]:
    """Certificates are read once in a process; each test is as a process of its own."""
    yield
    http_range._tls_context.cache_clear()


def run(path: Path, *urls: str, **options: Any) -> list[dict[str, Any]]:
    """Every line that the download reports."""
    values: dict[str, Any] = {"bytes": SIZE, "sha256": SHA256, "stall_s": 0.5, "dead_s": 8.0, **options}
    lines: list[dict[str, Any]] = []
    fetch(FetchSpec(urls=urls, path=str(path), **values), lines.append)
    return lines


def assert_whole(path: Path, lines: list[dict[str, Any]]) -> None:
    assert lines[-1]["kind"] == "finished", lines[-1]
    assert lines[-1]["sha256"] == SHA256
    assert path.read_bytes() == DATA
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing else is left in the folder"


def assert_failed(path: Path, lines: list[dict[str, Any]], reason: str) -> str:
    assert lines[-1]["kind"] == "failed", lines[-1]
    assert lines[-1]["reason"] == reason, lines[-1]
    assert list(path.parent.iterdir()) == [], "a failed download leaves nothing"
    return str(lines[-1]["detail"])


def test_a_file_arrives_whole_and_is_hashed(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    lines = run(path, server.put("/m", DATA))
    assert_whole(path, lines)
    assert lines[0] == {"kind": "started", "bytes_total": SIZE, "bytes_resumed": 0}
    assert lines[-1]["n_retries"] == 0
    assert len(server.requests) == 1, "a fast link needs one request"


def test_truncated_bodies_are_continued_where_they_ended(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    lines = run(path, server.put("/m", DATA, cut_after(1_000_000), cut_after(500_000)))
    assert_whole(path, lines)
    assert lines[-1]["n_retries"] == 2
    assert [r[1] for r in server.requests] == [
        f"bytes=0-{SIZE - 1}", f"bytes=1000000-{SIZE - 1}", f"bytes=1500000-{SIZE - 1}",
    ]  # fmt: skip
    assert [r[2] for r in server.requests] == ["", '"v1"', '"v1"'], "a continued request names the version"


def test_a_silent_connection_is_replaced(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    lines = run(path, server.put("/m", DATA, silent_after(1_000_000)))
    assert_whole(path, lines)
    assert lines[-1]["n_retries"] == 1


def test_server_errors_are_retried(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    lines = run(path, server.put("/m", DATA, status(500), status(503, Retry_After="1"), status(429)))
    assert_whole(path, lines)
    assert lines[-1]["n_retries"] == 3


def test_a_wrong_range_is_not_spliced(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert_whole(path, run(path, server.put("/m", DATA, cut_after(1_000_000), wrong_start(-4096))))


def test_a_missing_file_is_taken_from_the_next_mirror(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert_whole(path, run(path, server.url("/absent"), server.put("/m", DATA)))


def test_a_broken_mirror_is_left_and_its_bytes_are_kept(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    first = server.put("/a", DATA, cut_after(2_000_000), *[status(500)] * 50)
    assert_whole(path, run(path, first, server.put("/b", DATA, etag='"other"')))
    assert ("/b", f"bytes=2000000-{SIZE - 1}", "") in server.requests


def test_redirects_are_followed_with_the_range(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    server.put("/real", DATA, cut_after(1_000_000))
    assert_whole(path, run(path, server.put("/hub", b"", redirect_to="/real?signature=x")))
    assert server.requests[-1][:2] == ("/real", f"bytes=1000000-{SIZE - 1}")


def test_a_changed_file_is_fetched_anew(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    old = gguf_like(SIZE, seed=2)
    url = server.put("/m", old, cut_after(1_000_000))

    def change(*_: Any) -> bool:
        server.files["/m"].data, server.files["/m"].etag = DATA, '"v2"'
        return False

    server.files["/m"].faults.append(status(500))
    server.files["/m"].faults.append(lambda handler, *_: change() or status(500)(handler, *_))
    lines = run(path, url)
    assert_whole(path, lines)
    assert [line["bytes_resumed"] for line in lines if line["kind"] == "started"] == [0, 0]


def test_a_server_without_ranges_works_from_the_beginning(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert_whole(path, run(path, server.put("/m", DATA, cut_after(1_000_000), ranges=False)))


def test_a_wrong_checksum_is_retried_from_the_next_mirror(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    bad = DATA[:2_000_000] + b"x" + DATA[2_000_001:]
    assert_whole(path, run(path, server.put("/bad", bad), server.put("/good", DATA)))


def test_a_checksum_that_stays_wrong_fails(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    lines = run(path, server.put("/m", gguf_like(SIZE, seed=3)))
    assert SHA256 in assert_failed(path, lines, "checksum")
    assert len(server.requests) == 2


def test_what_is_no_gguf_ends_at_once(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    page = b"<!doctype html>" + bytes(SIZE - 15)
    assert "doctype" in assert_failed(path, run(path, server.put("/m", page)), "not_gguf")
    assert len(server.requests) == 1


def test_an_error_page_instead_of_the_file_is_no_gguf(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert_failed(path, run(path, server.put("/m", b"<html>please log in</html>")), "not_gguf")


def test_a_file_of_another_size_is_refused(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    detail = assert_failed(path, run(path, server.put("/m", DATA[:-1])), "download_failed")
    assert f"{SIZE - 1} bytes, expected {SIZE}" in detail


def test_a_file_that_nobody_has_fails_without_waiting(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    detail = assert_failed(path, run(path, server.url("/a"), server.url("/b")), "download_failed")
    assert detail.count("HTTP 404") == 2


def test_a_server_that_refuses_connections_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    detail = assert_failed(path, run(path, "http://127.0.0.1:9/m", dead_s=1.0), "download_dead")
    assert "refused" in detail.lower()


def test_a_server_that_stays_silent_is_dead(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert_failed(path, run(path, server.put("/m", DATA, *[silent_after(0)] * 50), dead_s=2.0), "download_dead")


def test_too_little_disk_is_known_before_a_request(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert_failed(path, run(path, server.put("/m", DATA), bytes=1 << 60), "disk_full")
    assert server.requests == []


def test_an_unknown_size_is_asked_for(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert_whole(path, run(path, server.put("/m", DATA), bytes=0, sha256=""))


@pytest.fixture
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a certificate for 127.0.0.1 that nobody else trusts."""
    folder = tmp_path_factory.mktemp("tls")
    key, crt = folder / "key.pem", folder / "crt.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", crt],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.skip("openssl cannot make a certificate here")
    return key, crt


def test_https_with_a_trusted_certificate(
    certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    key, crt = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(crt))
    with ModelServer(key=key, certificate=crt) as server:
        lines = run(path, server.put("/m", DATA, cut_after(1_000_000)))
    assert_whole(path, lines)


def test_https_with_a_certificate_that_is_not_trusted_ends_at_once(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    key, crt = certificate
    with ModelServer(key=key, certificate=crt) as server:
        detail = assert_failed(path, run(path, server.put("/m", DATA)), "download_failed")
    assert "CERTIFICATE_VERIFY_FAILED" in detail


@pytest.mark.parametrize("bytes_per_s", [1e6])
def test_slow_connections_are_joined_by_others(server: ModelServer, tmp_path: Path, bytes_per_s: float) -> None:
    path = tmp_path / "m.gguf"
    url = server.put("/m", DATA, bytes_per_s=bytes_per_s)
    lines = run(path, url, slow_bytes_per_s=50e6, trial_s=0.2, min_split_bytes=65536, progress_s=0.1)
    assert_whole(path, lines)
    assert server.files["/m"].most_open >= 3
    assert max(line.get("n_connections", 0) for line in lines) >= 3


def test_connections_that_a_server_refuses_do_not_harm(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    url = server.put("/m", DATA, bytes_per_s=2e6, max_open=1)
    assert_whole(path, run(path, url, trial_s=0.2, min_split_bytes=65536, dead_s=3.0))


def test_a_fast_link_keeps_one_connection(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    url = server.put("/m", DATA, bytes_per_s=2e6)
    assert_whole(path, run(path, url, slow_bytes_per_s=1e5, trial_s=0.2, min_split_bytes=65536))
    assert server.files["/m"].most_open == 1
