"""From a cell's end back to the measurements it rests on."""

from __future__ import annotations

import re
from typing import Any, Iterator, Mapping, Sequence

SOURCE_KEYS = ("from", "because_of", "closed")
"""Keys of evidence whose value names another subject."""

_BECAUSE = re.compile(r"because of (.+ (?:pp|tg)\d+)")

Decided = Mapping[str, Any]


def chain(decisions: Sequence[Decided], subject: str) -> list[tuple[int, Decided]]:
    """Decisions about `subject` in their order, each followed by those about what its evidence names, one deeper.

    A decision has `subject` and `evidence` (a mapping). A subject that was told of already is not told of again.
    """
    by_subject: dict[str, list[Decided]] = {}
    for decision in decisions:
        by_subject.setdefault(decision["subject"], []).append(decision)
    return list(_follow(by_subject, subject, 0, set()))


def _follow(
    by_subject: Mapping[str, Sequence[Decided]], subject: str, depth: int, told: set[str]
) -> Iterator[tuple[int, Decided]]:
    told.add(subject)
    for decision in by_subject.get(subject, ()):
        yield depth, decision
        for source in sources(decision["evidence"]):
            if source not in told:
                yield from _follow(by_subject, source, depth + 1, told)


def sources(evidence: Mapping[str, Any]) -> list[str]:
    """Other subjects that evidence names."""
    named = [str(evidence[key]) for key in SOURCE_KEYS if evidence.get(key)]
    return named + _BECAUSE.findall(str(evidence.get("detail", "")))
