"""Answers of EC2 that moto does not page, does not vary, or does not know."""

from __future__ import annotations

from functools import cache
from typing import Any

from moto.core import responses
from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.responses import EC2Response

_PAGED = {
    "describe_volumes": "Volumes",
    "describe_network_interfaces": "NetworkInterfaces",
    "describe_snapshots": "Snapshots",
    "describe_spot_instance_requests": "SpotInstanceRequests",
    "describe_instance_types": "InstanceTypes",
    "describe_instance_type_offerings": "InstanceTypeOfferings",
}
_SMALLEST_PAGE = 5


def _paged(method: str, key: str) -> None:
    original = getattr(EC2Response, method)

    def answer(self: Any) -> ActionResult:
        return _page(self, key, list(original(self).result[key]))

    setattr(EC2Response, method, answer)


def _page(self: Any, key: str, entries: list[Any]) -> ActionResult:
    size = self._get_int_param("MaxResults")
    if size is not None and size < _SMALLEST_PAGE:
        raise EC2ClientError("InvalidParameterValue", f"Value ( {size} ) for parameter maxResults is invalid.")
    start = int(self._get_param("NextToken") or 0)
    end = len(entries) if size is None else start + size
    return ActionResult({key: entries[start:end], "NextToken": str(end) if end < len(entries) else None})


def _describe_spot_price_history(self: Any) -> ActionResult:
    return _page(self, "SpotPriceHistory", self.ec2_backend.spot_history(self._get_param("InstanceTypes", [])))


def _delete_key_pair(self: Any) -> EmptyResult:
    wanted = self._get_param("KeyPairId"), self._get_param("KeyName")
    for name, key in list(self.ec2_backend.key_pairs.items()):
        if key.id == wanted[0] or name == wanted[1]:
            self.ec2_backend.delete_key_pair(name)
    return EmptyResult()


# Asked at each call, and always the same: half the time of a short one.
responses.method_names_from_class = cache(responses.method_names_from_class)
for _method, _key in _PAGED.items():
    _paged(_method, _key)
EC2Response.describe_spot_price_history = _describe_spot_price_history
EC2Response.delete_key_pair = _delete_key_pair
# A launch is answered with the state that the instance has: another one than "pending" when a token is used again.
EC2Response.RESPONSE_KEY_PATH_TO_TRANSFORMER.pop("RunInstances.Reservation.Instances.Instance.State", None)
