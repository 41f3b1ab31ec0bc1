"""What UpCloud's API accepts and sells: request bodies, plans, prices, templates, error codes with their status.

Fields as documented for 1.3 and as UpCloud's Python and Go SDKs send them; an attribute that the API does not know is
refused.
"""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

TEXT = {"type": "string", "minLength": 1, "maxLength": 255}
YES_NO = {"enum": ["yes", "no"]}
LABEL = {
    "type": "object",
    "additionalProperties": False,
    "required": ["key", "value"],
    "properties": {
        "key": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{1,31}$"},
        "value": {"type": "string", "maxLength": 255},
    },
}
LABELS = {"type": "array", "items": LABEL}


def _closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


def _listed(key: str, items: dict[str, Any]) -> dict[str, Any]:
    return _closed((key,), **{key: {"type": "array", "items": items, "minItems": 1}})


SERVER = _closed(
    ("hostname", "title", "zone", "storage_devices"),
    hostname={"type": "string", "pattern": r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,126}[A-Za-z0-9])?$"},
    title=TEXT,
    zone=TEXT,
    plan=TEXT,
    core_number={"type": "integer"},
    memory_amount={"type": "integer"},
    labels=_closed(("label",), label=LABELS),
    metadata=YES_NO,
    user_data={"type": "string", "maxLength": 65535},
    firewall={"enum": ["on", "off"]},
    simple_backup=TEXT,
    password_delivery={"enum": ["none", "email", "sms"]},
    timezone=TEXT,
    login_user=_closed(
        create_password=YES_NO, username=TEXT, ssh_keys=_listed("ssh_key", {"type": "string", "pattern": "^ssh-"})
    ),
    networking=_closed(
        ("interfaces",),
        interfaces=_listed(
            "interface",
            _closed(
                ("type", "ip_addresses"),
                type={"enum": ["public", "utility", "private"]},
                ip_addresses=_listed("ip_address", _closed(("family",), family={"enum": ["IPv4", "IPv6"]})),
                network=TEXT,
                source_ip_filtering=YES_NO,
                bootable=YES_NO,
            ),
        ),
    ),
    storage_devices=_listed(
        "storage_device",
        _closed(
            ("action",),
            action={"enum": ["create", "clone", "attach"]},
            storage=TEXT,
            title=TEXT,
            size={"type": "integer", "minimum": 10, "maximum": 4096},
            tier={"enum": ["maxiops", "standard", "hdd"]},
            labels=LABELS,
            encrypted=YES_NO,
            address=TEXT,
            type=TEXT,
            backup_rule={"type": "object"},
        ),
    ),
)

BODIES = {
    "POST /server": Draft202012Validator(_closed(("server",), server=SERVER)),
    "POST /server/{uuid}/stop": Draft202012Validator(
        _closed(
            stop_server=_closed(
                stop_type={"enum": ["soft", "hard"]}, timeout={"type": "string", "pattern": "^[0-9]{1,3}$"}
            )
        )
    ),
    "PUT /ip_address/{address}": Draft202012Validator(
        _closed(
            ("ip_address",),
            ip_address=_closed(ptr_record=TEXT, release_policy={"enum": ["release", "keep"]}, mac=TEXT),
        )
    ),
}

STATUS = {
    "AUTHENTICATION_FAILED": 401,
    "INSUFFICIENT_CREDITS": 402,
    "SERVER_CORE_LIMIT_REACHED": 403,
    "SERVER_MEMORY_LIMIT_REACHED": 403,
    "SERVER_FORBIDDEN": 403,
    "SERVER_NOT_FOUND": 404,
    "STORAGE_NOT_FOUND": 404,
    "IP_ADDRESS_NOT_FOUND": 404,
    "ZONE_NOT_FOUND": 404,
    "SERVER_RESOURCES_UNAVAILABLE": 409,
    "SERVER_STATE_ILLEGAL": 409,
    "SERVER_CREATING_LIMIT_REACHED": 409,
    "STORAGE_STATE_ILLEGAL": 409,
    "STORAGE_ATTACHED": 409,
    "METADATA_DISABLED_ON_CLOUD-INIT": 409,
    "RATE_LIMITED": 429,
    "SERVICE_UNAVAILABLE": 503,
}

ZONES = ("fi-hel1", "de-fra1", "us-chi1")
CURRENCY = "EUR"

