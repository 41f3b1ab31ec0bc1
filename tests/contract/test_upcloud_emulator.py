"""The emulator of UpCloud refuses what UpCloud refuses, and keeps what UpCloud keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.emulators.serving import served
from tests.emulators.upcloud import TOKEN, UpCloudEmulator
from tests.memory_cloud import Clock

SERVER: dict[str, Any] = {
    "hostname": "a.example.com",
    "title": "a",
    "zone": "de-fra1",
    "plan": "1xCPU-2GB",
    "metadata": "yes",
    "login_user": {"ssh_keys": {"ssh_key": ["ssh-ed25519 AAAA"]}},
    "storage_devices": {
        "storage_device": [
            {
                "action": "clone",
                "storage": "01000000-0000-4000-8000-000030240200",
                "title": "disk",
                "size": 50,
                "tier": "maxiops",
            }
        ]
    },
}


class Api:
    """The API without the SDK, which would not send most of this."""

    def __init__(self, url: str, emulator: UpCloudEmulator, clock: Clock) -> None:
        self.url, self.emulator, self.clock = url, emulator, clock

    def __call__(self, method: str, path: str, body: Any = None, token: str = TOKEN) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.request(method, f"{self.url}/1.3{path}", json=body, headers=headers, timeout=5)

    def code(self, method: str, path: str, body: Any = None, token: str = TOKEN) -> tuple[int, str]:
        answer = self(method, path, body, token)
        return answer.status_code, answer.json()["error"]["error_code"]

    def create(self) -> str:
        return str(self("POST", "/server", {"server": SERVER}).json()["server"]["uuid"])

    def stop(self, uuid: str) -> requests.Response:
        return self("POST", f"/server/{uuid}/stop", {"stop_server": {"stop_type": "hard", "timeout": "60"}})

    def kinds(self) -> list[str]:
        return sorted(thing.kind for thing in self.emulator.existing())


@pytest.fixture
def api() -> Iterator[Api]:
    clock = Clock()
    emulator = UpCloudEmulator(clock.now)
    with served(emulator) as url:
        yield Api(url, emulator, clock)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"colour": "red"}, "UNKNOWN_ATTRIBUTE"),
        ({"hostname": "not a hostname"}, "HOSTNAME_INVALID"),
        ({"title": ""}, "TITLE_INVALID"),
        ({"plan": "9xCPU"}, "PLAN_INVALID"),
        ({"zone": "moon"}, "ZONE_NOT_FOUND"),
        ({"metadata": "no"}, "METADATA_DISABLED_ON_CLOUD-INIT"),
        ({"login_user": {}}, "SSH_KEYS_MISSING"),
        ({"labels": {"label": [{"key": "k", "value": "x"}]}}, "KEY_INVALID"),
        ({"user_data": "x" * 70_000}, "USER_DATA_INVALID"),
    ],
)
def test_requests_that_are_not_allowed(api: Api, change: dict[str, Any], code: str) -> None:
    assert api.code("POST", "/server", {"server": SERVER | change})[1] == code
    assert api.emulator.existing() == []


def test_a_storage_without_a_title_or_of_no_template(api: Api) -> None:
    body = copy.deepcopy(SERVER)
    device = body["storage_devices"]["storage_device"][0]
    device["storage"] = "01000000-0000-4000-8000-000000000000"
    assert api.code("POST", "/server", {"server": body}) == (404, "STORAGE_NOT_FOUND")
    device.pop("title")
    device["storage"] = SERVER["storage_devices"]["storage_device"][0]["storage"]
    assert api.code("POST", "/server", {"server": body})[1] == "STORAGE_TITLE_MISSING"


def test_nothing_is_unique(api: Api) -> None:
    assert api.create() != api.create()


def test_only_a_stopped_server_can_be_deleted_and_its_storages_stay(api: Api) -> None:
    uuid = api.create()
    assert api.code("DELETE", f"/server/{uuid}?storages=1") == (409, "SERVER_STATE_ILLEGAL")
    assert api.stop(uuid).json()["server"]["state"] == "stopped"
    assert api("DELETE", f"/server/{uuid}").status_code == 204
    assert api.kinds() == ["disk"]


def test_backups_stay_with_deleted_storages(api: Api) -> None:
    uuid = api.create()
    (disk,) = api.emulator.account.alive("storage")
    add = api.emulator.account.add
    add("storage", "nightly", "de-fra1", {}, size=50, tier="maxiops", type="backup", origin=disk.uuid)
    api.stop(uuid)
    api("DELETE", f"/server/{uuid}?storages=1")
    assert api.kinds() == ["snapshot"]


def test_an_address_may_outlive_its_server(api: Api) -> None:
    uuid = api.create()
    (ip,) = api.emulator.account.alive("ip")
    api("PUT", f"/ip_address/{ip.uuid}", {"ip_address": {"release_policy": "keep"}})
    api.stop(uuid)
    api("DELETE", f"/server/{uuid}?storages=1&backups=delete")
    (left,) = api.emulator.existing()
    assert left.kind == "ip"
    assert left.usd_per_hour > 0
    assert api("GET", f"/ip_address/{ip.uuid}").json()["ip_address"]["floating"] == "yes"


def test_an_attached_storage_cannot_be_deleted(api: Api) -> None:
    api.create()
    (disk,) = api.emulator.account.alive("storage")
    assert api.code("DELETE", f"/storage/{disk.uuid}") == (409, "STORAGE_STATE_ILLEGAL")


def test_states_take_their_time(api: Api) -> None:
    api.emulator.account.create_s, api.emulator.account.stop_s = 20.0, 10.0
    uuid = api.create()
    assert api("GET", f"/server/{uuid}").json()["server"]["state"] == "maintenance"
    assert api.stop(uuid).status_code == 409
    api.clock.sleep(21)
    assert api.stop(uuid).json()["server"]["state"] == "maintenance"
    api.clock.sleep(11)
    assert api("GET", f"/server/{uuid}").json()["server"]["state"] == "stopped"


def test_pages_end_at_a_hundred_whatever_is_asked_for(api: Api) -> None:
    for number in range(120):
        api.emulator.account.add("storage", f"s{number}", "de-fra1", {}, size=10, tier="hdd", type="normal")
    sizes = [
        len(api("GET", f"/storage/private{query}").json()["storages"]["storage"])
        for query in ("", "?limit=500", "?limit=100&offset=100", "?limit=7")
    ]
    assert sizes == [100, 100, 20, 7]


def test_credentials_credits_and_limits(api: Api) -> None:
    assert api.code("GET", "/server", token="another") == (401, "AUTHENTICATION_FAILED")
    api.emulator.account.core_limit = 0
    assert api.code("POST", "/server", {"server": SERVER}) == (403, "SERVER_CORE_LIMIT_REACHED")
    api.emulator.account.credits = 0.0
    assert api.code("POST", "/server", {"server": SERVER}) == (402, "INSUFFICIENT_CREDITS")
    api.emulator._limit = 0
    assert api.code("GET", "/server") == (429, "RATE_LIMITED")
