"""What is asked of Azure for one server: its network, its firewall, and the machine itself.

The group, the firewall (NSG) and the network are free. The public address, the network card and the disk are described
inside the machine's own request, so nothing that costs money exists before that one call, and all of it is deleted
with the machine even where the group is not.
"""

from __future__ import annotations

import base64
import ipaddress
import math
from typing import TYPE_CHECKING

from azure.mgmt.compute import models as compute
from azure.mgmt.network import models as network

from tasks.clouds import guest
from tasks.clouds.azure.errors import refusal
from tasks.clouds.azure.identity import Place
from tasks.clouds.base import CreateSpec, ErrorKind, Scope

if TYPE_CHECKING:
    from tasks.clouds.azure.skus import Size

GIB = 2**30
SUBNET = "servers"
_NETWORK_API_VERSION = "2022-11-01"  # of the card and the address inside the machine's request; the newest it takes

# The priority of our rule; everything else inbound is denied by the rules that every NSG ends with.
_SSH_PRIORITY = 100

CANONICAL = ("Canonical", "ubuntu-24_04-lts")
# https://documentation.ubuntu.com/azure/azure-how-to/instances/find-ubuntu-images/ (read 2026-11): server is
# generation 2, server-gen1 generation 1, server-arm64 Arm, cvm confidential.

HPC = ("microsoft-dsvm", "ubuntu-hpc", "2404")
# Ubuntu 24.04 with NVIDIA's driver, CUDA and the fabric manager, free of charge:
# https://github.com/Azure/azhpc-images and https://learn.microsoft.com/azure/virtual-machines/azure-hpc-vm-images.
# The driver extension (NvidiaGpuDriverLinux) would do too, but can only be added once the machine runs.

_SMALLEST_DISK_GIB = {CANONICAL[0]: 30, HPC[0]: 64}


def firewall(spec: CreateSpec, tags: dict[str, str]) -> network.NetworkSecurityGroup:
    """Nothing comes in but SSH from `ssh_sources`. One rule per address family: Azure takes no mixture."""
    sources = [ipaddress.ip_network(source, strict=False) for source in spec.ssh_sources]
    families = [[str(s) for s in sources if s.version == version] for version in (4, 6)] if sources else [["*"]]
    rules = [
        network.SecurityRule(
            name=f"ssh-{n}",
            properties=network.SecurityRulePropertiesFormat(
                priority=_SSH_PRIORITY + n,
                direction="Inbound",
                access="Allow",
                protocol="Tcp",
                source_port_range="*",
                destination_address_prefix="*",
                destination_port_range="22",
                source_address_prefix="*" if prefixes == ["*"] else None,
                source_address_prefixes=None if prefixes == ["*"] else prefixes,
            ),
        )
        for n, prefixes in enumerate(families)
        if prefixes
    ]
    return network.NetworkSecurityGroup(
        location=Place.parse(spec.place).region,
        tags=tags,
        properties=network.NetworkSecurityGroupPropertiesFormat(security_rules=rules),
    )


def virtual_network(spec: CreateSpec, tags: dict[str, str]) -> network.VirtualNetwork:
    return network.VirtualNetwork(
        location=Place.parse(spec.place).region,
        tags=tags,
        properties=network.VirtualNetworkPropertiesFormat(
            address_space=network.AddressSpace(address_prefixes=["10.0.0.0/24"]),
            subnets=[
                network.Subnet(name=SUBNET, properties=network.SubnetPropertiesFormat(address_prefix="10.0.0.0/24"))
            ],
        ),
    )


def machine(
    spec: CreateSpec, size: Size, tags: dict[str, str], *, subnet_id: str, firewall_id: str
) -> compute.VirtualMachine:
    """Raises AzureCloudError for what no image fits."""
    place = Place.parse(spec.place)
    return compute.VirtualMachine(
        location=place.region,
        zones=[place.zone] if place.zone else None,
        tags=tags,
        properties=compute.VirtualMachineProperties(
            hardware_profile=compute.HardwareProfile(vm_size=spec.server_type),
            storage_profile=_storage(spec, size),
            os_profile=_os(spec),
            network_profile=compute.NetworkProfile(
                network_api_version=_NETWORK_API_VERSION,
                network_interface_configurations=[_card(spec, size, tags, subnet_id, firewall_id)],
            ),
            security_profile=_security(size),
            priority="Spot" if spec.spot else None,
            # By default it would only be deallocated, which keeps the disk and the address.
            eviction_policy="Delete" if spec.spot else None,
            billing_profile=compute.BillingProfile(max_price=-1) if spec.spot else None,  # up to the full price
        ),
    )


