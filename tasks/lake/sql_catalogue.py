"""The views and macros of `sql/`, one per file, with their documentation.

A file begins with comment lines: what it is; `-- of: cells, server_runs` names the tables whose column comments it
takes over, in that order; `-- @name [unit] meaning` documents a column of its own (or a macro's parameter).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

from tasks.lake.schema import TABLE

# In the order of creation: each uses only what stands before it.
NAMES = (
    "usd_per_mtok",
    "usd_per_mtok_blended",
    "energy_usd_per_hour",
    "break_even_h",
    "parity_rent_usd_per_hour",
    "ownership_roi",
    "roofline_tok_per_s",
    "ran_on_gpu",
    "roofline_needed",
    "roofline_peak",
    "v_server_runs",
    "v_cells",
    "v_sweep_cells",
    "v_samples",
    "v_latest",
    "v_speed",
    "v_coverage",
    "v_failures",
    "v_decisions",
    "v_downloads",
    "v_phases",
    "v_pipeline",
    "v_cost",
    "v_spend",
    "v_prices",
    "v_models",
    "v_gates",
    "v_leaks",
    "v_teardown",
    "v_gpu_peaks",
    "v_hardware",
    "v_roofline",
    "v_scaling",
    "v_drift",
    "v_throttling",
    "v_anchors",
    "v_gpu_scaling",
    "v_concurrency",
    "v_sustained",
    "v_trust",
    "v_benchmark_score",
    "v_problems",
    "best_for_slo",
    "best_for_slo_at",
    "pareto",
    "compare",
    "token_cost",
    "fits",
    "what_if_gate",
    "drift",
    "own_or_rent",
)

_CREATE = re.compile(r"CREATE (VIEW|MACRO) (\w+)\s*(\([^)]*\))?\s*AS(\s+TABLE)?\b")
_COLUMN = re.compile(r"@(\w+) (?:\[([^\]]*)\] )?(.+)")


@dataclass(frozen=True)
class SqlColumn:
    name: str
    unit: str
    comment: str


@dataclass(frozen=True)
class SqlObject:
    """One view or macro. kind: VIEW, MACRO or MACRO TABLE, as COMMENT ON names them."""

    name: str
    kind: str
    parameters: tuple[str, ...]
    comment: str
    of: tuple[str, ...]
    own: dict[str, SqlColumn]
    sql: str

    def column(self, name: str) -> SqlColumn | None:
        """What is documented of one of its columns: its own words, else those of the first table that has it."""
        if name in self.own:
            return self.own[name]
        for table in self.of:
            for c in TABLE[table].columns:
                if c.name == name:
                    return SqlColumn(c.name, c.unit, c.comment)
        return None


def _parse(name: str, text: str) -> SqlObject:
    header = [line[2:].strip() for line in text.splitlines() if line.startswith("--")]
    created = _CREATE.search(text)
    if created is None or created[2] != name:
        raise ValueError(f"sql/{name}.sql does not create {name}.")
    own: dict[str, SqlColumn] = {}
    of: tuple[str, ...] = ()
    comment = []
    for line in header:
        if column := _COLUMN.fullmatch(line):
            own[column[1]] = SqlColumn(column[1], column[2] or "", column[3])
        elif line.startswith("of:"):
            of = tuple(table.strip() for table in line[3:].split(","))
        else:
            comment.append(line)
    kind = "MACRO TABLE" if created[4] else created[1]
    parameters = tuple(p.strip() for p in (created[3] or "()")[1:-1].split(",") if p.strip())
    return SqlObject(name, kind, parameters, " ".join(comment), of, own, text)


def _load() -> tuple[SqlObject, ...]:
    folder = resources.files("tasks.lake") / "sql"
    return tuple(_parse(name, (folder / f"{name}.sql").read_text(encoding="utf-8")) for name in NAMES)


CATALOGUE = _load()
