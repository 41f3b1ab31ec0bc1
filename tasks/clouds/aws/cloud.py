"""EC2 behind the vendor protocol: create, get, list_owned, delete, classify, catalog."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from botocore.exceptions import ClientError

from tasks.clouds.aws import errors
from tasks.clouds.aws.catalog import read_catalog
from tasks.clouds.aws.clients import AwsOptions, Clients, is_zone, pages, region_of
from tasks.clouds.aws.doctor import doctor
from tasks.clouds.aws.images import Images, wants_nvidia
from tasks.clouds.aws.launch import NAME_TAG, launch_request
from tasks.clouds.aws.listing import list_owned
from tasks.clouds.aws.network import Network
from tasks.clouds.aws.resources import VENDOR, kind_of, server_of
from tasks.clouds.base import (
    OWNER,
    OWNER_TAG,
    Check,
    Classified,
    CreateSpec,
    Listing,
    Ref,
    Resource,
    ServerType,
)
from tasks.clouds.traits import TRAITS
from tasks.domain.errors import ConfigError, UnsupportedError

# Three makers of processors, 4 GiB each; together about a quarter of a dollar per hour.
_DEFAULT_SERVER_TYPES = ("c7g.large", "c7a.large", "c7i.large")

# Codes after which what was looked up before a launch must be looked up again.
_STALE_NETWORK = ("InvalidGroup.NotFound", "InvalidSubnetID.NotFound", "InvalidParameterValue")
_STALE_IMAGE = ("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable")
_ENDED_ON_PURPOSE = ("Client.UserInitiatedShutdown", "Client.InstanceInitiatedShutdown")

logger = logging.getLogger(__name__)


@dataclass
class AwsCloud:
    """session: a boto3 session, whose credentials are used and never shown."""

    session: Any = field(repr=False)
    options: AwsOptions = field(default_factory=AwsOptions)
    now: Callable[[], float] = time.time

    vendor = VENDOR
    traits = TRAITS["aws"]

    def __post_init__(self) -> None:
        self.clients = Clients(self.session, self.options)
        self.images = Images(self.clients)
        self.network = Network(self.clients)
        self._catalog: tuple[ServerType, ...] = ()
        self._types: dict[str, ServerType] = {}
        self._failures_told: set[str] = set()
        self._account = ""
        self._lock = Lock()

    def catalog(self) -> Sequence[ServerType]:
        """Every server type, read once in the life of this object: it takes hundreds of calls."""
        with self._lock:
            if not self._catalog:
                self._catalog = read_catalog(self.clients, self.now)
            return self._catalog

    def server_type(self, name: str) -> ServerType:
        with self._lock:
            if name not in self._types:
                read = self._catalog or read_catalog(self.clients, self.now, name)
                self._types |= {server_type.name: server_type for server_type in read}
            if name in self._types:
                return self._types[name]
        raise ConfigError(
            f"aws sells no server type {name!r} in {', '.join(self.clients.regions())}.",
            next_step="See `tokensweep catalog aws`, or allow more regions in TOKENSWEEP_AWS_REGIONS.",
        )

    def default_server_types(self) -> Sequence[str]:
        return _DEFAULT_SERVER_TYPES

    def account(self) -> str:
        """The number of the AWS account, asked for once: credentials never change theirs. Needs no permission."""
        if not self._account:  # without the lock, which is held while the catalog is read
            self._account = self.clients.of("sts", self.options.home_region).get_caller_identity()["Account"]
        return self._account

    def create(self, spec: CreateSpec) -> Resource:
        """EC2 answers a second call with the same token with the first instance, even when that has ended."""
        if not is_zone(spec.place):
            raise UnsupportedError(f"aws: {spec.place} is no availability zone.", reason="no_such_zone")
        region = region_of(spec.place)
        image = self.images.find(region, spec.arch, gpu=wants_nvidia(spec.server_type, spec.gpus))
        subnet_id, vpc_id = self.network.subnet(spec.place)
        group_id = self.network.group(region, vpc_id, spec.ssh_sources)
        request = launch_request(spec, image, subnet_id, group_id)
        try:
            answer = self.clients.ec2(region).run_instances(**request)
        except ClientError as exc:
            self._forget_stale(region, errors.code_of(exc))
            earlier = self._by_token(region, spec) if errors.code_of(exc) == "IdempotentParameterMismatch" else None
            if earlier is None:
                raise
            return earlier
        return server_of(answer["Instances"][0], region)

    def _forget_stale(self, region: str, code: str) -> None:
        if code in _STALE_NETWORK:
            self.network.forget()
        if code in _STALE_IMAGE:
            self.images.forget(region)

    def _by_token(self, region: str, spec: CreateSpec) -> Resource | None:
        """The server of the same create, sent with something else in it: a newer image, say."""
        found = self._find(region, [{"Name": "client-token", "Values": [spec.token]}])
        return found if found is not None and found.tags.items() >= spec.tags.items() else None

    def get(self, ref: Ref) -> Resource | None:
        region = region_of(ref.place)
        if not ref.cloud_id:
            return self._find(
                region,
                [
                    {"Name": f"tag:{OWNER_TAG}", "Values": [OWNER]},
                    {"Name": f"tag:{NAME_TAG}", "Values": [ref.name]},
                    {"Name": "availability-zone", "Values": [ref.place]},
                ],
            )
        try:
            answer = self.clients.ec2(region).describe_instances(InstanceIds=[ref.cloud_id])
        except ClientError as exc:
            if errors.is_not_found(exc):
                return None
            raise
        instances = [instance for r in answer["Reservations"] for instance in r["Instances"]]
        if not instances:
            return None
        self._tell_why_it_ended(instances[0])
        return server_of(instances[0], region)

    def _tell_why_it_ended(self, instance: Any) -> None:
        """A launch that was accepted may end at once: for want of capacity, a volume limit, a key that may not be used.
        https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/troubleshooting-launch.html"""
        reason, instance_id = instance.get("StateReason") or {}, instance["InstanceId"]
        ended = instance["State"]["Name"] in ("shutting-down", "terminated", "stopped")
        if ended and reason.get("Code") not in (None, *_ENDED_ON_PURPOSE) and instance_id not in self._failures_told:
            self._failures_told.add(instance_id)
            logger.warning("aws: %s has ended: %s", instance_id, reason.get("Message") or reason["Code"])

    def _find(self, region: str, filters: list[dict[str, Any]]) -> Resource | None:
        """One that lives before one that has ended, the oldest of each."""
        found = [
            server_of(instance, region)
            for page in pages(self.clients.ec2(region), "describe_instances", self.options.page_size, Filters=filters)
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        ]
        found.sort(key=lambda r: (r.state == "terminated", r.created_unix_s, r.cloud_id))
        return found[0] if found else None

    def list_owned(self) -> Listing:
        return list_owned(self.clients, self.now)

    def delete(self, ref: Ref) -> None:
        """Disk, network interface and address go with the server; what stays behind all the same has a Ref of its own.

        Raises DELETE_BLOCKED errors for what is still in use.
        """
        cloud_id = ref.cloud_id
        if not cloud_id:
            found = self.get(ref)
            if found is None:
                return
            cloud_id = found.cloud_id
        kind = kind_of(cloud_id)
        if kind is None:
            raise ConfigError(f"aws: {cloud_id!r} is no id of anything that tokensweep deletes.")
        try:
            kind.delete(self.clients.ec2(region_of(ref.place)), cloud_id)
        except ClientError as exc:
            if not errors.is_not_found(exc):
                raise

    def classify(self, exc: BaseException) -> Classified:
        return errors.classify(exc)

    def doctor(self) -> Sequence[Check]:
        """Identity, permissions, quotas, images, networks; by questions and dry runs, so nothing is created."""
        return doctor(self.clients, self.images, self.network)
