"""Everything of ours in the subscription.

Azure lists a whole subscription at once, every region in one answer, so there is no region to forget. The anchor is
the group: groups are kept by Azure Resource Manager itself, not by the regions, so a region that does not answer may
hide a machine but never the group that it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tasks.clouds.azure import views
from tasks.clouds.azure.clients import Clients, each_page_until_error, pool
from tasks.clouds.azure.errors import classify
from tasks.clouds.azure.identity import DISK, FIREWALL, IP, NETWORK, NIC, VENDOR, Place, Stamp, is_ours, split_arm_id
from tasks.clouds.base import Listing, Resource

if TYPE_CHECKING:
    from azure.mgmt.resource.resources.v2025_04_01.models import ResourceGroup

EVERY_REGION = "every region"

_SIDES: dict[str, tuple[str, str]] = {
    "disks": (DISK, "unique_id"),
    "public IP addresses": (IP, "resource_guid"),
    "network cards": (NIC, "resource_guid"),
    "firewalls": (FIREWALL, "resource_guid"),
    "networks": (NETWORK, "resource_guid"),
}


@dataclass(frozen=True)
class Inventory:
    """price: what a size costs per hour in a place, on spot or not; 0 where it is not known."""

    clients: Clients
    price: Callable[[str, Place, bool], Decimal]

    def list_owned(self, read_unix_s: float) -> Listing:
        calls = self._calls()
        with pool(len(calls)) as threads:
            answers = dict(
                zip(calls, threads.map(lambda call: list(each_page_until_error(call())), calls.values()), strict=True)
            )
        problems = [
            f"{name}: {classify(item).message}"
            for name, items in answers.items()
            for item in items
            if isinstance(item, Exception)
        ]
        read = {name: [i for i in items if not isinstance(i, Exception)] for name, items in answers.items()}
        groups = {(g.name or "").lower(): g for g in read.pop("groups") if is_ours(g.tags)}
        resources = [views.group(g) for g in groups.values()]
        resources += self._servers(read.pop("machines"), read.pop("states of machines"), groups)
        for name, found in read.items():
            kind, guid_field = _SIDES[name]
            resources += _ours(kind, guid_field, found, groups)
        return Listing(
            vendor=VENDOR,
            resources=tuple(resources),
            complete=not problems,
            read_unix_s=read_unix_s,
            places=(EVERY_REGION,),
            problems=tuple(problems),
        )

    def _calls(self) -> dict[str, Callable[[], Iterable[Any]]]:
        compute, network = self.clients.compute, self.clients.network
        return {
            "groups": self.clients.resources.resource_groups.list,
            "machines": compute.virtual_machines.list_all,
            # The same machines with their power, and without their tags.
            "states of machines": lambda: compute.virtual_machines.list_all(status_only="true"),
            "disks": compute.disks.list,
            "public IP addresses": network.public_ip_addresses.list_all,
            "network cards": network.network_interfaces.list_all,
            "firewalls": network.network_security_groups.list_all,
            "networks": network.virtual_networks.list_all,
        }

    def _servers(self, machines: list[Any], states: list[Any], groups: dict[str, ResourceGroup]) -> list[Resource]:
        views_by_id = {(vm.id or "").lower(): vm.instance_view for vm in states}
        shown = []
        for vm in machines:
            group = groups.get(split_arm_id(vm.id or "")[0].lower())
            if group is None and not is_ours(vm.tags):
                continue
            if not is_ours(vm.tags) and group is not None:
                vm.tags = group.tags
            view = views_by_id.get((vm.id or "").lower())
            place, size = Place.of(vm.location, vm.zones), vm.hardware_profile.vm_size if vm.hardware_profile else ""
            shown.append(
                views.server(
                    vm,
                    group_state=views.group_state(group) if group else "",
                    statuses=view.statuses if view else None,
                    usd_per_hour=self.price(size or "", place, vm.priority == "Spot"),
                )
            )
        return shown


def _ours(kind: str, guid_field: str, found: list[Any], groups: dict[str, ResourceGroup]) -> list[Resource]:
    """Tagged as ours, or in a group of ours: what Azure makes along with a machine need not bear its tags."""
    shown = []
    for item in found:
        group = groups.get(split_arm_id(item.id or "")[0].lower())
        own_tags = item.tags or {}
        if is_ours(own_tags):
            tags = own_tags if Stamp.of(own_tags).created_unix_s or group is None else (group.tags or {}) | own_tags
        elif group is not None:
            tags = group.tags or {}
        else:
            continue
        shown.append(views.side(kind, item, guid=getattr(item, guid_field), group=group, tags=tags))
    return shown
