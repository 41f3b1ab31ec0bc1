"""Things of a Hetzner project as its API shows them; every field that the SDK reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.emulators import hetzner_schema as schema
from tests.emulators.hetzner_state import Project, Thing, rfc3339

_RULE: dict[str, Any] = {"source_ips": [], "destination_ips": [], "port": None, "description": None}


def payload(project: Project, thing: Thing) -> dict[str, Any]:
    common = {
        "id": thing.id,
        "name": thing.name,
        "labels": dict(thing.labels),
        "created": rfc3339(thing.created_unix_s),
        "protection": {"delete": thing.protected},
    }
    special: dict[str, Callable[[Thing], dict[str, Any]]] = {
        "servers": lambda server: _server(project, server),
        "primary_ips": _primary_ip,
        "volumes": _volume,
        "images": _image,
        "floating_ips": _floating_ip,
        "ssh_keys": lambda key: {"fingerprint": "00:11", "public_key": "ssh-ed25519 AAAA"},
        "firewalls": lambda firewall: {
            "rules": [_RULE | rule for rule in firewall.data["rules"]],
            "applied_to": applied_to(project, firewall),
        },
    }
    return common | special[thing.kind](thing)


def applied_to(project: Project, firewall: Thing) -> list[dict[str, Any]]:
    guarded = [server for server in project.alive("servers") if firewall.id in server.data["firewalls"]]
    return [{"type": "server", "server": {"id": server.id}} for server in guarded]


def _server(project: Project, server: Thing) -> dict[str, Any]:
    ip = project.table("primary_ips").get(server.data.get("ipv4", 0))
    address = project.machines.address(str(server.id)) or (ip.data["ip"] if ip else "")
    ipv4 = None if ip is None else {"id": ip.id, "ip": address, "blocked": False, "dns_ptr": "static.example"}
    status = project.status(server)
    return {
        "status": status,
        "public_net": {
            "ipv4": ipv4,
            "ipv6": None,
            "floating_ips": [],
            "firewalls": [{"id": number, "status": "applied"} for number in server.data["firewalls"]],
        },
        "private_net": [],
        "server_type": server.data["type"],
        "location": schema.location(server.place),
        "image": None,
        "iso": None,
        "rescue_enabled": False,
        "locked": status == "initializing",
        "backup_window": None,
        "outgoing_traffic": 0,
        "ingoing_traffic": 0,
        "included_traffic": 21990232555520,
        "protection": {"delete": server.protected, "rebuild": server.protected},
        "volumes": [v.id for v in project.alive("volumes") if v.data.get("assignee") == server.id],
        "primary_disk_size": server.data["type"]["disk"],
        "placement_group": None,
    }


def _primary_ip(ip: Thing) -> dict[str, Any]:
    return {
        "ip": ip.data["ip"],
        "type": "ipv4",
        "dns_ptr": [],
        "location": schema.location(ip.place),
        "blocked": False,
        "assignee_id": ip.data["assignee"],
        "assignee_type": "server",
        "auto_delete": ip.data["auto_delete"],
    }


def _volume(volume: Thing) -> dict[str, Any]:
    return {
        "size": volume.data["size"],
        "server": volume.data.get("assignee"),
        "location": schema.location(volume.place),
        "linux_device": f"/dev/disk/by-id/scsi-0HC_Volume_{volume.id}",
        "format": "ext4",
        "status": "available",
    }


def _image(image: Thing) -> dict[str, Any]:
    return {
        "name": image.name or None,
        "type": image.data["type"],
        "status": "available",
        "description": image.data.get("description", image.name),
        "image_size": image.data.get("size"),
        "disk_size": 40,
        "created_from": None,
        "bound_to": None,
        "os_flavor": "ubuntu",
        "os_version": "24.04",
        "architecture": image.data["architecture"],
        "rapid_deploy": True,
        "deprecated": None,
        "deprecation": None,
    }


def _floating_ip(ip: Thing) -> dict[str, Any]:
    return {
        "ip": ip.data["ip"],
        "type": "ipv4",
        "description": "",
        "server": ip.data.get("assignee"),
        "dns_ptr": [],
        "home_location": schema.location(ip.place),
        "blocked": False,
    }
