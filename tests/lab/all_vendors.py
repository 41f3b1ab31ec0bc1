"""All five vendors at once on this machine: their own SDKs, emulators behind their own host names, micro-VMs, faults.

    python -m tests.lab.all_vendors [wide] [spot] [stuck]

One sweep over all of them: at each vendor its first place has no stock, the next create is throttled, and the answer
to the one after that is lost; one server type has no quota. Then one on spot capacity, where all three vendors that
sell it take their servers away in the middle. Then one whose server is told to be deleted and is not. At the end the
emulators are asked what really exists and bills.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tasks.clouds.local import microvm
from tests.e2e.product import Running
from tests.emulators import aws_world, azure_world, gcp_world, hetzner_world, upcloud_world
from tests.emulators.base import Fault, How
from tests.emulators.emulated import EmulatedWorld
from tests.emulators.private_net import INSIDE, is_inside, reenter
from tests.lab.five_clouds import REGIONS, Lab, hosts, open_lab

SERVERS = {
    "aws": ("c7i.large", "c7i.xlarge"),
    "azure": ("Standard_D4as_v5",),
    "gcp": ("e2-standard-2",),
    "hetzner": ("cx23",),
    "upcloud": ("1xCPU-2GB",),
}
WORLDS: dict[str, type[EmulatedWorld]] = {
    "aws": aws_world.AwsWorld,
    "azure": azure_world.AzureWorld,
    "gcp": gcp_world.GcpWorld,
    "hetzner": hetzner_world.HetznerWorld,
    "upcloud": upcloud_world.UpCloudWorld,
}
LOST: dict[str, How] = {
    "aws": "drop",
    "azure": "html_502",
    "gcp": "drop",
    "hetzner": "html_502",
    "upcloud": "truncated",
}
NO_QUOTA = "c7i.xlarge"
SPOT = ("aws/c7i.large", "azure/Standard_D4as_v5", "gcp/e2-standard-2")
PATIENCE_S = 1500.0


def plant(lab: Lab) -> None:
    """For each vendor a zone without stock, a rate limit and a lost answer, in this order; and a quota."""
    for vendor, world in WORLDS.items():
        no = world.refusals
        lab.inject(vendor, f"no stock ({no.capacity})", no.no_capacity())
        lab.inject(vendor, f"throttled ({no.throttle})", no.too_many())
        lab.inject(vendor, f"answer lost ({LOST[vendor]})", Fault(no.create, how=LOST[vendor], after=True))
    lab.emulators["aws"].vcpu_quota.update(zip(REGIONS, (5, 3), strict=True))  # two of the first are somebody else's
    lab.inject("aws", f"no quota for {NO_QUOTA}")


def wide_sweep(lab: Lab) -> list[str]:
    """Every vendor at once; returns what is wrong."""
    plant(lab)
    names = [f"{vendor}/{name}" for vendor, sold in SERVERS.items() for name in sold]
    done = lab.product.start("run", "--yes", "-v", lab.preset("wide", names)).end(PATIENCE_S)
    sys.stdout.write(done.out)
    runs = lab.product.query("SELECT vendor, server, outcome, reason, detail FROM v_server_runs ORDER BY ALL")
    problems = [f"{n} has no outcome" for n in names if n not in {f"{r['vendor']}/{r['server']}" for r in runs}]
    for run in runs:
        refused = run["server"] == NO_QUOTA
        if run["outcome"] != ("failed" if refused else "completed"):
            problems.append(f"{run['vendor']}/{run['server']} ended as {run['outcome']}: {run['detail']}")
        if refused and "VcpuLimitExceeded" not in str(run["detail"]):
            problems.append(f"{NO_QUOTA} does not say that it lacks quota: {run['detail']}")
    if done.rc != 4:
        problems.append(f"the sweep ended with {done.rc}, not with 4 (one server has no quota): {done.err[-3000:]}")
    cells = lab.product.cells()
    measured = {server for (server, *_), (outcome, _) in cells.items() if outcome == "measured"}
    problems += [f"{n} has no measured cell" for n in names if n.partition("/")[2] not in measured | {NO_QUOTA}]
    return problems + lab.not_met()


def spot_sweep(lab: Lab) -> list[str]:
    """Servers on spot capacity are taken away in the middle, at each vendor that sells it."""
    slow = lab.preset("spot", SPOT, spot=True, models=["smollm-135m"], pp=[16, 128, 512, 1024], tg=[16, 128])
    running = lab.product.start("run", "--yes", "-v", slow)
    for name in SPOT:
        vendor, _, server = name.partition("/")
        when(running, f"{server}: run smollm-135m pp128", lambda vendor=vendor: take_back(lab, vendor))  # type: ignore[misc]
    done = running.end(PATIENCE_S)
    sys.stdout.write(done.out)
    runs = lab.product.query("SELECT vendor, server, outcome, reason FROM v_server_runs WHERE spot")
    problems = [
        f"{run['server']}, which was taken back, ended as {run['outcome']} {run['reason']}"
        for run in runs
        if (run["outcome"], run["reason"]) not in (("failed", "server_gone"), ("interrupted", "server_gone"))
    ]
    missing = {name.partition("/")[2] for name in SPOT} - {run["server"] for run in runs}
    return problems + [f"{server} has no outcome" for server in missing]


def take_back(lab: Lab, vendor: str) -> None:
    """The vendor ends its spot servers of ours."""
    emulator = lab.emulators[vendor]
    lab.inject(vendor, "spot server taken back in the middle")
    for thing in emulator.existing():
        if thing.ours and thing.kind == "server":
            if vendor == "aws":
                emulator.interrupt(thing.cloud_id)
            elif vendor == "azure":
                emulator.evict(thing.name)
            else:
                emulator.preempt(thing.name)


def when(running: Running, text: str, then: Callable[[], None]) -> None:
    """Do it once the product has said so."""

    def watch() -> None:
        running.wait_for(text)
        then()

    threading.Thread(target=watch, daemon=True).start()


def stuck_sweep(lab: Lab) -> list[str]:
    """A deletion that is accepted and does not happen: the sweep says so, `leaks` shows it, `reap` ends it later."""
    emulator = lab.emulators["aws"]
    emulator.stuck_all = True
    lab.inject("aws", "deletion accepted, not carried out")
    done = lab.product.start("run", "--yes", lab.preset("stuck", ("aws/c7i.large",), pp=[16], tg=[])).end(PATIENCE_S)
    shown = lab.product.run("leaks")
    sys.stdout.write(shown.out)
    problems = [] if (done.rc, shown.rc) == (6, 6) else [f"stuck: run ended {done.rc}, leaks {shown.rc}, not 6 and 6"]
    if not lab.meter("aws"):
        problems.append("stuck: nothing was left to be found")
    emulator.stuck_all = False
    end = time.monotonic() + PATIENCE_S
    while lab.product.start("reap").end(PATIENCE_S).rc != 0 and time.monotonic() < end:
        time.sleep(1)
    return problems


PARTS: dict[str, Callable[[Lab], list[str]]] = {"wide": wide_sweep, "spot": spot_sweep, "stuck": stuck_sweep}


def sweep_all(folder: Path, chosen: Sequence[str]) -> int:
    """0 when everything ended as it should and nothing is left; the named parts, or all."""
    with ExitStack() as stack:
        lab = open_lab(folder, stack)
        foreign, problems = lab.foreign(), []
        for name in chosen or PARTS:
            began_s = time.monotonic()
            found = PARTS[name](lab)
            problems += found
            sys.stdout.write(f"{name}: {time.monotonic() - began_s:.0f} s, {len(found)} problems\n")
        proof = lab.product.run("leaks")
        sys.stdout.write(proof.out)
        if proof.rc:
            problems.append(f"leaks ends with {proof.rc}: {proof.out}{proof.err}")
        problems += [f"left: {thing}" for thing in lab.left()]
        problems += [f"{vendor} still bills" for vendor in lab.emulators if lab.meter(vendor)]
        if lab.foreign() != foreign:
            problems.append(f"something foreign was touched: {foreign ^ lab.foreign()}")
        lab.report()
        problems += [f"still there: {trace}" for trace in lab.product.remains()]
    for problem in problems:
        sys.stderr.write(f"PROBLEM {problem}\n")
    return 1 if problems else 0


def main() -> int:
    if is_inside():
        return sweep_all(Path(os.environ[INSIDE]), sys.argv[1:])
    if unknown := set(sys.argv[1:]) - set(PARTS):
        sys.stderr.write(f"There is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}.\n")
        return 2
    if why_not := microvm.why_not():
        sys.stderr.write(f"micro-VMs cannot be made here: {why_not}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="tokensweep-lab-") as folder:
        return reenter(Path(folder), hosts(), [sys.executable, "-u", "-m", "tests.lab.all_vendors", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
