"""The form of a sweep: what it asks, what it takes for granted, and what it refuses."""

from __future__ import annotations

from datetime import date
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
    assert list(properties) == ["preset", "mode", "max_usd", "server", "label", "again", "fan_out"]
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


def test_what_is_stale_is_measured_under_a_label_of_its_time() -> None:
    """Once a period, and within it what is missing: a sweep's id follows from its label."""
    day = date(2027, 1, 1)  # a Friday, of the last week of 2026
    labels = {again: SweepRequest(again=again, label="b").dated(day).label for again in ("never", "weekly", "monthly")}
    assert labels == {"never": "b", "weekly": "b 2026-W53", "monthly": "b 2027-01"}
    quarterly = SweepRequest(again="quarterly")
    assert [quarterly.dated(date(2026, month, 28)).label for month in (1, 3, 4, 12)] == [
        "2026-Q1",
        "2026-Q1",
        "2026-Q2",
        "2026-Q4",
    ]
    assert quarterly.dated(day).dated(day) == quarterly.dated(day), "what shards are given stays as it is"
