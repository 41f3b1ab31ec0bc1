"""All five vendors at once on this machine: their own SDKs, emulators behind their own host names, micro-VMs, faults.

    python -m tests.lab.all_vendors [wide] [spot] [stuck]

One sweep over all of them, then one on spot capacity. Faults are planted before and during it: a zone without stock, a
quota, throttling, responses that are lost, a gateway's HTML, a preemption in the middle of a benchmark, a deletion that
is accepted and does not happen. At the end the emulators are asked what really exists and bills.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tasks.clouds.local import microvm
from tasks.models.serve import ModelServer
from tasks.settings import Settings
from tests.e2e.product import Product, Running
from tests.emulators import aws, azure, gcp, hetzner, upcloud
from tests.emulators.base import Fault
from tests.emulators.machines import MicroVms
from tests.emulators.private_net import INSIDE, all_served, is_inside, reenter

REGIONS = ("us-east-1", "eu-west-1")
SERVERS = {
    "aws": ("c7i.large", "c7i.xlarge"),
    "azure": ("Standard_D4as_v5",),
    "gcp": ("e2-standard-2",),
    "hetzner": ("cx23",),
    "upcloud": ("1xCPU-2GB",),
}
PATIENCE_S = 1200.0
NO_QUOTA = "c7i.xlarge"
SPOT = "gcp/e2-standard-2"
PRESET: dict[str, Any] = {
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
    """The five emulators, the micro-VMs behind them, and the product with credentials for all of them."""

    folder: Path
    machines: MicroVms
    product: Product
    emulators: dict[str, Any] = field(default_factory=dict)

    def left(self) -> list[str]:
        """What of ours really exists anywhere."""
        return [
            f"{vendor}: {thing.kind} {thing.name}"
            for vendor, emulator in self.emulators.items()
            for thing in emulator.existing()
            if thing.ours
        ]

    def foreign(self) -> set[tuple[str, str, str]]:
        return {
            (vendor, thing.kind, thing.cloud_id)
            for vendor, emulator in self.emulators.items()
            for thing in emulator.existing()
            if not thing.ours
        }


def hosts() -> tuple[str, ...]:
    every = (
        aws.AwsEmulator(regions=REGIONS),
        azure.AzureEmulator(),
        gcp.GcpEmulator(),
        hetzner.HetznerEmulator(),
        upcloud.UpCloudEmulator(),
    )
    return tuple(host for emulator in every for host in emulator.hosts)


def open_lab(folder: Path, stack: ExitStack) -> Lab:
    """Everything up and served; only inside the private network."""
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


def preset(lab: Lab, name: str, servers: Sequence[str], **changes: Any) -> str:
    path = lab.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**PRESET, "servers": list(servers), **changes}))
    return str(path)


def plant(lab: Lab) -> None:
    """One fault for each vendor, on the way up."""
    lab.emulators["aws"].stock["us-east-1a"] = 0
    lab.emulators["aws"].vcpu_quota.update(dict.fromkeys(REGIONS, 2))
    lab.emulators["gcp"].faults.plant(Fault("instances.insert", how="drop", after=True))
    lab.emulators["azure"].faults.plant(Fault("virtualMachines.createOrUpdate", how="code", code="TooManyRequests"))
    lab.emulators["hetzner"].faults.plant(Fault("POST /servers", how="html_502", after=True))
    lab.emulators["upcloud"].faults.plant(Fault("POST /server", how="truncated", after=True))


def when(running: Running, text: str, then: Callable[[], None]) -> threading.Thread:
    """Do it once the product has said so."""

    def watch() -> None:
        running.wait_for(text)
        then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def wide_sweep(lab: Lab) -> list[str]:
    """Every vendor at once; returns what is wrong."""
    plant(lab)
    names = [f"{vendor}/{name}" for vendor, sold in SERVERS.items() for name in sold]
    done = lab.product.start("run", "--yes", "-v", preset(lab, "wide", names)).end(PATIENCE_S)
    sys.stdout.write(done.out)
    runs = lab.product.query("SELECT vendor, server, outcome, reason, detail FROM v_server_runs ORDER BY ALL")
    problems = [f"{n} has no outcome" for n in names if n not in {f"{r['vendor']}/{r['server']}" for r in runs}]
    for run in runs:
        sys.stdout.write(f"{run['vendor']}/{run['server']}: {run['outcome']} {run['reason']}\n")
        refused = run["server"] == NO_QUOTA
        if run["outcome"] != ("failed" if refused else "completed"):
            problems.append(f"{run['vendor']}/{run['server']} ended as {run['outcome']}: {run['detail']}")
    if done.rc != 4:
        problems.append(f"the sweep ended with {done.rc}, not with 4 (one server has no quota): {done.err[-3000:]}")
    cells = lab.product.cells()
    measured = {server for (server, *_), (outcome, _) in cells.items() if outcome == "measured"}
    problems += [f"{n} has no measured cell" for n in names if n.partition("/")[2] not in measured | {NO_QUOTA}]
    return problems


def spot_sweep(lab: Lab) -> list[str]:
    """A server on spot capacity is taken away in the middle, and the deletion of another one is not carried out."""
    emulator = lab.emulators["gcp"]
    running = lab.product.start("run", "--yes", "-v", preset(lab, "spot", (SPOT,), spot=True, pp=[16, 128, 512, 1024]))

    def preempt() -> None:
        (name,) = [thing.name for thing in emulator.existing() if thing.ours and thing.kind == "server"]
        emulator.preempt(name)

    when(running, ": run tiny-15m pp128", preempt)
    done = running.end(PATIENCE_S)
    sys.stdout.write(done.out)
    (run,) = lab.product.query("SELECT outcome, reason FROM v_server_runs WHERE spot")
    sys.stdout.write(f"spot: {run['outcome']} {run['reason']}\n")
    return [] if run["outcome"] in ("interrupted", "failed") else [f"a preempted server ended as {run['outcome']}"]


def stuck_sweep(lab: Lab) -> list[str]:
    """A deletion that is accepted and does not happen: the sweep says so, `leaks` shows it, `reap` ends it later."""
    emulator = lab.emulators["aws"]
    emulator.stock.clear()
    emulator.stuck_all = True
    done = lab.product.start("run", "--yes", preset(lab, "stuck", ("aws/c7i.large",), pp=[16], tg=[])).end(PATIENCE_S)
    shown = lab.product.run("leaks")
    sys.stdout.write(shown.out)
    problems = [] if (done.rc, shown.rc) == (6, 6) else [f"stuck: run ended {done.rc}, leaks {shown.rc}, not 6 and 6"]
    emulator.stuck_all = False
    end = time.monotonic() + 120
    while lab.product.run("reap").rc != 0 and time.monotonic() < end:
        time.sleep(1)
    return problems


PARTS: dict[str, Callable[[Lab], list[str]]] = {"wide": wide_sweep, "spot": spot_sweep, "stuck": stuck_sweep}


def sweep_all(folder: Path, chosen: Sequence[str]) -> int:
    """0 when everything ended as it should and nothing is left; the named parts, or all."""
    with ExitStack() as stack:
        lab = open_lab(folder, stack)
        foreign = lab.foreign()
        problems = [problem for name in chosen or PARTS for problem in PARTS[name](lab)]
        proof = lab.product.run("leaks")
        sys.stdout.write(proof.out)
        if proof.rc:
            problems.append(f"leaks ends with {proof.rc}: {proof.out}{proof.err}")
        problems += [f"left: {thing}" for thing in lab.left()]
        if lab.foreign() != foreign:
            problems.append(f"something foreign was touched: {foreign ^ lab.foreign()}")
        for vendor, emulator in lab.emulators.items():
            sys.stdout.write(f"{vendor}: {len(emulator.faults.calls)} calls\n")
        problems += [f"still there: {trace}" for trace in lab.product.remains()]
    for problem in problems:
        sys.stderr.write(f"PROBLEM {problem}\n")
    return 1 if problems else 0


def main() -> int:
    if is_inside():
        return sweep_all(Path(os.environ[INSIDE]), sys.argv[1:])
    if why_not := microvm.why_not():
        sys.stderr.write(f"micro-VMs cannot be made here: {why_not}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="tokensweep-lab-") as folder:
        return reenter(Path(folder), hosts(), [sys.executable, "-u", "-m", "tests.lab.all_vendors", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
