"""Every place in the shared life-cycle code that calls a cloud or writes to the ledger, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

TASKS = Path(__file__).resolve().parents[2] / "tasks"
MODULES = ("clouds/lifecycle.py", "clouds/deletion.py", "clouds/sending.py", "clouds/stock.py", "leaks.py", "reaper.py")
LEDGERS = ("ledger", "timed")
CLOUD_CALLS = frozenset({"create", "get", "list_owned", "delete"})
LEDGER_WRITES = frozenset(
    {
        "intend",
        "creating",
        "live",
        "identify",
        "deleting",
        "delete_sent",
        "absent",
        "present",
        "stuck",
        "gone",
        "found",
        "beat",
        "out_of_stock",
    }
)


class Site(NamedTuple):
    """A statement of the product from first to last line, and what it calls."""

    module: str
    first_line: int
    last_line: int
    what: str

    def reached(self, lines: set[tuple[str, int]]) -> bool:
        return any((self.module, line) in lines for line in range(self.first_line, self.last_line + 1))

    def __str__(self) -> str:
        return f"tasks/{self.module}:{self.first_line} {self.what}"


def call_sites(tasks: Path = TASKS) -> list[Site]:
    """Calls of the vendor protocol and of the ledger's writing methods, those that are passed on as callables too."""
    found: list[Site] = []
    for module in MODULES:
        tree = ast.parse((tasks / module).read_text())
        for statement in ast.walk(tree):
            if isinstance(statement, ast.stmt) and not hasattr(statement, "body"):
                found += _sites_in(module, statement)
    return sorted(set(found))


def _sites_in(module: str, statement: ast.stmt) -> list[Site]:
    sites = []
    for node in ast.walk(statement):
        if not isinstance(node, ast.Attribute):
            continue
        owner = _last_name(node.value)
        if (owner == "cloud" and node.attr in CLOUD_CALLS) or (owner in LEDGERS and node.attr in LEDGER_WRITES):
            sites.append(Site(module, statement.lineno, statement.end_lineno or 0, f"{owner}.{node.attr}"))
    return sites


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""
