"""Whole runs of the agent, from `start` to the Finished line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.domain.cells import OUTCOME_OF, Reason
from tests.agent.agent_run import LADDER, AgentRun, of_kind, outcomes, plan_for
from tests.agent.model_server import ModelServer, cut_after, silent_after, status
from tests.agent.runtimes import fake_runtime, real_model, real_runtime
from tests.agent.small_gguf import small_gguf

N_CELLS = len(LADDER)


@pytest.fixture
def run(agent_pyz: Path, tmp_path: Path) -> Any:
    agent = AgentRun(agent_pyz, tmp_path / "run", fake_runtime(tmp_path))
    yield agent
    for pid in agent.processes():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def models(server: ModelServer, tmp_path: Path) -> dict[str, tuple[str, bytes]]:
    """Two small models on the server."""
    made = {}
    for i, name in enumerate(("small", "large")):
        data = small_gguf(tmp_path / f"{name}.gguf", n_embd=64 * (i + 1), seed=i)
        made[name] = (server.put(f"/{name}", data), data)
    return made


def assert_numbered(lines: list[dict[str, Any]]) -> None:
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    times = [line["t_s"] for line in lines if "t_s" in line and line["kind"] != "Decision"]
    assert times == sorted(times)


def test_a_run_measures_every_cell_and_leaves_nothing(run: AgentRun, models: dict[str, tuple[str, bytes]]) -> None:
    run.put(plan_for(models))
    lines = run.finish()
    assert_numbered(lines)
    assert lines[0]["kind"] == "AgentStarted"
    assert lines[-1]["kind"] == "Finished"
    assert set(outcomes(lines).values()) == {"ok"}
    assert len(outcomes(lines)) == 2 * N_CELLS
    for kind in ("Probed", "HeaderRead", "DownloadStarted", "DownloadFinished", "BenchStarted", "BenchExited"):
        assert of_kind(lines, kind), kind
    assert of_kind(lines, "Decision")
    assert {p["name"] for p in of_kind(lines, "Phase")} == {"probe", "header", "download", "load", "bench"}
    for row in of_kind(lines, "BenchRow"):
        (result,) = (r for r in lines[-1]["results"] if r["cell"] == row["cell"])
        assert result["samples_s"] == row["samples_s"]
    assert list((run.folder / "models").iterdir()) == [], "models are removed when they are done"
    assert run.status()["state"] == "finished"
    assert run.processes() == []


def test_options_reach_downloads_and_the_engine(
    run: AgentRun, models: dict[str, tuple[str, bytes]], server: ModelServer
) -> None:
    server.put("/small", models["small"][1], *[silent_after(0)] * 50)
    run.put(plan_for(models))
    crash = json.dumps([{"fault": {"cell": 0, "do": "exit", "rc": 7, "text": "error: on order"}}])
    lines = run.finish("--option", "stall_s=0.2", "--option", "dead_s=0.6", "--bench-env", f"FAKE_BENCH={crash}")
    reasons = outcomes(lines)
    assert reasons["small", "pp", 16] == "download_dead"
    assert reasons["large", "pp", 16] == "bench_failed"
    assert lines[0]["options"] == {"stall_s": 0.2, "dead_s": 0.6, "FAKE_BENCH": crash}


def test_downloads_make_way_for_repeats_when_the_plan_says_so(
    run: AgentRun, models: dict[str, tuple[str, bytes]], server: ModelServer
) -> None:
    run.environment["FAKE_BENCH"] = json.dumps([{"repeat_s": 0.2}])
    server.files["/large"].bytes_per_s = 150_000
    run.put(plan_for(models, guard="pause"))
    lines = run.finish("--option", "progress_s=0.1")
    assert set(outcomes(lines).values()) == {"ok"}
    paused = False
    n_repeats = 0
    for line in lines:
        if line["kind"] in ("DownloadPaused", "DownloadResumed"):
            paused = line["kind"] == "DownloadPaused"
            n_reports = 0
        elif line["kind"] == "DownloadProgress" and paused:
            n_reports += 1
            assert n_reports <= 2, "only what was on its way arrives after a pause"
        n_repeats += line["kind"] == "RepeatStarted" and paused
    assert n_repeats > 0


def test_a_second_start_changes_nothing(run: AgentRun, models: dict[str, tuple[str, bytes]]) -> None:
    run.environment["FAKE_BENCH"] = json.dumps([{"repeat_s": 0.05}])
    run.put(plan_for(models))
    first = run.start()
    again = run.start()
    assert first["state"] == "started"
    assert again == {"pid": first["pid"], "state": "already_running"}
    run.follow()
    n_lines = len(run.events())
    assert run.start()["state"] == "already_finished"
    assert len(run.events()) == n_lines
    assert len(of_kind(run.events(), "AgentStarted")) == 1


def test_a_tail_that_is_killed_is_resumed_by_number(run: AgentRun, models: dict[str, tuple[str, bytes]]) -> None:
    run.environment["FAKE_BENCH"] = json.dumps([{"repeat_s": 0.05}])
    run.put(plan_for(models))
    run.start()
    seen: list[dict[str, Any]] = []
    for _ in range(4):
        after = seen[-1]["seq"] if seen else 0
        tail = subprocess.Popen(run.command("tail", "--after", str(after), "--follow"), stdout=subprocess.PIPE)
        assert tail.stdout is not None
        seen += [json.loads(tail.stdout.readline()) for _ in range(5)]
        tail.kill()
        tail.wait()
        tail.stdout.close()
    rest, rc = run.follow(after=seen[-1]["seq"])
    assert rc == 0
    assert seen + rest == run.events()
    nothing, rc = run.follow(after=rest[-1]["seq"])
    assert (nothing, rc) == ([], 0)


def test_stop_cancels_and_finishes(run: AgentRun, models: dict[str, tuple[str, bytes]]) -> None:
    run.environment["FAKE_BENCH"] = json.dumps([{"fault": {"cell": 1, "do": "hang"}}])
    run.put(plan_for(models))
    run.start()
    run.wait_for("BenchRow")
    stopped = json.loads(run.call("stop", "--reason", "budget spent elsewhere").stdout)
    assert stopped["signalled"]
    lines, rc = run.follow()
    assert rc == 0
    (cancelled,) = of_kind(lines, "Cancelled")
    assert cancelled["detail"] == "budget spent elsewhere"
    reasons = list(outcomes(lines).values())
    assert reasons.count("ok") == 1
    assert reasons.count("cancelled") == 2 * N_CELLS - 1
    assert run.processes() == []
    assert json.loads(run.call("stop").stdout)["signalled"] is False


def test_a_stop_right_after_the_start_is_not_lost(run: AgentRun, models: dict[str, tuple[str, bytes]]) -> None:
    run.environment["FAKE_BENCH"] = json.dumps([{"fault": {"cell": 0, "do": "hang"}}])
    run.put(plan_for(models))
    os.kill(run.start()["pid"], signal.SIGTERM)
    lines, rc = run.follow()
    assert rc == 0
    assert set(outcomes(lines).values()) == {"cancelled"}


def test_a_silent_log_is_kept_awake(run: AgentRun, models: dict[str, tuple[str, bytes]]) -> None:
    """An agent that cannot write is alive all the same; empty lines show that the connection is."""
    run.environment["FAKE_BENCH"] = json.dumps([{"fault": {"cell": 0, "do": "hang"}}])
    run.put(plan_for(models))
    pid = run.start()["pid"]
    run.wait_for("BenchStarted")
    tail = subprocess.Popen(run.command("tail", "--follow"), stdout=subprocess.PIPE)
    try:
        os.kill(pid, signal.SIGSTOP)
        assert tail.stdout is not None
        assert any(line == b"\n" for line in tail.stdout)
        assert tail.poll() is None
    finally:
        os.kill(pid, signal.SIGCONT)
        tail.kill()
        tail.wait()
        run.call("stop")
        run.follow()


def test_an_error_inside_the_agent_is_told_and_no_cell_is_lost(
    run: AgentRun, models: dict[str, tuple[str, bytes]]
) -> None:
    """The conductor fails on the second row: the first is kept, all others get a reason, nothing is left running."""
    run.put(plan_for(models))
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(run.pyz)!r})\n"
        "from tasks.domain import conductor\n"
        "row = conductor.Conductor._on_bench_row\n"
        "def fail(self, event):\n"
        "    if event.cell.n_tokens == 32: raise RuntimeError('a defect')\n"
        "    row(self, event)\n"
        "conductor.Conductor._on_bench_row = fail\n"
        "from agent.cli import main\n"
        f"sys.exit(main(['run', '--dir', {str(run.folder)!r}, '--runtime', {str(run.runtime)!r}]))"
    )
    environment = {**os.environ, "FAKE_BENCH_COUNTER": str(run.folder / "counter")}
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "a defect" in done.stderr
    lines, rc = run.follow()
    assert rc == 0
    (error,) = of_kind(lines, "AgentError")
    assert error["error"] == "a defect"
    reasons = outcomes(lines)
    assert len(reasons) == 2 * N_CELLS
    assert reasons["small", "pp", 16] == "ok"
    assert reasons["large", "tg", 8] == "server_failed"
    assert run.processes() == []


def test_a_killed_agent_is_noticed_leaves_no_child_and_is_taken_up(
    run: AgentRun, models: dict[str, tuple[str, bytes]], server: ModelServer
) -> None:
    run.environment["FAKE_BENCH"] = json.dumps([{"fault": {"cell": 1, "do": "hang"}}, {}])
    server.files["/large"].bytes_per_s = 150_000
    run.put(plan_for(models))
    pid = run.start()["pid"]
    run.wait_for("BenchRow")
    run.wait_until(lambda e: e["kind"] == "DownloadProgress" and e["model"] == "large" and e["bytes_done"] > 20_000)
    os.kill(pid, signal.SIGKILL)
    lines, rc = run.follow()
    assert rc == 3, "tail tells that the agent died"
    assert not of_kind(lines, "Finished")
    deadline = time.monotonic() + 5
    while run.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.processes() == [], "llama-bench and downloads die with the agent"
    assert run.status()["state"] == "dead"
    with (run.folder / "events.jsonl").open("ab") as log:
        log.write(b'{"seq":9999,"unix_s":1,"kind":"Bench')  # what a crash can leave

    assert run.start()["state"] == "started"
    rest, rc = run.follow(after=lines[-1]["seq"])
    assert rc == 0
    assert_numbered(lines + rest)
    assert rest[0]["kind"] == "AgentStarted"
    assert rest[0]["resumed"] is True
    assert set(outcomes(rest).values()) == {"ok"}
    rows = [json.dumps(row["cell"]) for row in of_kind(lines + rest, "BenchRow")]
    assert len(rows) == len(set(rows)), "no cell is measured twice"
    (resumed,) = (e for e in of_kind(rest, "DownloadStarted") if e["model"] == "large")
    assert resumed["bytes_resumed"] > 0


def test_a_clock_that_was_set_back_gives_no_time_and_no_money_again(
    run: AgentRun, models: dict[str, tuple[str, bytes]]
) -> None:
    """The agent before it was killed after 3,590 of 3,600 s; then the server's clock was put right by two hours."""
    run.put(plan_for(models))
    began_unix_s = time.time() + 7200
    lines = [
        {"seq": seq, "unix_s": began_unix_s + t_s, "kind": "Tick", "t_s": t_s} for seq, t_s in ((1, 0.0), (2, 3590.0))
    ]
    (run.folder / "events.jsonl").write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    found = run.finish()
    assert of_kind(found, "AgentStarted")[0]["t_s"] >= 3590.0
    assert set(outcomes(found).values()) == {"deadline"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"cell": 0, "do": "exit", "rc": 1, "text": "failed to decode"}, "bench_failed"),
        ({"cell": 0, "do": "exit", "rc": 1, "text": "ggml_backend: failed to allocate buffer"}, "out_of_memory"),
        ({"cell": 0, "do": "signal", "signal": "SIGKILL"}, "bench_killed"),
        ({"cell": 0, "do": "signal", "signal": "SIGILL"}, "no_working_build"),
    ],
)
def test_a_failing_engine_gives_every_cell_a_reason(
    run: AgentRun, models: dict[str, tuple[str, bytes]], fault: dict[str, Any], reason: str
) -> None:
    run.environment["FAKE_BENCH"] = json.dumps([{"fault": fault}])
    run.put(plan_for(models))
    lines = run.finish()
    reasons = outcomes(lines)
    assert len(reasons) == 2 * N_CELLS
    assert reasons["small", "pp", 16] == reason
    assert "ok" not in (reasons["small", "pp", 16], reasons["small", "pp", 32])
    for result in lines[-1]["results"]:
        assert result["outcome"] == OUTCOME_OF[Reason(result["reason"])].value


