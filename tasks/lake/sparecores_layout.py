"""Their repository's own layout, one folder per server, read into runs. What is damaged is counted and left out."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tasks.domain.cells import PP, TG, Cell, Reason
from tasks.lake.sparecores import (
    MODEL_OF_FILE,
    PublishedCell,
    PublishedRun,
    cache_bytes,
    cpu_that_ran,
    every_cell,
    utc,
)
from tasks.lake.sparecores_log import read_log

MAX_FILE_BYTES = 64 * 2**20
"""Their largest file has 2 MB; what is far larger is no log."""


def server_folders(root: Path) -> list[Path]:
    """Folders `data/<vendor>/<server>` with an `llm` task; `root` is the repository, or its `data`."""
    base = root / "data" if (root / "data").is_dir() else root
    return sorted(p.parent for p in base.glob("*/*/llm") if p.is_dir())


def read_server(folder: Path, damage: Counter[str]) -> PublishedRun | None:
    """The run of one server; None where nothing tells that one was started."""
    meta = _json(folder / "llm" / "meta.json", damage)
    if not isinstance(meta, dict):
        damage["llm/meta.json: not an object" if meta is not None else "llm/meta.json: missing or damaged"] += 1
        meta = {}
    rows = _rows(_text(folder / "llm" / "stdout", damage), damage)
    started_at = utc(meta.get("start"))
    log = read_log(_text(folder / "llm" / "stderr", damage), started_at, damage)
    started_at = started_at or log.origin or next((utc(r[0].get("test_time")) for r in rows.values()), None)
    if started_at is None:
        return None
    run = PublishedRun(folder.parent.name, folder.name, started_at)
    run.ended_at = utc(meta.get("end"))
    code = meta.get("exit_code")
    run.exit_code = code if isinstance(code, int) and not isinstance(code, bool) else None
    run.error = str(meta.get("error_msg") or "")[:500]
    run.engine_commit = str(meta.get("version") or "")
    run.downloads = log.downloads
    run.hardware = _hardware(folder, next((r[0].get("cpu_info") for r in rows.values()), None), damage)
    if rows or log.calls or log.run_ended or log.no_model:
        for cell in every_cell():
            run.cells[cell] = _cell(rows.get(cell), log.calls.get(cell), *log.why_not(cell))
    return run


def _cell(
    found: tuple[dict[str, Any], str, tuple[float, ...]] | None, started_s: float | None, reason: Reason, why: str
) -> PublishedCell:
    if found is None:
        return PublishedCell(reason, why, started_s)
    row, text, samples_s = found
    return PublishedCell(Reason.OK, "", started_s, samples_s, row, text)


def _rows(text: str, damage: Counter[str]) -> dict[Cell, tuple[dict[str, Any], str, tuple[float, ...]]]:
    """llama-bench's rows by cell. A second row of a cell is counted and dropped."""
    found: dict[Cell, tuple[dict[str, Any], str, tuple[float, ...]]] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            cell = _cell_of(row)
            samples_s = tuple(ns / 1e9 for ns in row["samples_ns"])
        except (ValueError, KeyError, TypeError, RecursionError):
            damage["llm/stdout: a line that is no row of llama-bench"] += 1
            continue
        if not samples_s or not all(0 < s < math.inf for s in samples_s):
            damage["llm/stdout: a row without samples"] += 1
        elif cell in found:
            damage["llm/stdout: a second row of a cell"] += 1
        else:
            found[cell] = (row, line, samples_s)
    return found


def _cell_of(row: dict[str, Any]) -> Cell:
    """Raises KeyError, TypeError or ValueError for a row that belongs to no cell of theirs."""
    model = MODEL_OF_FILE[row["model_filename"].rpartition("/")[2]].name
    n_prompt, n_gen = int(row["n_prompt"]), int(row["n_gen"])
    if (n_prompt > 0) == (n_gen > 0):
        raise ValueError("neither prompt processing nor text generation")
    return Cell(model, PP if n_prompt else TG, n_prompt or n_gen)


def _text(path: Path, damage: Counter[str]) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            damage[f"{path.parent.name}/{path.name}: too large"] += 1
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""  # a task that printed nothing has no such file
    except OSError:
        damage[f"{path.parent.name}/{path.name}: not readable"] += 1
        return ""


def _json(path: Path, damage: Counter[str]) -> Any:
    text = _text(path, damage)
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


_OF_THE_CPU = ("cpu_vendor", "cpu_flags", "l3_bytes")


def _hardware(folder: Path, cpu_info: Any, damage: Counter[str]) -> dict[str, Any]:
    """Columns of our table `hardware`, from `lscpu` and `nvidia_smi` beside the task, whose CPU may be another."""
    values = dict(_lscpu_fields(_json(folder / "lscpu" / "stdout", damage)))
    known: dict[str, Any] = {
        "arch": values.get("Architecture"),
        "cpu_vendor": values.get("Vendor ID"),
        "cpu_model": values.get("Model name"),
        "cpu_flags": values.get("Flags"),
        "n_hardware_threads": _int(values.get("CPU(s)")),
        "n_cpus": _int(values.get("CPU(s)")),
        "n_sockets": _int(values.get("Socket(s)")),
        "n_numa_nodes": _int(values.get("NUMA node(s)")),
        "l3_bytes": cache_bytes(values.get("L3 cache")),
        "is_virtual": True if values.get("Hypervisor vendor") else None,
        "machine_vendor": values.get("Hypervisor vendor"),
    }
    per_socket = _int(values.get("Core(s) per socket"))
    if per_socket and known["n_sockets"]:
        known["n_cores"] = per_socket * known["n_sockets"]
    cpu_model = cpu_that_ran(cpu_info, known["cpu_model"])
    if cpu_model != known["cpu_model"]:
        known.update(dict.fromkeys(_OF_THE_CPU), cpu_model=cpu_model)
    known.update(_gpus(_text(folder / "nvidia_smi" / "stdout", damage), damage))
    return {name: value for name, value in known.items() if value is not None}


def _lscpu_fields(raw: Any) -> Iterator[tuple[str, str]]:
    """Newer versions of lscpu nest their fields."""
    for item in raw.get("lscpu", []) if isinstance(raw, dict) else raw if isinstance(raw, list) else []:
        if isinstance(item, dict):
            if isinstance(item.get("field"), str) and isinstance(item.get("data"), str):
                yield item["field"].rstrip(":"), item["data"]
            yield from _lscpu_fields(item.get("children"))


def _gpus(text: str, damage: Counter[str]) -> dict[str, Any]:
    if "<nvidia_smi_log" not in text:
        return {}
    try:
        # Parsed without the DTD that nvidia-smi names; entities are not expanded by this parser's defaults.
        root = ElementTree.fromstring(text[text.index("<nvidia_smi_log") :])  # noqa: S314 - no DTD is left in it
    except (ElementTree.ParseError, ValueError):
        damage["nvidia_smi/stdout: damaged"] += 1
        return {}
    cards = root.findall("gpu")
    if not cards:
        return {}
    mib = [_int((card.findtext("fb_memory_usage/total") or "").split(" ")[0]) or 0 for card in cards]
    return {
        "n_gpus": len(cards),
        "gpu_model": cards[0].findtext("product_name"),
        "gpu_driver": root.findtext("driver_version"),
        "vram_total_bytes": sum(mib) * 2**20 or None,
    }


def _int(text: Any) -> int | None:
    try:
        return int(text)
    except (TypeError, ValueError):
        return None
