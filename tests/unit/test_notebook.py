"""The notebook runs as a script over real rows and over none, and becomes a Jupyter notebook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.lake import land
from tests.unit.test_lake_questions import cells, faster, run_rows

pytest.importorskip("marimo")
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "answers.py"
CHECK = """
import importlib.util, json, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("answers", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
outputs, defs = module.app.run()
names = "age covered curves found best costs front cliff gates spend moved answer".split()
print(json.dumps({n: len(getattr(defs[n], "cells", defs[n])) if defs[n] is not None else 0 for n in names}))
Path(sys.argv[2]).write_text("\\n".join(str(getattr(o, "text", o)) for o in outputs))
"""


def run(lake: Path, out: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(NOTEBOOK), str(out)],
        cwd=ROOT,
        env={**os.environ, "TOKENSWEEP_LAKE": str(lake), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def test_every_chapter_has_rows(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    for name, factor, sweep in (("a", 1.0, "s1"), ("b", 2.0, "s1"), ("c", 0.7, "s2")):
        server = "slow" if name in "ac" else "fast"
        land(lake, name, run_rows(name, server, faster(factor), cells(weights="real"), sweep_id=sweep))
    rows = run(lake, tmp_path / "out.txt")
    assert all(rows.values()), rows
    shown = (tmp_path / "out.txt").read_text()
    for chapter in range(1, 13):
        assert f"{chapter}. " in shown
    assert "iframe" in shown and "Plot.plot" in shown


def test_an_empty_lake_is_no_error(tmp_path: Path) -> None:
    rows = run(tmp_path / "none", tmp_path / "out.txt")
    assert rows["age"] == 1 and rows["curves"] == 0


def test_it_becomes_a_jupyter_notebook(tmp_path: Path) -> None:
    out = tmp_path / "answers.ipynb"
    command = [sys.executable, "-m", "marimo", "export", "ipynb", str(NOTEBOOK), "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert len([c for c in json.loads(out.read_text())["cells"] if c["cell_type"] == "code"]) >= 13
