"""The gate policies by name."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Callable, Mapping

from tasks.domain.classic import ClassicPolicy
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.errors import ConfigError
from tasks.domain.policy import Policy

POLICIES: dict[str, Callable[[], Any]] = {"classic": ClassicPolicy, "dynamic": DynamicPolicy}


def policy_for(name: str, options: Mapping[str, Any]) -> Policy:
    """The policy with some thresholds changed. Raises ConfigError for an unknown policy or threshold."""
    if name not in POLICIES:
        raise ConfigError(f"There is no policy {name!r}.", next_step=f"Known: {', '.join(sorted(POLICIES))}.")
    policy = POLICIES[name]()
    known = {f.name for f in fields(policy) if f.name != "name"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(
            f"Policy {name!r} has no option {', '.join(unknown)}.", next_step=f"Known: {', '.join(sorted(known))}."
        )
    changed: Policy = replace(policy, **dict(options))
    return changed