def test_a_build_that_this_cpu_cannot_run_is_replaced_by_the_next(
    agent_pyz: Path, tmp_path: Path, models: dict[str, tuple[str, bytes]]
) -> None:
    run = AgentRun(agent_pyz, tmp_path / "run", fake_runtime(tmp_path, builds=("amx", "generic")))
    crash = {"fault": {"cell": 0, "repeat": 1, "do": "signal", "signal": "SIGILL"}}
    run.environment["FAKE_BENCH"] = json.dumps([crash, {}])
    run.put(plan_for(models))
    lines = run.finish()
    assert set(outcomes(lines).values()) == {"ok"}
    assert [e["build"] for e in of_kind(lines, "BenchStarted")][:2] == ["amx", "generic"]
    assert of_kind(lines, "BenchExited")[0]["rc"] == 132


def test_a_missing_runtime_ends_with_its_own_reason(
    agent_pyz: Path, tmp_path: Path, models: dict[str, tuple[str, bytes]]
) -> None:
    run = AgentRun(agent_pyz, tmp_path / "run", tmp_path / "nowhere")
    run.put(plan_for(models))
    assert set(outcomes(run.finish()).values()) == {"no_working_build"}


@pytest.mark.parametrize("fault", ["truncated", "not_gguf", "checksum", "absent"])
def test_a_broken_model_ends_in_its_own_reason_and_the_others_go_on(
    run: AgentRun, models: dict[str, tuple[str, bytes]], server: ModelServer, fault: str
) -> None:
    url, data = models["large"]
    plan = plan_for(models)
    expected = fault
    if fault == "truncated":
        server.put("/large", data, cut_after(10_000), cut_after(10_000), status(500))
        expected = "ok"
    elif fault == "not_gguf":
        server.put("/large", b"<html>" + data[6:])
    elif fault == "checksum":
        server.put("/large", data[:-1] + b"x")
    else:
        del server.files["/large"]
        expected = "download_failed"
    run.put(plan)
    reasons = outcomes(run.finish())
    assert {reason for (model, *_), reason in reasons.items() if model == "large"} == {expected}
    assert {reason for (model, *_), reason in reasons.items() if model == "small"} == {"ok"}
    assert url.endswith("/large")


