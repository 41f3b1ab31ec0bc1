"""What servers share in a region: the default subnet of a zone, and one security group that lets SSH in.

The groups cost nothing, carry no data and are never deleted by us, so they bear no owner tag and no listing shows them.
`aws ec2 delete-security-group` removes them when no server of ours is left.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from botocore.exceptions import ClientError

from tasks.clouds.aws.clients import Clients, region_of, tag_list
from tasks.clouds.aws.errors import code_of
from tasks.clouds.aws.launch import NAME_TAG
from tasks.domain.errors import UnsupportedError

SHARED_TAG = "tokensweep-shared"
ANYWHERE = ("0.0.0.0/0", "::/0")
SSH_PORT = 22


@dataclass
class Network:
    clients: Clients
    _subnets: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    _groups: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def subnet(self, zone: str) -> tuple[str, str]:
        """The ids of the zone's default subnet and of its VPC. Raises UnsupportedError where there is none."""
        with self._lock:
            known = self._subnets.get(zone)
        if known is not None:
            return known
        answer = self.clients.ec2(region_of(zone)).describe_subnets(
            Filters=[
                {"Name": "default-for-az", "Values": ["true"]},
                {"Name": "availability-zone", "Values": [zone]},
            ]
        )
        if not answer["Subnets"]:
            raise UnsupportedError(
                f"aws: {zone} has no default subnet.",
                reason="no_default_subnet",
                next_step=f"Make one: aws ec2 create-default-subnet --availability-zone {zone}; where the region has "
                f"no default VPC, make that: aws ec2 create-default-vpc --region {region_of(zone)}",
            )
        found = (answer["Subnets"][0]["SubnetId"], answer["Subnets"][0]["VpcId"])
        with self._lock:
            return self._subnets.setdefault(zone, found)

    def group(self, region: str, vpc_id: str, ssh_sources: tuple[str, ...]) -> str:
        """The id of the group of the VPC that lets exactly these networks reach port 22; made where it is missing.

        Its name derives from the networks, so any number of processes come to the same one, whoever makes it first.
        """
        sources = tuple(sorted(set(ssh_sources))) or ANYWHERE
        name = group_name(sources)
        with self._lock:
            known = self._groups.get((vpc_id, name))
        if known is not None:
            return known
        client = self.clients.ec2(region)
        found = _find(client, vpc_id, name)
        group_id = found["GroupId"] if found else _make(client, vpc_id, sources)
        # Also into a group that was there: who made it may have ended before its rules were in.
        _allow(client, group_id, [source for source in sources if source not in _allowed(found)])
        with self._lock:
            return self._groups.setdefault((vpc_id, name), group_id)

    def forget(self) -> None:
        """Look everything up again at the next launch: somebody may have deleted a subnet or a group."""
        with self._lock:
            self._subnets.clear()
            self._groups.clear()


def group_name(sources: tuple[str, ...]) -> str:
    return "tokensweep-ssh-" + hashlib.sha256(" ".join(sources).encode()).hexdigest()[:12]


def group_request(vpc_id: str, sources: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of create_security_group."""
    name = group_name(sources)
    return {
        "GroupName": name,
        "Description": "tokensweep: SSH from " + ", ".join(sources)[:200],
        "VpcId": vpc_id,
        "TagSpecifications": [
            {"ResourceType": "security-group", "Tags": tag_list({NAME_TAG: name, SHARED_TAG: "ssh"})},
        ],
    }


def _find(client: Any, vpc_id: str, name: str) -> dict[str, Any] | None:
    answer = client.describe_security_groups(
        Filters=[{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc_id]}]
    )
    groups: list[dict[str, Any]] = answer["SecurityGroups"]
    return groups[0] if groups else None


def _make(client: Any, vpc_id: str, sources: tuple[str, ...]) -> str:
    try:
        made = client.create_security_group(**group_request(vpc_id, sources))
        return str(made["GroupId"])
    except ClientError as exc:
        other = _find(client, vpc_id, group_name(sources)) if code_of(exc) == "InvalidGroup.Duplicate" else None
        if other is None:
            raise
        return str(other["GroupId"])


def _allowed(group: dict[str, Any] | None) -> set[str]:
    rules = group["IpPermissions"] if group else []
    ssh = [r for r in rules if (r.get("IpProtocol"), r.get("FromPort"), r.get("ToPort")) == ("tcp", SSH_PORT, SSH_PORT)]
    v4 = {r["CidrIp"] for rule in ssh for r in rule.get("IpRanges", ())}
    return v4 | {r["CidrIpv6"] for rule in ssh for r in rule.get("Ipv6Ranges", ())}


def _allow(client: Any, group_id: str, sources: list[str]) -> None:
    """One rule per call: one that is there already fails the whole of its call."""
    for source in sources:
        rule: dict[str, Any] = {"IpProtocol": "tcp", "FromPort": SSH_PORT, "ToPort": SSH_PORT}
        rule |= {"Ipv6Ranges": [{"CidrIpv6": source}]} if ":" in source else {"IpRanges": [{"CidrIp": source}]}
        try:
            client.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[rule])
        except ClientError as exc:
            if code_of(exc) != "InvalidPermission.Duplicate":
                raise
