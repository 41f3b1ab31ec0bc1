"""What is kept as a vendor's code is one: never the name of a class of its SDK."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import requests
import urllib3

from tasks.clouds.base import NO_CODE, ErrorKind
from tests.contract.world import VendorWorld
from tests.contract.worlds import names, open_world, spoken_to_over_http
from tests.emulators.base import Fault, How

WITHOUT_AN_ANSWER = (
    ConnectionResetError(104, "reset by peer"),
    TimeoutError("timed out"),
    urllib3.exceptions.ProtocolError("Connection aborted."),
    requests.ConnectionError("no route to host"),
    json.JSONDecodeError("Expecting value", "<html>", 0),
    ValueError(),
)


@pytest.fixture(params=[name for name in names() if name != "memory"])
def world(request: pytest.FixtureRequest) -> Iterator[VendorWorld]:
    with open_world(request.param) as opened:
        yield opened


@pytest.mark.parametrize("exc", WITHOUT_AN_ANSWER, ids=lambda exc: type(exc).__name__)
def test_an_error_without_an_answer_has_no_code_and_says_what_it_was(world: VendorWorld, exc: Exception) -> None:
    found = world.cloud.classify(exc)
    assert (found.kind, found.may_exist, found.code) == (ErrorKind.UNKNOWN, True, NO_CODE)
    assert type(exc).__name__ in found.message or str(exc) in found.message
    assert found.to_error("one server").reason == NO_CODE


@pytest.mark.parametrize("how", ["html_502", "truncated", "drop"])
def test_what_a_gateway_makes_of_an_answer_has_its_status_or_no_code(how: How) -> None:
    for name in spoken_to_over_http():
        with open_world(name) as world:
            world.plant(Fault("", how=how, times=50))
            with pytest.raises(Exception) as raised:
                world.cloud.server_type(world.server_type)
            found = world.cloud.classify(raised.value)
        assert found.kind is ErrorKind.UNKNOWN and found.may_exist, name
        assert re.fullmatch(r"http_[245]\d\d|no_code", found.code), (name, found)
        assert found.message not in ("", found.code), name
