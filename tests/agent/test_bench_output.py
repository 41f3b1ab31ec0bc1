"""llama-bench's two streams as events, in the order in which things happened."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from agent.bench_output import BenchOutput, in_run_order, lengths
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.cells import Cell
from tasks.domain.events import BenchRow, Event, RepeatStarted, WarmupStarted

PP16, PP128, TG16 = Cell("m", "pp", 16), Cell("m", "pp", 128), Cell("m", "tg", 16)
CELLS = (PP16, PP128, TG16)
NAMES = {"pp": "prompt", "tg": "generation"}


def marks(index: int, n_repeats: int = 2) -> bytes:
    head = f"llama-bench: benchmark {index + 1}/3:"
    name = NAMES[CELLS[index].task]
    lines = [f"{head} starting", f"{head} warmup {name} run"]
    lines += [f"{head} {name} run {k + 1}/{n_repeats}" for k in range(n_repeats)]
    return ("\n".join(lines) + "\n").encode()


def row(cell: Cell, **values: object) -> bytes:
    n_prompt, n_gen = (cell.n_tokens, 0) if cell.task == "pp" else (0, cell.n_tokens)
    raw = {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": 0, "samples_ns": [1_500_000, 2_500_000], "new_key": "kept"}
    return json.dumps({**raw, **values}).encode() + b"\n"


def kinds(events: list[Event]) -> list[tuple[str, Cell]]:
    return [(type(e).__name__, e.cell) for e in events if isinstance(e, (WarmupStarted, RepeatStarted, BenchRow))]


EXPECTED = [(kind, cell) for cell in CELLS for kind in ("WarmupStarted", "RepeatStarted", "RepeatStarted", "BenchRow")]


def test_everything_at_once_is_put_into_order() -> None:
    events = BenchOutput(CELLS).feed(1.0, b"".join(map(row, CELLS)), b"".join(map(marks, range(3))))
    assert kinds(events) == EXPECTED


@given(cuts=st.lists(st.integers(0, 2000), max_size=12).map(sorted))
def test_any_cutting_of_the_streams_gives_the_same_events(cuts: list[int]) -> None:
    """Bytes arrive in writing order; a row is written after its marks and before the next cell's."""
    written = [("err", b) for b in marks(0).splitlines(keepends=True)]
    for index, cell in enumerate(CELLS):
        written.append(("out", row(cell)))
        if index < 2:
            written += [("err", b) for b in marks(index + 1).splitlines(keepends=True)]
    stream = [(kind, byte) for kind, data in written for byte in data]
    output = BenchOutput(CELLS)
    events = []
    for first, last in pairwise([0, *[min(c, len(stream)) for c in cuts], len(stream)]):
        piece = stream[first:last]
        out = bytes(b for kind, b in piece if kind == "out")
        err = bytes(b for kind, b in piece if kind == "err")
        events += output.feed(float(last), out, err)
    assert kinds(events) == EXPECTED
    assert output.tail() == ""


def test_samples_are_the_raw_ones_and_unknown_keys_are_kept() -> None:
    (event,) = BenchOutput(CELLS).feed(7.0, row(PP16, avg_ns=99, stddev_ns=18446744073709551615), b"")
    assert isinstance(event, BenchRow)
    assert event.samples_s == (0.0015, 0.0025)
    assert event.row["new_key"] == "kept"
    assert event.t_s == 7.0


@pytest.mark.parametrize(
    "line",
    [
        b"ggml_cuda_init: found 1 CUDA device\n",
        b'{"n_prompt": 16, "n_gen": 0}\n',
        row(PP16, samples_ns=[]),
        row(PP16, samples_ns=[0]),
        row(PP16, samples_ns=[-5]),
        row(PP16, samples_ns=["fast"]),
        row(PP16, samples_ns=[True]),
        row(PP16, n_depth=4096),
        row(Cell("m", "pp", 99)),
        b'{"n_prompt": 16, "n_gen": 0, "samples_ns": [NaN]}\n',
        b"[1, 2]\n",
        b"\xff\xfe{\n",
    ],
)
def test_what_is_no_row_is_kept_as_text_and_does_no_harm(line: bytes) -> None:
    output = BenchOutput(CELLS)
    assert output.feed(1.0, line, b"") == []
    assert output.tail().startswith("[stdout] ")
    assert kinds(output.feed(2.0, row(PP16), b"")) == [("BenchRow", PP16)]


def test_a_row_counts_once() -> None:
    output = BenchOutput(CELLS)
    assert len(output.feed(1.0, row(PP16) + row(PP16), b"")) == 1


def test_the_tail_is_what_was_no_mark_and_is_bounded() -> None:
    output = BenchOutput(CELLS)
    output.feed(1.0, b"", b"x" * 10_000 + b"\n" + marks(0) + b"unfinished")
    tail = output.tail()
    assert len(tail) <= 4096
    assert tail.endswith("x\nunfinished")
    assert "warmup" not in tail


def test_the_tail_is_what_tells_of_trouble_where_something_does() -> None:
    output = BenchOutput(CELLS)
    log = b"set_n_threads: n_threads = 2\n" * 1000
    output.feed(1.0, b"", b"ggml_aligned_malloc: insufficient memory (attempted to allocate 24.00 MB)\n" + log)
    output.feed(2.0, b"", log + b"llama_bench: error: failed to create context\nset_abort_callback: call\n")
    assert output.tail().splitlines() == [
        "ggml_aligned_malloc: insufficient memory (attempted to allocate 24.00 MB)",
        "llama_bench: error: failed to create context",
    ]


def test_the_log_tells_where_the_model_was_put() -> None:
    output = BenchOutput(CELLS)
    output.feed(
        1.0,
        b"",
        b"llama_prepare_model_devices: using device CUDA0 (NVIDIA L4) (0000:00:03.0) - 22000 MiB free\n"
        b"llama_prepare_model_devices: using device CUDA1 (NVIDIA L4) (0000:00:04.0) - 22000 MiB free\n"
        b"load_tensors: offloaded 25/33 layers to GPU\n"
        b"load_tensors:        CUDA0 model buffer size =  4403.50 MiB\n"
        b"load_tensors:   CPU_REPACK model buffer size =     7.59 MiB\n"
        b"llama_kv_cache:      CUDA0 KV buffer size =    24.00 MiB\n"
        b".llama-bench: benchmark 1/3: warmup prompt run\n",
    )
    assert output.engine == {
        "buffers_mib": {"CUDA0 model": 4403.5, "CPU_REPACK model": 7.59, "CUDA0 KV": 24.0},
        "layers_offloaded": 25,
        "layers_total": 33,
        "gpus_used": {"CUDA0", "CUDA1"},
    }


def test_lengths_leave_no_default_to_llama_bench() -> None:
    assert lengths(CELLS, "pp") == "16,128"
    assert lengths(CELLS, "tg") == "16"
    assert lengths((PP16,), "tg") == "0"
    assert in_run_order((TG16, PP16, PP128)) == (PP16, PP128, TG16)
