"""The emulator of Hetzner refuses what Hetzner refuses, and keeps what Hetzner keeps."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import requests

from tests.emulators.hetzner import TOKEN, HetznerEmulator
from tests.emulators.serving import served
from tests.memory_cloud import Clock

SERVER = {"name": "a", "server_type": "cx23", "image": "ubuntu-24.04", "location": "fsn1"}


class Api:
    """The API without the SDK, which would not send most of this."""

    def __init__(self, url: str, emulator: HetznerEmulator, clock: Clock) -> None:
        self.url, self.emulator, self.clock = url, emulator, clock

    def __call__(self, method: str, path: str, body: Any = None, token: str = TOKEN) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.request(method, f"{self.url}/v1{path}", json=body, headers=headers, timeout=5)

    def code(self, method: str, path: str, body: Any = None, token: str = TOKEN) -> tuple[int, str]:
        answer = self(method, path, body, token)
        return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture
def api() -> Iterator[Api]:
    clock = Clock()
    emulator = HetznerEmulator(clock.now)
    with served(emulator) as url:
        yield Api(url, emulator, clock)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "not a hostname"},
        {"name": None},
        {"server_type": "cx999"},
        {"location": "moon"},
        {"colour": "red"},
        {"labels": {"key": "no spaces"}},
        {"labels": {"key": "-x"}},
        {"labels": {"k" * 64: "x"}},
        {"user_data": "x" * 40_000},
        {"public_net": {"ipv4": "any"}},
        {"firewalls": [7]},
    ],
)
def test_requests_that_the_schema_does_not_allow(api: Api, change: dict[str, Any]) -> None:
    assert api.code("POST", "/servers", SERVER | change) == (422, "invalid_input")
    assert api.emulator.existing() == []


def test_requests_that_name_what_there_is_not(api: Api) -> None:
    assert api.code("POST", "/servers", SERVER | {"firewalls": [{"firewall": 7}]}) == (404, "not_found")
    assert api.code("POST", "/servers", SERVER | {"image": "ubuntu-4.10"}) == (404, "not_found")
    assert api.code("GET", "/servers/7") == (404, "not_found")
    assert api.code("GET", "/no_such_kind") == (404, "not_found")


def test_names_are_unique_until_they_are_free_again(api: Api) -> None:
    made = api("POST", "/servers", SERVER).json()["server"]["id"]
    assert api.code("POST", "/servers", SERVER) == (409, "uniqueness_error")
    assert api("DELETE", f"/servers/{made}").status_code == 200
    assert api("POST", "/servers", SERVER).status_code == 201


def test_tokens(api: Api) -> None:
    assert api.code("GET", "/servers", token="another") == (401, "unauthorized")
    assert api.code("POST", "/servers", SERVER, token="emulated-token-that-may-only-read") == (403, "token_readonly")


def test_queries(api: Api) -> None:
    assert api.code("GET", "/servers?per_page=51")[1] == "invalid_input"
    assert api.code("GET", "/servers?colour=red")[1] == "invalid_input"
    assert api.code("GET", "/servers?label_selector=a%20b%20c")[1] == "invalid_input"


def test_the_rate_limit_is_told_and_refills(api: Api) -> None:
    first = api("GET", "/servers").headers
    assert (first["RateLimit-Limit"], first["RateLimit-Remaining"]) == ("3600", "3599")
    api.emulator._left = 1.0
    assert api("GET", "/servers").status_code == 200
    assert api.code("GET", "/servers") == (429, "rate_limit_exceeded")
    api.clock.sleep(2)
    assert api("GET", "/servers").status_code == 200


def test_an_address_that_is_not_told_to_go_along_stays_and_bills(api: Api) -> None:
    made = api("POST", "/servers", SERVER).json()["server"]
    address = made["public_net"]["ipv4"]["id"]
    assert api.code("DELETE", f"/primary_ips/{address}") == (422, "must_be_unassigned")
    api("DELETE", f"/servers/{made['id']}")
    (left,) = api.emulator.existing()
    assert (left.kind, left.usd_per_hour) == ("ip", Decimal("0.0008"))
    assert api("GET", f"/primary_ips/{address}").json()["primary_ip"]["assignee_id"] is None
    assert api("DELETE", f"/primary_ips/{address}").status_code == 204


def test_a_firewall_that_guards_a_server_cannot_be_deleted(api: Api) -> None:
    firewall = api("POST", "/firewalls", {"name": "f", "rules": []}).json()["firewall"]["id"]
    made = api("POST", "/servers", SERVER | {"firewalls": [{"firewall": firewall}]}).json()["server"]["id"]
    assert api.code("DELETE", f"/firewalls/{firewall}") == (409, "resource_in_use")
    api("DELETE", f"/servers/{made}")
    assert api("DELETE", f"/firewalls/{firewall}").status_code == 204


def test_a_server_that_is_being_made_is_locked(api: Api) -> None:
    api.emulator.project.create_s = 10.0
    made = api("POST", "/servers", SERVER).json()
    assert (made["server"]["status"], made["action"]["status"]) == ("initializing", "running")
    assert api.code("DELETE", f"/servers/{made['server']['id']}") == (423, "locked")
    api.clock.sleep(11)
    assert api("DELETE", f"/servers/{made['server']['id']}").status_code == 200


def test_every_begun_hour_is_billed_running_or_not(api: Api) -> None:
    made = api("POST", "/servers", SERVER).json()["server"]["id"]
    assert api.emulator.project.bill_eur() == Decimal("0.0064")
    api("POST", f"/servers/{made}/actions/poweroff", {})
    api.clock.sleep(3601)
    assert api.emulator.project.bill_eur() == 2 * Decimal("0.0064")
