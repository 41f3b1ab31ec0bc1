"""Server runs as their agents log them, line by line, and the plans and contexts that belong to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from tasks.domain import events as ev
from tasks.domain.actions import Decision
from tasks.domain.cells import Cell
from tasks.domain.run_plan import LadderStep, ModelSpec, RunPlan
from tasks.lake import ControllerPhase, RunContext

START_UNIX_S = 1_790_000_000.0
MIB = 2**20
LADDER = (LadderStep("pp", 16, 2.0), LadderStep("pp", 128, 10.0), LadderStep("tg", 16, 1.0), LadderStep("tg", 128, 5.0))
SMALL = ModelSpec(
    "small",
    "small.Q4_K_M.gguf",
    ("https://user:secret@models.example:8443/small.gguf?token=abc",),
    100 * MIB,
    "aa" * 32,
    "random",
    "rev1",
)
LARGE = ModelSpec(
    "large", "large.Q4_K_M.gguf", ("http://a.example/large.gguf", "http://b.example/large.gguf"), 400 * MIB
)
HARDWARE = {
    "cpu": {"model_name": "AMD EPYC 7763", "vendor": "AuthenticAMD", "flags": ["avx2", "fma"], "n_threads": 4,
            "n_cores": 2, "n_sockets": 1, "n_numa_nodes": 1, "l3_bytes": 32 * MIB, "max_mhz": None, "governor": ""},
    "memory": {"total_bytes": 8 * 2**30, "swap_bytes": 0, "limited_by": "cgroup"},
    "disk": {"total_bytes": 40 * 2**30},
    "gpus": [],
    "virtualization": {"hypervisor": True, "dmi": {"sys_vendor": "QEMU"}},
    "system": {"os": "Debian", "kernel": "6.1.0", "arch": "x86_64", "libc": "glibc 2.36", "hostname": "h"},
}  # fmt: skip


class EventLog:
    """Appends numbered lines and gives them back as they come off the wire: parsed JSON."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def add(self, kind: str, t_s: float, **values: Any) -> None:
        line = {"seq": len(self.lines) + 1, "unix_s": START_UNIX_S + t_s, "kind": kind, "t_s": t_s, **values}
        self.lines.append(json.loads(json.dumps(line)))

    def event(self, event: ev.Event) -> None:
        values = ev.event_to_dict(event)
        self.add(values.pop("kind"), values.pop("t_s"), **values)

    def decision(self, decision: Decision) -> None:
        self.add("Decision", decision.t_s, **{k: v for k, v in vars(decision).items() if k != "t_s"})

    def finished(self, t_s: float, reason: str, results: Sequence[tuple[Cell, str, Sequence[float]]]) -> None:
        rows = [{"cell": vars(c), "reason": r, "detail": f"because {r}", "samples_s": list(s)} for c, r, s in results]
        self.add("Finished", t_s, reason=reason, results=rows)


def bench_row(cell: Cell) -> dict[str, Any]:
    """llama-bench's line, with a key that nobody knows yet."""
    return {
        "build_commit": "0c1e570", "build_number": 7123, "backends": "CPU", "model_n_params": 134_515_008,
        "n_threads": 2,
        "n_gpu_layers": -1, "n_batch": 2048, "n_ubatch": 512, "type_k": "f16", "type_v": "f16", "flash_attn": 1,
        "load_mode": "none", "n_prompt": cell.n_tokens if cell.task == "pp" else 0,
        "n_gen": cell.n_tokens if cell.task == "tg" else 0, "n_depth": 0, "brand_new_key": [1, 2],
    }  # fmt: skip


def make_plan(server: str, run_id: str, *, sweep_id: str = "s1", **changes: Any) -> RunPlan:
    values: dict[str, Any] = {
        "models": (SMALL, LARGE),
        "ladder": LADDER,
        "policy": "dynamic",
        "price_usd_per_hour": 0.036,
        "max_usd": 0.5,
        "deadline_s": 3600.0,
        "policy_options": {"min_repeats": 3},
        **changes,
    }
    return RunPlan(sweep_id=sweep_id, server_run_id=run_id, server=server, **values)


