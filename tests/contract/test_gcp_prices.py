"""Prices as Google words and rates them, where a plain reading gives another figure than the bill."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tasks.clouds.gcp.prices import Rates, Shape
from tests.emulators import gcp_offers as offers


def sku(description: str, usd: str, *, group: str, unit: str = "h", **changes: Any) -> dict[str, Any]:
    (plain,) = [s for s in offers.skus() if s["description"] == "N2 Instance Ram running in Americas"]
    units, _, nanos = usd.partition(".")
    price = {"currencyCode": "USD", "units": units, "nanos": int(nanos.ljust(9, "0"))}
    expression = {"usageUnit": unit, "tieredRates": [{"startUsageAmount": 0, "unitPrice": price}]}
    usage = changes.pop("usageType", "OnDemand")
    return {
        **plain,
        "description": description,
        "category": {**plain["category"], "resourceGroup": group, "usageType": usage},
        "pricingInfo": [{"effectiveTime": "2026-11-01T00:00:00Z", "pricingExpression": expression}],
        **changes,
    }


def read(*skus: dict[str, Any]) -> Rates:
    rates = Rates()
    for each in skus:
        rates.add(each)
    return rates


@pytest.fixture(scope="module")
def rates() -> Rates:
    return read(*offers.skus())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        # github.com/Cyclenerd/google-cloud-pricing-cost-calculator, build/mapping.csv
        ("Nvidia L4 GPU attached to Spot Preemptible VMs running in Americas", "gpu L4"),
        ("Nvidia Tesla A100 80GB GPU attached to Spot Preemptible VMs running in Iowa", "gpu A100 80GB"),
        ("Nvidia H100 80GB Mega GPU attached to Spot Preemptible VMs running in Tokyo", "gpu H100 80GB MEGA"),
        ("RTX 6000 96GB attached to Spot Preemptible VMs running in Belgium", "gpu RTX 6000 96GB"),
        ("Nvidia Tesla T4 GPU attached to Sole Tenancy VMs running in Americas", ""),
        ("Nvidia L4 GPU attached to DWS Defined Duration VMs running in Americas", ""),
    ],
)
def test_gpus_of_spot_servers_as_the_catalogue_words_them(text: str, what: str) -> None:
    found = read(sku(text, "0.1", group="GPU", usageType="Preemptible"))
    assert list(found.usd) == ([(what, "us-central1", True)] if what else [])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("SSD backed Local Storage", ("ssd", "us-central1", False)),
        ("SSD backed Local Storage in Paris", ("ssd", "us-central1", False)),
        ("SSD backed Local Storage running in Paris", ("ssd", "us-central1", False)),
        # Its usage type is OnDemand: vantage-sh/ec2instances.info, shouldUseLocalSSDSKUForPricing.
        ("SSD backed Local Storage attached to Spot Preemptible VMs running in Paris", ("ssd", "us-central1", True)),
        ("C4A Instance Local SSD running in Americas", ("ssd c4a", "us-central1", False)),
        ("Spot Preemptible C4D Instance Local SSD running in Frankfurt", ("ssd c4d", "us-central1", True)),
        ("Commitment v1: C4D Local SSD in Americas for 1 Year", None),
        ("vGPU G4 Instance Local SSD running in Americas", None),
    ],
)
def test_local_ssds_as_the_catalogue_words_them(text: str, key: tuple[str, str, bool] | None) -> None:
    assert list(read(sku(text, "0.08", group="LocalSSD", unit="GiBy.mo")).usd) == ([key] if key else [])


def test_a_spot_price_is_never_taken_for_one_on_demand() -> None:
    """Of B200 both have the usage type OnDemand."""
    text = "Nvidia B200 (1 gpu slice) running in Americas"
    found = read(sku(f"Spot Preemptible {text}", "4.9542", group="GPU"), sku(text, "16.11", group="GPU"))
    assert found.usd == {
        ("gpu B200", "us-central1", True): Decimal("4.9542"),
        ("gpu B200", "us-central1", False): Decimal("16.11"),
    }


def test_local_ssds_cost_what_their_family_asks(rates: Rates) -> None:
    plain = Shape("c4a-standard-4", 4, 16_384)
    bundled = Shape("c4a-standard-4-lssd", 4, 16_384, local_ssds=1)
    of_others = Shape("n2-standard-4", 4, 16_384, local_ssds=1)
    more = [rates.price(shape, "us-central1") for shape in (plain, bundled, of_others)]
    assert all(isinstance(usd, Decimal) for usd in more)
    assert abs(more[1] - more[0] - 375 * Decimal("0.16") / 730) < Decimal("1e-9")  # type: ignore[operator]
    general = rates.price(Shape("n2-standard-4", 4, 16_384), "us-central1")
    assert abs(more[2] - general - 375 * Decimal("0.08") / 730) < Decimal("1e-9")  # type: ignore[operator]


@pytest.mark.parametrize("name", ["z3-highmem-88", "c4-standard-288-lssd-metal", "z3-highmem-192-highlssd-metal"])
def test_partitions_of_another_size_are_not_taken_for_375_gib(name: str) -> None:
    """3000 or 6000 GiB each; Z3's old names tell none at all."""
    family = name.partition("-")[0].upper()
    found = read(
        sku(f"{family} Instance Core running in Americas", "0.03", group="CPU"),
        sku(f"{family} Instance Ram running in Americas", "0.003", group="RAM", unit="GiBy.h"),
        sku("SSD backed Local Storage in Americas", "0.08", group="LocalSSD", unit="GiBy.mo"),
    )
    n_partitions = 0 if name == "z3-highmem-88" else 6
    assert "local SSDs" in str(found.price(Shape(name, 88, 720_896, local_ssds=n_partitions), "us-central1"))


