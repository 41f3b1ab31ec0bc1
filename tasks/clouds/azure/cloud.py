"""The vendor `azure`: create, get, list, delete."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from azure.core.exceptions import HttpResponseError

from tasks.clouds.azure import views
from tasks.clouds.azure.catalog import Catalog
from tasks.clouds.azure.clients import Clients, Connection
from tasks.clouds.azure.creation import FORCE_DELETED, Creation
from tasks.clouds.azure.errors import classify, is_absent
from tasks.clouds.azure.identity import (
    DISK,
    FIREWALL,
    GROUP,
    IP,
    NETWORK,
    NIC,
    SERVER,
    VENDOR,
    CloudId,
    Place,
    is_ours,
    split_arm_id,
)
from tasks.clouds.azure.listing import Inventory
from tasks.clouds.azure.quotas import Quotas
from tasks.clouds.azure.skus import Skus
from tasks.clouds.base import Check, Classified, CreateSpec, Listing, Ref, Resource, ServerType
from tasks.clouds.traits import TRAITS

if TYPE_CHECKING:
    from azure.mgmt.compute.models import VirtualMachine
    from azure.mgmt.network.models import NetworkInterface
    from azure.mgmt.resource.resources.v2025_04_01.models import ResourceGroup

logger = logging.getLogger(__name__)

T = TypeVar("T")


class AzureCloud:
    """Servers in one subscription, each in a resource group of its own, whose deletion takes all of it.

    regions: where the catalog looks and doctor checks; empty for every one that the subscription sees. Listings and
    deletions always reach every region.
    """

    vendor = VENDOR
    traits = TRAITS["azure"]

    def __init__(
        self,
        connection: Connection,
        *,
        regions: Sequence[str] = (),
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        network_s: float = 180.0,
        poll_s: float = 1.0,
    ) -> None:
        self._clients = Clients(connection)
        self._regions = tuple(regions)
        self._now = now
        self._skus = Skus(self._clients)
        self._creation = Creation(
            clients=self._clients,
            skus=self._skus,
            quotas=Quotas(self._clients, now),
            now=now,
            sleep=sleep,
            network_s=network_s,
            poll_s=poll_s,
        )
        self._failures_told: set[str] = set()

    @cached_property
    def _catalog(self) -> Catalog:
        return Catalog(self._clients, self._skus, self._regions, self._now)

    # -- what there is --

    def catalog(self) -> Sequence[ServerType]:
        return self._catalog.read()

    def default_server_types(self) -> Sequence[str]:
        """The cheapest that holds the smallest models on Intel or AMD, its like on Arm, and one a size larger."""
        return ("Standard_B2as_v2", "Standard_D2ps_v6", "Standard_D4as_v5")

    def server_type(self, name: str) -> ServerType:
        return self._catalog.server_type(name)

    def account(self) -> str:
        """The id of the subscription."""
        return self._clients.subscription_id

    # -- servers --

    def create(self, spec: CreateSpec) -> Resource:
        """Returns when Azure has accepted the machine, some seconds after its network; it may still fail to start."""
        vm = self._creation.create(spec)
        return views.server(vm, usd_per_hour=self._price(spec.server_type, Place.parse(spec.place), spec.spot))

    def get(self, ref: Ref) -> Resource | None:
        """A machine that Azure accepted and could not start is "stopped"; the log tells why."""
        wanted = CloudId.parse(ref.cloud_id) if ref.cloud_id else None
        if wanted is not None and wanted.kind not in (SERVER, GROUP):
            return next((r for r in self.list_owned().resources if r.cloud_id == ref.cloud_id), None)
        group_name = wanted.group if wanted else ref.name
        if wanted is not None and wanted.kind == GROUP:
            group = self._group(group_name)
            shown = views.group(group) if group else None
            return shown if shown is not None and shown.cloud_id == ref.cloud_id else None
        vm = self._machine(group_name, wanted.name if wanted else ref.name)
        if vm is None or (wanted is not None and views.server_id(vm) != ref.cloud_id):
            return None
        statuses = (vm.instance_view.statuses if vm.instance_view else None) or ()
        self._tell_failure(vm, views.failure(statuses))
        shown = views.server(vm, statuses=statuses)
        if shown.state == "pending":
            return shown  # by one read: many boot at once, and a subscription has 25 reads a second
        group = self._group(group_name)
        if group is None:
            return None
        shown = views.server(vm, group_state=views.group_state(group), statuses=statuses)
        if shown.state != "running":
            return shown
        return views.server(vm, statuses=statuses, address=self._address(vm))

    def list_owned(self) -> Listing:
        return Inventory(self._clients, self._price).list_owned(self._now())

    def delete(self, ref: Ref) -> None:
        """Deletes the group, where it is ours, and the one resource, where it has strayed into another's group.

        Returns when that is accepted. A machine is not shut down first but cut off.
        """
        wanted = CloudId.parse(ref.cloud_id) if ref.cloud_id else None
        if wanted is None:
            wanted = CloudId(kind=SERVER, group=ref.name, name=ref.name, guid="")
        group = self._group(wanted.group)
        if group is None:
            return
        if wanted.kind == GROUP:
            if is_ours(group.tags) and views.group_id(group) == ref.cloud_id:
                self._delete_group(group)
            return
        found = self._side(wanted) if wanted.kind != SERVER else self._machine(wanted.group, wanted.name)
        if found is not None and wanted.guid and _guid(wanted.kind, found) != wanted.guid:
            return  # another one of this name
        if is_ours(group.tags):
            # Also when the machine is gone already (an evicted one, say) and the rest of what it brought is not.
            self._delete_group(group)
        elif found is not None and is_ours(found.tags):
            self._delete_stray(wanted)

    def classify(self, exc: BaseException) -> Classified:
        return classify(exc)

    def doctor(self) -> list[Check]:
        """Identity, permissions, quotas, images, prices. Creates nothing."""
        from tasks.clouds.azure.doctor import examine

        return examine(self._clients, self._regions, self._now())

    # -- pieces --

    def _price(self, size: str, place: Place, spot: bool) -> Decimal:
        return self._catalog.known_price(size, place, spot=spot)

    def _group(self, name: str) -> ResourceGroup | None:
        return _found(lambda: self._clients.resources.resource_groups.get(name))

    def _machine(self, group: str, name: str) -> VirtualMachine | None:
        return _found(lambda: self._clients.compute.virtual_machines.get(group, name, expand="instanceView"))

    def _address(self, vm: VirtualMachine) -> str:
        """Asked of the card: what Azure calls the address that it makes along with a machine is not documented."""
        cards = (vm.network_profile.network_interfaces if vm.network_profile else None) or ()
        for card in cards:
            group, name = split_arm_id(card.id or "")
            nic = self._card(group, name)
            for configuration in (nic.ip_configurations if nic else None) or ():
                ip = configuration.public_ip_address
                if ip is not None and ip.ip_address:
                    return str(ip.ip_address)
        return ""

    def _card(self, group: str, name: str) -> NetworkInterface | None:
        cards = self._clients.network.network_interfaces
        return _found(lambda: cards.get(group, name, expand="ipConfigurations/publicIPAddress"))

    def _side(self, wanted: CloudId) -> Any | None:
        compute, network = self._clients.compute, self._clients.network
        getters: dict[str, Callable[..., Any]] = {
            DISK: compute.disks.get,
            IP: network.public_ip_addresses.get,
            NIC: network.network_interfaces.get,
            FIREWALL: network.network_security_groups.get,
            NETWORK: network.virtual_networks.get,
        }
        return _found(lambda: getters[wanted.kind](wanted.group, wanted.name))

    def _delete_group(self, group: ResourceGroup) -> None:
        self._clients.resources.resource_groups.begin_delete(
            group.name or "", force_deletion_types=FORCE_DELETED, polling=False
        )

    def _delete_stray(self, wanted: CloudId) -> None:
        compute, network = self._clients.compute, self._clients.network
        if wanted.kind == SERVER:
            compute.virtual_machines.begin_delete(wanted.group, wanted.name, force_deletion=True, polling=False)
            return
        deleters: dict[str, Callable[..., Any]] = {
            DISK: compute.disks.begin_delete,
            IP: network.public_ip_addresses.begin_delete,
            NIC: network.network_interfaces.begin_delete,
            FIREWALL: network.network_security_groups.begin_delete,
            NETWORK: network.virtual_networks.begin_delete,
        }
        deleters[wanted.kind](wanted.group, wanted.name, polling=False)

    def _tell_failure(self, vm: VirtualMachine, failure: str) -> None:
        if failure and vm.id and vm.id not in self._failures_told:
            self._failures_told.add(vm.id)
            logger.warning("azure: %s did not start: %s", vm.name, failure)


def _found(get: Callable[[], T]) -> T | None:
    try:
        return get()
    except HttpResponseError as exc:
        if is_absent(exc):
            return None
        raise


def _guid(kind: str, found: Any) -> str:
    field = {SERVER: "vm_id", DISK: "unique_id"}.get(kind, "resource_guid")
    return (getattr(found, field) or "").lower()