def make_context(**changes: Any) -> RunContext:
    values: dict[str, Any] = {
        "vendor": "local",
        "started_unix_s": START_UNIX_S - 20.0,
        "ended_unix_s": START_UNIX_S + 80.0,
        "place": "here-1",
        "price_usd_per_hour": Decimal("0.036"),
        "price_source": "presets",
        "price_read_unix_s": START_UNIX_S - 100.0,
        "ssh_ready_unix_s": START_UNIX_S - 2.0,
        "agent_started_unix_s": START_UNIX_S - 0.5,
        "bytes_sent_before_bench": 12 * MIB,
        "phases": (ControllerPhase(name="create", started_unix_s=START_UNIX_S - 20.0, seconds=15.0),),
        "decisions": (Decision(0.5, "create", "cx22", "cheapest_place", {"usd_per_hour": 0.036}),),
        "resources": (
            {"intent_id": "i1", "kind": "server", "name": "ts-i1", "state": "gone", "created_at": START_UNIX_S - 20.0,
             "gone_at": START_UNIX_S + 79.0, "usd": Decimal("0.001")},
        ),
        "licences": {"small": "apache-2.0"},
        **changes,
    }  # fmt: skip
    return RunContext(**values)


def finished_run() -> tuple[RunPlan, list[dict[str, Any]], RunContext]:
    """A run to its end: a paused download, a gate before a cell, an abort inside one.

    small: pp16, pp128, tg16 measured; tg128 gated. large: pp16 stopped after two repeats, the rest gated.
    The download of large moves from 5 s to 12 s and from 20 s to 24 s: beside repeats of pp16, not those of pp128.
    """
    log = EventLog()
    cell = {(m, t, n): Cell(m, t, n) for m in ("small", "large") for t in ("pp", "tg") for n in (16, 128)}
    log.add("AgentStarted", 0.0, agent_sha256="cc" * 32, python="3.11.2", runtime={})
    log.event(ev.Probed(0.4, 2**31, 2**30, 2**34, 2, (), HARDWARE))
    log.add("Phase", 0.4, name="probe", model="", started_s=0.0, ended_s=0.4)
    log.event(ev.HeaderRead(0.6, "small", {"arch": "llama", "quant": "Q4_K_M", "n_params": 134_515_008}))
    log.event(ev.DownloadStarted(1.0, "small", 100 * MIB, 10 * MIB))
    log.event(ev.DownloadProgress(2.0, "small", 50 * MIB, 4))
    log.event(ev.DownloadFinished(4.0, "small", 100 * MIB, "aa" * 32, 1))
    for second in range(1, 41):
        steal = 0.5 if 6 < second <= 8 else 0.0
        log.add("Telemetry", float(second), allowed_cpu_busy=0.9, allowed_cpu_steal=steal, net_rx_bytes_per_s=1.5e6,
                memory_used_bytes=2**30, bench_major_faults=3)  # fmt: skip
    small = tuple(cell["small", t, n] for t, n in (("pp", 16), ("pp", 128), ("tg", 16)))
    prediction = {"predicted_low_tok_per_s": 2.0, "predicted_high_tok_per_s": 3.0, "min_tok_per_s": 5.0}
    log.decision(Decision(4.1, "skip_cell", "small tg128", "predicted_too_slow", prediction))
    log.decision(Decision(4.1, "resolve", "small tg128", "predicted_too_slow", {"detail": "", "n_samples": 0}))
    log.event(ev.BenchStarted(4.2, "small", "haswell", small, 4711))
    log.event(ev.DownloadStarted(5.0, "large", 400 * MIB))
    log.event(ev.WarmupStarted(5.5, small[0]))
    for k, t_s in enumerate((6.0, 8.0, 10.0), 1):
        log.event(ev.RepeatStarted(t_s, small[0], k, 3))
    log.event(ev.DownloadPaused(12.0, "large"))
    log.event(ev.WarmupStarted(12.1, small[1]))  # the mark of the next cell comes before the row of the last
    log.event(ev.BenchRow(12.1, small[0], (2.0, 2.0, 2.0), bench_row(small[0])))
    for k, t_s in enumerate((13.0, 15.0, 17.0), 1):
        log.event(ev.RepeatStarted(t_s, small[1], k, 3))
    log.event(ev.BenchRow(19.2, small[1], (2.0, 2.0, 2.2), bench_row(small[1])))
    log.event(ev.DownloadResumed(20.0, "large"))
    log.event(ev.WarmupStarted(20.0, small[2]))
    log.event(ev.RepeatStarted(20.5, small[2], 1, 3))
    log.event(ev.RepeatStarted(21.5, small[2], 2, 3))
    log.event(ev.RepeatStarted(22.5, small[2], 3, 3))
    log.event(ev.BenchRow(23.5, small[2], (1.0, 1.0, 1.0), bench_row(small[2])))
    log.event(ev.BenchExited(23.6, "small", 0, False))
    log.event(ev.DownloadFinished(24.0, "large", 400 * MIB, "bb" * 32))
    log.event(ev.BenchStarted(24.1, "large", "haswell", (cell["large", "pp", 16],), 4712))
    log.event(ev.WarmupStarted(25.0, cell["large", "pp", 16]))
    for k, t_s in enumerate((30.0, 34.0, 38.0), 1):
        log.event(ev.RepeatStarted(t_s, cell["large", "pp", 16], k, 5))
    log.event(ev.BenchExited(39.0, "large", 137, True))
    log.event(ev.VariantEnded(39.8, "anchor", "end", "small", "measured", 39.2, "haswell", {}, [bench_row(small[0])]))
    results = [
        (small[0], "ok", (2.0, 2.0, 2.0)),
        (small[1], "ok", (2.0, 2.0, 2.2)),
        (small[2], "ok", (1.0, 1.0, 1.0)),
        (cell["small", "tg", 128], "predicted_too_slow", ()),
        (cell["large", "pp", 16], "measured_too_slow", (4.0, 4.0)),
        *((cell["large", t, n], "shorter_cell_too_slow", ()) for t, n in (("pp", 128), ("tg", 16), ("tg", 128))),
    ]
    log.finished(40.0, "complete", results)
    return make_plan("cx22", "run-a"), log.lines, make_context()


