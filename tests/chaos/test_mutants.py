"""The suite catches planted bugs: a small budget for each; `python -m tests.chaos.mutants` gives them a large one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.mutations import NotApplicableError, mutations

ROOT = Path(__file__).resolve().parents[2]
ASKED_FOR = {
    "intent written after the create",
    "NotFound believed once",
    "a partial listing believed",
    "giving up after 3 deletes",
    "matching by name instead of id",
    "ledger read before the cloud's listing",
    "reaper heartbeat ignored",
    "budget reserved after the create",
    "a deadline that cannot be read counts as never",
    "a foreign resource with our name taken for ours",
}


def test_every_mutation_changes_the_product_as_it_is_now() -> None:
    listed = mutations()
    assert {mutation.name for mutation in listed} >= ASKED_FOR
    for mutation in listed:
        sources: dict[str, str] = {}
        for change in mutation.changes:
            path = ROOT / (change.module.replace(".", "/") + ".py")
            source = sources.get(change.module) or path.read_text()
            try:
                sources[change.module] = change.applied(source)
            except NotApplicableError as exc:
                pytest.fail(f"{mutation.name}: {exc}")
        for module, source in sources.items():
            compile(source, module, "exec")


@pytest.mark.timeout(900)
def test_planted_bugs_are_caught() -> None:
    """Each by the one test that is meant for it, which passes without the bug like all others here."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.mutants", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
