"""Whether a policy document allows a call: enough of IAM to prove our policies sufficient, and no wider than meant.

Every resource that a call touches must be allowed by some statement, and denied by none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Touched:
    """One resource of a call and the condition keys that go with it, by lower-case name."""

    arn: str
    context: dict[str, str] = field(default_factory=dict)


def allows(policy: dict[str, Any], action: str, touched: Iterable[Touched]) -> bool:
    return all(_verdict(policy, action, resource) for resource in touched)


def _verdict(policy: dict[str, Any], action: str, resource: Touched) -> bool:
    applying = [s["Effect"] for s in policy["Statement"] if _applies(s, action, resource)]
    return "Allow" in applying and "Deny" not in applying


def _applies(statement: dict[str, Any], action: str, resource: Touched) -> bool:
    return (
        any(fnmatchcase(action.lower(), pattern.lower()) for pattern in _list(statement["Action"]))
        and any(fnmatchcase(resource.arn, pattern) for pattern in _list(statement["Resource"]))
        and all(
            _holds(operator, key.lower(), _list(values), resource.context)
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        )
    )


def _holds(operator: str, key: str, wanted: list[str], context: dict[str, str]) -> bool:
    if operator.endswith("IfExists") and key not in context:
        return True
    test = operator.removesuffix("IfExists")
    if test in ("StringEquals", "Bool"):
        return context.get(key) in wanted
    if test == "StringLike":
        return key in context and any(fnmatchcase(context[key], pattern) for pattern in wanted)
    raise NotImplementedError(operator)


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