# name, cores, memory in MiB, storage in GiB, tier, GPUs, model, hundredths per hour by zone. GPU plans have a price in
# every zone, also where there are none, and plans that are no longer offered keep theirs: SpareCores/sc-crawler,
# vendors/_upcloud.py, with answers of the API in its comments.
_PLANS = (
    ("DEV-1xCPU-1GB-10GB", 1, 1024, 10, "standard", 0, "", {"fi-hel1": 0.4464, "de-fra1": 0.4464, "us-chi1": 0.4464}),
    ("1xCPU-2GB", 1, 2048, 50, "maxiops", 0, "", {"fi-hel1": 2.5, "de-fra1": 2.2321, "us-chi1": 2.2321}),
    ("HICPU-8xCPU-12GB", 8, 12288, 100, "maxiops", 0, "", {"fi-hel1": 14.2, "de-fra1": 13.9}),
    ("CLOUDNATIVE-1xCPU-4GB", 1, 4096, 0, "", 0, "", {"fi-hel1": 1.2, "de-fra1": 1.2}),
    (
        "GPU-8xCPU-64GB-1xL40S", 8, 65536, 0, None, 1, "NVIDIA L40S",
        {"fi-hel1": 111.1607, "de-fra1": 111.1607, "us-chi1": 111.1607},
    ),
    ("1xCPU-1GB", 1, 1024, 25, "maxiops", 0, "", {"fi-hel1": 1.1309, "de-fra1": 1.1309, "us-chi1": 1.1309}),
)  # fmt: skip
NOT_OFFERED = ("1xCPU-1GB",)
GPU_STOCK = {"fi-hel1": {"GPU-8xCPU-64GB-1xL40S": 10}, "de-fra1": {"GPU-8xCPU-64GB-1xL40S": 0}}
"""As GET /device/availability tells it: github.com/UpCloudLtd/upcloud-go-api, upcloud/device_test.go."""
STORAGE_CENTS = {"maxiops": 0.0312, "standard": 0.0118, "hdd": 0.0078}
BACKUP_CENTS = 0.0078
IPV4_CENTS = 0.45

# UUID, title, and size in GiB: no clone is smaller. Of the last, UUID and title as somebody's servers have them.
TEMPLATES = (
    ("01000000-0000-4000-8000-000020080100", "Debian GNU/Linux 13 (Trixie)", 4),
    ("01000000-0000-4000-8000-000030220200", "Ubuntu Server 22.04 LTS (Jammy Jellyfish)", 4),
    ("01000000-0000-4000-8000-000030240200", "Ubuntu Server 24.04 LTS (Noble Numbat)", 4),
    ("01000000-0000-4000-8000-000030700200", "Ubuntu Server 24.04 LTS (with NVIDIA drivers & CUDA)", 30),
)


def plans() -> list[dict[str, Any]]:
    """As GET /plan shows them."""
    shown = []
    for name, cores, memory, storage, tier, gpus, model, _ in _PLANS:
        plan: dict[str, Any] = {"name": name, "core_number": cores, "memory_amount": memory}
        plan |= {"storage_size": storage, "storage_tier": tier, "public_traffic_out": 1024}
        plan["current_offering"] = "no" if name in NOT_OFFERED else "yes"
        shown.append(plan | ({"gpu_amount": gpus, "gpu_model": model} if gpus else {}))
    return shown


def prices() -> list[dict[str, Any]]:
    """As GET /price shows them."""
    zones = []
    for zone in ZONES:
        items: dict[str, Any] = {"name": zone, "ipv4_address": {"amount": 1, "price": IPV4_CENTS}}
        items |= {f"storage_{tier}": {"amount": 1, "price": cents} for tier, cents in STORAGE_CENTS.items()}
        items["storage_backup"] = {"amount": 1, "price": BACKUP_CENTS}
        items |= {f"server_plan_{row[0]}": {"amount": 1, "price": row[7][zone]} for row in _PLANS if zone in row[7]}
        zones.append(items)
    return zones


def gpu_stock() -> dict[str, Any]:
    return {
        zone: {"gpu_plans": {name: {"amount": amount} for name, amount in plans.items()}}
        for zone, plans in GPU_STOCK.items()
    }


def templates() -> list[dict[str, Any]]:
    return [
        {
            "access": "public",
            "license": 0,
            "size": size,
            "state": "online",
            "template_type": "cloud-init",
            "title": title,
            "type": "template",
            "uuid": uuid,
        }
        for uuid, title, size in TEMPLATES
    ]
