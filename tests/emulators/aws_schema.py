"""Requests as AWS reads them: taken apart by the service model that botocore carries, and refused if they do not fit.

The SDK checks some of this itself before it sends; a server must not rely on that, and enumerations only it checks.
"""

from __future__ import annotations

import base64
import binascii
import json
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

from botocore.loaders import Loader
from botocore.model import ListShape, OperationModel, ServiceModel, Shape, StructureShape
from botocore.validate import ParamValidator


class RefusedError(Exception):
    """What the service answers instead of doing anything."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@cache
def service_model(service: str) -> ServiceModel:
    return ServiceModel(Loader().load_service_model(service, "service-2"), service)


def read_form(service: str, body: bytes) -> tuple[OperationModel, dict[str, Any]]:
    """The operation and parameters of a request of the query protocols. Raises RefusedError."""
    form = dict(parse_qsl(body.decode(), keep_blank_values=True))
    model = service_model(service)
    action = form.pop("Action", "")
    if form.pop("Version", "") != model.api_version or action not in model.operation_names:
        raise RefusedError("InvalidAction", f"The action {action} is not valid for this web service.")
    operation = model.operation_model(action)
    left = dict(form)
    shape = operation.input_shape
    parameters = _structure(shape, "", left, ec2=model.protocol == "ec2") if shape is not None else {}
    if left:
        raise RefusedError("UnknownParameter", f"The parameter {sorted(left)[0]} is not recognized")
    _check(operation, parameters)
    return operation, parameters


def read_json(service: str, target: str, body: bytes) -> tuple[OperationModel, dict[str, Any]]:
    """The same of the JSON protocol."""
    model = service_model(service)
    prefix, _, action = target.partition(".")
    if prefix != model.metadata["targetPrefix"] or action not in model.operation_names:
        raise RefusedError("UnknownOperationException", target)
    operation = model.operation_model(action)
    parameters = json.loads(body or b"{}")
    _check(operation, parameters)
    return operation, parameters


def _structure(shape: StructureShape, prefix: str, left: dict[str, str], *, ec2: bool) -> dict[str, Any]:
    found = {}
    for name, member in shape.members.items():
        value = _value(member, prefix + _wire_name(name, member, ec2), left, ec2=ec2)
        if value is not None:
            found[name] = value
    return found


def _wire_name(name: str, member: Shape, ec2: bool) -> str:
    if ec2 and "queryName" in member.serialization:
        return str(member.serialization["queryName"])
    location = str(member.serialization.get("name", name))
    return location[0].upper() + location[1:] if ec2 else location


def _value(shape: Shape, key: str, left: dict[str, str], *, ec2: bool) -> Any:
    if isinstance(shape, (StructureShape, ListShape)) and not any(k.startswith(key + ".") for k in left):
        return None
    if isinstance(shape, StructureShape):
        return _structure(shape, key + ".", left, ec2=ec2)
    if isinstance(shape, ListShape):
        between = "." if ec2 else ".member."
        values = []
        while (value := _value(shape.member, f"{key}{between}{len(values) + 1}", left, ec2=ec2)) is not None:
            values.append(value)
        return values
    text = left.pop(key, None)
    return None if text is None else _scalar(shape, key, text)


def _scalar(shape: Shape, key: str, text: str) -> Any:
    try:
        if shape.type_name in ("integer", "long"):
            return int(text)
        if shape.type_name in ("float", "double"):
            return float(text)
        if shape.type_name == "boolean":
            return {"true": True, "false": False}[text.lower()]
        if shape.type_name == "blob":
            return base64.b64decode(text, validate=True)
    except (ValueError, KeyError, binascii.Error):
        raise RefusedError("InvalidParameterValue", f"Value ({text}) for parameter {key} is invalid.") from None
    return text


def _check(operation: OperationModel, parameters: dict[str, Any]) -> None:
    """Missing, unknown and mistyped parameters, and values outside an enumeration."""
    if operation.input_shape is None:
        return
    problems = ParamValidator().validate(parameters, operation.input_shape)
    if problems.has_errors():
        raise RefusedError("MissingParameter", problems.generate_report())
    _check_enums(operation.input_shape, parameters, operation.name)


def _check_enums(shape: Shape, value: Any, path: str) -> None:
    if isinstance(shape, StructureShape):
        for name, member in value.items():
            _check_enums(shape.members[name], member, f"{path}.{name}")
    elif isinstance(shape, ListShape):
        for member in value:
            _check_enums(shape.member, member, path)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        raise RefusedError("InvalidParameterValue", f"Invalid value '{value}' for {path.rsplit('.', 1)[-1]}.")
