"""prefect.yaml against a real server: it deploys, its forms refuse, and a deployed sweep runs as a worker runs it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from prefect.exceptions import ParameterTypeError
from prefect.flows import Flow, load_flow_from_entrypoint

from tests.e2e.product import CHECKOUT, SERVER, Product
from tests.flows.deploying import execute
from tests.flows.prefect_rest import Prefect, RefusedError, eventually

DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
SAMPLES: dict[str, dict[str, Any]] = {
    "shard": {
        "request": {
            "sweep": {"preset": "sim", "mode": "run", "max_usd": 5.0, "fan_out": "workers"},
            "sweep_id": "sim-0123456789",
            "number": 1,
            "servers": ["sim/c3a-8"],
        }
    }
}
"""What a sweep gives to the flows that only it starts."""


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_entry_points_load_and_take_their_parameters(deployment: dict[str, Any]) -> None:
    flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"])
    assert flow.name in ("sweep", "server", "shard", "reap", "catalog", "land") and deployment["description"]
    validated = flow.validate_parameters(SAMPLES.get(flow.name, {}) | deployment.get("parameters", {}))
    if flow.name == "shard":
        assert validated["request"].sweep.fan_out == "workers" and validated["request"].servers == ["sim/c3a-8"]
    elif "request" in validated:
        assert (CHECKOUT / "deployments" / "presets" / f"{validated['request'].preset}.yaml").is_file()


def test_a_shard_without_its_part_is_refused() -> None:
    flow: Flow[..., Any] = load_flow_from_entrypoint("flows.shards.shard")
    with pytest.raises(ParameterTypeError, match="servers"):
        flow.validate_parameters({"request": {"sweep": {}, "sweep_id": "tiny-0", "number": 1}})


def test_everything_deploys_and_no_schedule_spends_money_by_itself(deployments: dict[str, dict[str, Any]]) -> None:
    assert set(deployments) == {
        "sweep/adhoc",
        "sweep/weekly",
        "server/one",
        "shard/worker",
        "catalog/daily",
        "reap/cron",
        "land/hourly",
    }
    schedules = {
        name: [(s["schedule"]["cron"], s["active"]) for s in d["schedules"]] for name, d in deployments.items()
    }
    assert schedules["sweep/adhoc"] == []
    assert [active for _, active in schedules["sweep/weekly"]] == [False]
    assert [active for _, active in schedules["catalog/daily"]] == [False]
    assert [active for _, active in schedules["land/hourly"]] == [False]
    assert [active for _, active in schedules["reap/cron"]] == [True], "the reaper runs from the start"
    for name in ("sweep/adhoc", "server/one"):
        assert deployments[name]["parameters"]["request"]["mode"] == "plan"


def test_a_run_without_a_money_cap_is_refused_by_the_server(
    deployments: dict[str, dict[str, Any]], prefect: Prefect
) -> None:
    create = f"/deployments/{deployments['sweep/adhoc']['id']}/create_flow_run"
    for request, field in (({"mode": "run"}, "max_usd"), ({"mode": "runn"}, "runn"), ({"max_usd": -1}, "-1")):
        with pytest.raises(RefusedError, match=rf"^\(409, .*{field}"):
            prefect.post(create, {"parameters": {"request": request}})


def test_a_deployed_sweep_shows_its_plan_its_steps_and_its_results(
    deployments: dict[str, dict[str, Any]], prefect: Prefect, worker: Product
) -> None:
    adhoc = deployments["sweep/adhoc"]
    assert_plan_only(prefect, execute(worker, prefect, adhoc, {"preset": "one"}))
    assert worker.remains() == [] and not (worker.home / "lake").exists()
    assert_whole_run(prefect, execute(worker, prefect, adhoc, {"preset": "one", "mode": "run", "max_usd": 1.0}))
    assert {outcome for outcome, _ in worker.cells().values()} == {"measured"}
    worker.assert_nothing_is_left()


def test_a_run_that_goes_round_the_form_meets_the_check_of_the_flow(
    deployments: dict[str, dict[str, Any]], prefect: Prefect, worker: Product
) -> None:
    adhoc = deployments["sweep/adhoc"]
    prefect.patch(f"/deployments/{adhoc['id']}", {"enforce_parameter_schema": False})
    try:
        flow_run_id = execute(worker, prefect, adhoc, {"preset": "one", "mode": "run"})
    finally:
        prefect.patch(f"/deployments/{adhoc['id']}", {"enforce_parameter_schema": True})
    run = prefect.flow_run(flow_run_id)
    assert run["state_type"] == "FAILED" and "money cap" in run["state"]["message"], run["state"]
    assert prefect.subflow_runs(flow_run_id) == [] and worker.remains() == []


def test_the_cron_reaper_ends_what_a_dead_controller_left(
    deployments: dict[str, dict[str, Any]], prefect: Prefect, worker: Product
) -> None:
    running = worker.start("run", "--yes", worker.preset(pp=[16, 128, 512]))
    running.wait_for(": run tiny-15m pp128")
    running.kill()
    running.end()
    assert worker.servers()
    flow_run_id = execute(worker, prefect, deployments["reap/cron"])
    run = prefect.flow_run(flow_run_id)
    assert (run["state_type"], run["name"]) == ("COMPLETED", "reap")
    assert "Nothing is left" in prefect.artifacts(flow_run_id)["leaks"]["data"]
    assert worker.samples(), "what was measured before is in the lake"
    worker.assert_nothing_is_left()


def assert_plan_only(prefect: Prefect, flow_run_id: str) -> None:
    run = prefect.flow_run(flow_run_id)
    assert (run["state_type"], run["name"]) == ("COMPLETED", "sweep/one-plan")
    assert set(prefect.artifacts(flow_run_id)) == {"plan"} and prefect.subflow_runs(flow_run_id) == []


def assert_whole_run(prefect: Prefect, flow_run_id: str) -> None:
    run = prefect.flow_run(flow_run_id)
    assert (run["state_type"], run["name"]) == ("COMPLETED", "sweep/one-run")
    artifacts = prefect.artifacts(flow_run_id)
    assert set(artifacts) == {"plan", "progress", "results", "leaks", "summary"}
    assert artifacts["summary"]["data"].startswith("# 1 of 1 servers completed\n")
    assert artifacts["progress"]["data"] == 100.0
    assert "Nothing is left" in artifacts["leaks"]["data"]
    for text in (SERVER, "pp128", "tok/s"):
        assert text in str(artifacts["results"]["data"])

    (subflow,) = prefect.subflow_runs(flow_run_id)
    assert (subflow["state_type"], subflow["name"]) == ("COMPLETED", f"local/{SERVER}")
    assert {"local"} < set(subflow["tags"]) and any(tag.startswith("sweep:one-") for tag in subflow["tags"])
    steps = eventually(
        lambda: prefect.task_runs(subflow["id"]),
        lambda found: len(found) >= 7 and all(step["state_type"] == "COMPLETED" for step in found.values()),
    )
    names = " | ".join(steps)
    for part in (f"create {SERVER}", "connect", "upload", "download tiny-15m", "bench tiny-15m: ", "tear down", "land"):
        assert part in names
    states = {name: step["state_type"] for name, step in steps.items()}
    assert set(states.values()) == {"COMPLETED"}, states
    assert "tokens/s" in prefect.logs(subflow["id"])
