"""`tokensweep ui`: a sweep started from the form, cancelled from the page, and Ctrl-C at the end."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.e2e.product import TINY, Product, Running
from tests.flows.prefect_rest import Prefect, eventually

LADDER = {"pp": [16, 512, 1024, 4096], "tg": [16, 512, 1024, 4096]}


@pytest.fixture
def ui(bare: Product) -> Iterator[tuple[Running, Prefect, str]]:
    presets = bare.home.parent / "presets"
    presets.mkdir()
    for name, changes in (("local", {}), ("long", LADDER)):
        (presets / f"{name}.yaml").write_text(yaml.safe_dump({**TINY, **changes}))
    bare.environment |= {"TOKENSWEEP_PRESETS": str(presets), "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    temporary = bare.home.parent / "tmp"
    temporary.mkdir()
    (temporary / "runner_storage").touch()  # where Prefect would put its working copies: another user's
    bare.environment["TMPDIR"] = str(temporary)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = bare.start("ui", "--port", str(port))
    running.wait_for(f"UI: http://127.0.0.1:{port}")
    prefect = Prefect(f"http://127.0.0.1:{port}/api")
    yield running, prefect, f"http://127.0.0.1:{port}"
    prefect.close()
    if running.process.poll() is None:
        running.kill()


def test_a_sweep_is_started_from_the_form_and_cancelled_from_the_page(
    bare: Product, ui: tuple[Running, Prefect, str]
) -> None:
    running, prefect, address = ui
    page = httpx.get(address, follow_redirects=True)
    assert page.status_code == 200 and "<html" in page.text
    deployments = eventually(lambda: prefect.post("/deployments/filter", {}), lambda found: len(found) >= 7)
    ids = {d["name"]: d["id"] for d in deployments}
    assert set(ids) == {"adhoc", "weekly", "one", "worker", "daily", "hourly", "cron"}

    form = {"request": {"preset": "long", "mode": "run", "max_usd": 1.0}}
    sweep = prefect.post(f"/deployments/{ids['adhoc']}/create_flow_run", {"parameters": form})["id"]
    (server,) = eventually(lambda: prefect.subflow_runs(sweep), bool)
    steps = eventually(lambda: " ".join(prefect.task_runs(server["id"])), lambda names: "bench" in names)
    assert "bench tiny-15m" in steps and bare.servers()
    said = eventually(lambda: prefect.logs(server["id"]), lambda text: "tokens/s" in text)
    assert "tokens/s" in said, "a cell has been measured"

    prefect.post(f"/flow_runs/{sweep}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    eventually(bare.servers, lambda names: not names)
    ended = eventually(lambda: prefect.flow_run(sweep)["state_type"], lambda state: state != "CANCELLING")
    assert bare.servers() == [] and ended == "CANCELLED"
    assert {reason for outcome, reason in bare.cells().values() if outcome != "measured"} <= {"cancelled"}
    assert bare.samples(), "what was measured before is kept"

    running.signal(signal.SIGINT, group=True)
    done = running.end()
    assert done.rc in (0, 130) and "Traceback" not in done.err, str(done)
    bare.assert_nothing_is_left()
    left = [path.name for path in Path(bare.environment["TMPDIR"]).glob("tokensweep-ui-*")]
    assert left == []


def test_ctrl_c_deletes_the_servers_of_its_sweeps_first(bare: Product, ui: tuple[Running, Prefect, str]) -> None:
    """The cron reaper ends with it: nobody else would. And again, by the impatient."""
    running, prefect, _ = ui
    deployments = eventually(lambda: prefect.post("/deployments/filter", {}), lambda found: len(found) >= 7)
    (adhoc,) = [d["id"] for d in deployments if d["name"] == "adhoc"]
    form = {"request": {"preset": "long", "mode": "run", "max_usd": 1.0}}
    prefect.post(f"/deployments/{adhoc}/create_flow_run", {"parameters": form})
    assert eventually(bare.servers, bool)
    for _ in range(2):
        running.signal(signal.SIGINT, group=True)
        time.sleep(0.5)
    done = running.end()
    assert done.rc == 0 and "delete their servers first" in done.err, str(done)
    assert bare.servers() == [], str(done)
    bare.assert_nothing_is_left()