def test_memory_by_the_decimal_gigabyte_is_priced_by_the_gib() -> None:
    text = "C4D Instance Ram running in Americas"
    found = read(sku(text, "0.003", group="RAM", unit="GBy.h"))
    assert found.usd == {("ram c4d", "us-central1", False): Decimal("0.003") * 2**30 / 10**9}


def test_the_sku_of_fewer_regions_is_what_is_billed() -> None:
    """Else the one that costs more, in whichever order they come."""
    many = ["us-central1", "us-east1", "us-west1"]
    broad = sku("N2 Instance Ram running in Americas", "0.001", group="RAM", unit="GiBy.h", serviceRegions=many)
    dear = sku("N2 Instance Ram running in Americas", "0.009", group="RAM", unit="GiBy.h", serviceRegions=many)
    narrow = sku("N2 Instance Ram running in Iowa", "0.004", group="RAM", unit="GiBy.h", serviceRegions=many[:1])
    for skus in ((broad, dear, narrow), (narrow, dear, broad), (dear, narrow, broad)):
        found = read(*skus)
        assert found.usd[("ram n2", "us-central1", False)] == Decimal("0.004")
        assert found.usd[("ram n2", "us-east1", False)] == Decimal("0.009")


def test_machines_that_are_billed_as_another_family(rates: Rates) -> None:
    """M4's largest by SKUs of its own; n1-megamem and n1-ultramem are M1's, which has no price that can be told."""
    small, large = (rates.price(Shape(f"m4-ultramem-{n}", n, 1024), "us-central1") for n in (112, 224))
    assert isinstance(small, Decimal)
    assert isinstance(large, Decimal)
    assert large > 2 * small
    for name in ("n1-megamem-96", "n1-ultramem-40"):
        assert "of family m1" in str(rates.price(Shape(name, 96, 1_468_006), "us-central1"))
    assert isinstance(rates.price(Shape("n1-standard-96", 96, 368_640), "us-central1"), Decimal)


def test_a_part_of_a_gpu_is_not_sold_as_a_whole_one(rates: Rates) -> None:
    """The API counts one GPU for g4-standard-6, -12 and -24 as well; theirs is virtual and takes another driver."""
    for vcpus in (6, 12, 24):
        shape = Shape(f"g4-standard-{vcpus}", vcpus, 3840 * vcpus, gpus=1, accelerator="nvidia-rtx-pro-6000")
        assert "a part of a GPU" in str(rates.price(shape, "us-central1"))
    whole = Shape("g4-standard-96", 96, 368_640, gpus=2, accelerator="nvidia-rtx-pro-6000")
    assert isinstance(rates.price(whole, "us-central1"), Decimal)
