"""The agent's own records land in columns: a key that is renamed there would leave a column empty for ever."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "agent-image"))

from agent.gpu import parse_list, parse_use
from agent.hardware import fingerprint
from agent.phases import Phases
from agent.telemetry import Telemetry

from tasks.domain import events as ev
from tasks.lake import land, open_lake, query, rows_from_events
from tasks.lake.foreign import at
from tasks.lake.machine_rows import _HARDWARE_PATHS, _TELEMETRY_KEYS
from tests.unit.lake_runs import EventLog, make_context, make_plan

GPU_LIST = "0, NVIDIA H100 80GB HBM3, GPU-1, 570.1, 81559, 81000, 9.0, 5, 16, 700.00, Enabled, Disabled, 96.0"
GPU_USE = (
    "0, 90, 1024, 80000, 1980, 2619, 300.5, 55, 0x0000000000000000",
    "1, 70, 1024, 80000, 1970, 2619, 100.5, 60, 0x0",
)


def landed(tmp_path: Path, log: EventLog, table: str) -> list[dict[str, Any]]:
    """The rows of a table after a round through the lake's files."""
    land(tmp_path, "r", rows_from_events(make_plan("here", "r"), log.lines, make_context()))
    with open_lake(tmp_path) as lake:
        return query(lake, f"FROM {table}").to_dicts()


def test_the_fingerprint_of_this_machine(tmp_path: Path) -> None:
    record = fingerprint(tmp_path)
    for name, path in _HARDWARE_PATHS.items():
        parent = at(record, path[:-1])
        assert isinstance(parent, dict) and (path[-1] in parent or path[-2:-1] == ("dmi",)), (
            f"{name} is read from {path}"
        )
    log = EventLog()
    log.event(ev.Probed(0.1, 2**30, 2**29, 2**34, 2, (), record))
    (row,) = landed(tmp_path / "lake", log, "hardware")
    for name in (
        "arch",
        "cpu_flags",
        "n_hardware_threads",
        "machine_memory_bytes",
        "disk_total_bytes",
        "kernel",
        "libc",
    ):
        assert row[name], name
    assert row["swap_total_bytes"] is not None  # none is 0, not unknown
    assert (row["n_gpus"] > 0) == (row["gpu_model"] is not None)


def test_gpus(tmp_path: Path) -> None:
    log = EventLog()
    record = {"gpus": parse_list(GPU_LIST)}
    log.event(ev.Probed(0.1, 2**30, 2**29, 2**34, 2, (81000 * 2**20,), record))
    log.add("Telemetry", 1.0, gpus=[parse_use(line) for line in GPU_USE])
    (row,) = landed(tmp_path / "lake", log, "hardware")
    assert (row["n_gpus"], row["gpu_model"], row["gpu_driver"]) == (1, "NVIDIA H100 80GB HBM3", "570.1")
    assert (row["vram_total_bytes"], row["gpu_power_limit_w"]) == (81559 * 2**20, 700.0)
    (use,) = landed(tmp_path / "lake", log, "telemetry")
    assert (use["gpu_busy_share"], use["gpu_power_w"], use["gpu_temperature_c"]) == (0.8, 401.0, 60.0)
    assert (use["gpu_memory_used_bytes"], use["gpu_clock_mhz"]) == (2 * 2**30, 1975.0)


def test_what_one_gpu_does_not_tell_is_not_summed_and_nothing_in_use_is_a_reading(tmp_path: Path) -> None:
    """An idle GPU has 0 MiB in use (drivers since 510 count what they reserve apart), and that is what the memory in
    use after a load is compared with."""
    idle = "0, 0, 0, 80000, 345, 2619, 70.5, 35, 0x0000000000000001"
    mute = "1, [N/A], 0, 80000, 345, 2619, [Unknown Error], 35, [N/A]"
    log = EventLog()
    log.event(ev.Probed(0.1, 2**30, 2**29, 2**34, 2, (81000 * 2**20,), {}))
    log.add("Telemetry", 1.0, gpus=[parse_use(line) for line in (idle, mute)])
    (use,) = landed(tmp_path / "lake", log, "telemetry")
    assert (use["gpu_memory_used_bytes"], use["gpu_power_w"], use["gpu_busy_share"]) == (0, None, 0.0)


def test_telemetry_of_this_machine(tmp_path: Path) -> None:
    telemetry = Telemetry()
    telemetry.sample()
    log = EventLog()
    sum(range(3_000_000))  # a few clock ticks, so that there are rates
    values = telemetry.sample()
    log.add("Telemetry", 1.0, **values)
    (row,) = landed(tmp_path / "lake", log, "telemetry")
    for column, key in _TELEMETRY_KEYS.items():
        assert row[column] == values.get(key), column
        assert key in values or key.startswith("pressure_"), f"{column} is read from {key}"
    for name in ("memory_used_bytes", "memory_available_bytes", "net_rx_bytes_per_s", "context_switches_per_s"):
        assert row[name] is not None, name
    assert "sample_cpu_ms" in row["other"]  # what has no column is kept all the same


def test_phases_of_the_agent(tmp_path: Path) -> None:
    phases, log = Phases(), EventLog()
    for event in (
        ev.Probed(0.5, 1, 1, 1, 1),
        ev.DownloadStarted(1.0, "small", 100),
        ev.DownloadFinished(3.0, "small", 100, ""),
        ev.BenchStarted(4.0, "small", "b", ()),
        ev.BenchExited(9.0, "small", 0, False),
    ):
        log.event(event)
        for phase in phases.on(event):
            log.add("Phase", **phase)
    rows = landed(tmp_path / "lake", log, "phases")
    assert [(r["name"], r["model"], r["seconds"]) for r in rows if r["name"] != "create"] == [
        ("probe", None, 0.5),
        ("download", "small", 2.0),
        ("bench", "small", 5.0),
        ("load", "small", 5.0),
    ]
