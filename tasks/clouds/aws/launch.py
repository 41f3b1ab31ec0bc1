"""The one request that makes a server, with everything in it that makes the rest go when the server goes."""

from __future__ import annotations

from typing import Any

from tasks.clouds.aws.clients import tag_list
from tasks.clouds.aws.images import Image
from tasks.clouds.base import CreateSpec
from tasks.clouds.guest import user_data
from tasks.domain.errors import ConfigError

NAME_TAG = "Name"
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions
_LONGEST_KEY, _LONGEST_VALUE, _MOST_TAGS = 128, 256, 50
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-add-user-data.html: before it is encoded.
_LONGEST_USER_DATA_BYTES = 16_384


def launch_request(spec: CreateSpec, image: Image, subnet_id: str, group_id: str) -> dict[str, Any]:
    """The arguments of run_instances. The same spec gives the same arguments, as its token demands.

    Raises ConfigError for tags or user data that EC2 would refuse.
    """
    check_tags(spec.tags)
    document = user_data(spec)
    if len(document.encode()) > _LONGEST_USER_DATA_BYTES:
        raise ConfigError(f"aws: the user data of {spec.name} has more than {_LONGEST_USER_DATA_BYTES} bytes.")
    request: dict[str, Any] = {
        "ClientToken": spec.token,
        "MinCount": 1,
        "MaxCount": 1,
        "ImageId": image.image_id,
        "InstanceType": spec.server_type,
        "UserData": document,
        # So that the guest's own timer ends the billing, not only the system.
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled", "HttpPutResponseHopLimit": 1},
        "BlockDeviceMappings": image.block_device_mappings(spec.disk_bytes),
        # The subnet gives the zone. The public address is the interface's own and goes with it.
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "SubnetId": subnet_id,
                "Groups": [group_id],
                "AssociatePublicIpAddress": True,
                "DeleteOnTermination": True,
            }
        ],
        "TagSpecifications": tag_specifications(spec),
    }
    if spec.spot:
        request["InstanceMarketOptions"] = {
            "MarketType": "spot",
            # A persistent request would launch another one after each interruption.
            "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
        }
    return request


def tag_specifications(spec: CreateSpec) -> list[dict[str, Any]]:
    tags = tag_list(spec.tags | {NAME_TAG: spec.name})
    kinds = ["instance", "volume", "network-interface"] + ["spot-instances-request"] * spec.spot
    return [{"ResourceType": kind, "Tags": tags} for kind in kinds]


def check_tags(tags: dict[str, str]) -> None:
    """Raises ConfigError for tags that EC2 would refuse or not give back as they were."""
    for key, value in tags.items():
        if not 0 < len(key) <= _LONGEST_KEY or len(value) > _LONGEST_VALUE or key.lower().startswith("aws:"):
            raise ConfigError(
                f"aws: the tag {key!r} cannot be set.",
                next_step=f"Keys have 1 to {_LONGEST_KEY} characters and do not begin with aws:, "
                f"values at most {_LONGEST_VALUE}.",
            )
        if key == NAME_TAG:
            raise ConfigError(f"aws: the tag {NAME_TAG!r} is the server's name and cannot be set otherwise.")
    if len(tags) >= _MOST_TAGS:
        raise ConfigError(f"aws: {len(tags)} tags are more than a resource can have.")
