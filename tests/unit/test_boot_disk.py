"""How large a boot disk a server is planned with: what its image holds, and the models."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from tasks.domain.memory import disk_needed_bytes
from tasks.domain.run_plan import ModelSpec
from tasks.models.catalogue import load_catalogue, select_models
from tasks.planning import _planner
from tasks.presets import Preset
from tests.memory_cloud import Clock, MemoryCloud

# What images have taken when they have just booted. With a driver: of the 64 GiB of microsoft-dsvm:ubuntu-hpc:2404 all
# but 7, of Amazon's Deep Learning Base AMI about 50 GB (Ubuntu's own: 2 to 3).
PLAIN_BYTES, WITH_DRIVER_BYTES = 4 * 10**9, 57 * 2**30
LADDER = ("gemma-2b", "llama-7b", "phi-4", "llama-3.3-70b")


def models() -> list[ModelSpec]:
    return [model.real_spec() for model in select_models(load_catalogue(), LADDER)]


def planned_disk_bytes(*, disk_bytes: int, gpus: int) -> int:
    cloud = MemoryCloud(Clock().now)
    kind = replace(cloud.server_type("small"), disk_bytes=disk_bytes, gpus=gpus)
    preset = Preset(
        name="mine",
        vendor="memory",
        models=LADDER,
        pp=(16,),
        max_usd=Decimal(9),
        max_usd_per_server=Decimal(9),
        deadline_s=3600,
    )
    return _planner(models(), preset, {})(kind, cloud.traits, "", False).offer.disk_bytes


@pytest.mark.parametrize(("gpus", "taken_bytes"), [(0, PLAIN_BYTES), (1, WITH_DRIVER_BYTES)])
def test_the_two_largest_models_fit_beside_what_the_image_holds(gpus: int, taken_bytes: int) -> None:
    second, largest = sorted(m.planned_bytes for m in models())[-2:]
    free_bytes = planned_disk_bytes(disk_bytes=0, gpus=gpus) - taken_bytes
    assert free_bytes > second + disk_needed_bytes(largest)
    assert free_bytes < 1.5 * (largest + second), "every GB of it is paid for"


def test_a_disk_that_comes_with_the_type_is_taken_as_it_is() -> None:
    assert planned_disk_bytes(disk_bytes=20 * 10**9, gpus=1) == 20 * 10**9