def lost_run() -> tuple[RunPlan, list[dict[str, Any]], RunContext]:
    """A server that vanishes: one row there, one cell in its third repeat, one cell gated before."""
    log = EventLog()
    pp16, pp128 = Cell("small", "pp", 16), Cell("small", "pp", 128)
    log.add("AgentStarted", 0.0, agent_sha256="source")
    log.event(ev.Probed(0.4, 2**31, 2**30, 2**34, 2, (), HARDWARE))
    log.event(ev.DownloadStarted(1.0, "small", 100 * MIB))
    log.event(ev.DownloadFinished(2.0, "small", 100 * MIB, "aa" * 32))
    log.decision(Decision(2.0, "resolve", "large tg128", "memory", {"detail": "5.1 GiB of 2", "n_samples": 0}))
    log.event(ev.DownloadStarted(2.1, "large", 400 * MIB))
    log.event(ev.BenchStarted(2.2, "small", "amx", (pp16, pp128)))
    log.event(ev.BenchExited(2.3, "small", 132, False))
    log.event(ev.BenchStarted(2.4, "small", "haswell", (pp16, pp128)))
    log.event(ev.WarmupStarted(2.5, pp16))
    log.event(ev.RepeatStarted(3.0, pp16, 1, 2))
    log.event(ev.RepeatStarted(4.0, pp16, 2, 2))
    log.event(ev.BenchRow(5.0, pp16, (1.0, 1.0), bench_row(pp16)))
    log.event(ev.WarmupStarted(5.0, pp128))
    for k, t_s in enumerate((6.0, 8.0, 10.5), 1):
        log.event(ev.RepeatStarted(t_s, pp128, k, 5))
    log.event(ev.DownloadProgress(11.0, "large", 300 * MIB, 2))
    context = make_context(price_usd_per_hour=Decimal("0.072"))
    return make_plan("cx32", "run-b"), log.lines, context
