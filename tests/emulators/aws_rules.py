"""What EC2 sells in which zone, and which launches it refuses: by their parameters, by quota, by stock."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any, ClassVar

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.instance_types import InstanceType

from tests.emulators import aws_prices
from tests.emulators.aws_state import AMAZON, IMAGES, Account, Image, Launches


class Rules(EC2Backend):
    account: Account | None
    launches: Launches
    instance_types: ClassVar[list[InstanceType]] = [InstanceType(name) for name in aws_prices.USD_PER_HOUR]

    def time(self) -> datetime:
        """Now as moto keeps it: UTC, not saying so."""
        assert self.account is not None
        return datetime.fromtimestamp(self.account.now(), UTC).replace(tzinfo=None)

    def _load_amis(self) -> None:
        for ami_id, name, owner, architecture, size_gib in IMAGES:
            image = Image(
                self,
                ami_id,
                name=name,
                owner_id=owner,
                owner_alias="amazon" if owner == AMAZON else None,
                architecture=architecture,
                public=True,
                virtualization_type="hvm",
                root_device_type="ebs",
                creation_date=datetime.strptime(name[-8:], "%Y%m%d"),
                region_name=f"{self.region_name}a",
            )
            image.size_gib = size_gib
            self.amis[ami_id] = image

    def _zone(self, request: dict[str, Any]) -> str:
        interfaces = request.get("NetworkInterfaces") or [{}]
        if interfaces[0] and (request.get("SubnetId") or request.get("SecurityGroupIds")):
            raise EC2ClientError(
                "InvalidParameterCombination",
                "Network interfaces and an instance-level subnet ID may not be specified on the same request",
            )
        subnet_id = interfaces[0].get("SubnetId") or request.get("SubnetId")
        if subnet_id:
            return str(self.get_subnet(subnet_id).availability_zone)
        return str(request.get("Placement", {}).get("AvailabilityZone") or f"{self.region_name}a")

    def _check_launch(self, request: dict[str, Any], zone: str) -> None:
        name = request.get("InstanceType", "m1.small")
        if not any(known.name == name for known in self.instance_types):
            raise EC2ClientError("InvalidParameterValue", f"Invalid value '{name}' for InstanceType.")
        if zone not in self.zones_of(name):
            raise EC2ClientError(
                "Unsupported",
                f"Your requested instance type ({name}) is not supported in your requested Availability Zone ({zone}).",
            )
        image = self.describe_images(ami_ids=[request["ImageId"]])[0]
        if image.architecture not in self.described(name)["ProcessorInfo"]["SupportedArchitectures"]:
            raise EC2ClientError(
                "InvalidParameterValue",
                f"The architecture of the specified instance type does not match {image.architecture} of {image.id}.",
            )
        asked = [*(request.get("SecurityGroupIds") or ())]
        asked += [group for nic in request.get("NetworkInterfaces") or () for group in nic.get("Groups", ())]
        for group in asked:
            if self.get_security_group_from_id(group) is None:
                raise EC2ClientError("InvalidGroup.NotFound", f"The security group '{group}' does not exist")
        for mapping in request.get("BlockDeviceMappings") or ():
            size_gib = mapping.get("Ebs", {}).get("VolumeSize")
            if mapping.get("Ebs", {}).get("Throughput", 125) > 0.25 * mapping["Ebs"].get("Iops", 3000):
                raise EC2ClientError("InvalidParameterCombination", "Throughput (MiBps) to iops ratio is too high")
            if mapping["DeviceName"] == image.root_device_name and size_gib and size_gib < image.size_gib:
                raise EC2ClientError(
                    "InvalidBlockDeviceMapping",
                    f"Volume of size {size_gib}GB is smaller than its snapshot, expect size>= {image.size_gib}GB",
                )
        if len(base64.b64decode(request.get("UserData") or "")) > 16384:
            raise EC2ClientError("InvalidParameterValue", "User data is limited to 16384 bytes")
        spot = "InstanceMarketOptions" in request
        options = request.get("InstanceMarketOptions", {}).get("SpotOptions", {})
        ends = options.get("InstanceInterruptionBehavior", "terminate") == "terminate"
        if options.get("SpotInstanceType", "one-time") == "persistent" and ends:
            raise EC2ClientError(
                "InvalidParameterCombination", "persistent requests are only supported with hibernate or stop"
            )
        if options.get("SpotInstanceType", "one-time") == "one-time" and not ends:
            raise EC2ClientError("InvalidParameterCombination", "one-time requests can only terminate")
        for specification in request.get("TagSpecifications") or ():
            if specification["ResourceType"] == "spot-instances-request" and not spot:
                raise EC2ClientError("InvalidParameterCombination", "There is no Spot request to tag.")
            for tag in specification.get("Tags", ()):
                if len(tag["Key"]) > 128 or len(tag.get("Value", "")) > 256 or tag["Key"].startswith("aws:"):
                    raise EC2ClientError("InvalidParameterValue", f"Tag {tag['Key']} is invalid.")

    def _take_stock(self, request: dict[str, Any], zone: str) -> None:
        account, name = self.account, request["InstanceType"]
        assert account is not None
        quota = account.vcpu_quota.get(self.region_name)
        if quota is not None:
            living = [x for x in self.launches.lives.values() if x.state in ("pending", "running")]
            used = sum(self.described(x.instance.instance_type)["VCpuInfo"]["DefaultVCpus"] for x in living)
            if used + self.described(name)["VCpuInfo"]["DefaultVCpus"] > quota:
                raise EC2ClientError(
                    "VcpuLimitExceeded",
                    f"You have requested more vCPU capacity than your current vCPU limit of {quota} allows.",
                )
        for key in (zone, f"{name} {zone}"):
            if account.stock.get(key, 1) <= 0:
                raise EC2ClientError(
                    "InsufficientInstanceCapacity",
                    f"We currently do not have sufficient {name} capacity in the zone you requested ({zone}).",
                )
        for key in (zone, f"{name} {zone}"):
            if key in account.stock:
                account.stock[key] -= 1

    def _all_devices(self, request: dict[str, Any], mappings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The image's own root disk is there also when the request does not name it."""
        image = self.describe_images(ami_ids=[request["ImageId"]])[0]
        if any(mapping["DeviceName"] == image.root_device_name for mapping in mappings):
            return mappings
        ebs = {"VolumeSize": image.size_gib, "VolumeType": "gp3", "DeleteOnTermination": True}
        return [*mappings, {"DeviceName": image.root_device_name, "Ebs": ebs, "NoDevice": None, "VirtualName": None}]

    # -- what is sold where

    def described(self, name: str) -> InstanceType:
        return next(known for known in self.instance_types if known.name == name)

    def zones_of(self, name: str) -> list[str]:
        zones = [zone.name for zone in self.describe_availability_zones()]
        return zones[:-1] if name in aws_prices.ONLY_IN_SOME_ZONES else zones

    def describe_instance_type_offerings(self, location_type: Any = None, filters: Any = None) -> list[dict[str, str]]:
        wanted = (filters or {}).get("instance-type")
        # A local zone as well: it needs an opt-in of its own and is no place of ours.
        return [
            {"InstanceType": known.name, "LocationType": str(location_type), "Location": zone}
            for known in self.instance_types
            for zone in [*self.zones_of(known.name), f"{self.region_name}-lax-1a"]
            if not wanted or known.name in wanted
        ]

    def spot_history(self, names: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "InstanceType": known.name,
                "ProductDescription": "Linux/UNIX",
                "SpotPrice": str(aws_prices.spot(known.name, zone)),
                "AvailabilityZone": zone,
                "Timestamp": self.time(),
            }
            for known in self.instance_types
            for zone in self.zones_of(known.name)
            if not names or known.name in names
        ]
