"""Servers at UpCloud.

What shapes this module: nothing is unique and there is no idempotency token, so a create whose answer is lost can only
be looked for by its labels; a server has to be stopped before it can be deleted; and its storages and their backups
stay, and bill, unless the delete says otherwise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from upcloud_api import CloudManager, Label, Server, Storage, UpCloudAPIError, login_user_block
from upcloud_api.storage import BackupDeletionPolicy

from tasks.clouds.base import Check, Classified, CreateSpec, Listing, Ref, Resource, ServerType
from tasks.clouds.guest import user_data
from tasks.clouds.traits import TRAITS
from tasks.clouds.upcloud import errors
from tasks.clouds.upcloud.catalog import Catalog
from tasks.clouds.upcloud.doctor import examine
from tasks.clouds.upcloud.guest_firewall import with_firewall
from tasks.clouds.upcloud.images import find_template
from tasks.clouds.upcloud.inventory import (
    STORAGE,
    VENDOR,
    addresses_of,
    ip_resource,
    is_bound,
    list_account,
    server_resource,
    servers_named,
    storage_resource,
)
from tasks.clouds.upcloud.labels import to_labels
from tasks.domain.errors import UnsupportedError

_GIB = 2**30
_SMALLEST_DISK_GIB = 10


class UpCloud:
    """Servers in one account.

    manager: from `open_manager`. zones: the only ones to offer; empty for all. currency: of the account, where its
    credentials may not read that; empty to ask.
    """

    vendor = VENDOR
    traits = TRAITS["upcloud"]

    def __init__(
        self,
        manager: CloudManager,
        *,
        zones: Sequence[str] = (),
        currency: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._manager = manager
        self._catalog = Catalog(manager, zones, currency, now)
        self._currency = currency
        self._now = now
        self._templates: dict[bool, dict[str, Any]] = {}

    # -- what there is --

    def catalog(self) -> Sequence[ServerType]:
        return self._catalog.server_types()

    def server_type(self, name: str) -> ServerType:
        return self._catalog.server_type(name)

    def default_server_types(self) -> Sequence[str]:
        """The cheapest plan of each family without a GPU."""
        return self._catalog.default_names()

    # -- servers --

    def create(self, spec: CreateSpec) -> Resource:
        """Sent once, whatever happens: a second call makes a second server, so look for the first by its label.

        Raises what the SDK raises, NotSentError when it did not come to sending, ConfigError for tags or networks
        that cannot be, UnsupportedError for what UpCloud does not sell.
        """
        if spec.spot or spec.arch != "x86_64":
            wanted = "spot servers (some plans are: name one)" if spec.spot else f"servers with {spec.arch}"
            raise UnsupportedError(f"upcloud: {spec.server_type}: there are no {wanted}.")
        labels = [Label(key, value) for key, value in to_labels(spec.tags, self._now()).items()]
        guest_data = with_firewall(user_data(spec), spec.ssh_sources)
        try:
            plan = self._catalog.plan(spec.server_type)
            template = self._template(gpus=spec.gpus)
        except Exception as exc:
            raise errors.NotSentError(f"nothing was sent: {exc}") from exc
        disk = Storage(
            os=str(template["uuid"]),
            size=_disk_gib(spec, plan, template),
            tier=plan.get("storage_tier") or "maxiops",
            title=f"{spec.name} disk",
            labels=labels,
        )
        made = self._manager.create_server(
            Server(
                plan=spec.server_type,
                zone=spec.place,
                hostname=spec.name,
                title=spec.name,
                labels=labels,
                storage_devices=[disk],
                # One public address; the default would add IPv6 and a private network.
                networking=[{"type": "public", "ip_addresses": {"ip_address": [{"family": "IPv4"}]}}],
                metadata=True,  # without it cloud-init reads no user data
                user_data=guest_data,
                login_user=login_user_block(username=None, ssh_keys=[spec.client_public_key]),
                simple_backup="no",
                firewall="off",  # stateless, slow and billed: the guest has its own
            )
        )
        return server_resource(vars(made))

    def _template(self, *, gpus: int) -> dict[str, Any]:
        wanted = gpus > 0
        if wanted not in self._templates:
            self._templates[wanted] = find_template(self._manager, gpus=gpus)
        return self._templates[wanted]

    def get(self, ref: Ref) -> Resource | None:
        kind, _, rest = ref.cloud_id.rpartition("/")
        if kind == STORAGE:
            storage = self._read(f"/storage/{rest}", "storage")
            return None if storage is None else storage_resource(storage)
        if kind:
            return self._get_ip(ref)
        uuid = rest or next((str(server["uuid"]) for server in servers_named(self._manager, ref.name)), "")
        server = self._read(f"/server/{uuid}", "server") if uuid else None
        return None if server is None else server_resource(server)

    def _get_ip(self, ref: Ref) -> Resource | None:
        """Only while it is of the server that it was of: the address itself is soon somebody else's."""
        _, owner, address = ref.cloud_id.split("/")
        ip = self._read(f"/ip_address/{address}", "ip_address")
        if ip is None or ip.get("server") != owner:
            return None
        server = self._read(f"/server/{owner}", "server") or {}
        return ip_resource(ip, server)

    def _read(self, path: str, key: str) -> dict[str, Any] | None:
        try:
            found = self._manager.api.get_request(path)[key]
        except UpCloudAPIError as exc:
            if errors.is_gone(exc):
                return None
            raise
        return dict(found)

    def list_owned(self) -> Listing:
        return list_account(self._manager, self._now)

    def delete(self, ref: Ref) -> None:
        """A server that runs is stopped by the first call and deleted by a later one: until then it is shown as
        stopped, and raises SERVER_STATE_ILLEGAL while it changes, so that nobody takes it for gone."""
        kind, _, rest = ref.cloud_id.rpartition("/")
        if kind == STORAGE:
            self._quietly_gone(lambda: self._manager.delete_storage(rest, backups=BackupDeletionPolicy.DELETE))
        elif kind:
            found = self._get_ip(ref)
            if found is not None:
                self._quietly_gone(lambda: self._manager.release_ip(found.address))
        elif rest:
            self._delete_server(rest)
        else:
            for server in servers_named(self._manager, ref.name):
                self._delete_server(str(server["uuid"]))

    def _delete_server(self, uuid: str) -> None:
        server = self._read(f"/server/{uuid}", "server")
        if server is None:
            return
        if server["state"] == "started":
            stop = {"stop_server": {"stop_type": "hard", "timeout": "60"}}
            answer = self._manager.api.post_request(f"/server/{uuid}/stop", stop)
            if answer.get("server", {}).get("state") != "stopped":
                return
        self._release_kept(uuid)
        self._quietly_gone(
            lambda: self._manager.delete_server(uuid, delete_storages=True, backups=BackupDeletionPolicy.DELETE)
        )

    def _release_kept(self, uuid: str) -> None:
        """An address may be told to outlive its server; then it stays, floating, unlabelled and billed."""
        for ip in addresses_of(self._manager, uuid):
            if is_bound(ip) and ip.get("release_policy") == "keep":
                body = {"ip_address": {"release_policy": "release"}}
                self._manager.api.put_request(f"/ip_address/{ip['address']}", body)

    @staticmethod
    def _quietly_gone(send: Callable[[], object]) -> None:
        try:
            send()
        except UpCloudAPIError as exc:
            if not errors.is_gone(exc):
                raise

    # -- what is wrong --

    def classify(self, exc: BaseException) -> Classified:
        return errors.classify(exc)

    def doctor(self) -> Sequence[Check]:
        """Looks at credentials, credits, limits and templates; creates and deletes nothing."""
        return examine(self._manager, self._currency)


def _disk_gib(spec: CreateSpec, plan: dict[str, Any], template: dict[str, Any]) -> int:
    """What is asked for, and at least what the plan includes, which is paid for anyway, and what the template needs."""
    asked = math.ceil(spec.disk_bytes / _GIB)
    least = (int(plan.get("storage_size") or 0), int(template.get("size") or 0), _SMALLEST_DISK_GIB)
    return max(asked, *least)
