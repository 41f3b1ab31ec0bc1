"""`plan --offline` over a catalogue that was imported: what it says of each server type, and what it does without."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flows.render import ROWS_SHOWN
from tasks.lake.server_types import write_reading
from tests.e2e.product import Product

READ_AT = datetime(2026, 8, 22, tzinfo=UTC)
N_PRICED = ROWS_SHOWN + 40
SDKS = {"prefect", "boto3", "botocore", "azure", "google.cloud", "hcloud", "upcloud_api"}
UNUSED = {
    "plan": SDKS | {"sqlalchemy", "gguf"},
    "help": SDKS | {"sqlalchemy", "gguf", "polars", "duckdb", "numpy"},
}
RUN_AND_TELL = "\n".join(
    [
        "import sys",
        "from flows.cli import app",
        "try: app(sys.argv[2:], standalone_mode=False)",
        "finally: open(sys.argv[1], 'w').write(' '.join(sys.modules))",
    ]
)


def row(name: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "vendor": "aws",
        "name": name,
        "place": "us-east-1",
        "vcpus": 2,
        "memory_bytes": 4 * 2**30,
        "disk_bytes": 0,
        "arch": "x86_64",
        "gpus": 0,
        "gpu_model": "",
        "gpu_memory_bytes": 0,
        "cpu_model": "",
        "link_bytes_per_s": 0.0,
        "price_per_hour": Decimal("0.05"),
        "spot_price_per_hour": None,
        "currency": "USD",
        "price_source": "price table",
        "price_read_at": READ_AT,
    }
    return found | changes


@pytest.fixture
def shop(bare: Product) -> Product:
    """A home with a catalogue: most can be run, and three cannot, each for another reason."""
    rows = [row(f"m{i}.large", price_per_hour=Decimal(i + 1) / 1000) for i in range(N_PRICED)]
    rows += [
        row("tiny.nano", memory_bytes=2**20),
        row("free.large", price_source="none: not in the list"),
        row("far.large", place="mars-1"),
    ]
    write_reading(bare.home / "lake", "aws", rows, READ_AT)
    (bare.home / "wide.yaml").write_text(
        "servers: ['aws/*']\nplaces: ['us-*']\nmodels: [smollm-135m]\nweights: real\npp: [16]\n"
        "max_usd: 0.5\nmax_usd_per_server: 1\ndeadline_s: 3600\n"
    )
    return bare


def plan(shop: Product, *options: str) -> str:
    done = shop.run("plan", str(shop.home / "wide.yaml"), "--offline", *options)
    assert done.rc == 0, done.err
    return done.out


def test_a_long_plan_is_summed_up_and_every_reason_is_told(shop: Product) -> None:
    servers = {s["offer"]["name"]: s for s in json.loads(plan(shop, "--json"))["servers"]}
    assert len(servers) == N_PRICED + 3
    assert servers["free.large"]["why"] == "its price is not known: not in the list"
    assert servers["far.large"]["why"] == "it is not sold in any of the wanted places"
    assert servers["tiny.nano"]["why"] == "no model fits into memory and disk"
    n_run, over = sum(s["run"] for s in servers.values()), [s for s in servers.values() if s["over_budget"]]
    assert n_run and over and n_run + len(over) == N_PRICED

    text = plan(shop)
    assert f"TOTAL {n_run} of {len(servers)} server types run" in text
    assert f"… and {len(servers) - ROWS_SHOWN} more" in text
    assert f" {len(over)} │ no money left under the cap" in text
    for name in ("free.large", "far.large", "tiny.nano"):
        assert f" 1 │ {servers[name]['why']}" in text

    lines = {line.split()[1]: line for line in plan(shop, "--all").splitlines() if line.startswith("aws ")}
    assert lines.keys() == servers.keys()
    assert all(lines[name].endswith("yes" if s["run"] else f"no: {s['why']}") for name, s in servers.items())


def test_a_choice_for_some_money_names_every_server_type_with_what_becomes_of_it(shop: Product) -> None:
    found = json.loads(plan(shop, "--max-usd", "0.1", "--json"))
    assert {s["server"] for s in found["skipped"]} == {"aws/free.large", "aws/far.large", "aws/tiny.nano"}
    assert all(s["why"] for s in found["skipped"])
    assert len(found["servers"]) == N_PRICED
    becomes = Counter(s["what"] for s in found["servers"])
    assert becomes["measure"] and becomes["leave out"] and becomes.total() == N_PRICED

    text = plan(shop, "--max-usd", "0.1")
    assert f"{becomes['measure']} measured for about {found['usd']:,.2f} USD" in text
    assert f"… and {N_PRICED + 3 - ROWS_SHOWN} more" in text and " 1 │ no model fits into memory and disk" in text
    everything = plan(shop, "--max-usd", "0.1", "--all").splitlines()
    assert sum(line.startswith("aws/") for line in everything) == N_PRICED + 3


@pytest.mark.parametrize("command", ["plan", "plan for money", "help"])
def test_a_command_imports_nothing_that_it_does_not_use(shop: Product, command: str, tmp_path: Path) -> None:
    """Prefect, the SDKs and SQLAlchemy take seconds to import; a plan by the catalogue needs none of them."""
    arguments = ["plan", str(shop.home / "wide.yaml"), "--offline"]
    arguments = ["--help"] if command == "help" else arguments + ["--max-usd", "1"] * ("money" in command)
    told = tmp_path / "modules"
    subprocess.run(
        [sys.executable, "-c", RUN_AND_TELL, str(told), *arguments], env=shop.env(), check=True, capture_output=True
    )
    loaded = set(told.read_text().split())
    assert "flows.cli" in loaded
    assert sorted(loaded & UNUSED[command.split()[0]]) == []
