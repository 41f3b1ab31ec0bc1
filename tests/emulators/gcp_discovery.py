"""Requests to Google's services checked against Google's own discovery documents, as its front end does.

They ship with google-api-python-client. A path that no method has, a parameter that the method does not know, a value
of another form, an unknown field or a missing one in the body: refused, with the words of the real service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import unquote

Json = dict[str, Any]


class RefusedRequest(Exception):
    """status, reason: what the service says to it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


@dataclass(frozen=True)
class Call:
    """One method of a service with checked arguments: `instances.insert`, path and query parameters, body."""

    operation: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Json


@dataclass(frozen=True)
class _Method:
    name: str
    verb: str
    pattern: re.Pattern[str]
    spec: Json


class Service:
    """A service by its discovery document."""

    def __init__(self, document: str) -> None:
        text = files("googleapiclient.discovery_cache.documents").joinpath(f"{document}.json").read_text()
        self.document: Json = json.loads(text)
        self.prefix = f"/{self.document['servicePath']}"
        self.methods = list(self._methods(self.document, ()))

    def match(self, verb: str, path: str) -> tuple[_Method, dict[str, str]] | None:
        """The method with this path, or None. The one with the fewest variable parts wins."""
        for method in self.methods:
            found = method.pattern.fullmatch(path)
            if found and method.verb == verb:
                return method, {key: unquote(value) for key, value in found.groupdict().items()}
        return None

    def check(self, verb: str, path: str, query: Mapping[str, str], body: bytes) -> Call:
        """The call that is meant. Raises RefusedRequest for what the service would refuse."""
        found = self.match(verb, path)
        if found is None:
            raise RefusedRequest(404, "notFound", f"The requested URL {path} was not found on this server.")
        method, arguments = found
        parameters: Json = method.spec.get("parameters", {}) | self.document.get("parameters", {})
        for name, value in {**arguments, **query}.items():
            if name in parameters:
                self._check_parameter(name, value, parameters[name])
            elif name in query:
                raise RefusedRequest(400, "badRequest", f'Invalid JSON payload received. Unknown name "{name}"')
        for name, spec in parameters.items():
            if spec.get("required") and name not in arguments and name not in query:
                raise RefusedRequest(400, "required", f"Required parameter: {name}")
        return Call(method.name, arguments, dict(query), self._body(method, body))

    def _body(self, method: _Method, body: bytes) -> Json:
        if "request" not in method.spec:
            if body.strip() not in (b"", b"{}"):
                raise RefusedRequest(400, "badRequest", f"{method.name} takes no body")
            return {}
        try:
            value = json.loads(body or b"{}")
        except ValueError:
            raise RefusedRequest(400, "parseError", "Parse Error") from None
        self._check_value(value, method.spec["request"], "", method.spec["id"])
        return dict(value)

    def _check_parameter(self, name: str, value: str, spec: Json) -> None:
        pattern = spec.get("pattern")
        if pattern and not re.fullmatch(pattern, value):
            raise RefusedRequest(400, "invalid", f"Invalid value for field '{name}': '{value}'. Must match '{pattern}'")
        if spec["type"] == "integer" and not value.isdigit():
            raise RefusedRequest(400, "invalid", f"Invalid value for field '{name}': '{value}'.")

    def _check_value(self, value: Any, spec: Json, at: str, method: str) -> None:
        if "$ref" in spec:
            spec = self.document["schemas"][spec["$ref"]]
        kind = spec.get("type")
        if kind == "object":
            self._check_object(value, spec, at, method)
        elif kind == "array":
            if not isinstance(value, list):
                raise _invalid(at, value, "a list")
            for number, item in enumerate(value):
                self._check_value(item, spec["items"], f"{at}[{number}]", method)
        elif kind == "boolean":
            if not isinstance(value, bool):
                raise _invalid(at, value, "a boolean")
        elif kind in ("integer", "number"):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise _invalid(at, value, "a number")
        elif kind == "string":
            self._check_text(value, spec, at)

    def _check_object(self, value: Any, spec: Json, at: str, method: str) -> None:
        if not isinstance(value, dict):
            raise _invalid(at, value, "an object")
        properties: Json = spec.get("properties", {})
        for name, item in value.items():
            if name in properties:
                self._check_value(item, properties[name], f"{at}.{name}".strip("."), method)
            elif "additionalProperties" in spec:
                self._check_value(item, spec["additionalProperties"], f"{at}.{name}".strip("."), method)
            else:
                raise RefusedRequest(
                    400, "badRequest", f"Invalid JSON payload received. Unknown name \"{name}\" at '{at or 'resource'}'"
                )
        for name, field in properties.items():
            if method in field.get("annotations", {}).get("required", ()) and value.get(name) in (None, ""):
                raise RefusedRequest(
                    400, "required", f"Required field 'resource.{at}{'.' * bool(at)}{name}' not specified"
                )

    def _check_text(self, value: Any, spec: Json, at: str) -> None:
        if not isinstance(value, str):
            raise _invalid(at, value, "a string")
        if spec.get("format") in ("int64", "uint64") and not re.fullmatch(r"-?\d+", value):
            raise _invalid(at, value, "a number as a string")
        if "enum" in spec and value not in spec["enum"]:
            raise _invalid(at, value, f"one of [{', '.join(spec['enum'])}]")
        if "pattern" in spec and not re.fullmatch(spec["pattern"], value):
            raise _invalid(at, value, f"a match of regex '{spec['pattern']}'")

    def _methods(self, resource: Json, names: tuple[str, ...]) -> list[_Method]:
        found = [
            _Method(".".join((*names, name)), spec["httpMethod"], self._pattern(spec), spec)
            for name, spec in resource.get("methods", {}).items()
        ]
        for name, child in resource.get("resources", {}).items():
            found += self._methods(child, (*names, name))
        return sorted(found, key=lambda method: method.pattern.pattern.count("(?P<"))

    def _pattern(self, spec: Json) -> re.Pattern[str]:
        """`{name}` is one segment, `{+name}` any number of them, as its own pattern says."""
        parts = re.split(r"\{(\+?)(\w+)\}", spec["path"])
        pattern = re.escape(parts[0])
        for plus, name, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            many = str(spec["parameters"][name].get("pattern", ".+")).strip("^$")
            pattern += f"(?P<{name}>{many if plus else '[^/]+'})" + re.escape(rest)
        return re.compile(re.escape(self.prefix) + pattern)


def _invalid(at: str, value: Any, wanted: str) -> RefusedRequest:
    return RefusedRequest(400, "invalid", f"Invalid value for field 'resource.{at}': '{value}'. Must be {wanted}.")


@cache
def service(document: str) -> Service:
    """Parsed once in a process: five megabytes of it."""
    return Service(document)
