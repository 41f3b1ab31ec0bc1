"""The header of a GGUF file with random weights: metadata, a tokenizer of filler words, the table of tensors."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tasks.domain.errors import ConfigError
from tasks.domain.gguf import WEIGHTS_KEY
from tasks.models.catalogue import CatalogueModel, Shape
from tasks.models.tensor_plan import TYPE_IDS, TensorPlan

GENERATOR_VERSION = 1
"""Raise it with every change that changes bytes: it is part of the file's name and of the weights' seed."""

ALIGNMENT = 32
FILE_TYPE_Q4_K_M = 15
PADDING_KEY = "tokensweep.padding"


def header_bytes(model: CatalogueModel, tensors: list[TensorPlan], scratch: Path) -> bytes:
    """Everything before the tensors, padded so that the file gets the catalogue's size where that names one.

    `scratch` is a path that may be overwritten. Raises ConfigError when the named size cannot be met.
    """
    header = _write_header(model, tensors, scratch, padding=0)
    if not model.random_bytes:
        return header
    data_bytes = sum(-(-t.n_bytes // ALIGNMENT) * ALIGNMENT for t in tensors)
    missing = model.random_bytes - data_bytes - len(header)
    overhead = 8 + len(PADDING_KEY) + 4 + 8
    if missing < overhead or missing % ALIGNMENT:
        raise ConfigError(
            f"The model {model.name!r} cannot be made in {model.random_bytes} bytes: "
            f"its tensors take {data_bytes} and its header at least {len(header)}.",
            next_step="Correct random_bytes in the catalogue, or leave it out.",
        )
    return _write_header(model, tensors, scratch, padding=missing - overhead)


def _write_header(model: CatalogueModel, tensors: list[TensorPlan], scratch: Path, padding: int) -> bytes:
    shape = model.shape
    writer = gguf.GGUFWriter(scratch, shape.arch)
    writer.add_name(f"{model.name} shape, random weights")
    writer.add_string(WEIGHTS_KEY, "random")
    writer.add_file_type(FILE_TYPE_Q4_K_M)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_architecture(writer, shape)
    _add_tokenizer(writer, shape.n_vocab)
    if padding:
        writer.add_string(PADDING_KEY, " " * padding)
    for t in tensors:
        raw_type = gguf.GGMLQuantizationType(TYPE_IDS[t.type_name])
        writer.add_tensor_info(t.name, t.shape[::-1], np.dtype(np.float32), t.n_bytes, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = scratch.read_bytes()
    return header + bytes(-len(header) % ALIGNMENT)


def _add_architecture(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_epsilon)
    writer.add_vocab_size(shape.n_vocab)


def _add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """A SentencePiece vocabulary: three specials, every byte, and numbers in hexadecimal for the rest."""
    n_words = n_vocab - 3 - 256
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(
        ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *(f"{i:x}" for i in range(n_words))]
    )
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(n_words)])
    writer.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256 + [kinds.NORMAL] * n_words
    )
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
