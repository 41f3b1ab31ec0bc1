"""Wrong settings, options, files and addresses, as a person meets them: one line, exit code 2, no stack trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.replay_command import chosen_runs
from tasks.domain.errors import ConfigError
from tests.sshd import free_port


def refused(home: Path, *arguments: str, **environment: str) -> str:
    """What a command in a process of its own says on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        env={**os.environ, "TOKENSWEEP_HOME": str(home), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_wrong_setting_is_named_as_it_is_written(tmp_path: Path) -> None:
    said = refused(tmp_path, "status", TOKENSWEEP_LOCAL_ISOLATION="strict")
    assert "TOKENSWEEP_LOCAL_ISOLATION" in said and "'loopback'" in said and "'strict'" in said


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [("--max-usd", "-1", "greater than 0"), ("--max-usd", "0", "greater than 0"), ("--label", "x" * 41, "at most 40")],
)
def test_no_money_and_a_long_label_start_nothing(tmp_path: Path, option: str, value: str, says: str) -> None:
    """No money is not the preset's own cap."""
    said = refused(tmp_path / "home", "run", "tiny", "--yes", option, value)
    assert option in said and says in said and "Nothing was started" in said
    assert not (tmp_path / "home" / "prefect-server.log").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert str(tmp_path / "folder") in refused(tmp_path, "export", "sparecores", "--out", str(tmp_path / "folder"))


@pytest.mark.parametrize("command", ["limits", "automations", "run sim --yes"])
def test_a_prefect_server_that_does_not_answer_is_named(tmp_path: Path, command: str) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    said = refused(tmp_path, *command.split(), PREFECT_API_URL=url, PREFECT_CLIENT_MAX_RETRIES="0")
    assert url in said and "PREFECT_API_URL" in said


def test_a_replay_is_not_begun_for_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs.parquet").touch()
    said = refused(tmp_path, "replay", "--traces", str(tmp_path), "--html", str(tmp_path / "no" / "x.html"))
    assert str(tmp_path / "no") in said


@pytest.mark.parametrize(
    "arguments",
    [("status", "--watch", "-1"), ("metrics", "--port", "70000"), ("plan", "--max-usd", "-1")],
)
def test_numbers_out_of_range_are_refused(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2 and arguments[1] in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("catalog", "list", "hetzne"), "There is no vendor 'hetzne'"),
        (("catalog", "list", "hetzner"), "tokensweep catalog refresh hetzner"),
        (("status", "--sweep", "s9"), "no server run of a sweep 's9'"),
    ],
)
def test_what_is_not_there_is_said_with_the_next_step(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENSWEEP_HOME", str(tmp_path))
    refusal = CliRunner().invoke(app, list(arguments)).exception
    assert isinstance(refusal, ConfigError) and says in str(refusal), repr(refusal)


def test_recorded_runs_go_by_our_name_of_the_vendor_too() -> None:
    runs: list[Any] = [SimpleNamespace(vendor=vendor, is_april=False) for vendor in ("hcloud", "aws")]
    assert [run.vendor for name in ("hetzner", "hcloud", "aws") for run in chosen_runs(runs, name)] == [
        "hcloud",
        "hcloud",
        "aws",
    ]
    with pytest.raises(ConfigError, match="Vendors in the traces: aws, hetzner"):
        chosen_runs(runs, "gcp")
