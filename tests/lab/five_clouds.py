"""Five clouds on one machine: the vendors' emulators behind their own host names, micro-VMs behind the emulators, and
the product with an account at each. Only inside the private network (`tests/emulators/private_net.py`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from rich.console import Console
from rich.table import Table

from tasks.models.serve import ModelServer
from tasks.settings import Settings
from tests.e2e.product import Product
from tests.emulators import aws, azure, gcp, hetzner, upcloud
from tests.emulators.base import Fault
from tests.emulators.machines import MicroVms
from tests.emulators.private_net import all_served

REGIONS = ("us-east-1", "eu-west-1")
PRESET: Mapping[str, Any] = {
    "models": ["tiny-15m"],
    "weights": "random",
    "pp": [16, 128],
    "tg": [16],
    "max_usd": 20.0,
    "max_usd_per_server": 3.0,
    "deadline_s": 900,
    "max_parallel": 3,
}


@dataclass
class Lab:
    """injected: what was planted at which vendor, in words; faults: as far as they are faults of single calls."""

    folder: Path
    machines: MicroVms
    product: Product
    emulators: dict[str, Any] = field(default_factory=dict)
    injected: dict[str, list[str]] = field(default_factory=dict)
    faults: list[tuple[str, str, Fault]] = field(default_factory=list)

    def inject(self, vendor: str, what: str, *faults: Fault) -> None:
        self.injected.setdefault(vendor, []).append(what)
        self.emulators[vendor].faults.plant(*faults)
        self.faults += [(vendor, what, fault) for fault in faults]

    def not_met(self) -> list[str]:
        """Planted faults that no call has run into: then nothing was shown."""
        return [f"{vendor}: nobody met {what!r}" for vendor, what, fault in self.faults if fault.times > 0]

    def left(self) -> list[str]:
        """What of ours really exists anywhere."""
        return [
            f"{vendor}: {thing.kind} {thing.name}"
            for vendor, emulator in self.emulators.items()
            for thing in emulator.existing()
            if thing.ours
        ]

    def meter(self, vendor: str) -> Decimal:
        """What everything of ours there costs per hour now, in the vendor's currency."""
        return sum((t.usd_per_hour for t in self.emulators[vendor].existing() if t.ours), Decimal(0))

    def foreign(self) -> set[tuple[str, str, str]]:
        return {
            (vendor, thing.kind, thing.cloud_id)
            for vendor, emulator in self.emulators.items()
            for thing in emulator.existing()
            if not thing.ours
        }

    def outcomes(self) -> dict[str, list[str]]:
        """By vendor, how its server runs ended."""
        found: dict[str, list[str]] = {}
        for run in self.product.query("SELECT vendor, server, outcome, reason FROM v_server_runs ORDER BY started_at"):
            found.setdefault(run["vendor"], []).append(f"{run['server']}: {run['outcome']} ({run['reason']})")
        return found

    def preset(self, name: str, servers: Sequence[str], **changes: Any) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**PRESET, "servers": list(servers), **changes}))
        return str(path)

    def report(self) -> None:
        """The table of docs/vendors.md."""
        table = Table("vendor", "injected", "server runs", "calls", "left", "per hour", title="Five clouds", width=150)
        outcomes = self.outcomes()
        for vendor, emulator in self.emulators.items():
            n_left = sum(thing.ours for thing in emulator.existing())
            table.add_row(
                vendor,
                "\n".join(self.injected.get(vendor, ())),
                "\n".join(outcomes.get(vendor, ())),
                str(len(emulator.faults.calls)),
                str(n_left),
                f"{self.meter(vendor):f}",
                end_section=True,
            )
        Console(width=150).print(table)


def hosts() -> tuple[str, ...]:
    """Every DNS name that the five SDKs talk to."""
    every = (
        aws.AwsEmulator(regions=REGIONS),
        azure.AzureEmulator(),
        gcp.GcpEmulator(),
        hetzner.HetznerEmulator(),
        upcloud.UpCloudEmulator(),
    )
    return tuple(host for emulator in every for host in emulator.hosts)


def open_lab(folder: Path, stack: ExitStack) -> Lab:
    """Everything up and served, with somebody else's servers in each account."""
    machines = MicroVms(folder / "machines")
    stack.callback(machines.close)
    cache = Settings().cache_dir
    files = stack.enter_context(ModelServer(cache / "models", machines.cloud.model_host()))
    product = Product(folder / "home", cache, credentials(folder))
    product.environment["TOKENSWEEP_MODELS_URL"] = f"http://{files.host}:{files.port}"
    lab = Lab(folder, machines, product)
    lab.emulators = {
        "aws": aws.AwsEmulator(machines=machines, regions=REGIONS),
        "azure": azure.AzureEmulator(machines=machines),
        "gcp": gcp.GcpEmulator(machines=machines),
        "hetzner": hetzner.HetznerEmulator(machines=machines),
        "upcloud": upcloud.UpCloudEmulator(machines=machines),
    }
    for emulator in lab.emulators.values():
        emulator.add_foreign()
    stack.enter_context(all_served(folder, lab.emulators.values()))
    return lab


def credentials(folder: Path) -> dict[str, str]:
    """As an account holder sets them: the SDKs' usual variables, and nothing that says where the vendors are."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    account = {
        "type": "service_account",
        "project_id": "bench-project",
        "private_key_id": "1",
        "private_key": pem,
        "client_email": "sweeper@bench-project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    (folder / "gcp.json").write_text(json.dumps(account))
    return {
        "AWS_ACCESS_KEY_ID": aws.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": aws.SECRET_KEY,
        "TOKENSWEEP_AWS_REGIONS": ",".join(REGIONS),
        "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "gcp.json"),
        "AZURE_SUBSCRIPTION_ID": azure.SUBSCRIPTION,
        "AZURE_TENANT_ID": azure.TENANT,
        "AZURE_CLIENT_ID": azure.CLIENT_ID,
        "AZURE_CLIENT_SECRET": azure.CLIENT_SECRET,
        "TOKENSWEEP_AZURE_REGIONS": "westeurope,eastus",
        "HCLOUD_TOKEN": hetzner.TOKEN,
        "UPCLOUD_USERNAME": upcloud.USERNAME,
        "UPCLOUD_PASSWORD": upcloud.PASSWORD,
        "no_proxy": "*",
    }
