"""Servers at Hetzner Cloud.

What shapes this module: names are unique in a project, and there is no idempotency token; a server that is powered
off is billed like one that runs; its primary IPv4 is a resource of its own, made along with it; and a create that was
accepted may fail in its action, leaving a server that never runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from hcloud import APIException, Client
from hcloud.actions import ActionFailedException
from hcloud.firewalls import Firewall
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.server_types import ServerType as HetznerServerType
from hcloud.servers import BoundServer, ServerCreatePublicNetwork
from hcloud.ssh_keys import SSHKey

from tasks.clouds.base import (
    INTENT_TAG,
    Check,
    Classified,
    CreateSpec,
    Listing,
    Ref,
    Resource,
    ServerType,
)
from tasks.clouds.guest import user_data
from tasks.clouds.hetzner import errors
from tasks.clouds.hetzner.catalog import Catalog
from tasks.clouds.hetzner.doctor import examine
from tasks.clouds.hetzner.firewall import Firewalls
from tasks.clouds.hetzner.inventory import (
    STATES,
    VENDOR,
    Side,
    list_project,
    server_resource,
    side_resource,
    split_id,
)
from tasks.clouds.hetzner.labels import to_labels, to_tags
from tasks.clouds.traits import TRAITS
from tasks.domain.errors import UnsupportedError

logger = logging.getLogger(__name__)

IMAGE = "ubuntu-24.04"  # by name, Hetzner takes the one of the server type's architecture
_MAY_HAVE_FAILED = ("initializing", "starting", "off")
_STARTING_ACTIONS = ("create_server", "start_server")


class HetznerCloud:
    """Servers in one project.

    client: from `open_client`, so that nothing is sent twice. locations: the only ones to offer; empty for all.
    ssh_keys: names of keys in the project; without one Hetzner mails a root password for every server (it opens
    nothing: logging in by password and as root is off).
    """

    vendor = VENDOR
    traits = TRAITS["hetzner"]

    def __init__(
        self,
        client: Client,
        *,
        locations: Sequence[str] = (),
        ssh_keys: Sequence[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._catalog = Catalog(client, locations, now)
        self._firewalls = Firewalls(client, now)
        self._ssh_keys = tuple(ssh_keys)
        self._now = now

    # -- what there is --

    def catalog(self) -> Sequence[ServerType]:
        return self._catalog.server_types()

    def server_type(self, name: str) -> ServerType:
        """Without places when it is sold out or withdrawn everywhere."""
        return self._catalog.server_type(name)

    def default_server_types(self) -> Sequence[str]:
        """The cheapest of each architecture, with shared and with dedicated CPUs."""
        return self._catalog.default_names()

    # -- servers --

    def create(self, spec: CreateSpec) -> Resource:
        """Raises what the SDK raises, NotSentError when it did not come to sending, ConfigError for tags that cannot
        be, UnsupportedError for what Hetzner does not sell (spot, GPUs, a disk larger than the type's)."""
        self._check(spec)
        labels = to_labels(spec.tags)
        try:
            server = self._send(spec, labels)
        except APIException as exc:
            if not errors.is_code(exc, errors.UNIQUENESS):
                raise
            found = self._client.servers.get_by_name(spec.name)
            if found is None or to_tags(found.labels).get(INTENT_TAG) != spec.intent_id:
                raise  # the name is somebody else's, or the first create's server is not visible yet
            server = found
        self._bind_ips(server)
        return server_resource(server)

    def _check(self, spec: CreateSpec) -> None:
        if spec.spot or spec.gpus:
            wanted = "spot servers" if spec.spot else "GPUs"
            raise UnsupportedError(f"hetzner: {spec.server_type}: Hetzner Cloud has no {wanted}.")
        disk_bytes = self._catalog.disk_bytes(spec.server_type)
        if disk_bytes is not None and spec.disk_bytes > disk_bytes:
            raise UnsupportedError(
                f"hetzner: {spec.server_type} has a disk of {disk_bytes / 1e9:.0f} GB, and "
                f"{spec.disk_bytes / 1e9:.0f} GB are needed.",
                reason="disk_too_small",
                next_step="Leave out the largest models for it, or take a larger type.",
            )

    def _send(self, spec: CreateSpec, labels: dict[str, str]) -> BoundServer:
        """A firewall that has gone since it was looked at is a refusal like any other: nothing was made."""
        try:
            return self._send_behind(self._firewall(spec), spec, labels)
        except APIException as exc:
            if exc.code not in errors.NOT_FOUND_CODES:
                raise
        self._firewalls.forget()
        return self._send_behind(self._firewall(spec), spec, labels)

    def _firewall(self, spec: CreateSpec) -> Firewall:
        try:
            return self._firewalls.ensure(spec.ssh_sources)
        except Exception as exc:
            raise errors.NotSentError(f"nothing was sent: {exc}") from exc

    def _send_behind(self, firewall: Firewall, spec: CreateSpec, labels: dict[str, str]) -> BoundServer:
        answer = self._client.servers.create(
            name=spec.name,
            server_type=HetznerServerType(name=spec.server_type),
            image=Image(name=IMAGE),
            location=Location(name=spec.place),
            firewalls=[firewall],
            ssh_keys=[SSHKey(name=name) for name in self._ssh_keys] or None,
            user_data=user_data(spec),
            labels=labels,
            # One address is enough to be reached at; IPv6 would be one thing more to look after.
            public_net=ServerCreatePublicNetwork(enable_ipv4=True, enable_ipv6=False),
        )
        if answer.action.status == "error":
            raise ActionFailedException(answer.action)
        return answer.server

    def _bind_ips(self, server: BoundServer) -> None:
        """Make the server's addresses go with it, and bear its labels should they not.

        Whether those made along with a server go with it is not documented. A failure is no reason to fail the
        create: the listing finds them by their server, and `delete` binds them again before it deletes.
        """
        net = server.public_net
        for ip in (net.primary_ipv4, net.primary_ipv6) if net is not None else ():
            if ip is None:
                continue
            try:
                self._client.primary_ips.update(ip, auto_delete=True, labels=dict(server.labels or {}))
            except Exception as exc:
                logger.warning("hetzner: the address of %s is not bound to it: %s", server.name, errors.classify(exc))

    def get(self, ref: Ref) -> Resource | None:
        side, number = split_id(ref.cloud_id) if ref.cloud_id else (None, 0)
        if side is not None:
            model = self._get_side(side, number)
            return None if model is None else side_resource(side, model)
        server = self._get_server(ref, number)
        return None if server is None else server_resource(server, state=self._state(server))

    def _get_server(self, ref: Ref, number: int) -> BoundServer | None:
        if not number:
            return self._client.servers.get_by_name(ref.name)
        try:
            return self._client.servers.get_by_id(number)
        except APIException as exc:
            if errors.is_code(exc, errors.NOT_FOUND):
                return None
            raise

    def _get_side(self, side: Side, number: int) -> Any | None:
        try:
            return getattr(self._client, side.attribute).get_by_id(number)
        except APIException as exc:
            if errors.is_code(exc, errors.NOT_FOUND):
                return None
            raise

    def _state(self, server: BoundServer) -> str:
        """A server that does not run yet may never do so: then its create or start has failed."""
        state = STATES.get(str(server.status), "pending")
        if server.status not in _MAY_HAVE_FAILED:
            return state
        actions = self._client.servers.get_actions_list(server, status=["running", "error"]).actions
        starting = {action.status for action in actions if action.command in _STARTING_ACTIONS}
        if "error" in starting:
            return "stopped"
        return "pending" if starting else state

    def list_owned(self) -> Listing:
        return list_project(self._client, self._now)

    def delete(self, ref: Ref) -> None:
        """By id alone: Hetzner never uses one again, whoever takes the name. By name only what bears our intent."""
        side, number = split_id(ref.cloud_id) if ref.cloud_id else (None, 0)
        if side is not None:
            self._delete_side(side, number)
            return
        server = self._get_server(ref, number)
        if server is None or server.status == "deleting":
            return
        if not number and INTENT_TAG not in to_tags(server.labels):
            return
        self._bind_ips(server)
        self._quietly_gone(lambda: self._client.servers.delete(server))

    def _delete_side(self, side: Side, number: int) -> None:
        model = self._get_side(side, number)
        if model is None:
            return
        resource_client = getattr(self._client, side.attribute)
        if side.path == "volume" and model.server is not None:
            self._quietly_gone(lambda: resource_client.detach(model))
        self._quietly_gone(lambda: resource_client.delete(model))

    @staticmethod
    def _quietly_gone(send: Callable[[], object]) -> None:
        try:
            send()
        except APIException as exc:
            if not errors.is_code(exc, errors.NOT_FOUND):
                raise

    # -- what is wrong --

    def classify(self, exc: BaseException) -> Classified:
        return errors.classify(exc)

    def doctor(self) -> Sequence[Check]:
        """Looks at credentials, permissions, images and leftovers; creates and deletes nothing."""
        return examine(self._client, IMAGE)
