"""What else happened while something was timed."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.lake.timeline import Reading

Interval = tuple[float, float]


def union(intervals: Sequence[Interval]) -> list[Interval]:
    """The same time as intervals that do not touch, in order."""
    out: list[Interval] = []
    for begin, end in sorted(intervals):
        if out and begin <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((begin, end))
    return out


def overlap_s(span: Interval, intervals: Sequence[Interval]) -> float:
    """Seconds of the span that lie in any of the intervals, which must not overlap each other."""
    return sum(max(0.0, min(span[1], end) - max(span[0], begin)) for begin, end in intervals)


def mean_share(span: Interval, readings: Sequence[Reading], key: str) -> float | None:
    """Mean of a reading over the span, each weighted by the time that it shares with it; None where none does."""
    total_s = weighted = 0.0
    for reading in readings:
        value = reading.values.get(key)
        shared_s = min(span[1], reading.at_s) - max(span[0], reading.since_s)
        if shared_s > 0 and isinstance(value, (int, float)):
            total_s += shared_s
            weighted += shared_s * value
    return weighted / total_s if total_s > 0 else None
