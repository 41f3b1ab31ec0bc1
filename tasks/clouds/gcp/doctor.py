"""What a sweep at Google needs, looked at without making anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from google.api_core.exceptions import NotFound
from google.cloud import compute_v1

from tasks.clouds.base import Check, ErrorKind
from tasks.clouds.gcp.clients import BILLING, RESOURCE_MANAGER, Clients
from tasks.clouds.gcp.errors import classify
from tasks.clouds.gcp.firewall import ALLOW_RULE, DENY_RULE
from tasks.clouds.gcp.instance import MIN_DISK_GIB, MIN_DISK_WITH_GPU_GIB, UBUNTU, UBUNTU_WITH_GPU_DRIVER
from tasks.clouds.gcp.prices import COMPUTE_ENGINE
from tasks.clouds.gcp.resources import last_segment

REAPER_PERMISSIONS = (
    "compute.addresses.delete",
    "compute.addresses.get",
    "compute.addresses.list",
    "compute.disks.delete",
    "compute.disks.get",
    "compute.disks.list",
    "compute.globalAddresses.delete",
    "compute.globalAddresses.get",
    "compute.globalAddresses.list",
    "compute.instances.delete",
    "compute.instances.get",
    "compute.instances.list",
    "compute.snapshots.delete",
    "compute.snapshots.get",
    "compute.snapshots.list",
    "compute.zoneOperations.list",
)
CONTROLLER_PERMISSIONS = (
    *REAPER_PERMISSIONS,
    "compute.acceleratorTypes.list",
    "compute.disks.create",
    "compute.disks.setLabels",
    "compute.firewalls.create",
    "compute.firewalls.get",
    "compute.instances.create",
    "compute.instances.setLabels",
    "compute.instances.setMetadata",
    "compute.instances.setTags",
    "compute.machineTypes.list",
    "compute.networks.get",
    "compute.networks.updatePolicy",
    "compute.projects.get",
    "compute.regions.list",
    "compute.subnetworks.use",
    "compute.subnetworks.useExternalIp",
    "compute.zoneOperations.get",
)
"""The same as in deployments/policies/gcp-controller.yaml."""

_POLICY = "deployments/policies/gcp-controller.yaml"


def checks(clients: Clients, project: str, regions: Sequence[str], network: str) -> list[Check]:
    """Each part by itself: one that cannot be looked at does not hide the others."""
    parts: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("gcp project", lambda: _project(clients, project)),
        ("gcp permissions", lambda: _permissions(clients, project)),
        ("gcp quotas", lambda: _quotas(clients, project, regions)),
        ("gcp images", lambda: _images(clients)),
        ("gcp network", lambda: _network(clients, project, network)),
        ("gcp prices", lambda: _prices(clients)),
    ]
    return [check for name, look in parts for check in _guarded(name, look)]


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(look())
    except Exception as exc:
        found = classify(exc)
        refused = found.kind in (ErrorKind.AUTH, ErrorKind.NOT_FOUND, ErrorKind.UNSUPPORTED)
        return [
            Check(
                name=name,
                ok=False if refused else None,
                detail=f"{found.code}: {found.message}",
                next_step=_next_step(found.kind),
            )
        ]


def _next_step(kind: ErrorKind) -> str:
    if kind is ErrorKind.AUTH:
        return f"Check the credentials, TOKENSWEEP_GCP_PROJECT, and that the role of {_POLICY} is granted."
    return "Try again; if it stays so, see whether the service is reachable from here."


def _project(clients: Clients, project: str) -> Iterator[Check]:
    found = clients.projects.get(project=project, **clients.call)
    yield Check(name="gcp project", ok=True, detail=f"{found.name}: the credentials are taken, the Compute API is on")
    for quota in found.quotas:
        if quota.metric in ("CPUS_ALL_REGIONS", "GPUS_ALL_REGIONS"):
            none_left = quota.usage >= quota.limit
            what = "GPU servers" if quota.metric.startswith("GPUS") else "servers"
            yield Check(
                name=f"gcp quota {quota.metric}",
                ok=None if none_left else True,
                detail=f"{quota.usage:.0f} of {quota.limit:.0f} in use",
                next_step=f"No {what} can be made: ask for more under IAM & Admin, Quotas." if none_left else "",
            )


def _permissions(clients: Clients, project: str) -> Iterator[Check]:
    answer = clients.request(
        "POST",
        RESOURCE_MANAGER,
        f"/v3/projects/{project}:testIamPermissions",
        json={"permissions": list(CONTROLLER_PERMISSIONS)},
    )
    missing = sorted(set(CONTROLLER_PERMISSIONS) - set(answer.get("permissions", ())))
    yield Check(
        name="gcp permissions",
        ok=not missing,
        detail=f"missing: {', '.join(missing)}" if missing else f"all {len(CONTROLLER_PERMISSIONS)} that it takes",
        next_step=f"Grant the role of {_POLICY}." if missing else "",
    )


def _quotas(clients: Clients, project: str, regions: Sequence[str]) -> Iterator[Check]:
    left: list[str] = []
    used_up: list[str] = []
    request = compute_v1.ListRegionsRequest(project=project)
    for region in clients.regions.list(request=request, **clients.call):
        for quota in region.quotas:
            if quota.metric == "CPUS" and (not regions or region.name in regions):
                (left if quota.usage < quota.limit else used_up).append(
                    f"{region.name} {quota.limit - quota.usage:.0f}"
                )
    yield Check(
        name="gcp quotas",
        ok=bool(left),
        detail=f"vCPUs left: {', '.join(sorted(left)) or 'none'}; regions without any: {len(used_up)}",
        next_step="" if left else "Ask for more CPUS under IAM & Admin, Quotas.",
    )


def _images(clients: Clients) -> Iterator[Check]:
    for url in (*UBUNTU.values(), *UBUNTU_WITH_GPU_DRIVER.values()):
        _, project, *_, family = url.split("/")
        found = clients.images.get_from_family(project=project, family=family, **clients.call)
        least_gib = MIN_DISK_WITH_GPU_GIB if url in UBUNTU_WITH_GPU_DRIVER.values() else MIN_DISK_GIB
        fits = found.disk_size_gb <= least_gib
        yield Check(
            name=f"gcp image {family}",
            ok=fits,
            detail=f"{found.name}, {found.disk_size_gb} GiB",
            next_step="" if fits else f"It does not fit on disks of {least_gib} GiB: ask for disks that hold it.",
        )


def _network(clients: Clients, project: str, network: str) -> Iterator[Check]:
    clients.networks.get(project=project, network=network, **clients.call)
    rules = []
    for name in (ALLOW_RULE, DENY_RULE):
        try:
            clients.firewalls.get(project=project, firewall=name, **clients.call)
            rules.append(f"{name} is there")
        except NotFound:
            rules.append(f"{name} is made with the first server")
    yield Check(name="gcp network", ok=True, detail=f"{last_segment(network)}; {', '.join(rules)}")


def _prices(clients: Clients) -> Iterator[Check]:
    answer = clients.request("GET", BILLING, f"/v1/{COMPUTE_ENGINE}/skus", params={"pageSize": "1"})
    yield Check(name="gcp prices", ok=bool(answer.get("skus")), detail="the Cloud Billing Catalog answers")
