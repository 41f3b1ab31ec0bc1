"""EC2 of one region: moto's backend, made honest where it is kinder than EC2.

moto keeps images, networks, groups, disks, tags and their filters. Here are: tokens that make a launch idempotent,
launches that take time, fail afterwards or run out of stock and quota, spot requests, terminations that take time and
stay visible for an hour, guests that switch themselves off, listings that are behind, tags of interfaces.
"""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

from moto.ec2 import urls
from moto.ec2.exceptions import EC2ClientError, InvalidInstanceIdError
from moto.ec2.models import ec2_backends
from moto.ec2.models.availability_zones_and_regions import Region
from moto.ec2.models.instances import Instance, InstanceState, Reservation, StateReason
from moto.ec2.utils import generic_filter

from tests.emulators import aws_prices
from tests.emulators.aws_rules import Rules
from tests.emulators.aws_state import ACCOUNTS, STATE_CODES, Launched, Launches, Life, SpotRequest
from tests.emulators.base import Guest

TERMINATED_VISIBLE_S = 3600.0


class Backend(Rules):
    def __init__(self, region_name: str, account_id: str) -> None:
        self.account = ACCOUNTS.get(account_id)
        self.launches = Launches()
        self.born: dict[str, float] = {}
        super().__init__(region_name, account_id)
        if self.account is not None:
            self.regions = [Region(r, f"ec2.{r}.amazonaws.com", "opt-in-not-required") for r in self.account.regions]

    @property
    def _url_module(self) -> Any:
        return urls

    # -- launching

    def run_instances(
        self, image_id: str, count: int, user_data: Any, security_group_names: list[str], **kwargs: Any
    ) -> Reservation:
        account = self.account
        assert account is not None and count == 1
        request = {k: v for k, v in account.request.items() if k not in ("ClientToken", "DryRun")}
        fingerprint = json.dumps(request, sort_keys=True, default=lambda blob: base64.b64encode(blob).decode())
        token = account.request.get("ClientToken", "")
        if token and token in self.launches.by_token:
            earlier = self.launches.by_token[token]
            if earlier.request != fingerprint:
                raise EC2ClientError(
                    "IdempotentParameterMismatch",
                    "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
                )
            return earlier.reservation
        zone = self._zone(request)
        self._check_launch(request, zone)
        self._take_stock(request, zone)
        kwargs["block_device_mappings"] = self._all_devices(request, kwargs.get("block_device_mappings") or [])
        made = super().run_instances(image_id, count, user_data, security_group_names, **kwargs)
        self._launched(made.instances[0], request, kwargs.get("tags") or {})
        if token:
            self.launches.by_token[token] = Launched(fingerprint, made)
        return made

    def _launched(self, instance: Instance, request: dict[str, Any], tags: dict[str, dict[str, str]]) -> None:
        account = self.account
        assert account is not None
        now_unix_s, now = account.now(), self.time()
        spot = "InstanceMarketOptions" in request
        instance.launch_time = now
        price = aws_prices.spot if spot else lambda name, zone: aws_prices.regional(name, zone[:-1])
        life = Life(
            instance,
            price(instance.instance_type, str(instance.availability_zone)),
            [(now_unix_s, "pending")],
            doomed=account.die_after_accept > 0,
        )
        account.die_after_accept = max(0, account.die_after_accept - 1)
        self.launches.lives[instance.id] = life
        self.born[instance.id] = now_unix_s
        asked = {nic.get("DeviceIndex"): nic for nic in request.get("NetworkInterfaces") or ()}
        for index, nic in instance.nics.items():
            nic.delete_on_termination = asked.get(index, {}).get("DeleteOnTermination", True)
            nic.add_tags(tags.get("network-interface", {}))
            nic.public_ip, nic.attach_time = None, now
            self.born[nic.id] = now_unix_s
        mappings = {m["DeviceName"]: m.get("Ebs", {}) for m in request.get("BlockDeviceMappings") or ()}
        for name, device in instance.get_block_device_mapping:
            self.volumes[device.volume_id].create_time = now
            self.volumes[device.volume_id].throughput = mappings.get(name, {}).get("Throughput", 125)
            self.born[device.volume_id] = now_unix_s
        if spot:
            made = SpotRequest(self, instance, now)
            made.add_tags(tags.get("spot-instances-request", {}))
            self.spot_instance_requests[made.id] = made
            instance.spot_instance_request_id = made.id
            self.born[made.id] = now_unix_s
        self._show(life, "pending")
        types = self.described(instance.instance_type)
        document = base64.b64decode(request.get("UserData") or "").decode()
        account.machines.start(
            Guest(
                cloud_id=instance.id,
                name=next((t["value"] for t in instance.get_tags() if t["key"] == "Name"), instance.id),
                user_data=document,
                vcpus=types["VCpuInfo"]["DefaultVCpus"],
                memory_bytes=types["MemoryInfo"]["SizeInMiB"] * 2**20,
            )
        )

    # -- time

    def advance(self) -> None:
        """Everything that has happened by now."""
        for life in list(self.launches.lives.values()):
            self._advance(life)
            self._show(life, life.state)

    def _advance(self, life: Life) -> None:
        account, instance = self.account, life.instance
        assert account is not None
        now_unix_s = account.now()
        if life.state == "pending" and now_unix_s >= life.since_unix_s + account.boot_s:
            address = account.machines.address(instance.id)
            if life.doomed:
                self._begin_end(life, "Server.InsufficientInstanceCapacity", "Insufficient capacity.")
            elif address:
                life.states.append((now_unix_s, "running"))
                life.address = instance.nics[0].public_ip = address
        elif life.state == "running" and not account.machines.address(instance.id):
            # The guest has switched itself off.
            if instance.instance_initiated_shutdown_behavior == "terminate":
                self._begin_end(life, "Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
            else:
                life.states.append((now_unix_s, "stopped"))
                instance.nics[0].public_ip = None
        if life.state == "shutting-down":
            stuck = account.stuck_all or instance.id in account.stuck
            if not stuck and now_unix_s >= life.since_unix_s + account.delete_s:
                self._end(life)
        elif life.state == "terminated" and now_unix_s >= life.since_unix_s + TERMINATED_VISIBLE_S:
            self._forget(life)

    def _forget(self, life: Life) -> None:
        """What no API shows any more. Only its token is still known."""
        for key, reservation in list(self.reservations.items()):
            if life.instance in reservation.instances:
                del self.reservations[key]
        closed = [r.id for r in self.spot_instance_requests.values() if r.instance is life.instance]
        for request_id in closed:
            del self.spot_instance_requests[request_id]
        del self.launches.lives[life.instance.id]
        known = {*self.launches.lives, *self.volumes, *self.enis, *self.spot_instance_requests}
        for resource_id in [i for i in self.born if i not in known]:
            del self.born[resource_id]
            self.tags.pop(resource_id, None)

    def _begin_end(self, life: Life, code: str, message: str) -> None:
        assert self.account is not None
        life.states.append((self.account.now(), "shutting-down"))
        life.instance.state_reason = StateReason(f"{code}: {message}", code)
        self.account.machines.stop(life.instance.id)

    def _end(self, life: Life) -> None:
        """moto's own termination: disks and interfaces that are marked for it go, the others stay behind."""
        assert self.account is not None
        reason = life.instance.state_reason
        kept = [nic for nic in life.instance.nics.values() if not nic.delete_on_termination]
        life.instance.terminate()
        for nic in kept:
            life.instance.detach_eni(nic)
        life.instance.state_reason = reason
        for address in self.addresses:
            if address.instance is life.instance and address.association_id:
                self.disassociate_address(association_id=address.association_id)
        life.states.append((self.account.now(), "terminated"))
        for request in self.spot_instance_requests.values():
            if request.instance is life.instance and request.state == "active":
                request.state = "closed"

    def interrupt(self, instance_id: str) -> None:
        """AWS takes a spot instance back."""
        self._begin_end(self.launches.lives[instance_id], "Server.SpotInstanceTermination", "Spot interruption")

    def terminate_instances(self, instance_ids: list[str]) -> list[tuple[Instance, InstanceState]]:
        found = self.get_multi_instances_by_id(instance_ids)
        for instance in found:
            if instance.disable_api_termination:
                raise EC2ClientError(
                    "OperationNotPermitted",
                    f"The instance '{instance.id}' may not be terminated: 'disableApiTermination' is set.",
                )
        answers = []
        for instance in found:
            life = self.launches.lives[instance.id]
            answers.append((instance, InstanceState(life.state, STATE_CODES[life.state])))
            if life.state not in ("shutting-down", "terminated"):
                self._begin_end(life, "Client.UserInitiatedShutdown", "User initiated shutdown")
            self._advance(life)
        return answers

    # -- what listings show

    def _show(self, life: Life, state: str) -> None:
        life.instance._state = InstanceState(state, STATE_CODES[state])
        nics = life.instance.nics
        if 0 in nics:
            nics[0].public_ip = life.address if state in ("running", "shutting-down") else None

    def _visible(self, resource_id: str) -> bool:
        account = self.account
        if account is None or not account.answering.startswith(("Describe", "Terminate")):
            return True
        return account.now() >= self.born.get(resource_id, 0.0) + account.lag_s

    def all_reservations(self, filters: Any = None) -> list[Reservation]:
        account = self.account
        shown = []
        for reservation in list(self.reservations.values()):
            copied = copy.copy(reservation)
            copied.instances = [instance for instance in reservation.instances if self._visible(instance.id)]
            for instance in copied.instances:
                life = self.launches.lives.get(instance.id)
                if life is not None and account is not None and account.answering.startswith("Describe"):
                    self._show(life, life.shown(account.now() - account.lag_s) or life.state)
            if copied.instances:
                shown.append(copied)
        self.reservations, real = {r.id: r for r in shown}, self.reservations
        try:
            wanted = dict(filters or {})
            tokens, zones = wanted.pop("client-token", None), wanted.pop("availability-zone", None)
            found = super().all_reservations(wanted or None)
        finally:
            self.reservations = real
        for reservation in found:
            reservation.instances = [
                i
                for i in reservation.instances
                if (tokens is None or i.client_token in tokens) and (zones is None or i.availability_zone in zones)
            ]
        return [reservation for reservation in found if reservation.instances]

    def get_multi_instances_by_id(self, instance_ids: list[str], filters: Any = None) -> list[Instance]:
        shown = {i.id: i for reservation in self.all_reservations() for i in reservation.instances}
        missing = [i for i in instance_ids if i not in shown]
        if missing:
            raise InvalidInstanceIdError(missing)
        return [shown[i] for i in instance_ids]

    def describe_volumes(self, volume_ids: Any = None, filters: Any = None) -> list[Any]:
        return [v for v in super().describe_volumes(volume_ids, filters) if self._visible(v.id)]

    def get_all_network_interfaces(self, eni_ids: Any = None, filters: Any = None) -> list[Any]:
        return [e for e in super().get_all_network_interfaces(eni_ids, filters) if self._visible(e.id)]

    def delete_network_interface(self, eni_id: str) -> None:
        nic = self.enis.get(eni_id)
        called = self.account is not None and self.account.answering == "DeleteNetworkInterface"
        if called and nic is not None and nic.attachment_id:
            raise EC2ClientError(
                "InvalidParameterValue" if nic.instance is None else "InvalidNetworkInterface.InUse",
                f"Network interface '{eni_id}' is currently in use.",
            )
        super().delete_network_interface(eni_id)

    def release_address(self, address: Any = None, allocation_id: Any = None) -> None:
        for known in self.addresses:
            if known.allocation_id == allocation_id and known.association_id:
                raise EC2ClientError("InvalidIPAddress.InUse", f"Address {known.public_ip} is in use.")
        super().release_address(address, allocation_id)

    def describe_spot_instance_requests(self, filters: Any = None, spot_instance_ids: Any = None) -> list[Any]:
        found = [r for r in self.spot_instance_requests.values() if self._visible(r.id)]
        wanted = [r for r in found if not spot_instance_ids or r.id in spot_instance_ids]
        return generic_filter(filters, wanted)

    def cancel_spot_instance_requests(self, request_ids: list[str]) -> list[Any]:
        """A request that is cancelled leaves its instance running."""
        missing = [r for r in request_ids if r not in self.spot_instance_requests]
        if missing:
            raise EC2ClientError("InvalidSpotInstanceRequestID.NotFound", f"{missing} does not exist")
        found = [self.spot_instance_requests[r] for r in request_ids]
        for request in found:
            request.state = "cancelled"
        return found


ec2_backends.backend = Backend
