"""Creating one server: a chain of four requests, of which only the last costs money.

    group  ──>  firewall and network, at once  ──>  machine (with its address, card and disk)  ──>  timed shutdown

One template deployment would be a single request, but Azure then works through it on its own: a deployment that is
under way cannot be taken back by deleting the group, the template would stay in the deployment history, and it knows
no `If-None-Match`. In the chain every request but the first needs the group, so once the group is deleted nothing can
come to life any more; and whatever the chain dies between, the tagged group is there to be listed and deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceExistsError
from azure.mgmt.resource.resources.models import GenericResource, ResourceGroup

from tasks.clouds.azure import bodies
from tasks.clouds.azure.clients import Clients
from tasks.clouds.azure.errors import AzureCloudError, classify, is_absent, refusal
from tasks.clouds.azure.identity import STAMP_TAG, Place, Stamp, decode_tags, encode_tags, is_ours
from tasks.clouds.azure.quotas import Quotas
from tasks.clouds.azure.skus import Size, Skus
from tasks.clouds.azure.views import group_state
from tasks.clouds.base import INTENT_TAG, Classified, CreateSpec, ErrorKind, Scope

if TYPE_CHECKING:
    from azure.mgmt.compute.models import VirtualMachine

logger = logging.getLogger(__name__)

FORCE_DELETED = "Microsoft.Compute/virtualMachines"  # the only type that takes it: no clean shutdown of the guest

_FALLBACK_GROUP_REGION = "westeurope"
"""Some regions have machines and no groups (brazilsoutheast: LocationNotAvailableForResourceGroup). A group's region
is only where its metadata are."""

_BEING_DELETED = Classified(
    kind=ErrorKind.DELETE_BLOCKED,
    scope=Scope.ZONE,
    may_exist=True,
    code="ResourceGroupBeingDeleted",
    message="its group is being deleted, and what is in it may still be there",
)

_SCHEDULE_API_VERSION = "2018-09-15"
_SHUTDOWN_LEAD_S = 1800.0  # a schedule that is set later than this takes effect on the next day
_DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Creation:
    """network_s: the longest wait for firewall and network, which take seconds. poll_s: between looks at them.

    begun: names of servers of which a group may be there, because this process has asked for it.
    """

    clients: Clients
    skus: Skus
    quotas: Quotas
    now: Callable[[], float]
    sleep: Callable[[float], None]
    network_s: float
    poll_s: float
    begun: set[str] = field(default_factory=set)

    def create(self, spec: CreateSpec) -> VirtualMachine:
        """Returns when Azure has accepted the machine. A second call goes on where the first one ended.

        Where Azure refuses, the group is deleted again before its answer is raised.
        """
        size = self.skus.for_create(spec.server_type, Place.parse(spec.place), spec.arch)
        bodies.image(spec, size)
        given = encode_tags(spec.tags)
        if spec.name not in self.begun:  # else its answer would say of an earlier try that nothing was made
            self.quotas.check(size, spot=spec.spot)
        try:
            tags, is_new = self._group(spec, given)
            vm = None if is_new else self._existing(spec)
            if vm is None:
                vm = self._machine(spec, size, tags)
        except Exception as exc:
            failed = self._undone(spec, exc)
            if failed is exc:
                raise
            raise failed from exc
        self._shut_down_at_deadline(spec, vm)
        self.begun.discard(spec.name)
        return vm

    def _group(self, spec: CreateSpec, tags: dict[str, str]) -> tuple[dict[str, str], bool]:
        """The tags of the group with its stamp, and whether this call made it."""
        groups = self.clients.resources.resource_groups
        try:
            found = groups.get(spec.name)
        except HttpResponseError as exc:
            if not is_absent(exc):
                raise
        else:
            # A PUT would take over somebody else's group, tags and all.
            if not is_ours(found.tags) or decode_tags(found.tags).get(INTENT_TAG) != spec.tags.get(INTENT_TAG):
                raise refusal(
                    ErrorKind.UNSUPPORTED, Scope.ZONE, "GroupNameTaken", f"somebody else has a group {spec.name}"
                )
            if group_state(found) == "Deleting":
                raise AzureCloudError(_BEING_DELETED)
            self.begun.add(spec.name)
            return tags | {STAMP_TAG: str(Stamp.of(found.tags))}, False
        region = Place.parse(spec.place).region
        stamped = tags | {STAMP_TAG: str(Stamp.new(spec.place, self.now()))}
        self.begun.add(spec.name)
        try:
            groups.create_or_update(spec.name, ResourceGroup(location=region, tags=stamped))
        except HttpResponseError as exc:
            if classify(exc).code != "LocationNotAvailableForResourceGroup":
                raise
            groups.create_or_update(spec.name, ResourceGroup(location=_FALLBACK_GROUP_REGION, tags=stamped))
        return stamped, True

    def _existing(self, spec: CreateSpec) -> VirtualMachine | None:
        try:
            vm = self.clients.compute.virtual_machines.get(spec.name, spec.name)
        except HttpResponseError as exc:
            if is_absent(exc):
                return None
            raise
        if decode_tags(vm.tags).get(INTENT_TAG) != spec.tags.get(INTENT_TAG):
            raise refusal(ErrorKind.UNSUPPORTED, Scope.ZONE, "NameTaken", f"somebody else has a machine {spec.name}")
        return vm

    def _machine(self, spec: CreateSpec, size: Size, tags: dict[str, str]) -> VirtualMachine:
        firewall_id, network_id = self._network(spec, tags)
        body = bodies.machine(
            spec, size, tags, subnet_id=f"{network_id}/subnets/{bodies.SUBNET}", firewall_id=firewall_id
        )
        machines = self.clients.compute.virtual_machines
        try:
            vm: VirtualMachine = machines.begin_create_or_update(
                spec.name, spec.name, body, match_condition=MatchConditions.IfMissing, polling=False
            ).result()
        except ResourceExistsError as exc:
            # With If-None-Match this is the first of two equal creates, unless the 409 says something else.
            existing = self._existing(spec) if classify(exc).kind is ErrorKind.EXISTS else None
            if existing is None:
                raise
            return existing
        return vm if vm.vm_id else machines.get(spec.name, spec.name)

    def _network(self, spec: CreateSpec, tags: dict[str, str]) -> tuple[str, str]:
        """Firewall and network, made at the same time and waited for: a machine is refused while they are not ready."""
        api = self.clients.network
        firewall_name, network_name = f"{spec.name}-nsg", f"{spec.name}-net"
        firewall: Any = api.network_security_groups.begin_create_or_update(
            spec.name, firewall_name, bodies.firewall(spec, tags), polling=False
        ).result()
        network: Any = api.virtual_networks.begin_create_or_update(
            spec.name, network_name, bodies.virtual_network(spec, tags), polling=False
        ).result()
        give_up_unix_s = self.now() + self.network_s
        while any(part.provisioning_state != "Succeeded" for part in (firewall, network)):
            if "Failed" in (firewall.provisioning_state, network.provisioning_state):
                raise refusal(
                    ErrorKind.CAPACITY, Scope.REGION, "NetworkFailed", f"the network of {spec.name} could not be made"
                )
            if self.now() > give_up_unix_s:
                raise refusal(
                    ErrorKind.CAPACITY,
                    Scope.REGION,
                    "NetworkTimeout",
                    f"the network of {spec.name} was not ready within {self.network_s:.0f} s",
                )
            self.sleep(self.poll_s)
            if firewall.provisioning_state != "Succeeded":
                firewall = api.network_security_groups.get(spec.name, firewall_name)
            if network.provisioning_state != "Succeeded":
                network = api.virtual_networks.get(spec.name, network_name)
        return str(firewall.id), str(network.id)

    def _undone(self, spec: CreateSpec, exc: Exception) -> Exception:
        """The error to raise; when it says that nothing was made, the group is being deleted, or it says may_exist.

        After throttling the same create is sent again, so the group stays.
        """
        found = classify(exc)
        if found.may_exist or found.kind is ErrorKind.RATE_LIMITED or found.code in ("GroupNameTaken", "NameTaken"):
            return exc
        if spec.name not in self.begun:  # refused at the first look
            return exc
        groups = self.clients.resources.resource_groups
        try:
            if not is_ours(groups.get(spec.name).tags):
                return exc
            groups.begin_delete(spec.name, force_deletion_types=FORCE_DELETED, polling=False)
        except Exception as failure:
            if is_absent(failure):
                return exc
            logger.warning("azure: the group %s of a refused create was not deleted: %s", spec.name, failure)
            return AzureCloudError(replace(found, may_exist=True))
        return exc

    def _shut_down_at_deadline(self, spec: CreateSpec, vm: VirtualMachine) -> None:
        """A second end besides the reaper: Azure's own auto-shutdown, which deallocates and so ends the machine's bill.

        The guest's timer alone would not: a machine that is only powered off is billed in full. The schedule is daily,
        so it is set only where the deadline is its first time; it leaves disk and address. Failure is not the create's.
        https://learn.microsoft.com/azure/virtual-machines/auto-shutdown-vm
        """
        left_s = spec.deadline_unix_s - self.now()
        if not _SHUTDOWN_LEAD_S < left_s < _DAY_S:
            return
        at = datetime.fromtimestamp(spec.deadline_unix_s + 120, UTC)  # the controller and the reaper come first
        vm_id = str(vm.id)
        schedule_id = (
            f"{vm_id.split('/providers/')[0]}/providers/Microsoft.DevTestLab/schedules/shutdown-computevm-{spec.name}"
        )
        schedule = GenericResource(
            location=Place.parse(spec.place).region,
            tags=dict(vm.tags or {}),
            properties={
                "status": "Enabled",
                "taskType": "ComputeVmShutdownTask",
                "dailyRecurrence": {"time": at.strftime("%H%M")},
                "timeZoneId": "UTC",
                "targetResourceId": vm_id,
                "notificationSettings": {"status": "Disabled"},
            },
        )
        resources = self.clients.resources.resources
        try:
            resources.begin_create_or_update_by_id(schedule_id, _SCHEDULE_API_VERSION, schedule, polling=False)
        except Exception as exc:
            logger.warning("azure: %s has no timed shutdown: %s", spec.name, classify(exc).message)
