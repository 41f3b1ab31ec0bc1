"""The simulated server: the real conductor on a made-up machine, and the event log that a real agent would write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tasks.clouds.base import Resource
from tasks.clouds.sim import SERVER_FAULTS, catalog
from tasks.clouds.sim.draws import Draws
from tasks.clouds.sim.host import SimHost
from tasks.clouds.sim.machine import Machine
from tasks.clouds.sim.play import Line, Play
from tasks.domain.cells import Outcome
from tasks.domain.errors import AgentError, HostKeyMismatchError, UnreachableError
from tasks.domain.events import EVENT_TYPES, event_from_dict
from tasks.domain.run_plan import RunPlan
from tasks.lake import RunContext, rows_from_events
from tasks.models.catalogue import load_catalogue
from tests.emulators.sim_world import SimWorld, StillClock, open_world
from tests.plans import make_plan
from tests.unit.test_sim_cloud import spec

CPU, GPU = "c3a-8", "a100x1-12"
MODELS = ("smollm-135m", "qwen1.5-0.5b", "gemma-2b")
STARTED_UNIX_S = 1_800_000_000.0


def plan_of(server: str = CPU, models: tuple[str, ...] = MODELS, **changes: Any) -> RunPlan:
    known = load_catalogue()
    price = float(catalog.server_type(server).price_per_hour)
    specs = tuple(known[name].simulated_spec() for name in models)
    return replace(make_plan(price=price, guard="auto"), server=server, models=specs, **changes)


def play(
    server: str = CPU, fault: str = "", n_agent: int = 1, plan: RunPlan | None = None, seed: int = 1
) -> list[Line]:
    draws = Draws(seed, {fault: 1.0} if fault else {})
    machine = Machine(catalog.server_type(server), catalog.silicon(server), draws, n_agent)
    return Play(plan or plan_of(server), machine, started_unix_s=STARTED_UNIX_S, telemetry_s=10.0).play()


def reasons(lines: list[Line]) -> set[str]:
    return {result["reason"] for result in lines[-1]["results"]}


def of_kind(lines: list[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["kind"] == kind]


def test_a_calm_run_measures_every_cell_once() -> None:
    lines, plan = play(), plan_of()
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    times = [line["t_s"] for line in lines]
    assert times == sorted(times) and lines[0]["kind"] == "AgentStarted" and lines[-1]["kind"] == "Finished"
    results = lines[-1]["results"]
    assert sorted(str(r["cell"]) for r in results) == sorted(str(asdict(cell)) for cell in plan.cells())
    assert {r["outcome"] for r in results} <= {"measured", "gated"} and {"ok"} <= reasons(lines)
    for line in lines:
        if line["kind"] in EVENT_TYPES:
            event_from_dict(line)


def test_the_lake_takes_the_log_as_it_takes_a_real_one_and_says_that_it_is_simulated() -> None:
    plan, lines = plan_of(), play()
    context = RunContext(
        vendor="sim", started_unix_s=STARTED_UNIX_S, ended_unix_s=STARTED_UNIX_S + 900, engine="simulated"
    )
    rows = rows_from_events(plan, lines, context)
    (run,) = rows["server_runs"]
    assert (run["n_events_missing"], run["n_events_unreadable"]) == (0, 0)
    assert run["n_cells"] == len(plan.cells()) == sum(run[f"n_{o.value}"] for o in Outcome)
    assert (run["engine"], run["engine_commit"]) == ("simulated", "simulated") and run["engine_build"].startswith("sim")
    assert {cell["weights"] for cell in rows["cells"]} == {"simulated"}
    for table in ("samples", "downloads", "decisions", "phases", "hardware", "telemetry"):
        assert rows[table], table
    assert {"row"} <= {sample["source"] for sample in rows["samples"]} <= {"row", "mark"}


def test_a_repeated_run_is_the_same_and_another_start_is_not() -> None:
    assert play(seed=3) == play(seed=3)
    samples = [of_kind(play(n_agent=n), "BenchRow")[0]["samples_s"] for n in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]


def tok_per_s(lines: list[Line], model: str, task: str, n: int) -> float:
    cell = {"model": model, "task": task, "n_tokens": n}
    (result,) = [r for r in lines[-1]["results"] if r["cell"] == cell]
    return float(n / (sum(result["samples_s"]) / len(result["samples_s"])))


def test_more_silicon_is_faster_and_larger_models_are_slower() -> None:
    small, large, gpu = play("c3a-4"), play("c3a-32"), play(GPU)
    for task in ("pp", "tg"):
        assert tok_per_s(small, "qwen1.5-0.5b", task, 128) < tok_per_s(large, "qwen1.5-0.5b", task, 128)
        assert tok_per_s(large, "gemma-2b", task, 128) < tok_per_s(gpu, "gemma-2b", task, 128)
        assert tok_per_s(large, "smollm-135m", task, 128) > tok_per_s(large, "gemma-2b", task, 128)


def test_money_ends_a_run_on_a_dear_server() -> None:
    lines = play(GPU, plan=plan_of(GPU, max_usd=0.02, teardown_reserve_s=5.0))
    assert "money" in reasons(lines) and lines[-1]["t_s"] < 0.02 / float(catalog.server_type(GPU).price_per_hour) * 3600


def reason_is(wanted: str) -> Callable[[list[Line]], bool]:
    return lambda lines: wanted in reasons(lines)


SHOWN: dict[str, Callable[[list[Line]], bool]] = {
    "agent_dies": lambda lines: lines[-1]["kind"] != "Finished",
    "download_dead": reason_is("download_dead"),
    "download_slow": reason_is("download_too_slow"),
    "checksum": reason_is("checksum"),
    "disk_full": reason_is("disk_full"),
    "wrong_build": lambda lines: (
        any(d["action"] == "next_build" for d in of_kind(lines, "Decision"))
        and {b["build"] for b in of_kind(lines, "BenchStarted")} == {"simulated-native", "simulated-generic"}
        and "ok" in reasons(lines)
    ),
    "out_of_memory": reason_is("out_of_memory"),
    "bench_killed": lambda lines: (
        any(d["action"] == "retry_bench" for d in of_kind(lines, "Decision"))
        and reasons(lines) <= {"ok", "predicted_too_slow", "measured_too_slow"}
    ),
    "cpu_fallback": lambda lines: (
        {r["row"]["backends"] for r in of_kind(lines, "BenchRow")} == {"CPU"}
        and {e["layers_offloaded"] for e in of_kind(lines, "EngineLoaded")} == {0}
    ),
    "noisy_neighbour": lambda lines: all(t["allowed_cpu_steal"] > 0.3 for t in of_kind(lines, "Telemetry")),
}


@pytest.mark.parametrize("fault", SHOWN)
def test_each_fault_on_the_server_shows_in_the_log(fault: str) -> None:
    server = GPU if fault == "cpu_fallback" else CPU
    assert SHOWN[fault](play(server, fault))
    assert not SHOWN[fault](play(server)), "and is not there without it"


def test_no_class_is_forgotten() -> None:
    assert set(SERVER_FAULTS) == {*SHOWN, "ssh_never", "host_key_mismatch", "connection_lost"}


# ---- the host -----------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SimWorld]:
    made = SimWorld(tmp_path, StillClock())
    yield made
    made.cloud.close()


def running(world: SimWorld, **faults: float) -> tuple[Resource, SimHost]:
    world.cloud.configure({"faults": faults})
    made = world.cloud.create(spec(world, server_type=CPU))
    world.sleep(120)
    return made, host_of(world, made)


def host_of(world: SimWorld, server: Resource, key: str = "pinned") -> SimHost:
    host = world.cloud.host(server, host_public_key=key, connect_timeout_s=120, give_up_s=300, sleep=world.clock.sleep)
    assert isinstance(host, SimHost)
    return host


def nothing_lost(error: Exception) -> None:
    raise AssertionError(error)


def test_a_run_on_a_host_takes_as_long_as_its_log_says(world: SimWorld) -> None:
    _, host = running(world)
    host.connect()
    started = host.start(plan_of())
    assert started.agent_started_unix_s <= world.now() and started.bytes_sent > 0
    events = list(host.events(0, nothing_lost))
    assert world.now() - started.agent_started_unix_s >= events[-1]["t_s"] and events[-1]["kind"] == "Finished"
    assert events[0]["unix_s"] == pytest.approx(started.agent_started_unix_s)


def test_another_process_takes_up_a_running_agent(world: SimWorld, tmp_path: Path) -> None:
    server, host = running(world)
    host.connect()
    started = host.start(plan_of())
    all_events = list(host.events(0, nothing_lost))
    other = SimWorld(tmp_path, world.clock)
    again = host_of(other, server)
    again.connect()
    assert again.start(plan_of()) == replace(started, bytes_sent=0), "it finds the agent running"
    assert list(again.events(30, nothing_lost)) == all_events[30:]
    other.cloud.close()


def test_a_server_that_never_answers_is_given_up(world: SimWorld) -> None:
    _, host = running(world, ssh_never=1.0)
    before = world.now()
    with pytest.raises(UnreachableError):
        host.connect()
    assert 120 <= world.now() - before < 200


@pytest.mark.parametrize(("faults", "key"), [({"host_key_mismatch": 1.0}, "pinned"), ({}, "another")])
def test_another_host_key_is_refused(world: SimWorld, faults: dict[str, float], key: str) -> None:
    server, _ = running(world, **faults)
    with pytest.raises(HostKeyMismatchError):
        host_of(world, server, key).connect()


def test_a_lost_connection_is_mended(world: SimWorld) -> None:
    _, host = running(world, connection_lost=1.0)
    host.connect()
    host.start(plan_of())
    lost: list[Exception] = []
    events = list(host.events(0, lost.append))
    assert len(lost) == 1 and events[-1]["kind"] == "Finished"
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))


@pytest.mark.parametrize("end", ["preempted", "deleted"])
def test_a_server_that_has_gone_is_unreachable(world: SimWorld, end: str) -> None:
    server, host = running(world)
    host.connect()
    host.start(plan_of(models=("llama-7b", "phi-4")))
    events = host.events(0, lambda error: None)
    next(events)
    if end == "deleted":
        world.cloud.delete(server.ref())
    else:
        world.cloud.state.change(server.cloud_id, dies_unix_s=world.now() + 60, dies_as="stopped")
    with pytest.raises(UnreachableError):
        list(events)


def test_a_dead_agent_is_told_from_a_dead_server(world: SimWorld) -> None:
    _, host = running(world, agent_dies=1.0)
    host.connect()
    host.start(plan_of())
    got: list[Any] = []
    with pytest.raises(AgentError) as died:
        for event in host.events(0, nothing_lost):
            got.append(event)
    assert died.value.reason == "agent_died" and got
    with pytest.raises(AgentError):
        list(host_of(world, world.cloud.create(spec(world, 2, server_type=GPU))).events(0, nothing_lost))


def test_prices_are_decimal_dollars() -> None:
    with open_world() as world:
        made = world.cloud.create(spec(world))
        assert isinstance(made.usd_per_hour, Decimal) and made.usd_per_hour > 0
