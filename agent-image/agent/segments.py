"""Which bytes of a file are there, and which connection fetches which of the rest."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

MIN_SPLIT_BYTES = 8 << 20


@dataclass
class Span:
    """Bytes [start, end) of the file, of which [start, pos) are there. `owner` is the connection that fetches it."""

    start: int
    pos: int
    end: int
    owner: int | None = None

    @property
    def left(self) -> int:
        return self.end - self.pos


class Segments:
    """The spans of one file, in order and without gaps. Thread-safe."""

    def __init__(self, total_bytes: int, spans: list[Span] | None = None) -> None:
        self.total_bytes = total_bytes
        self._spans = spans or [Span(0, 0, total_bytes)]
        self._lock = threading.Lock()

    def claim(self, owner: int, piece_bytes: int | None, min_split_bytes: int = MIN_SPLIT_BYTES) -> Span | None:
        """Give a connection its next span, or None when nothing is left that is worth sharing.

        `piece_bytes` bounds it, so that several connections work near each other and the file's beginning,
        which is what can be hashed, grows steadily; None gives the whole hole.
        """
        with self._lock:
            hole = next((s for s in self._spans if s.owner is None and s.left > 0), None)
            if hole is None:
                busy = max((s for s in self._spans if s.owner is not None), key=lambda s: s.left, default=None)
                if busy is None or busy.left < 2 * min_split_bytes:
                    return None
                keep = busy.left // 2 if piece_bytes is None else min(piece_bytes, busy.left // 2)
                hole = self._split(busy, busy.pos + keep)
            if piece_bytes is not None and hole.left > piece_bytes + min_split_bytes:
                self._split(hole, hole.pos + piece_bytes)
            hole.owner = owner
            return hole

    def _split(self, span: Span, at: int) -> Span:
        rest = Span(at, at, span.end)
        span.end = at
        self._spans.insert(self._spans.index(span) + 1, rest)
        return rest

    def advance(self, span: Span, n: int) -> None:
        """`n` more bytes are there. A span that was cut meanwhile keeps its end: the rest is the next owner's."""
        with self._lock:
            span.pos = min(span.end, span.pos + n)

    def release(self, span: Span) -> None:
        """The connection lets go; finished neighbours become one span."""
        with self._lock:
            span.owner = None
            merged: list[Span] = []
            for s in self._spans:
                before = merged[-1] if merged else None
                idle = before is not None and before.owner is None and s.owner is None
                if before is not None and idle and before.left == 0:
                    before.end, before.pos = s.end, s.pos
                elif before is not None and idle and s.pos == s.start:
                    before.end = s.end
                else:
                    merged.append(s)
            self._spans = merged

    def bytes_done(self) -> int:
        with self._lock:
            return sum(s.pos - s.start for s in self._spans)

    def prefix_bytes(self) -> int:
        """How far the file is there without a gap."""
        with self._lock:
            return next((s.pos for s in self._spans if s.left > 0), self.total_bytes)

    def last_byte(self) -> int:
        """One past the last byte that is there."""
        with self._lock:
            return max((s.pos for s in self._spans if s.pos > s.start), default=0)

    def to_list(self) -> list[list[int]]:
        with self._lock:
            return [[s.start, s.pos, s.end] for s in self._spans]

    @classmethod
    def from_list(cls, total_bytes: int, raw: Any) -> Segments:
        """Rebuild from `to_list`. Raises ValueError for spans that are not exactly this file."""
        spans = [Span(int(start), int(pos), int(end)) for start, pos, end in raw]
        edges = [0, *(s.end for s in spans)]
        if [s.start for s in spans] != edges[:-1] or edges[-1] != total_bytes:
            raise ValueError("the spans do not cover the file")
        if any(not s.start <= s.pos <= s.end for s in spans):
            raise ValueError("a span is out of its bounds")
        return cls(total_bytes, spans)
