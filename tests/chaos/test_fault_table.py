"""docs/faults.md names a test for every scenario, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
N_SCENARIOS = 46


@cache
def functions_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, functions))


def test_every_scenario_has_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", text, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, N_SCENARIOS + 1))
    for number, what, shown_by in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown_by)
        assert named, f"{number}: {what}"
        for path, name in named:
            assert (ROOT / path).is_file(), f"{number} names {path}"
            assert name in functions_of(ROOT / path), f"{number} names {path}::{name}"


def test_every_path_in_the_page_exists() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    for path in re.findall(r"`((?:tests|docs|tasks)/[\w/.]+\.\w+)`", text):
        assert (ROOT / path).is_file(), path
