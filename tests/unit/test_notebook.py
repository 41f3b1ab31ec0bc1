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
JUPYTER = NOTEBOOK.with_suffix(".ipynb")
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


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = tmp_path_factory.mktemp("lake")
    for name, factor, sweep in (("a", 1.0, "s1"), ("b", 2.0, "s1"), ("c", 0.7, "s2")):
        server = "slow" if name in "ac" else "fast"
        land(lake, name, run_rows(name, server, faster(factor), cells(weights="real"), sweep_id=sweep))
    return lake


def test_every_chapter_has_rows(lake: Path, tmp_path: Path) -> None:
    rows = run(lake, tmp_path / "out.txt")
    assert all(rows.values()), rows
    shown = (tmp_path / "out.txt").read_text()
    for chapter in range(1, 13):
        assert f"{chapter}. " in shown
    assert "iframe" in shown and "Plot.plot" in shown


def test_an_empty_lake_is_no_error(tmp_path: Path) -> None:
    rows = run(tmp_path / "none", tmp_path / "out.txt")
    assert rows["age"] == 1 and rows["curves"] == 0


def code_cells(notebook: Path) -> list[str]:
    return ["".join(c["source"]) for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]


def test_the_jupyter_notebook_is_the_same_one(tmp_path: Path) -> None:
    out = tmp_path / "answers.ipynb"
    command = [sys.executable, "-m", "marimo", "export", "ipynb", str(NOTEBOOK), "--sort", "topological", "-o"]
    subprocess.run([*command, str(out)], check=True, capture_output=True, cwd=ROOT)
    assert len(code_cells(out)) >= 13
    wanted = "marimo export ipynb notebooks/answers.py --sort topological -f -o notebooks/answers.ipynb"
    assert code_cells(JUPYTER) == code_cells(out), f"run: {wanted}"


def test_the_jupyter_notebook_runs_from_top_to_bottom(lake: Path) -> None:
    """As Jupyter runs it: one cell after the other in one namespace, in the folder of the notebook."""
    names = ("covered", "curves", "best", "costs", "moved")
    told = f"import json; print(json.dumps({{n: len(globals()[n]) for n in {names}}}))"
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join([*code_cells(JUPYTER), told])],
        cwd=JUPYTER.parent,
        env={**os.environ, "TOKENSWEEP_LAKE": str(lake), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.strip().splitlines()[-1])
    assert all(rows.values()), rows
