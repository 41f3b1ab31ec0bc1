"""Creating a machine in the emulated Azure, with its disk, card and address, as its compute provider does."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any

from tests.emulators.azure_sales import IMAGES, REGIONS, SIZES, Sold
from tests.emulators.azure_state import DISK, IP, NET, NIC, NSG, VM, Account, Refused, Thing
from tests.emulators.base import Guest

QUOTA_TEXT = (
    "Operation could not be completed as it results in exceeding approved {what} quota. Additional details - "
    "Deployment Model: Resource Manager, Location: {region}, Current Limit: {limit}, Current Usage: {used}, Additional "
    "Required: {more}, (Minimum) New Limit Required: {needed}. Setup Alerts when Quota reaches threshold. Submit a "
    "request for Quota increase at https://aka.ms/ProdportalCRP/#blade/Microsoft_Azure_Capacity/UsageAndQuota."
)


@dataclass
class Shop:
    """stock: machines left by place, absent for no end; with late_stockout Azure accepts first and fails afterwards.
    quotas: cores by (region, "total", "spot" or a family), absent for no end. ips: public addresses per region."""

    account: Account
    stock: dict[str, int] = field(default_factory=dict)
    late_stockout: bool = False
    quotas: dict[tuple[str, str], int] = field(default_factory=dict)
    ips: int = 1000

    def create(self, group: str, name: str, body: dict[str, Any]) -> Thing:
        """Raises Refused."""
        properties = body.get("properties") or {}
        region, zones = body["location"], body.get("zones") or []
        sold = self._sold(properties, region, zones)
        card = self._card(properties, region)
        self._check_image(properties, sold)
        self._check_guest(properties)
        self._check_quota(sold, region, properties.get("priority") == "Spot")
        place = f"{region}-{zones[0]}" if zones else region
        failure = self._take_stock(place, bool(zones))
        if failure and not self.late_stockout:
            raise Refused(409, *failure)
        account = self.account
        vm = Thing(
            VM,
            group,
            name,
            region,
            account.now(),
            tags=body.get("tags") or {},
            zones=zones,
            properties=properties,
            ready_unix_s=account.now() + account.boot_s,
            failure=failure,
        )
        account.things[vm.key] = vm
        self._bring(vm, card)
        if failure is None:
            user_data = base64.b64decode(properties["osProfile"].get("customData") or "").decode()
            memory_bytes = int(sold.memory_gib * 2**30)
            account.machines.start(
                Guest(cloud_id=vm.guid, name=name, user_data=user_data, vcpus=sold.vcpus, memory_bytes=memory_bytes)
            )
        return vm

    def _sold(self, properties: dict[str, Any], region: str, zones: list[str]) -> Sold:
        size = (properties.get("hardwareProfile") or {}).get("vmSize", "")
        sold = SIZES.get(size.lower())
        if region not in REGIONS:
            raise Refused(400, "InvalidLocation", f"The location {region} is not known.")
        if sold is None or region not in sold.regions:
            raise Refused(
                400, "InvalidParameter", f"The requested VM size {size} is not available in the current region."
            )
        if region in sold.refused_regions or any((region, zone) in sold.refused_zones for zone in zones):
            raise Refused(
                409,
                "SkuNotAvailable",
                f"The requested size for resource '{size}' is currently not available in location '{region}' zones "
                f"'{','.join(zones)}' for subscription. Please try another size or deploy to a different location or "
                "zones. See https://aka.ms/azureskunotavailable for details.",
            )
        if len(zones) > 1 or any(not zone.isdecimal() or int(zone) > REGIONS[region] for zone in zones):
            raise Refused(
                400, "AvailabilityZoneNotSupported", f"The zone(s) {zones} for the resource are not supported."
            )
        return sold

    def _check_image(self, properties: dict[str, Any], sold: Sold) -> None:
        storage = properties.get("storageProfile") or {}
        wanted = storage.get("imageReference") or {}
        found = IMAGES.get((wanted.get("publisher"), wanted.get("offer"), wanted.get("sku")))
        if found is None or not wanted.get("version"):
            raise Refused(404, "PlatformImageNotFound", f"The platform image {wanted} is not available.")
        arch, generation, image_gib = found
        if arch != sold.arch:
            raise Refused(
                400,
                "BadRequest",
                f"Cannot create a VM of size '{sold.name}' because this VM size only supports a CPU Architecture of "
                f"'{sold.arch}', but an image or disk with CPU Architecture '{arch}' was given.",
            )
        if generation not in sold.generations:
            raise Refused(
                400,
                "BadRequest",
                f"The selected VM size '{sold.name}' cannot boot Hypervisor Generation '{generation[1]}'.",
            )
        security = (properties.get("securityProfile") or {}).get("securityType", "<NULL>")
        if bool(sold.confidential) != (security == "ConfidentialVM") or bool(sold.confidential) != (
            wanted["sku"] == "cvm"
        ):
            raise Refused(
                400, "BadRequest", f"The VM size '{sold.name}' is not supported for '{security}' security type."
            )
        disk = storage.get("osDisk") or {}
        if disk.get("createOption") != "FromImage":
            raise Refused(400, "InvalidParameter", "Required parameter 'osDisk.createOption' is invalid.")
        if disk.get("diskSizeGB") is not None and disk["diskSizeGB"] < image_gib:
            raise Refused(400, "InvalidParameter", f"The OS disk is smaller than the image's {image_gib} GB.")
        if (disk.get("managedDisk") or {}).get("storageAccountType", "").startswith("Premium") and not sold.premium:
            raise Refused(
                400, "InvalidParameter", f"Requested operation cannot be performed: {sold.name} has no PremiumIO."
            )

    def _check_guest(self, properties: dict[str, Any]) -> None:
        profile = properties.get("osProfile") or {}
        linux = profile.get("linuxConfiguration") or {}
        user = profile.get("adminUsername", "")
        if user in ("", "admin", "root", "user", "test"):
            raise Refused(400, "InvalidParameter", f"The Admin Username '{user}' is not allowed.")
        try:
            data = base64.b64decode(profile.get("customData") or "", validate=True)
        except binascii.Error:
            raise Refused(400, "InvalidParameter", "Custom data is not base64.") from None
        if len(data) > 65535:
            raise Refused(400, "InvalidParameter", "Custom data is too long.")
        keys = (linux.get("ssh") or {}).get("publicKeys") or []
        if linux.get("disablePasswordAuthentication") and not keys:
            raise Refused(400, "InvalidParameter", "Authentication using SSH needs a key.")
        for key in keys:
            if key["path"] != f"/home/{user}/.ssh/authorized_keys" or not key["keyData"].startswith("ssh-"):
                raise Refused(400, "InvalidParameter", "Destination path for SSH public keys is currently limited.")

    def _card(self, properties: dict[str, Any], region: str) -> dict[str, Any]:
        profile = properties.get("networkProfile") or {}
        cards = profile.get("networkInterfaceConfigurations") or []
        if len(cards) != 1:
            raise Refused(400, "InvalidParameter", "A machine here has one network interface configuration.")
        if not profile.get("networkApiVersion"):
            raise Refused(400, "InvalidParameter", "Required parameter 'networkProfile.networkApiVersion' is missing.")
        card: dict[str, Any] = cards[0]
        inner = card["properties"]
        configuration = inner["ipConfigurations"][0]["properties"]
        subnet_id: str = configuration["subnet"]["id"]
        self._reference(subnet_id.rpartition("/subnets/")[0], NET, region)
        self._reference(inner["networkSecurityGroup"]["id"], NSG, region)
        address = configuration.get("publicIPAddressConfiguration") or {}
        if (address.get("sku") or {}).get("name") != "Standard":
            raise Refused(
                400, "IPv4BasicSkuPublicIpCountLimitReached", "Cannot create more than 0 Basic SKU addresses."
            )
        if address["properties"].get("publicIPAllocationMethod") != "Static":
            raise Refused(400, "StandardSkuPublicIPAddressesMustBeStatic", "Standard sku addresses must be static.")
        n_ips = sum(t.type == IP and t.location == region for t in self.account.things.values())
        if n_ips >= self.ips:
            raise Refused(400, "PublicIPCountLimitReached", f"Cannot create more than {self.ips} public IP addresses.")
        return card

    def _reference(self, arm_id: str, type_: str, region: str) -> None:
        thing = next((t for t in self.account.things.values() if t.id.lower() == arm_id.lower()), None)
        if thing is None or thing.type != type_ or thing.location != region:
            raise Refused(400, "InvalidResourceReference", f"Resource {arm_id} referenced was not found.")
        if thing.state(self.account.now()) != "Succeeded":
            raise Refused(429, "ReferencedResourceNotProvisioned", f"{arm_id} is not in Succeeded state.")

    def _check_quota(self, sold: Sold, region: str, spot: bool) -> None:
        limits = ["spot"] if spot else [sold.family, "total"]
        words = {"spot": "LowPriorityCores", "total": "Total Regional Cores"}
        for name in limits:
            limit = self.quotas.get((region, name))
            used = sum(self._cores(vm, region, name) for vm in self.account.things.values() if vm.type == VM)
            if limit is not None and used + sold.vcpus > limit:
                what = words.get(name, f"{name} Cores")
                text = QUOTA_TEXT.format(
                    what=what, region=region, limit=limit, used=used, more=sold.vcpus, needed=used + sold.vcpus
                )
                raise Refused(409, "OperationNotAllowed", text)

    def _cores(self, vm: Thing, region: str, name: str) -> int:
        sold = SIZES[vm.properties["hardwareProfile"]["vmSize"].lower()]
        spot = vm.properties.get("priority") == "Spot"
        counts = vm.location == region and spot == (name == "spot") and name in ("spot", "total", sold.family)
        return sold.vcpus if counts else 0

    def _take_stock(self, place: str, zonal: bool) -> tuple[str, str] | None:
        left = self.stock.get(place)
        if left is None:
            return None
        if left > 0:
            self.stock[place] = left - 1
            return None
        if zonal:
            return (
                "ZonalAllocationFailed",
                "Allocation failed. We do not have sufficient capacity for the requested VM size in this zone. Read "
                "more about improving likelihood of allocation success at http://aka.ms/allocation-guidance",
            )
        return (
            "AllocationFailed",
            "Allocation failed. We do not have sufficient capacity for the requested VM size in this region.",
        )

    def _bring(self, vm: Thing, card: dict[str, Any]) -> None:
        """Disk, card and address; what they outlive is the default: Detach."""
        account, disk = self.account, vm.properties["storageProfile"]["osDisk"]
        address = card["properties"]["ipConfigurations"][0]["properties"]["publicIPAddressConfiguration"]
        made = [
            (DISK, disk.get("name") or f"{vm.name}_OsDisk_1_{vm.guid[:8]}", vm.tags, disk.get("deleteOption")),
            (NIC, card["name"], card.get("tags") or {}, card["properties"].get("deleteOption")),
            (IP, address["name"], address.get("tags") or {}, address["properties"].get("deleteOption")),
        ]
        for type_, name, tags, delete_option in made:
            thing = Thing(type_, vm.group, name, vm.location, account.now(), tags=dict(tags), zones=list(vm.zones))
            thing.properties["vm"] = vm.key
            account.things[thing.key] = thing
            if delete_option == "Delete":
                vm.brings.append(thing.key)
