"""Real servers of the vendor `local`: their controller is killed, the reaper comes, nothing is left."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.clouds.base import CreateSpec
from tasks.clouds.lifecycle import Draft, LiveServer, create_server, delete_and_prove
from tasks.clouds.local import LocalCloud
from tasks.domain.lifecycle import ResourceState
from tasks.ledger import Ledger
from tasks.reaper import leaks, reap
from tests.lifecycle_world import make_spec, server_request
from tests.local_servers import new_keys

pytestmark = pytest.mark.lab
SMALL = "cpu1-mem256m-400mbit"
CONTROLLER = """
import sys, time
from tests.lab.test_reaper_local import create, opened
live = create(*opened(sys.argv[1]))
print(live.resource.cloud_id, flush=True)
time.sleep(600)
"""


def opened(folder: str | Path) -> tuple[LocalCloud, Ledger]:
    return LocalCloud(Path(folder) / "local", "loopback"), Ledger(f"sqlite:///{folder}/ledger.sqlite")


def create(cloud: LocalCloud, ledger: Ledger) -> LiveServer:
    (host_private, host_public), (_, client_public) = new_keys(), new_keys()

    def with_keys(draft: Draft) -> CreateSpec:
        return replace(
            make_spec(draft),
            host_private_key=host_private,
            host_public_key=host_public,
            client_public_key=client_public,
        )

    request = server_request("run", time.time(), server_type=SMALL, places=("localhost",))
    return create_server(cloud, ledger, with_keys, request, now=time.time, sleep=time.sleep)


def test_create_keep_delete_and_prove(tmp_path: Path) -> None:
    cloud, ledger = opened(tmp_path)
    reap([cloud], ledger, time.time, time.sleep)
    live = create(cloud, ledger)
    report = reap([cloud], ledger, time.time, time.sleep)
    assert [decision.reason for decision in report.decisions] == ["in_use"]
    row = delete_and_prove(cloud, ledger, live.row, now=time.time, sleep=time.sleep)
    assert row.state is ResourceState.GONE
    assert cloud.list_owned().resources == ()
    assert leaks([cloud], ledger, time.time).clean


@pytest.mark.parametrize("ledger_too", [False, True], ids=["ledger_kept", "ledger_lost"])
def test_after_kill_9_of_the_controller_its_server_goes_at_once(tmp_path: Path, ledger_too: bool) -> None:
    cloud, ledger = opened(tmp_path)
    reap([cloud], ledger, time.time, time.sleep)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CONTROLLER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as controller:
        try:
            assert controller.stdout is not None
            cloud_id = controller.stdout.readline().strip()
            assert [r.cloud_id for r in cloud.list_owned().resources] == [cloud_id]
            assert reap([cloud], ledger, time.time, time.sleep).n_deletes_sent == 0
        finally:
            controller.kill()
    if ledger_too:
        for file in tmp_path.glob("ledger.sqlite*"):
            file.unlink()
        cloud, ledger = opened(tmp_path)
    report = reap([cloud], ledger, time.time, time.sleep)
    assert report.finished, report
    assert cloud.list_owned().resources == ()
    assert leaks([cloud], ledger, time.time).clean
    assert {row.state for row in ledger.rows()} == {ResourceState.GONE}