@pytest.mark.parametrize(
    ("text", "n_results"),
    [("{}", 0), ("not json", 0), ('{"plan_version": 99}', 0), ("unknown_policy", 2 * N_CELLS)],
)
def test_a_plan_that_cannot_be_carried_out_is_told_in_the_log(
    run: AgentRun, models: dict[str, tuple[str, bytes]], text: str, n_results: int
) -> None:
    plan = plan_for(models, policy="unknown").to_json() if text == "unknown_policy" else text
    run.folder.mkdir()
    (run.folder / "plan.json").write_text(plan)
    lines = run.finish()
    (error,) = of_kind(lines, "AgentError")
    assert error["error_kind"] == "ConfigError"
    assert "Traceback" in error["traceback"]
    assert lines[-1]["reason"] == "agent_error"
    assert len(lines[-1]["results"]) == n_results
    assert {r["outcome"] for r in lines[-1]["results"]} <= {"failed"}


def test_a_run_without_plan_is_refused(run: AgentRun) -> None:
    run.folder.mkdir()
    done = run.call("start")
    assert done.returncode == 2
    assert "plan.json" in done.stderr
    assert run.status()["state"] == "absent"


def test_a_killed_download_is_resumed_within_the_run(
    run: AgentRun, models: dict[str, tuple[str, bytes]], server: ModelServer
) -> None:
    server.files["/small"].bytes_per_s = 100_000
    run.put(plan_for(models))
    run.start()
    run.wait_until(lambda e: e["kind"] == "DownloadProgress" and e["bytes_done"] > 10_000)
    for pid in run.processes():
        if b"fetch" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    lines, rc = run.follow()
    assert rc == 0
    assert set(outcomes(lines).values()) == {"ok"}
    assert of_kind(lines, "DownloadFinished")[0]["n_retries"] == 1


