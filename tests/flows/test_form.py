"""The form of a sweep: what it asks, what it takes for granted, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from flows.request import SweepRequest
from flows.sweep import sweep
from tasks.presets import load_preset
from tasks.settings import Settings


def form() -> dict[str, Any]:
    schema = parameter_schema(sweep).model_dump()
    assert list(schema["properties"]) == ["request"] and schema["required"] == ["request"]
    definition: dict[str, Any] = schema["definitions"]["SweepRequest"]
    return definition


def test_the_form_plans_unless_told_to_run() -> None:
    properties = form()["properties"]
    assert SweepRequest().mode == "plan" == properties["mode"]["default"]
    assert properties["mode"]["enum"] == ["plan", "run"]
    assert SweepRequest().max_usd is None
    assert form()["then"] == {"required": ["max_usd"]} and form()["if"]["properties"]["mode"] == {"const": "run"}


def test_every_field_says_what_it_is_and_has_its_place() -> None:
    properties = form()["properties"]
    assert list(properties) == ["preset", "mode", "max_usd", "server", "label", "fan_out"]
    assert [field["position"] for field in properties.values()] == list(range(len(properties)))
    for field in properties.values():
        assert field["title"] and field["description"]
    assert "required" not in form(), "an untouched form can be sent"


def test_the_form_offers_the_presets_that_there_are() -> None:
    offered = form()["properties"]["preset"]["enum"]
    assert SweepRequest().preset in offered
    for name in offered:
        assert load_preset(name, Settings().presets).models


@pytest.mark.parametrize(
    "wrong", [{"mode": "runn"}, {"max_usd": 0}, {"max_usd": -1}, {"max_usd": 1e9}, {"label": "x" * 41}]
)
def test_the_form_refuses_what_it_cannot_mean(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SweepRequest.model_validate(wrong)
