"""Our tags as UpCloud's labels, and back.

A key has 2 to 32 characters of [A-Za-z0-9_-] and begins with a letter or digit, a value at most 255 (UpCloud's
Terraform provider checks the same); all that we write fits. Listings do not say when a server was made, so one label
of our own says it, which is not among the tags that are read back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tasks.clouds.base import OWNER, OWNER_TAG
from tasks.domain.errors import ConfigError

OWNED = f"{OWNER_TAG}={OWNER}"
CREATED_LABEL = "tokensweep-created"

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{1,31}")
_LONGEST_VALUE = 255


def to_labels(tags: Mapping[str, str], created_unix_s: float) -> dict[str, str]:
    """Raises ConfigError for what no label can carry."""
    for key, value in tags.items():
        if not _KEY.fullmatch(key) or key == CREATED_LABEL or len(value) > _LONGEST_VALUE or not value.isprintable():
            raise ConfigError(
                f"upcloud: the tag {key}={value!r} fits no label: a key of 2 to 32 characters of [A-Za-z0-9_-], "
                f"a printable value of at most {_LONGEST_VALUE}."
            )
    return dict(tags) | {CREATED_LABEL: f"{created_unix_s:.0f}"}


def labels_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """The API shows labels as a list, or as a list in an object, depending on the kind of thing."""
    labels = entry.get("labels") or []
    if isinstance(labels, Mapping):
        labels = labels.get("label") or []
    return {str(label["key"]): str(label["value"]) for label in labels}


def tags_of(entry: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in labels_of(entry).items() if key != CREATED_LABEL}


def created_of(entry: Mapping[str, Any]) -> float:
    """Unix seconds: what UpCloud says, or what our label says, or 0."""
    said = entry.get("created") or labels_of(entry).get(CREATED_LABEL) or 0
    try:
        return float(said)
    except (TypeError, ValueError):
        return 0.0
