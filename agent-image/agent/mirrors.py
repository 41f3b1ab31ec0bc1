"""The addresses of one file: which to use now, which must rest, which are out."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

from agent.http_range import BUSY, CHANGED, GONE, HttpFailure

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 8.0


@dataclass
class Mirror:
    url: str
    failures: int = 0
    not_before_s: float = 0.0
    gone: str = ""


class Mirrors:
    """Stays with a mirror while it works; a failed one rests (exponential backoff with jitter, or Retry-After).

    Thread-safe. Times are on the caller's clock.
    """

    def __init__(self, urls: tuple[str, ...]) -> None:
        self._mirrors = [Mirror(url) for url in urls]
        self._current = 0
        self._lock = threading.Lock()
        self.n_failures = 0
        self.last_failure = "no connection was made yet"

    def choose(self, now_s: float) -> tuple[Mirror, float] | None:
        """The mirror to use and how long to wait before; None when all are out."""
        with self._lock:
            usable = [i for i, m in enumerate(self._mirrors) if not m.gone]
            if not usable:
                return None
            waits = {i: max(0.0, self._mirrors[i].not_before_s - now_s) for i in usable}
            n = len(self._mirrors)
            self._current = min(usable, key=lambda i: (waits[i], (i - self._current) % n))
            return self._mirrors[self._current], waits[self._current]

    def failed(self, mirror: Mirror, failure: HttpFailure, now_s: float) -> None:
        with self._lock:
            self.n_failures += 1
            self.last_failure = f"{mirror.url}: {failure.detail}"
            if failure.kind in (GONE, CHANGED):
                mirror.gone = self.last_failure
                return
            wait_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**mirror.failures) * random.uniform(0.5, 1.0)
            if failure.kind == BUSY and failure.retry_after_s > 0:
                wait_s = failure.retry_after_s
            mirror.failures += 1
            mirror.not_before_s = max(mirror.not_before_s, now_s + wait_s)

    def others_left(self, mirror: Mirror) -> bool:
        with self._lock:
            return any(not m.gone for m in self._mirrors if m is not mirror)

    def move_on(self) -> None:
        """Prefer the next mirror from now on."""
        with self._lock:
            self._current = (self._current + 1) % len(self._mirrors)

    def gone_details(self) -> str:
        return "; ".join(m.gone for m in self._mirrors if m.gone)
