"""What a benchmark found: on the terminal, as JSON in .bench/, and as Markdown in docs/measurements.md."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / ".bench"
DOCS = ROOT / "docs" / "measurements.md"


@dataclass
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass
class Result:
    """findings: sentences with the figures that matter. raw: everything, for whoever wants to reckon anew."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    began: str = ""
    took_s: float = 0.0


def machine_line(result: Result) -> str:
    facts = result.machine
    settings = "".join(f", {key} {value}" for key, value in result.settings.items() if key != "command")
    return (
        f"{facts['cpu_model']}, {facts['n_cpus']} CPUs, {facts['memory_gib']} GiB, Linux {facts['kernel']}, "
        f"Python {facts['python']}; at the start load {facts['load1_at_start']}, CPUs "
        f"{facts['busy_share_at_start']:.0%} busy; steal {facts['steal_share']:.1%}; {result.began}, "
        f"{result.took_s:.0f} s{settings}"
    )


def show(result: Result, console: Console) -> None:
    console.print(f"\n[bold]{result.name}[/bold]  {machine_line(result)}", highlight=False)
    for warning in result.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", highlight=False)
    for table in result.tables:
        shown = RichTable(title=table.title, title_justify="left")
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if number == 0 else "right")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for finding in result.findings:
        console.print(f"- {finding}", highlight=False)


def save(result: Result) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result.name}.json"
    path.write_text(json.dumps(asdict(result), indent=1) + "\n")
    return path


def load(path: Path) -> Result:
    values = json.loads(path.read_text())
    values["tables"] = [Table(**table) for table in values["tables"]]
    return Result(**values)


def markdown(result: Result) -> str:
    parts = [machine_line(result) + "."]
    parts += [f"**Warning:** {warning}." for warning in result.warnings]
    for table in result.tables:
        lines = [f"**{table.title}**", "", _row(table.columns), "|---" + "|--:" * (len(table.columns) - 1) + "|"]
        parts.append("\n".join([*lines, *map(_row, table.rows)]))
    if result.findings:
        parts.append("\n".join(f"- {finding}" for finding in result.findings))
    if "command" in result.settings:
        parts.append(f"```\n{result.settings['command']}\n```")
    return "\n\n".join(parts)


def _row(values: list[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def write_docs() -> list[str]:
    """Put the newest results between their markers; returns the names of those that were found."""
    text = DOCS.read_text()
    written = []
    for path in sorted(RESULTS.glob("*.json")):
        result = load(path)
        begin, end = f"<!-- begin {result.name} -->", f"<!-- end {result.name} -->"
        body = f"{begin}\n{markdown(result)}\n{end}"
        text, n = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _, b=body: b, text, flags=re.DOTALL)
        if n:
            written.append(result.name)
    DOCS.write_text(text)
    return written
