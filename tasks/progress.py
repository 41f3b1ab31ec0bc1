"""Where a sweep says how far it is. Whoever shows it (a terminal, a test) listens; nobody has to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """`server` is doing `what`. share: of the server run, 0..1, or None where it is not known."""

    server: str
    what: str
    share: float | None = None


_listeners: list[Callable[[Step], None]] = []


def say(server: str, what: str, share: float | None = None) -> None:
    for listener in list(_listeners):
        listener(Step(server, what, share))


@contextmanager
def listening(listener: Callable[[Step], None]) -> Iterator[None]:
    """Call `listener` for every step until the block ends; from any thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
