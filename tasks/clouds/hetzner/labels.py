"""Our tags as Hetzner's labels, and back.

A label's value has at most 63 characters of [A-Za-z0-9._-] and begins and ends with a letter or digit
(docs.hetzner.cloud/reference/cloud, "Labels"). Our own tags fit as they are; anything else is written in base 32.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

from tasks.clouds.base import OWNER, OWNER_TAG
from tasks.domain.errors import ConfigError

OWNED = f"{OWNER_TAG}={OWNER}"
"""Selects in a listing what is ours."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_ENCODED = "x32--"


def to_labels(tags: Mapping[str, str]) -> dict[str, str]:
    """Raises ConfigError for what no label can carry: a key outside of its alphabet, a value of over 36 bytes that
    has to be encoded."""
    labels = {}
    for key, value in tags.items():
        fits = not value or (_NAME.fullmatch(value) and not value.startswith(_ENCODED))
        text = value if fits else _ENCODED + base64.b32encode(value.encode()).decode().rstrip("=").lower()
        if not _NAME.fullmatch(key) or len(text) > 63:
            raise ConfigError(f"hetzner: the tag {key}={value!r} fits no label: 63 characters of [A-Za-z0-9._-].")
        labels[key] = text
    return labels


def to_tags(labels: Mapping[str, str] | None) -> dict[str, str]:
    return {key: _decode(text) for key, text in (labels or {}).items()}


def _decode(text: str) -> str:
    if not text.startswith(_ENCODED):
        return text
    encoded = text.removeprefix(_ENCODED).upper()
    try:
        return base64.b32decode(encoded + "=" * (-len(encoded) % 8)).decode()
    except ValueError:
        return text  # somebody else's label that only looks like ours
