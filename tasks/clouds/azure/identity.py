"""What a resource is called: immutable ids, places, and tags as Azure can hold them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from tasks.clouds.base import OWNER, OWNER_TAG
from tasks.domain.errors import ConfigError

VENDOR = "azure"

SERVER, GROUP, DISK, IP, NIC, FIREWALL, NETWORK = "server", "group", "disk", "ip", "nic", "firewall", "network"

STAMP_TAG = "tokensweep-azure"
"""A tag of this module's own on every resource: when, where and as which incarnation its group was made."""

_MAX_TAGS, _MAX_TAG_NAME, _MAX_TAG_VALUE = 50, 512, 256
_RESERVED_TAG_NAMES = ("azure", "microsoft", "windows")
# https://learn.microsoft.com/azure/azure-resource-manager/management/tag-resources#limitations (read 2026-11)

_ARM_ID = re.compile(r"/resourceGroups/(?P<group>[^/]+)(?:/providers/[^/]+/[^/]+/(?P<name>[^/]+))?", re.IGNORECASE)
_CLOUD_ID = re.compile(r"(?P<kind>[a-z]+):(?P<group>[^/:]+)/(?P<name>[^/:]+):(?P<guid>.*)")


@dataclass(frozen=True, kw_only=True)
class CloudId:
    """The immutable id of one resource, which says by itself where it is.

    An ARM id is a path of names and comes back when a name is used again, so it is joined to something that does not:
    a VM's `vmId`, a disk's `uniqueId`, a network resource's `resourceGuid`, all known when the PUT is accepted and the
    same in every answer. Azure gives a group none, so it bears a random one in its stamp.
    """

    kind: str
    group: str
    name: str
    guid: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.group.lower()}/{self.name.lower()}:{self.guid.lower()}"

    @classmethod
    def of(cls, kind: str, arm_id: str, guid: str) -> Self:
        group, name = split_arm_id(arm_id)
        return cls(kind=kind, group=group, name=name or group, guid=guid)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ConfigError for what is not an id of ours."""
        found = _CLOUD_ID.fullmatch(text)
        if found is None:
            raise ConfigError(f"{text!r} is not the id of an Azure resource.")
        return cls(kind=found["kind"], group=found["group"], name=found["name"], guid=found["guid"])


def split_arm_id(arm_id: str) -> tuple[str, str]:
    """The names of the group and of the resource, "" for a group itself."""
    found = _ARM_ID.search(arm_id)
    return (found["group"], found["name"] or "") if found else ("", "")


@dataclass(frozen=True)
class Place:
    """A region, or a zone of one: "westeurope", "westeurope-1"."""

    region: str
    zone: str = ""

    def __str__(self) -> str:
        return f"{self.region}-{self.zone}" if self.zone else self.region

    @classmethod
    def parse(cls, text: str) -> Self:
        region, _, zone = text.partition("-")
        return cls(region, zone)

    @classmethod
    def of(cls, location: str | None, zones: list[str] | None) -> Self:
        """As resources tell it. Some providers answer with display names: "West Europe"."""
        region = (location or "").replace(" ", "").lower()
        return cls(region, zones[0] if zones and len(zones) == 1 else "")


@dataclass(frozen=True)
class Stamp:
    """What Azure does not keep of a group: when it was made, for what place, and which of several of one name it is."""

    created_unix_s: float
    place: str
    nonce: str

    def __str__(self) -> str:
        return f"{self.created_unix_s:.0f} {self.place} {self.nonce}"

    @classmethod
    def new(cls, place: str, now_unix_s: float) -> Self:
        return cls(now_unix_s, place, secrets.token_hex(8))

    @classmethod
    def of(cls, tags: Mapping[str, str] | None) -> Self:
        """The stamp among a resource's tags; an empty one where somebody has removed it."""
        text = next((v for k, v in (tags or {}).items() if k.lower() == STAMP_TAG), "")
        created, _, rest = text.partition(" ")
        place, _, nonce = rest.partition(" ")
        return cls(float(created) if created.isdecimal() else 0.0, place, nonce)


def encode_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as Azure takes them, from which `decode_tags` makes the same again.

    Names are compared without case there, and `<>%&\\?/` and some prefixes are forbidden; such bytes become ~hh.
    Raises ConfigError for more, or longer ones, than Azure keeps.
    """
    encoded = {_encode_name(name): value for name, value in tags.items()}
    for name, value in encoded.items():
        if len(name) > _MAX_TAG_NAME or len(value) > _MAX_TAG_VALUE:
            raise ConfigError(
                f"Azure keeps tag names of 512 and values of 256 characters, and {name[:60]!r} is longer."
            )
    if len(encoded) >= _MAX_TAGS:
        raise ConfigError(f"Azure keeps {_MAX_TAGS} tags, and {len(encoded)} of ours are too many.")
    return encoded


def decode_tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    """The tags that were given to the create, whatever case their names come back in."""
    plain = {name.lower(): value for name, value in (tags or {}).items() if name.lower() != STAMP_TAG}
    return {_decode_name(name): value for name, value in plain.items()}


def is_ours(tags: Mapping[str, str] | None) -> bool:
    return decode_tags(tags).get(OWNER_TAG) == OWNER


def _encode_name(name: str) -> str:
    encoded = re.sub(r"[^a-z0-9_. -]", lambda found: "".join(f"~{byte:02x}" for byte in found[0].encode()), name)
    if encoded.startswith(_RESERVED_TAG_NAMES):
        encoded = f"~{ord(encoded[0]):02x}{encoded[1:]}"
    return encoded


def _decode_name(name: str) -> str:
    def decode(found: re.Match[str]) -> str:
        return bytes.fromhex(found[0].replace("~", "")).decode(errors="replace")

    return re.sub(r"(?:~[0-9a-f]{2})+", decode, name)