def image(spec: CreateSpec, size: Size) -> compute.ImageReference:
    """Ubuntu 24.04 for this size. Raises AzureCloudError where there is none that would drive its GPU."""
    if spec.gpus and size.confidential:
        raise _no_image(spec, "no image with a GPU driver is a confidential one")
    if spec.gpus and size.needs_grid_driver:
        raise _no_image(spec, "its GPU needs NVIDIA's GRID driver, which no image has")
    if spec.gpus:
        publisher, offer, sku = HPC
    else:
        publisher, offer = CANONICAL
        sku = "server-arm64" if size.arch == "aarch64" else "cvm" if size.confidential else "server"
        if not size.generation_2:
            sku = "server-gen1"
    return compute.ImageReference(publisher=publisher, offer=offer, sku=sku, version="latest")


def _no_image(spec: CreateSpec, why: str) -> Exception:
    return refusal(ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, "NoImage", f"{spec.server_type} cannot be used: {why}")


def _storage(spec: CreateSpec, size: Size) -> compute.StorageProfile:
    reference = image(spec, size)
    smallest_gib = _SMALLEST_DISK_GIB[reference.publisher or ""]
    disk = compute.ManagedDiskParameters(
        # Standard SSDs read 60 MB/s, less than many servers download with; premium ones 100 to 170 at this size.
        storage_account_type="Premium_LRS" if size.premium_disks else "StandardSSD_LRS",
        security_profile=compute.VMDiskSecurityProfile(security_encryption_type="VMGuestStateOnly")
        if size.confidential
        else None,
    )
    return compute.StorageProfile(
        image_reference=reference,
        os_disk=compute.OSDisk(
            name=f"{spec.name}-disk",
            create_option="FromImage",
            delete_option="Delete",  # by default it would outlive the machine
            caching="ReadWrite",
            disk_size_gb=max(smallest_gib, math.ceil(spec.disk_bytes / GIB)) if spec.disk_bytes else None,
            managed_disk=disk,
        ),
    )


def _security(size: Size) -> compute.SecurityProfile | None:
    """Confidential sizes are refused without one ("not supported ... '<NULL>' security type")."""
    if not size.confidential:
        return None
    return compute.SecurityProfile(
        security_type="ConfidentialVM",
        uefi_settings=compute.UefiSettings(v_tpm_enabled=True, secure_boot_enabled=True),
    )


def _os(spec: CreateSpec) -> compute.OSProfile:
    key = compute.SshPublicKey(
        path=f"/home/{guest.USERNAME}/.ssh/authorized_keys", key_data=spec.client_public_key.strip()
    )
    return compute.OSProfile(
        computer_name=spec.name,
        admin_username=guest.USERNAME,
        custom_data=base64.b64encode(guest.user_data(spec).encode()).decode(),
        linux_configuration=compute.LinuxConfiguration(
            disable_password_authentication=True,
            ssh=compute.SshConfiguration(public_keys=[key]),
            provision_vm_agent=True,
        ),
    )


def _card(
    spec: CreateSpec, size: Size, tags: dict[str, str], subnet_id: str, firewall_id: str
) -> compute.VirtualMachineNetworkInterfaceConfiguration:
    address = compute.VirtualMachinePublicIPAddressConfiguration(
        name=f"{spec.name}-ip",
        tags=tags,
        sku=compute.PublicIPAddressSku(name="Standard", tier="Regional"),
        properties=compute.VirtualMachinePublicIPAddressConfigurationProperties(
            delete_option="Delete", public_ip_allocation_method="Static", public_ip_address_version="IPv4"
        ),
    )
    ip = compute.VirtualMachineNetworkInterfaceIPConfiguration(
        name="ipv4",
        properties=compute.VirtualMachineNetworkInterfaceIPConfigurationProperties(
            primary=True, subnet=compute.SubResource(id=subnet_id), public_ip_address_configuration=address
        ),
    )
    return compute.VirtualMachineNetworkInterfaceConfiguration(
        name=f"{spec.name}-nic",
        tags=tags,
        properties=compute.VirtualMachineNetworkInterfaceConfigurationProperties(
            primary=True,
            delete_option="Delete",
            enable_accelerated_networking=size.accelerated_networking,
            network_security_group=compute.SubResource(id=firewall_id),
            ip_configurations=[ip],
        ),
    )
