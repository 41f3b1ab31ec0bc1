"""Requests as Azure Resource Manager takes them: by the SDK's own models, an unknown property is refused."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from azure.mgmt.compute import models as compute_models
from azure.mgmt.network import models as network_models
from azure.mgmt.resource.resources import models as resource_models

SCHEMAS: dict[str, Any] = {
    "Microsoft.Compute/virtualMachines": compute_models.VirtualMachine,
    "Microsoft.Compute/disks": compute_models.Disk,
    "Microsoft.Network/networkSecurityGroups": network_models.NetworkSecurityGroup,
    "Microsoft.Network/virtualNetworks": network_models.VirtualNetwork,
    "Microsoft.Network/networkInterfaces": network_models.NetworkInterface,
    "Microsoft.Network/publicIPAddresses": network_models.PublicIPAddress,
}
GROUP_FIELDS = {attribute["key"] for attribute in resource_models.ResourceGroup._attribute_map.values()}
SCHEDULE_FIELDS = {
    "status",
    "taskType",
    "dailyRecurrence",
    "weeklyRecurrence",
    "hourlyRecurrence",
    "timeZoneId",
    "notificationSettings",
    "targetResourceId",
}
# https://learn.microsoft.com/azure/templates/microsoft.devtestlab/schedules

_MAX_TAGS, _MAX_TAG_NAME, _MAX_TAG_VALUE = 50, 512, 256


def problem(resource_type: str, body: Any) -> str:
    """What Azure would say against this body, "" if nothing."""
    if not isinstance(body, Mapping):
        return "The request content was invalid and could not be deserialized."
    found = tag_problem(body.get("tags"))
    if found:
        return found
    if resource_type == "Microsoft.DevTestLab/schedules":
        unknown = set(body.get("properties", {})) - SCHEDULE_FIELDS
        return f"Could not find member '{min(unknown)}'" if unknown else ""
    return next(_check(SCHEMAS[resource_type], body, resource_type), "")


def group_problem(body: Any) -> str:
    if not isinstance(body, Mapping) or not body.get("location"):
        return "The location property is required for this definition."
    unknown = set(body) - GROUP_FIELDS
    return (
        f"Could not find member '{min(unknown)}' on object of type 'ResourceGroupDefinition'."
        if unknown
        else (tag_problem(body.get("tags")))
    )


def tag_problem(tags: Any) -> str:
    if tags is None:
        return ""
    if not isinstance(tags, Mapping) or not all(isinstance(v, str) for v in tags.values()):
        return "Tags must be strings."
    if len(tags) > _MAX_TAGS:
        return f"A resource has at most {_MAX_TAGS} tags."
    if len({name.lower() for name in tags}) < len(tags):
        return "Tag names are not compared by case, and some are equal."
    for name, value in tags.items():
        if len(name) > _MAX_TAG_NAME or len(value) > _MAX_TAG_VALUE:
            return f"The tag {name[:40]!r} or its value is too long."
        if re.search(r"[<>%&\\?/]|[\x00-\x1f\x7f]", name) or name.lower().startswith(("azure", "microsoft", "windows")):
            return f"The tag name {name!r} is reserved or has forbidden characters."
    return ""


def _check(model: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{path}: expected an object."
        return
    fields = _fields(model)
    for key in value:
        if key not in fields:
            yield f"Could not find member '{key}' on object of type '{model.__name__}'. Path '{path}.{key}'."
    for key, (_, required, read_only) in fields.items():
        if required and not read_only and value.get(key) is None:
            yield f"Required parameter '{path}.{key}' is missing (null)."
    for key, item in value.items():
        if key in fields and item is not None:
            yield from _check_hint(fields[key][0], item, f"{path}.{key}")


def _check_hint(hint: Any, value: Any, path: str) -> Iterator[str]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        options = [a for a in args if a is not type(None)]
        answers = [list(_check_hint(option, value, path)) for option in options]
        if all(answers):
            yield from answers[-1]
    elif origin is list:
        if not isinstance(value, list):
            yield f"{path}: expected an array."
            return
        for n, item in enumerate(value):
            yield from _check_hint(args[0], item, f"{path}[{n}]")
    elif origin is dict:
        for key, item in (value if isinstance(value, dict) else {}).items():
            yield from _check_hint(args[1], item, f"{path}.{key}")
    elif hasattr(hint, "_attr_to_rest_field") or hasattr(hint, "_calculated"):
        yield from _check(hint, value, path)
    elif hint in (str, int, bool, float):
        wanted: Any = (int, float) if hint is float else hint
        if not isinstance(value, wanted) or (hint is int and isinstance(value, bool)):
            yield f"{path}: error converting value {value!r} to type '{hint.__name__}'."
    elif isinstance(hint, type) and issubclass(hint, Enum):
        known = [str(member.value) for member in hint]
        if str(value).lower() not in [name.lower() for name in known]:
            yield f"{path}: {value!r} is not one of {known}."


@cache
def _fields(model: Any) -> dict[str, tuple[Any, bool, bool]]:
    """By name on the wire: type, whether required, whether only Azure writes it."""
    model()  # the models find out their fields at first use
    module = {"_models": network_models if "network" in model.__module__ else compute_models}
    hints = get_type_hints(model, localns=module)
    fields = {}
    for attribute, field in model._attr_to_rest_field.items():
        hint = hints[attribute]
        fields[field._rest_name] = (
            # Enumerations are given as Union[str, Enum]: what counts is the enumeration, but for sizes a relic of 2018.
            hint if field._rest_name == "vmSize" else _enumeration(hint) or hint,
            type(None) not in get_args(hint),
            field._visibility == ["read"],
        )
    return fields


def _enumeration(hint: Any) -> Any:
    options = [a for a in get_args(hint) if isinstance(a, type) and issubclass(a, str) and a is not str]
    return options[0] if options and get_origin(hint) in (Union, types.UnionType) else None