def test_other_pythons_run_the_same_archive(
    agent_pyz: Path, tmp_path: Path, models: dict[str, tuple[str, bytes]]
) -> None:
    """The oldest Python that servers may have."""
    pythons = [p for p in (shutil.which("python3.9"), *Path.home().glob(".pyenv/versions/3.9.*/bin/python3")) if p]
    works = [p for p in pythons if subprocess.run([p, "-c", ""], capture_output=True, check=False).returncode == 0]
    if not works:
        pytest.skip("no Python 3.9 on this machine")
    run = AgentRun(agent_pyz, tmp_path / "run", fake_runtime(tmp_path))
    run.put(plan_for(models))
    environment = {**os.environ, "FAKE_BENCH_COUNTER": str(tmp_path / "counter")}
    arguments = ["run", "--dir", str(run.folder), "--runtime", str(run.runtime)]
    done = subprocess.run(
        [str(works[-1]), str(agent_pyz), *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = run.events()
    assert lines[0]["python"].startswith("3.9")
    assert set(outcomes(lines).values()) == {"ok"}


def test_a_run_with_the_real_engine(agent_pyz: Path, tmp_path: Path, server: ModelServer) -> None:
    runtime, _ = real_runtime()
    data = real_model().read_bytes()
    run = AgentRun(agent_pyz, tmp_path / "run", runtime)
    run.put(plan_for({"tiny": (server.put("/tiny", data), data)}))
    lines = run.finish()
    assert set(outcomes(lines).values()) <= {"ok", "fewer_repeats"}
    rows = of_kind(lines, "BenchRow")
    (probed,) = of_kind(lines, "Probed")
    assert all(row["row"]["n_threads"] == probed["n_cpus"] for row in rows)
    engines = of_kind(lines, "EngineLoaded")
    assert engines
    assert all(sum(engine["buffers_mib"].values()) > 1.0 for engine in engines)
    assert run.processes() == []
