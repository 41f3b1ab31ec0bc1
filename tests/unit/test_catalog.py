"""The catalogue: readings of vendors with their date, the import of a public dump, planning without any account."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.catalog import OfflineCatalog, refresh
from tasks.clouds.base import ServerType, Traits
from tasks.domain.errors import ConfigError, LandingError
from tasks.engine import Engine, gpu_model_of, why_no_engine
from tasks.lake.server_types import newest_reading, readings, write_reading
from tasks.planning import prepare
from tasks.presets import Preset
from tasks.settings import Settings
from tasks.sparecores_catalog import import_dump
from tasks.wiring import open_services
from tests.memory_cloud import MemoryCloud

TRAITS = Traits(
    stopped_bills=True,
    billing_minimum_s=60,
    billing_increment_s=1,
    unique_names=False,
    idempotency_token=True,
    native_ttl=False,
    visibility_lag_s=5.0,
)
READ_AT = datetime(2026, 8, 22, tzinfo=UTC)


def server(name: str, vendor: str = "aws", **changes: Any) -> dict[str, Any]:
    """A server of the dump, as its public files are."""
    found: dict[str, Any] = {
        "vendor_id": vendor,
        "server_id": name,
        "api_reference": name,
        "status": "ACTIVE",
        "vcpus": 4,
        "cpu_architecture": "X86_64",
        "cpu_manufacturer": "Intel",
        "cpu_model": "8369B",
        "memory_amount": 8192,
        "storage_size": 0,
        "gpu_count": 0.0,
        "gpu_model": None,
        "gpu_memory_min": 0,
        "network_speed_baseline": 3.0,
    }
    return found | changes


def write_dump(folder: Path, servers: list[dict[str, Any]]) -> Path:
    for number, one in enumerate(servers):
        path = folder / "data" / "server" / one["vendor_id"] / f"server_{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(one))
    (folder / "data" / "server" / "_schema.json").write_text("{}")
    return folder


def write_prices(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    pl.DataFrame(rows).write_parquet(path)
    return path


def price(name: str, usd: float, region: str = "us-east-1", vendor: str = "aws", spot: float | None = None) -> Any:
    return {
        "vendor": vendor,
        "server": name,
        "region": region,
        "price_usd_hour": usd,
        "price_spot": spot,
        "source": "x",
    }


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    dump = write_dump(
        tmp_path / "dump",
        [
            server("c7.xlarge"),
            server("g6.4xlarge", vcpus=16, gpu_count=1.0, gpu_model="L4", gpu_memory_min=24576, cpu_model=None),
            server("m8g.large", cpu_architecture="ARM64"),
            server("cx22", "hcloud", storage_size=40),
            server("old.large", status="INACTIVE"),
            server("i386.small", cpu_architecture="I386"),
            server("unpriced.large"),
            server("ecs.c7", "alicloud"),
            {"vendor_id": "aws", "status": "ACTIVE", "api_reference": "broken"},
        ],
    )
    prices = write_prices(
        tmp_path / "prices.parquet",
        [
            price("c7.xlarge", 0.2),
            price("c7.xlarge", 0.1, "us-east-2", spot=0.03),
            price("g6.4xlarge", 1.3),
            price("m8g.large", 0.09),
            price("cx22", 0.006, "fsn1", "hcloud"),
        ],
    )
    done = import_dump(dump, prices, tmp_path / "lake", vendors=("aws", "hetzner"), read_at=READ_AT)
    assert done.n_types == {"aws": 3, "hetzner": 1}
    assert done.left_out == {
        "no longer sold": 1,
        "architecture I386": 1,
        "no price in the table": 1,
        "vendor alicloud": 1,
        "unreadable file": 1,
    }
    assert done.skipped == {
        "aws/old.large": "no longer sold",
        "aws/i386.small": "architecture I386",
        "aws/unpriced.large": "no price in the table",
        "alicloud/ecs.c7": "vendor alicloud",
        "aws/server_8.json": "unreadable file",
    }
    return tmp_path / "lake"


def test_a_dump_becomes_server_types_with_prices_by_place(imported: Path) -> None:
    aws = OfflineCatalog("aws", TRAITS, imported)
    kind = aws.server_type("c7.xlarge")
    assert kind == ServerType(
        vendor="aws",
        name="c7.xlarge",
        vcpus=4,
        memory_bytes=8 * 2**30,
        disk_bytes=0,
        arch="x86_64",
        places=("us-east-2", "us-east-1"),
        price_per_hour=Decimal("0.1"),
        prices={"us-east-2": Decimal("0.1"), "us-east-1": Decimal("0.2")},
        spot_prices={"us-east-2": Decimal("0.03")},
        currency="USD",
        price_source="x",
        price_read_unix_s=READ_AT.timestamp(),
        cpu_model="Intel 8369B",
        link_bytes_per_s=375e6,
    )
    gpu = aws.server_type("g6.4xlarge")
    assert (gpu.gpus, gpu.gpu_model, gpu.gpu_memory_bytes) == (1, "L4", 24 * 2**30)
    assert aws.server_type("m8g.large").arch == "aarch64"
    assert OfflineCatalog("hetzner", TRAITS, imported).server_type("cx22").disk_bytes == 40 * 10**9
    assert aws.default_server_types() == ["m8g.large", "c7.xlarge", "g6.4xlarge"]
    with pytest.raises(ConfigError, match=r"sells no 'c9\.large'"):
        aws.server_type("c9.large")


def test_a_dump_without_servers_and_a_table_without_prices_are_refused(tmp_path: Path) -> None:
    prices = write_prices(tmp_path / "p.parquet", [price("a", 1.0)])
    with pytest.raises(ConfigError, match="no folder data/server"):
        import_dump(tmp_path, prices, tmp_path, vendors=("aws",))
    dump = write_dump(tmp_path / "dump", [server("a")])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(ConfigError, match=r"bad\.parquet cannot be read"):
        import_dump(dump, tmp_path / "bad.parquet", tmp_path, vendors=("aws",))
    pl.DataFrame({"vendor": ["aws"]}).write_csv(tmp_path / "half.csv")
    with pytest.raises(ConfigError, match="lacks server, region, price_usd_hour"):
        import_dump(dump, tmp_path / "half.csv", tmp_path, vendors=("aws",))


def test_a_vendor_is_read_and_every_reading_is_kept(tmp_path: Path) -> None:
    cloud = MemoryCloud(time.time)
    path, n_types = refresh(cloud, tmp_path)
    assert n_types == 1 and path in readings(tmp_path, "memory")
    offline = OfflineCatalog("memory", TRAITS, tmp_path).server_type("small")
    sold = cloud.server_type("small")
    assert set(offline.places) == set(sold.places) and offline.price_per_hour == sold.price_per_hour
    later = write_reading(tmp_path, "memory", [], datetime(2126, 1, 1, tzinfo=UTC))
    assert readings(tmp_path, "memory") == [path, later]
    newest = newest_reading(tmp_path, "memory")
    assert newest is not None and newest.height == 0


def test_a_reading_of_an_older_version_is_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    refresh(MemoryCloud(time.time), tmp_path)
    (path,) = readings(tmp_path, "memory")
    pl.read_parquet(path).drop("gpu_memory_bytes", "cpu_model", "spot_price_per_hour").write_parquet(path)
    kind = OfflineCatalog("memory", TRAITS, tmp_path).server_type("small")
    assert (kind.gpu_memory_bytes, kind.cpu_model, kind.spot_prices) == (0, "", {})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ConfigError, match=path.name):
        OfflineCatalog("memory", TRAITS, tmp_path).catalog()
    with pytest.raises(LandingError, match="do not fit"):
        write_reading(tmp_path, "memory", [{"vendor": "memory", "vcpus": "many"}], READ_AT)
    with pytest.raises(ConfigError, match="never read here"):
        OfflineCatalog("aws", TRAITS, tmp_path).catalog()


def test_a_sweep_over_two_vendors_is_planned_without_an_account(imported: Path, tmp_path: Path) -> None:
    services = open_services(Settings(home=tmp_path / "home", lake=str(imported), cache=tmp_path / "cache"))
    engine = Engine(tmp_path, tmp_path, "id", "abc", ("avx2",), tmp_path, "1")
    preset = Preset(
        name="wide",
        servers=("aws/*", "hetzner/cx22"),
        places=("us-east-*", "fsn1"),
        models=("tiny-15m",),
        weights="random",
        pp=(16,),
        max_usd=Decimal(100),
        max_usd_per_server=Decimal(2),
        deadline_s=3600,
    )
    prepared = prepare(preset, services, engine, offline=True)
    planned = {f"{s.offer.vendor}/{s.offer.name}": s for s in prepared.plan.servers}
    assert set(planned) == {"aws/c7.xlarge", "aws/g6.4xlarge", "aws/m8g.large", "hetzner/cx22"}
    assert planned["aws/c7.xlarge"].offer.usd_per_hour == Decimal("0.2"), "the dearest place, as money is reserved"
    assert planned["aws/c7.xlarge"].offer.disk_bytes == 13 * 10**9, "a boot disk for the system and the models"
    for server in prepared.plan.servers:
        kind = prepared.server_types[f"{server.offer.vendor}/{server.offer.name}"]
        why = why_no_engine(services.settings.cache_dir, kind.arch, gpu_model_of(kind))
        assert server.why == why, "Arm takes a cross compiler"
    assert "cuda13.0-ada" in planned["aws/g6.4xlarge"].why, "no money for the CPUs of a GPU server"

    nowhere = prepare(preset.model_copy(update={"places": ("fsn1",)}), services, engine, offline=True)
    why = {server.offer.name: server.why for server in nowhere.plan.servers}
    assert why["c7.xlarge"] == "it is not sold in any of the wanted places" and why["cx22"] == ""
    assert "no llama.cpp runtime for the architecture riscv64" in why_no_engine(services.settings.cache_dir, "riscv64")
    with pytest.raises(ConfigError, match=r"no server type is named like 'z\*'"):
        prepare(preset.model_copy(update={"servers": ("aws/z*",)}), services, engine, offline=True)

    def reserved_for(places: str) -> Decimal:
        spot = preset.model_copy(update={"servers": ("aws/c7.xlarge",), "places": (places,), "spot": True})
        (server,) = prepare(spot, services, engine, offline=True).plan.servers
        return server.offer.usd_per_hour

    assert reserved_for("us-east-2") == Decimal("0.03"), "its spot price"
    assert reserved_for("us-east-1") == Decimal("0.2"), "no spot price is known there: the one on demand, not a guess"
    assert reserved_for("us-east-*") == Decimal("0.2"), "the dearest that it may come to"
