"""What Hetzner's API accepts and sells: request bodies, label selectors, server types, error codes with their status.

Fields as in the SDK's clients and docs.hetzner.cloud; a field that the API does not know is refused.
"""

from __future__ import annotations

import re
from typing import Any

from jsonschema import Draft202012Validator

ID = {"type": "integer", "minimum": 1}
TEXT = {"type": "string", "minLength": 1}
FLAG = {"type": "boolean"}
ID_OR_NAME = {"anyOf": [ID, TEXT]}
LABELS = {
    "type": "object",
    "propertyNames": {"pattern": r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"},
    "additionalProperties": {"type": "string", "pattern": r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"},
}
RULE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["direction", "protocol"],
    "properties": {
        "direction": {"enum": ["in", "out"]},
        "protocol": {"enum": ["tcp", "udp", "icmp", "esp", "gre"]},
        "port": {"type": "string", "pattern": r"^\d+(-\d+)?$"},
        "source_ips": {"type": "array", "items": {"type": "string", "pattern": r"^[0-9a-f.:]+/\d+$"}, "maxItems": 100},
        "destination_ips": {"type": "array", "items": TEXT, "maxItems": 100},
        "description": {"type": "string", "maxLength": 255},
    },
}


def _body(required: tuple[str, ...] = (), **properties: Any) -> Draft202012Validator:
    return Draft202012Validator(
        {
            "type": "object",
            "additionalProperties": False,
            "required": list(required),
            "properties": properties,
        }
    )


BODIES = {
    "POST /servers": _body(
        ("name", "server_type", "image"),
        name={"type": "string", "pattern": r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$"},
        server_type=ID_OR_NAME,
        image=ID_OR_NAME,
        location=ID_OR_NAME,
        start_after_create=FLAG,
        ssh_keys={"type": "array", "items": ID_OR_NAME},
        volumes={"type": "array", "items": ID},
        networks={"type": "array", "items": ID},
        firewalls={
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["firewall"],
                "properties": {"firewall": ID},
            },
        },
        user_data={"type": "string", "maxLength": 32 * 1024},
        labels=LABELS,
        automount=FLAG,
        placement_group=ID,
        public_net={
            "type": "object",
            "additionalProperties": False,
            "properties": {"enable_ipv4": FLAG, "enable_ipv6": FLAG, "ipv4": ID, "ipv6": ID},
        },
    ),
    "PUT /servers/{id}": _body(name=TEXT, labels=LABELS),
    "PUT /primary_ips/{id}": _body(name=TEXT, labels=LABELS, auto_delete=FLAG),
    "PUT /ssh_keys/{id}": _body(name=TEXT, labels=LABELS),
    "POST /firewalls": _body(
        ("name",),
        name=TEXT,
        labels=LABELS,
        rules={"type": "array", "items": RULE, "maxItems": 50},
        apply_to={"type": "array"},
    ),
    "POST /firewalls/{id}/actions/set_rules": _body(("rules",), rules={"type": "array", "items": RULE, "maxItems": 50}),
    "POST /volumes/{id}/actions/detach": _body(),
    "POST /servers/{id}/actions/poweroff": _body(),
    "POST /servers/{id}/actions/change_protection": _body(delete=FLAG, rebuild=FLAG),
}

STATUS = {
    "unauthorized": 401,
    "forbidden": 403,
    "token_readonly": 403,
    "resource_limit_exceeded": 403,
    "not_found": 404,
    "uniqueness_error": 409,
    "conflict": 409,
    "resource_in_use": 409,
    "invalid_input": 422,
    "placement_error": 422,
    "resource_unavailable": 422,
    "must_be_unassigned": 422,
    "locked": 423,
    "protected": 423,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "maintenance": 503,
    "unavailable": 503,
    "timeout": 504,
}

FILTERS = {
    "servers": {"name", "label_selector", "status"},
    "primary_ips": {"name", "label_selector", "ip"},
    "volumes": {"name", "label_selector", "status"},
    "images": {"name", "label_selector", "type", "architecture", "status"},
    "floating_ips": {"name", "label_selector"},
    "ssh_keys": {"name", "label_selector", "fingerprint"},
    "firewalls": {"name", "label_selector"},
    "server_types": {"name"},
    "locations": {"name"},
}

LOCATIONS = {"fsn1": "eu-central", "nbg1": "eu-central", "hel1": "eu-central", "ash": "us-east"}
IPV4_EUR_PER_HOUR = "0.0008"

# name, cores, memory in GB, disk in GB, architecture, kind of CPU, net EUR per hour by location
_TYPES = (
    ("cx23", 2, 4, 40, "x86", "shared", {"fsn1": "0.0056", "nbg1": "0.0056", "hel1": "0.0056"}),
    ("cax11", 2, 4, 40, "arm", "shared", {"fsn1": "0.0061", "nbg1": "0.0061"}),
    ("cpx11", 2, 2, 40, "x86", "shared", {"fsn1": "0.0070", "hel1": "0.0070", "ash": "0.0079"}),
    ("ccx13", 2, 8, 80, "x86", "dedicated", {"fsn1": "0.0200", "nbg1": "0.0200", "ash": "0.0240"}),
    ("cx11", 1, 2, 20, "x86", "shared", {"fsn1": "0.0040"}),
)
WITHDRAWN = {("cx11", "fsn1"), ("cpx11", "hel1")}
SOLD_OUT = {("cax11", "nbg1")}


def location(name: str) -> dict[str, Any]:
    number = list(LOCATIONS).index(name) + 1
    return {
        "id": number,
        "name": name,
        "description": name,
        "country": "DE",
        "city": name,
        "latitude": 50.0,
        "longitude": 12.0,
        "network_zone": LOCATIONS[name],
    }


def server_types() -> list[dict[str, Any]]:
    """As GET /server_types shows them."""
    return [_server_type(number, *row) for number, row in enumerate(_TYPES, start=1)]


def _server_type(
    number: int, name: str, cores: int, memory: int, disk: int, arch: str, cpu: str, prices: dict[str, str]
) -> dict[str, Any]:
    past = {"announced": "2024-01-01T00:00:00+00:00", "unavailable_after": "2024-06-01T00:00:00+00:00"}
    return {
        "id": number,
        "name": name,
        "description": name.upper(),
        "category": "cost_optimized",
        "cores": cores,
        "memory": float(memory),
        "disk": disk,
        "storage_type": "local",
        "cpu_type": cpu,
        "architecture": arch,
        "deprecated": False,
        "deprecation": None,
        "prices": [
            {
                "location": place,
                "price_hourly": {"net": net, "gross": str(float(net) * 1.19)},
                "price_monthly": {"net": str(float(net) * 624), "gross": str(float(net) * 742)},
                "included_traffic": 21990232555520,
                "price_per_tb_traffic": {"net": "1.0", "gross": "1.19"},
            }
            for place, net in prices.items()
        ],
        "locations": [
            {
                "id": location(place)["id"],
                "name": place,
                "deprecation": past if (name, place) in WITHDRAWN else None,
                "available": (name, place) not in SOLD_OUT,
                "recommended": True,
            }
            for place in prices
        ],
    }


def pricing() -> dict[str, Any]:
    ipv4 = [
        {"location": place, "price_hourly": {"net": IPV4_EUR_PER_HOUR, "gross": "0.00095"}, "price_monthly": {}}
        for place in LOCATIONS
    ]
    return {
        "currency": "EUR",
        "vat_rate": "19.00",
        "primary_ips": [{"type": "ipv4", "prices": ipv4}, {"type": "ipv6", "prices": []}],
        "server_types": [],
    }


_TERM = re.compile(r"(?P<not>!)?(?P<key>[A-Za-z0-9./_-]+)(?:(?P<op>==|=|!=)(?P<value>[A-Za-z0-9._-]*))?")


def selects(selector: str, labels: dict[str, str]) -> bool:
    """Whether a label selector matches. Raises ValueError for one that this emulator cannot read."""
    for text in filter(None, (part.strip() for part in selector.split(","))):
        term = _TERM.fullmatch(text)
        if term is None:
            raise ValueError(f"label selector {text!r}")
        has = term["key"] in labels
        if term["op"] in ("=", "=="):
            matched = has and labels[term["key"]] == term["value"]
        elif term["op"] == "!=":
            matched = not has or labels[term["key"]] != term["value"]
        else:
            matched = has != bool(term["not"])
        if not matched:
            return False
    return True
