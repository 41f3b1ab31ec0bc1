"""One boto3 client per service and region, made once, with timeouts and without retries of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

T = TypeVar("T")

# us-east-1a, but not the local zone us-west-2-lax-1a or the wavelength zone us-east-1-wl1-bos-wlz-1.
_ZONE = re.compile(r"([a-z]{2}(?:-[a-z]+)+-\d+)[a-z]")

# A stockout is a 5xx, which the SDK would repeat, and throttling must reach our backoff.
_ONE_ATTEMPT = {"total_max_attempts": 1, "mode": "standard"}
# The price list, which is only read, allows 10 calls at once and 5 a second
# (https://docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/using-pelong.html); all regions together take hundreds.
_RETRIES = {"pricing": {"total_max_attempts": 8, "mode": "adaptive"}}


def region_of(place: str) -> str:
    """The region of an availability zone; a region's own name stays as it is."""
    zone = _ZONE.fullmatch(place)
    return zone[1] if zone else place


def is_zone(place: str) -> bool:
    return _ZONE.fullmatch(place) is not None


@dataclass(frozen=True, kw_only=True)
class AwsOptions:
    """regions: where to create, to list and to look for prices; empty for every region that the account has enabled.
    What is in a region that is taken out of them is no longer seen. endpoint_url: replaces every endpoint of the SDK.
    home_region: for questions that belong to no region. page_size: entries per page of listings.
    """

    regions: tuple[str, ...] = ()
    endpoint_url: str = ""
    home_region: str = "us-east-1"
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    page_size: int = 500
    n_threads: int = 16


@dataclass
class Clients:
    """Clients may be used by many threads at once; only making one is not safe, hence the lock."""

    session: Any
    options: AwsOptions
    _made: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def ec2(self, region: str) -> Any:
        return self.of("ec2", region)

    def of(self, service: str, region: str) -> Any:
        from botocore.config import Config

        options = self.options
        with self._lock:
            if (service, region) not in self._made:
                config = Config(
                    connect_timeout=options.connect_timeout_s,
                    read_timeout=options.read_timeout_s,
                    retries=_RETRIES.get(service, _ONE_ATTEMPT),
                    max_pool_connections=options.n_threads,
                    user_agent_extra="tokensweep",
                )
                self._made[service, region] = self.session.client(
                    service, region_name=region, endpoint_url=options.endpoint_url or None, config=config
                )
            return self._made[service, region]

    def regions(self) -> tuple[str, ...]:
        """The regions of the options, or every one that the account has enabled now, new ones included."""
        if self.options.regions:
            return self.options.regions
        answer = self.ec2(self.options.home_region).describe_regions(AllRegions=False)
        return tuple(sorted(region["RegionName"] for region in answer["Regions"]))

    def in_parallel(self, call: Callable[..., T], argument_lists: Sequence[tuple[Any, ...]]) -> Iterator[T | Exception]:
        """The result of each call, or what it raised, in the order of the arguments."""

        def guarded(arguments: tuple[Any, ...]) -> T | Exception:
            try:
                return call(*arguments)
            except Exception as exc:
                return exc

        with ThreadPoolExecutor(max_workers=self.options.n_threads) as pool:
            yield from pool.map(guarded, argument_lists)


def pages(client: Any, operation: str, page_size: int, **arguments: Any) -> Iterator[Any]:
    """Every page of an answer. Raises what the SDK raises half-way: half an answer is never taken for all of it."""
    if client.can_paginate(operation):
        yield from client.get_paginator(operation).paginate(**arguments, PaginationConfig={"PageSize": page_size})
    else:
        yield getattr(client, operation)(**arguments)


def tags_of(item: Any) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in item.get("Tags") or ()}


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
