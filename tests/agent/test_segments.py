"""Spans cover the file exactly, whatever connections claim, finish or drop."""

from __future__ import annotations

import json

import pytest
from agent.segments import Segments
from hypothesis import given
from hypothesis import strategies as st

TOTAL = 1000


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["claim", "piece", "read", "release"]), st.integers(1, 300))
    )
)
def test_every_byte_is_fetched_by_one_connection(steps: list[tuple[int, str, int]]) -> None:
    segments = Segments(TOTAL)
    held = {}
    fetched = [0] * TOTAL
    for owner, step, n in steps:
        if step in ("claim", "piece") and owner not in held:
            span = segments.claim(owner, n if step == "piece" else None, min_split_bytes=10)
            if span is not None:
                held[owner] = span
        elif step == "read" and owner in held:
            span = held[owner]
            n = min(n, span.left)
            for i in range(span.pos, span.pos + n):
                fetched[i] += 1
            segments.advance(span, n)
        elif step == "release" and owner in held:
            segments.release(held.pop(owner))
        assert segments.bytes_done() == sum(fetched)
        assert set(fetched) <= {0, 1}, "no byte is fetched twice"
        prefix = fetched.index(0) if 0 in fetched else TOTAL
        assert segments.prefix_bytes() == prefix
        raw = json.loads(json.dumps(segments.to_list()))
        assert Segments.from_list(TOTAL, raw).bytes_done() == segments.bytes_done()


def test_one_connection_gets_the_whole_file() -> None:
    span = Segments(TOTAL).claim(0, None)
    assert span is not None
    assert (span.start, span.end) == (0, TOTAL)


def test_small_rests_are_not_shared() -> None:
    segments = Segments(TOTAL)
    segments.claim(0, None, min_split_bytes=600)
    assert segments.claim(1, 100, min_split_bytes=600) is None


def test_a_span_that_was_cut_keeps_its_end() -> None:
    segments = Segments(TOTAL)
    first = segments.claim(0, None, min_split_bytes=10)
    second = segments.claim(1, 100, min_split_bytes=10)
    assert first is not None
    assert second is not None
    segments.advance(first, TOTAL)
    assert first.pos == first.end == second.start


@pytest.mark.parametrize(
    "raw", [[], [[0, 0, 900]], [[0, 0, 500], [501, 501, 1000]], [[0, 600, 500], [500, 500, 1000]], [[0]]]
)
def test_spans_that_are_not_the_file_are_refused(raw: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"span|unpack"):
        Segments.from_list(TOTAL, raw)
