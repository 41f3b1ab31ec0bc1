"""Does the arithmetic agree with what llama-bench really took?"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.domain.gguf import GgufHeader, parse_header
from tasks.domain.memory import (
    VRAM_RESERVE_BYTES,
    disk_needed_bytes,
    fits,
    kv_cache_bytes,
    memory_needed_bytes,
    ngl_for_vram,
    vram_needed_bytes,
)
from tasks.models.catalogue import load_catalogue
from tasks.models.gguf_header import header_bytes
from tasks.models.tensor_plan import plan_tensors

MIB = 1024 * 1024
GIB = 1024 * MIB

# Peak resident MiB of `llama-bench -p N -n 0 -r 1 -lm none -fa 1 -t 2` (llama.cpp 0c1e57098, static AVX2), N -> MiB,
# and of Gemma 2B made with random weights. `-n 16` takes as much as `-p 16`.
MEASURED_PEAK_MIB = {
    "tiny-15m": {16: 34.1, 128: 35.7, 512: 43.1, 1024: 47.7, 4096: 72.0, 16384: 166.6},
    "smollm-135m": {16: 128.2, 128: 131.2, 512: 147.5, 1024: 160.5, 4096: 231.9},
    "qwen1.5-0.5b": {16: 449.5, 128: 455.3, 512: 498.1, 1024: 547.8},
    "gemma-2b": {16: 1777.0, 512: 1882.2},
}
# "KV buffer size" and "compute buffer size" in the same runs' logs, MiB.
LOGGED_KV_MIB = {
    "tiny-15m": {16: 1.69, 512: 3.38, 1024: 6.75, 16384: 108.0},
    "smollm-135m": {16: 5.62, 512: 11.25, 4096: 90.0},
    "qwen1.5-0.5b": {128: 24.0, 512: 48.0, 1024: 96.0},
    "gemma-2b": {16: 4.5, 512: 9.0},
}
LOGGED_COMPUTE_MIB = {
    "tiny-15m": {16: 1.99, 512: 63.63, 1024: 65.76},
    "smollm-135m": {16: 3.07, 128: 24.56, 4096: 98.25},
    "qwen1.5-0.5b": {16: 9.40, 512: 300.75},
    "gemma-2b": {16: 15.88, 512: 508.0},
}


@cache
def header(name: str) -> GgufHeader:
    model = load_catalogue()[name]
    with TemporaryDirectory() as scratch:
        return parse_header(header_bytes(model, plan_tensors(model.shape), Path(scratch) / "header"))


def each(table: dict[str, dict[int, float]]) -> list[tuple[str, int, float]]:
    return [(name, n, mib) for name, row in table.items() for n, mib in row.items()]


@pytest.mark.parametrize(("name", "n_ctx", "peak_mib"), each(MEASURED_PEAK_MIB))
def test_estimate_lies_just_above_the_measured_peak(name: str, n_ctx: int, peak_mib: float) -> None:
    estimate_mib = memory_needed_bytes(header(name), n_ctx).total / MIB
    assert peak_mib + 20 <= estimate_mib <= peak_mib + 95


@pytest.mark.parametrize(("name", "n_ctx", "logged_mib"), each(LOGGED_KV_MIB))
def test_kv_cache_is_exact(name: str, n_ctx: int, logged_mib: float) -> None:
    assert kv_cache_bytes(header(name), n_ctx) / MIB == pytest.approx(logged_mib, abs=0.006)


@pytest.mark.parametrize(("name", "n_ctx", "logged_mib"), each(LOGGED_COMPUTE_MIB))
def test_vram_covers_the_reserved_compute_buffer(name: str, n_ctx: int, logged_mib: float) -> None:
    h = header(name)
    weights = sum(h.layer_bytes) + (h.token_embd_bytes if h.tied_embeddings else h.output_bytes)
    compute = vram_needed_bytes(h, n_ctx) - VRAM_RESERVE_BYTES - kv_cache_bytes(h, n_ctx) - weights
    assert logged_mib - 0.01 <= compute / MIB <= 1.45 * logged_mib + 1


def test_quantised_kv_takes_less() -> None:
    q8_0_bytes_per_element = 34 / 32
    h = header("llama-7b")
    assert kv_cache_bytes(h, 4096) == 2 * GIB
    assert kv_cache_bytes(h, 4096, q8_0_bytes_per_element) == 2 * GIB * 34 // 64


def test_grouped_heads_take_an_eighth() -> None:
    assert kv_cache_bytes(header("llama-3.3-70b"), 4096) == 80 * 8 * (128 + 128) * 4096 * 2


def test_the_70b_is_known_not_to_fit_before_its_download() -> None:
    verdict = fits(header("llama-3.3-70b"), 512, 32 * GIB)
    assert not verdict.ok and verdict.longest_context_that_fits == 0
    assert verdict.needed_bytes > 42_512_531_712 > verdict.available_bytes


def test_longest_context_is_the_last_that_fits() -> None:
    h = header("llama-7b")
    verdict = fits(h, 16384, 8 * GIB)
    longest = verdict.longest_context_that_fits
    assert not verdict.ok and 256 < longest < 16384
    assert fits(h, longest, 8 * GIB).ok and not fits(h, longest + 1, 8 * GIB).ok


@settings(deadline=None)
@given(
    st.sampled_from(["tiny-15m", "qwen1.5-0.5b", "llama-7b", "phi-4"]),
    st.integers(1, 32768),
    st.integers(0, 64 * GIB),
    st.integers(0, 8 * GIB),
)
def test_more_memory_and_less_context_never_hurt(name: str, n_ctx: int, available: int, more: int) -> None:
    h = header(name)
    verdict = fits(h, n_ctx, available)
    assert verdict.ok == (verdict.needed_bytes <= available) == (verdict.longest_context_that_fits >= n_ctx)
    better = fits(h, n_ctx, available + more)
    assert better.longest_context_that_fits >= verdict.longest_context_that_fits
    if n_ctx > 1:
        assert fits(h, n_ctx - 1, available).needed_bytes <= verdict.needed_bytes


def test_a_large_gpu_takes_every_layer_and_the_output() -> None:
    assert ngl_for_vram(header("llama-7b"), 24 * GIB, 4096) == 33
    assert ngl_for_vram(header("llama-3.3-70b"), 80 * GIB, 4096) == 81


def test_a_medium_gpu_takes_a_part_of_the_70b() -> None:
    ngl = ngl_for_vram(header("llama-3.3-70b"), 24 * GIB, 2048)
    assert 30 <= ngl <= 45, "22 GiB of about 0.5 GiB each"


def test_a_gpu_without_room_takes_nothing() -> None:
    assert ngl_for_vram(header("llama-7b"), 1 * GIB, 512) == 0
    assert ngl_for_vram(header("llama-7b"), 0, 512) == 0


@settings(deadline=None)
@given(st.integers(0, 60 * GIB), st.integers(0, 4 * GIB), st.integers(16, 16384))
def test_more_vram_never_takes_fewer_layers(vram: int, more: int, n_ctx: int) -> None:
    h = header("phi-4")
    assert ngl_for_vram(h, vram, n_ctx) <= ngl_for_vram(h, vram + more, n_ctx) <= h.n_layers + 1
    assert (ngl_for_vram(h, vram, n_ctx) == h.n_layers + 1) == (vram >= vram_needed_bytes(h, n_ctx))


def test_disk_has_the_predecessors_margin() -> None:
    assert disk_needed_bytes(42_520_398_048) == 46_772_437_852
