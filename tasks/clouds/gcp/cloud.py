"""Google Cloud as a vendor: create, get, list_owned, delete.

An instance is a zone's, and so is its name. Its boot disk and its ephemeral address go with it, its labels are on the
disk too, and Google deletes it at its deadline. No call waits for what it began.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from google.api_core.exceptions import NotFound
from google.auth.credentials import Credentials
from google.cloud import compute_v1

from tasks.clouds.base import (
    OWNER,
    OWNER_TAG,
    Check,
    Classified,
    CreateSpec,
    ErrorKind,
    Listing,
    Ref,
    Resource,
    ServerType,
)
from tasks.clouds.gcp import errors, listing, operations, resources
from tasks.clouds.gcp.clients import Clients
from tasks.clouds.gcp.firewall import Firewall
from tasks.clouds.gcp.instance import instance, request_id
from tasks.clouds.gcp.operations import Operations
from tasks.clouds.guest import USERNAME
from tasks.clouds.traits import TRAITS
from tasks.domain.errors import ConfigError

_DEFAULT_SERVER_TYPES = ("e2-standard-2", "n4-standard-2", "n4d-standard-2", "c4a-standard-2")


class GcpCloud:
    """One project. regions: where server types are looked for, all when empty; listings always read every region.

    endpoint: instead of the services' own. settle_s: how long a create looks whether its operation fails at once.
    """

    vendor = resources.VENDOR
    traits = TRAITS["gcp"]

    def __init__(
        self,
        project: str,
        credentials: Credentials,
        *,
        regions: Sequence[str] = (),
        network: str = "default",
        endpoint: str = "",
        timeout_s: float = 60.0,
        settle_s: float = 5.0,
        poll_s: float = 0.5,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.project, self.network = project, network
        self._clients = Clients(credentials, endpoint=endpoint, timeout_s=timeout_s)
        self._regions = tuple(regions)
        self._settle_s, self._poll_s, self._now = settle_s, poll_s, now
        self._operations = Operations(self._clients, project, sleep)
        self._firewall = Firewall(self._clients, project, network)
        self._catalog: tuple[ServerType, ...] = ()
        self._catalog_lock = threading.Lock()

    # -- what there is --

    def catalog(self) -> Sequence[ServerType]:
        """Read once: the types of all zones, and some thirty thousand prices, take the API half a minute."""
        from tasks.clouds.gcp.catalog import read_catalog

        with self._catalog_lock:
            if not self._catalog:
                self._catalog = read_catalog(self._clients, self.project, self._regions, self._now)
            return self._catalog

    def server_type(self, name: str) -> ServerType:
        for kind in self.catalog():
            if kind.name == name:
                return kind
        where = f" in {', '.join(self._regions)}" if self._regions else ""
        raise ConfigError(
            f"gcp: there is no machine type {name!r}{where}.",
            next_step="`gcloud compute machine-types list` names them all.",
        )

    def default_server_types(self) -> Sequence[str]:
        """One of two vCPUs of each sort, as far as the regions have it: the cheapest, Intel, AMD and Arm."""
        sold = {kind.name for kind in self.catalog() if kind.places}
        return tuple(name for name in _DEFAULT_SERVER_TYPES if name in sold)

    def account(self) -> str:
        return self.project

    # -- servers --

    def create(self, spec: CreateSpec) -> Resource:
        """Raises what the SDK raises, and OperationFailedError where the accepted operation has failed already."""
        self._firewall.ensure(spec.ssh_sources)
        request = compute_v1.InsertInstanceRequest(
            project=self.project,
            zone=spec.place,
            request_id=request_id(spec.token),
            instance_resource=instance(spec, network=self.network, now_unix_s=self._now()),
        )
        operation = self._clients.instances.insert_unary(request=request, **self._clients.call)
        if not operation.name or not operation.target_id:
            raise ValueError(f"the insert of {spec.name} was answered with no operation: {operation!r}")
        operation = self._operations.settle(spec.place, operation, wait_s=self._settle_s, poll_s=self._poll_s)
        operations.raise_failure(operation)
        return Resource(
            vendor=self.vendor,
            place=spec.place,
            name=spec.name,
            cloud_id=str(operation.target_id),
            kind=resources.SERVER,
            state=resources.PENDING,
            tags=dict(spec.tags),
            created_unix_s=self._now(),
            username=USERNAME,
            server_type=spec.server_type,
        )

    def get(self, ref: Ref) -> Resource | None:
        """An accepted create that is not visible yet is pending, and one whose operation has failed is terminated."""
        found = self._instance(ref)
        if found is not None:
            return resources.server(found)
        insert = self._operations.insert_of(ref.place, ref.name, ref.cloud_id)
        if insert is None:
            return None
        if operations.is_done(insert) and not operations.has_failed(insert):
            found = self._instance(ref)  # it may have come to be between the two answers; else it is gone again
            return None if found is None else resources.server(found)
        return Resource(
            vendor=self.vendor,
            place=ref.place,
            name=ref.name,
            cloud_id=str(insert.target_id),
            kind=resources.SERVER,
            state=resources.TERMINATED if operations.is_done(insert) else resources.PENDING,
            tags={},
            created_unix_s=resources.unix_s(insert.insert_time),
            username=USERNAME,
        )

    def _instance(self, ref: Ref) -> compute_v1.Instance | None:
        """By name, and only the one with the id. Raises NotFound where it is something else that was not found."""
        try:
            found = self._clients.instances.get(
                project=self.project, zone=ref.place, instance=ref.name, **self._clients.call
            )
        except NotFound as exc:
            if self.classify(exc).kind is ErrorKind.NOT_FOUND:
                return None
            raise
        if not found.id:
            raise ValueError(f"the look at {ref.name} was answered with no instance: {found!r}")
        return found if ref.cloud_id in ("", str(found.id)) else None

    def list_owned(self) -> Listing:
        return listing.list_owned(self._clients, self.project, self._now)

    def delete(self, ref: Ref) -> None:
        """By name, after a look whether that still has the id; without an id, only what bears our label.

        Raises NotReadyError for a server whose accepted create has not come so far that there is one to delete.
        """
        kind = resources.side_kind(ref.cloud_id)
        if kind != resources.SERVER:
            from tasks.clouds.gcp.side_resources import delete_side

            delete_side(self._clients, self.project, kind, ref)
            return
        found = self._instance(ref)
        if found is None:
            insert = self._operations.insert_of(ref.place, ref.name, ref.cloud_id)
            if insert is not None and not operations.is_done(insert):
                raise errors.NotReadyError(f"{ref.name} in {ref.place} is still being made by {insert.name}")
            return
        if not ref.cloud_id and found.labels.get(OWNER_TAG) != OWNER:
            return
        try:
            self._clients.instances.delete_unary(
                project=self.project, zone=ref.place, instance=ref.name, **self._clients.call
            )
        except NotFound as exc:
            if self.classify(exc).kind is not ErrorKind.NOT_FOUND:
                raise

    def classify(self, exc: BaseException) -> Classified:
        return errors.classify(exc)

    def doctor(self) -> Sequence[Check]:
        """Identity, permissions, quotas, images, network and prices; creates nothing."""
        from tasks.clouds.gcp.doctor import checks

        return checks(self._clients, self.project, self._regions, self.network)
