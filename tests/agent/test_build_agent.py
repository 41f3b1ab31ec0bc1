"""The archive: the same bytes each time, the standard library only, nothing of the controller."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from build_agent import build_agent

MAX_BYTES = 200_000


def test_the_same_sources_give_the_same_bytes(agent_pyz: Path, tmp_path: Path) -> None:
    assert build_agent(tmp_path / "again.pyz").read_bytes() == agent_pyz.read_bytes()


def test_it_holds_the_agent_and_the_domain_and_is_small(agent_pyz: Path) -> None:
    names = zipfile.ZipFile(agent_pyz).namelist()
    assert {"__main__.py", "agent/driver.py", "tasks/__init__.py", "tasks/domain/conductor.py"} <= set(names)
    assert all(n.startswith(("agent/", "tasks/domain/")) or n in ("__main__.py", "tasks/__init__.py") for n in names)
    assert agent_pyz.stat().st_size < MAX_BYTES


def test_every_module_needs_the_standard_library_only(agent_pyz: Path) -> None:
    program = (
        "import sys, pkgutil, importlib\n"
        f"sys.path.insert(0, {str(agent_pyz)!r})\n"
        "import agent, tasks.domain\n"
        "for package in (agent, tasks.domain):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
        "roots = {name.split('.')[0] for name in sys.modules} - {'agent', 'tasks', '__main__', '__mp_main__'}\n"
        "print(sorted(r for r in roots if r not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_probe_prints_one_json_line(agent_pyz: Path) -> None:
    done = subprocess.run([sys.executable, "-I", "-S", str(agent_pyz), "probe"], capture_output=True, check=True)
    assert json.loads(done.stdout)["cpu"]["n_usable_cpus"] >= 1
    assert done.stdout.count(b"\n") == 1


def test_bad_arguments_are_refused(agent_pyz: Path, tmp_path: Path) -> None:
    for arguments in (["fly"], ["start"], ["start", "--dir", str(tmp_path), "--option", "speed=9"]):
        done = subprocess.run([sys.executable, str(agent_pyz), *arguments], capture_output=True, check=False)
        assert done.returncode == 2, arguments
        assert done.stderr
