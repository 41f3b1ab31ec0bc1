"""Measurements beside the ladder, as a preset asks for them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.domain.variants import VariantOptions
from tasks.presets import Preset


def preset(**changes: Any) -> Preset:
    values = {"name": "p", "models": ("tiny-15m",), "pp": (16,), "max_usd": Decimal(1),
              "max_usd_per_server": Decimal(1), "deadline_s": 60.0}  # fmt: skip
    return Preset.model_validate({**values, **changes})


def test_anchors_and_threads_are_measured_unless_told_otherwise() -> None:
    wanted = VariantOptions.from_dict(preset().wanted_variants())
    assert wanted == VariantOptions(anchor=True, threads=True)
    assert VariantOptions.from_dict(preset(variants={"anchor": False, "threads": False}).wanted_variants()) == (
        VariantOptions()
    )


def test_what_is_asked_for_reaches_the_plan() -> None:
    asked = {"depth": [4096], "combined": [[512, 128]], "kv_types": ["q8_0"], "batched": [1, 5], "sustain_s": 600}
    wanted = VariantOptions.from_dict(preset(variants=asked).wanted_variants())
    assert (wanted.depth, wanted.combined, wanted.kv_types) == ((4096,), ((512, 128),), ("q8_0",))
    assert (wanted.batched, wanted.sustain_s) == ((1, 5), 600.0)
    not_on_credits = preset(variants=asked).wanted_variants(on_credits=False)
    assert not_on_credits["sustain_s"] == 0.0, "a server that is fast for good needs no long run"


def test_only_a_change_of_the_wishes_is_another_sweep() -> None:
    """Sweeps that were begun before there were wishes keep their ids."""
    assert preset().sweep_id("e") == preset(variants={"anchor": True}).sweep_id("e")
    assert preset().sweep_id("e") != preset(variants={"depth": [4096]}).sweep_id("e")


@pytest.mark.parametrize(
    "wrong", [{"deep": [1]}, {"depth": [0]}, {"kv_types": ["q3"]}, {"batched": [-1]}, {"sustain_s": 1e9}]
)
def test_a_wrong_wish_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        preset(variants=wrong)
