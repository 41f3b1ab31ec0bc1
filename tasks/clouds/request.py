"""What a caller asks for, what it gets, and where to go on when a place has none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tasks.clouds.base import CreateSpec, Resource, Scope
from tasks.domain.lifecycle import LedgerRow


@dataclass(frozen=True, kw_only=True)
class ServerRequest:
    """What is wanted. places: zones or regions, in the order in which to try them.

    usd_per_hour: the highest of these places. cap_usd: the sweep's cap, None for none. price_basis: where the price
    was converted, from what and at which rate (`domain/money.py`).
    """

    sweep_id: str
    server_run_id: str
    server_type: str
    places: Sequence[str]
    deadline_unix_s: float
    usd_per_hour: Decimal
    cap_usd: Decimal | None
    price_basis: str = ""
    spot: bool = False


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The identity of one create, all derived: what a spec maker puts its keys to."""

    intent_id: str
    name: str
    token: str
    place: str
    server_type: str
    sweep_id: str
    server_run_id: str
    deadline_unix_s: float


@dataclass(frozen=True, kw_only=True)
class LiveServer:
    """A server that runs and has an address."""

    row: LedgerRow
    resource: Resource
    spec: CreateSpec


def region_of(place: str) -> str:
    """The region of a zone named as AWS, Google and Azure do: us-east-1a, us-central1-a, westeurope-1."""
    zone = re.fullmatch(r"(.*\d)-?[a-z]|([a-z0-9]*[a-z]\d?)-[123]", place)
    return (zone[1] or zone[2]) if zone else place


def places_left(places: Sequence[str], scope: Scope, region_of: Callable[[str], str]) -> list[str]:
    """Where to go on after the first place failed."""
    failed, *left = places
    if scope is Scope.REGION:
        return [place for place in left if region_of(place) != region_of(failed)]
    return left
