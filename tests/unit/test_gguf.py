"""The GGUF header reader: what it reads, what it refuses, and that nothing else can happen."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.domain.errors import AgentError
from tasks.domain.gguf import GgufHeader, NeedMoreBytes, NotGguf, parse_header
from tasks.domain.gguf_cursor import MAX_HEADER_BYTES
from tasks.domain.gguf_types import FILE_TYPES, TENSOR_TYPES
from tests.unit.gguf_files import BOOL, RawGguf, string_value, strings_value, text, u32_value, u32s_value

WHOLE = RawGguf().file()


def read_by_prefix(data: bytes, first: int = 1, file_bytes: int | None = None) -> tuple[GgufHeader, int]:
    """Fetch as the reader asks; the header and the number of fetches."""
    n, fetches = first, 0
    while True:
        fetches += 1
        try:
            return parse_header(data[:n], file_bytes), fetches
        except NeedMoreBytes as more:
            assert more.n > n, "it must ask for more than it has"
            assert n < len(data), "it asked for more than the whole file"
            n = more.n


def test_reads_what_a_decision_needs() -> None:
    header = parse_header(WHOLE, len(WHOLE))
    assert (header.arch, header.quant, header.n_layers, header.n_embd) == ("llama", "Q4_K_M", 2, 64)
    assert (header.n_head, header.n_head_kv, header.kv_heads_total, header.head_dim_k) == (4, 2, 4, 16)
    assert (header.n_vocab, header.n_ctx_train, header.n_ff) == (100, 4096, 128)
    assert header.tensor_bytes == 6800 + 16384 + 16384 + 256
    assert header.n_params == 6400 + 4096 + 4096 + 64
    assert header.layer_bytes == (16384, 16384)
    assert header.tied_embeddings and header.token_embd_bytes == 6800
    assert header.end_of_file_bytes == len(WHOLE)
    assert header.data_offset == len(WHOLE) - 39840
    assert not header.weights_random


def test_agrees_with_the_reference_writer_and_reader(tmp_path: Path) -> None:
    path = tmp_path / "reference.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_head_count(2)
    writer.add_token_list([f"word {i}" for i in range(3000)])
    writer.add_array("some.flags", [True, False])
    writer.add_float64("some.float", 0.5)
    writer.add_tensor("token_embd.weight", np.zeros((3000, 32), np.float16))
    writer.add_tensor("output.weight", np.zeros((3000, 32), np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((4, 8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reference = gguf.GGUFReader(path)
    data = path.read_bytes()
    header = parse_header(data, len(data))
    assert header.data_offset == reference.data_offset
    assert header.tensor_bytes == sum(int(t.n_bytes) for t in reference.tensors)
    assert header.n_params == sum(int(t.n_elements) for t in reference.tensors)
    assert header.expert_bytes == 4 * 8 * 32 * 4
    assert not header.tied_embeddings and header.output_bytes == 3000 * 32 * 4
    assert header.tensor_types == {"F16": 1, "F32": 2}


def test_type_tables_are_those_of_the_reference_library() -> None:
    assert {int(k): (k.name, *v) for k, v in gguf.GGML_QUANT_SIZES.items()} == TENSOR_TYPES
    names = {int(k): k.name.removeprefix("ALL_").removeprefix("MOSTLY_") for k in gguf.LlamaFileType}
    assert {k: v for k, v in names.items() if v != "GUESSED"} == FILE_TYPES


@pytest.mark.parametrize("file_bytes", [None, len(WHOLE)])
def test_any_prefix_leads_to_the_same_header(file_bytes: int | None) -> None:
    expected = parse_header(WHOLE)
    for first in (0, 1, 3, 4, 23, 24, 100, 2000, len(WHOLE) - 39841, len(WHOLE)):
        assert read_by_prefix(WHOLE, first, file_bytes)[0] == expected


def test_a_large_vocabulary_takes_few_fetches_and_is_not_kept() -> None:
    raw = RawGguf()
    raw.metadata["tokenizer.ggml.tokens"] = strings_value([f"token {i:08d}" for i in range(200_000)])
    header, fetches = read_by_prefix(raw.file(), first=65536)
    assert header.n_vocab == 100, "the embedding's rows decide"
    assert fetches <= 9
    assert len(json.dumps(header.to_dict())) < 2000


def test_never_asks_beyond_the_file() -> None:
    for cut in range(24, len(WHOLE) - 39840, 997):
        with pytest.raises((NeedMoreBytes, NotGguf)) as caught:
            parse_header(WHOLE[:cut], len(WHOLE))
        assert isinstance(caught.value, NeedMoreBytes) and cut < caught.value.n <= len(WHOLE)


def test_a_file_that_ends_inside_its_header_is_refused() -> None:
    for cut in range(1, len(WHOLE) - 39840, 1313):
        with pytest.raises(NotGguf, match="ends after"):
            parse_header(WHOLE[:cut], file_bytes=cut)


def test_a_file_cut_short_inside_its_tensors_is_refused() -> None:
    with pytest.raises(NotGguf, match="cut short") as caught:
        parse_header(WHOLE, len(WHOLE) - 1)
    assert str(len(WHOLE)) in str(caught.value) and "Download it again" in str(caught.value)
    assert caught.value.reason == "not_gguf"


def _wrong(**changes: object) -> bytes:
    raw = RawGguf()
    for key, value in changes.items():
        setattr(raw, key, value)
    return raw.file()


def _with_metadata(key: str, value: bytes | None) -> bytes:
    raw = RawGguf()
    if value is None:
        del raw.metadata[key]
    else:
        raw.metadata[key] = value
    return raw.file()


def _with_tensor(name: str, shape: tuple[int, ...], type_id: int, offset: int) -> bytes:
    raw = RawGguf()
    raw.tensors[0] = (name, shape, type_id, offset)
    return raw.file()


HUGE = 1 << 60


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<!DOCTYPE html><html>", "begins with"),
        (b"PK\x03\x04", "begins with"),
        (_wrong(version=1), "version 1"),
        (_wrong(version=3 << 24), "big-endian"),
        (_wrong(n_tensors=HUGE), "tensors"),
        (_wrong(n_tensors=0), "0 tensors"),
        (_wrong(n_keys=HUGE), "metadata keys"),
        (_with_metadata("general.architecture", None), "no architecture"),
        (_with_metadata("general.architecture", u32_value(1)), "no architecture"),
        (_with_metadata("llama.block_count", None), "block_count is None"),
        (_with_metadata("llama.block_count", u32_value(0)), "block_count is 0"),
        (_with_metadata("llama.block_count", u32_value(2**32 - 1)), "block_count"),
        (_with_metadata("llama.embedding_length", string_value("wide")), "embedding_length"),
        (_with_metadata("llama.attention.head_count", struct.pack("<I?", BOOL, True)), "head_count is True"),
        (_with_metadata("llama.attention.head_count_kv", u32s_value([2])), "1 values for 2 layers"),
        (_with_metadata("general.alignment", u32_value(33)), "alignment"),
        (_with_metadata("general.alignment", u32_value(0)), "alignment"),
        (_with_metadata("x", struct.pack("<I", 99)), "type 99"),
        (_with_metadata("x", struct.pack("<IIQ", 9, 9, 1)), "array of type 9"),
        (_with_metadata("x", struct.pack("<IIQ", 9, 8, HUGE)), "no header is that large"),
        (_with_metadata("x", struct.pack("<IIQ", 9, 12, HUGE)), "no header is that large"),
        (_with_metadata("x", struct.pack("<IQ", 8, 2**64 - 1)), "no header is that large"),
        (_with_tensor("token_embd.weight", (64, 100), 8, 32), "is its place"),
        (_with_tensor("token_embd.weight", (48, 100), 8, 0), "rows of 48"),
        (_with_tensor("token_embd.weight", (64, 100), 4, 0), "type 4"),
        (_with_tensor("token_embd.weight", (64, 0), 8, 0), "shape"),
        (_with_tensor("token_embd.weight", (64, HUGE), 8, 0), "shape"),
        (_with_tensor("token_embd.weight", (1 << 40, 1 << 40), 8, 0), "claims"),
        (_with_tensor("token_embd.weight", (1,) * 5, 8, 0), "5 dimensions"),
        (_with_tensor("blk.1.attn_q.weight", (64, 100), 8, 0), "occurs twice"),
        (_with_tensor("n" * 70_000, (64, 100), 8, 0), "bytes long"),
    ],
)
def test_malformed_headers_say_what_is_wrong(data: bytes, says: str) -> None:
    with pytest.raises(NotGguf, match=says):
        read_by_prefix(data, first=len(data))


def test_a_key_that_occurs_twice_is_refused() -> None:
    raw = RawGguf()
    header = raw.header().replace(
        text("llama.context_length") + u32_value(4096), (text("llama.block_count") + u32_value(4096)).ljust(36, b"\0")
    )
    with pytest.raises(NotGguf, match="twice"):
        parse_header(header)


def test_layers_may_differ_in_heads() -> None:
    raw = RawGguf()
    raw.metadata["llama.attention.head_count_kv"] = u32s_value([2, 0])
    header = parse_header(raw.file())
    assert (header.n_head_kv, header.kv_heads_total) == (2, 2)


def test_head_sizes_may_be_given() -> None:
    raw = RawGguf()
    raw.metadata["llama.attention.key_length"] = u32_value(24)
    header = parse_header(raw.file())
    assert (header.head_dim_k, header.head_dim_v) == (24, 16)


def test_random_weights_are_recognised() -> None:
    raw = RawGguf()
    raw.metadata["tokensweep.weights"] = string_value("random")
    assert parse_header(raw.file()).weights_random


def test_goes_through_an_event_and_back() -> None:
    header = parse_header(WHOLE)
    raw = json.loads(json.dumps(header.to_dict()))
    assert GgufHeader.from_dict({**raw, "of_a_later_version": 1}) == header
    del raw["n_embd"]
    with pytest.raises(AgentError, match="n_embd"):
        GgufHeader.from_dict(raw)


def test_accepts_a_memoryview_and_a_bytearray() -> None:
    assert parse_header(memoryview(WHOLE)) == parse_header(bytearray(WHOLE)) == parse_header(WHOLE)


HEADER_BYTES = len(WHOLE) - 39840
positions = st.integers(0, HEADER_BYTES - 1)
edges = st.sampled_from([0, 1, 4, 8, 9, 12, 127, 128, 255])
mutations = st.lists(st.tuples(positions, edges | st.integers(0, 255)), min_size=1, max_size=12)
wide_values = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


def assert_header_or_refusal(data: bytes, file_bytes: int | None) -> None:
    try:
        header = parse_header(data, file_bytes)
    except NotGguf as refusal:
        assert str(refusal)
    except NeedMoreBytes as more:
        assert len(data) < more.n <= max(MAX_HEADER_BYTES, file_bytes or 0)
    else:
        json.dumps(header.to_dict())
        assert header.end_of_file_bytes >= header.data_offset
        assert file_bytes is None or header.end_of_file_bytes <= file_bytes


@settings(max_examples=400, deadline=None)
@given(mutations, st.booleans(), st.integers(0, len(WHOLE)))
def test_changed_bytes_never_raise_anything_else(
    changes: list[tuple[int, int]], size_known: bool, n_bytes: int
) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    assert_header_or_refusal(bytes(data[:n_bytes]), len(data) if size_known else None)
    assert_header_or_refusal(bytes(data), len(data) if size_known else None)


@settings(max_examples=400, deadline=None)
@given(positions, wide_values, st.booleans())
def test_changed_counts_never_raise_anything_else(at: int, value: int, size_known: bool) -> None:
    data = WHOLE[:at] + struct.pack("<Q", value) + WHOLE[at + 8 :]
    assert_header_or_refusal(data, len(data) if size_known else None)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_noise_never_raises_anything_else(noise: bytes, after_magic: bool) -> None:
    data = b"GGUF\x03\0\0\0" + noise if after_magic else noise
    assert_header_or_refusal(data, None)
    assert_header_or_refusal(data, len(data))
