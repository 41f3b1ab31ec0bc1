"""Does a model fit? Bytes that one llama-bench process needs, from the GGUF header, before the download.

Weights and KV cache are exact; the rest is an upper estimate fitted to measured peaks of resident memory (llama.cpp
0c1e57098 on a CPU, `-lm none -fa 1 -t 2`), which are fixtures of the test: four models of 15M to 2.5B parameters,
prompts of 16 to 16,384 tokens. The estimate was never below the measured peak and 22 to 93 MiB above it: 20 to 65 % for
the 15M and 135M models, 9 to 11 % for Qwen 0.5B, 4 to 5 % for Gemma 2B. Larger models, experts and GPUs were not
measured.

The estimate is of memory that is touched. A GPU backend takes all that it reserves, which is more
(`vram_needed_bytes`). Assumed: flash attention, one sequence, and weights read into memory (`-lm none`). With
`-lm mmap` the pages of the file come on top where the engine repacks weights for the CPU, but the kernel may drop them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.domain.gguf import GgufHeader

KV_CELL_PADDING = 256
"""llama.cpp rounds the context up to a multiple of this."""

PROCESS_BYTES = 16 * 1024 * 1024
"""Program, libraries and stacks: 13 MiB measured."""

BYTES_PER_TOKEN_OF_VOCABULARY = 512
"""Tokenizer tables: 203 measured for a SentencePiece vocabulary; merge tables of BPE vocabularies come on top."""

VRAM_RESERVE_BYTES = 1024 * 1024 * 1024
"""Left free on a GPU for its context and its libraries: llama.cpp's own default margin (`--fit-target`)."""

DISK_MARGIN = 1.1
"""Free space asked for a download, as a multiple of the file: the predecessor's rule."""

F32_BYTES = 4


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes. compute: activations, tokenizer and the process itself."""

    weights: int
    kv_cache: int
    compute: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.compute


@dataclass(frozen=True)
class Fit:
    """longest_context_that_fits: in tokens, at most the model's own limit or what was asked; 0 when none does."""

    ok: bool
    needed_bytes: int
    available_bytes: int
    longest_context_that_fits: int


def memory_needed_bytes(
    header: GgufHeader, n_ctx: int, kv_bytes_per_element: float = 2, n_ubatch: int = 512, n_batch: int = 2048
) -> MemoryNeed:
    """What one llama-bench process on the CPU touches at its peak.

    n_ctx: tokens of the test, prompt + generated + depth. kv_bytes_per_element: 2 for f16.
    """
    n_tokens = min(n_ubatch, n_batch, n_ctx)
    activations = _activation_bytes(header, n_ctx, n_tokens)
    tokenizer = BYTES_PER_TOKEN_OF_VOCABULARY * header.n_vocab
    return MemoryNeed(
        weights=_resident_weight_bytes(header),
        kv_cache=kv_cache_bytes(header, n_ctx, kv_bytes_per_element),
        compute=PROCESS_BYTES + tokenizer + activations,
    )


def kv_cache_bytes(header: GgufHeader, n_ctx: int, kv_bytes_per_element: float = 2) -> int:
    """Keys and values of every layer for a context of n_ctx tokens, padded as llama.cpp pads it.

    Exact without sliding windows; with them an upper bound.
    """
    n_cells = -(-n_ctx // KV_CELL_PADDING) * KV_CELL_PADDING
    elements = header.kv_heads_total * (header.head_dim_k + header.head_dim_v) * n_cells
    return int(elements * kv_bytes_per_element)


def fits(
    header: GgufHeader,
    n_ctx: int,
    available_bytes: int,
    kv_bytes_per_element: float = 2,
    n_ubatch: int = 512,
    n_batch: int = 2048,
) -> Fit:
    """Whether a test of n_ctx tokens fits into available_bytes, and which one would."""

    def needed(tokens: int) -> int:
        return memory_needed_bytes(header, tokens, kv_bytes_per_element, n_ubatch, n_batch).total

    fitting, too_long = 0, max(n_ctx, header.n_ctx_train) + 1
    while too_long - fitting > 1:
        middle = (fitting + too_long) // 2
        if needed(middle) <= available_bytes:
            fitting = middle
        else:
            too_long = middle
    needed_bytes = needed(n_ctx)
    return Fit(needed_bytes <= available_bytes, needed_bytes, available_bytes, fitting)


def vram_needed_bytes(
    header: GgufHeader, n_ctx: int, kv_bytes_per_element: float = 2, n_ubatch: int = 512, n_batch: int = 2048
) -> int:
    """What the whole model takes on one GPU, its reserve included: more than this free, and every layer fits."""
    n_tokens = min(n_ubatch, n_batch, n_ctx)
    on_gpu = sum(header.layer_bytes) + _output_bytes(header)
    kv_cache = kv_cache_bytes(header, n_ctx, kv_bytes_per_element)
    return on_gpu + kv_cache + _reserved_compute_bytes(header, n_ctx, n_tokens) + VRAM_RESERVE_BYTES


def ngl_for_vram(
    header: GgufHeader,
    vram_free_bytes: int,
    n_ctx: int,
    kv_bytes_per_element: float = 2,
    n_ubatch: int = 512,
    n_batch: int = 2048,
) -> int:
    """How many layers fit on a GPU, for `-ngl`: 0 to n_layers + 1, where the first one counted is the output.

    llama.cpp offloads the output matrix first and then the layers from the last one down.
    """
    n_tokens = min(n_ubatch, n_batch, n_ctx)
    left = vram_free_bytes - VRAM_RESERVE_BYTES - _reserved_compute_bytes(header, n_ctx, n_tokens)
    left -= _output_bytes(header)
    if left < 0:
        return 0
    kv_per_layer = -(-kv_cache_bytes(header, n_ctx, kv_bytes_per_element) // max(1, header.n_layers))
    ngl = 1
    for layer_bytes in reversed(header.layer_bytes):
        left -= layer_bytes + kv_per_layer
        if left < 0:
            return ngl if ngl > 1 else 0
        ngl += 1
    return ngl


def disk_needed_bytes(file_bytes: int) -> int:
    """Free space that a download of file_bytes needs."""
    return int(file_bytes * DISK_MARGIN)


def _resident_weight_bytes(header: GgufHeader) -> int:
    """All tensors, and a tied embedding twice: llama.cpp repacks its role as output matrix into a second copy."""
    return header.tensor_bytes + (header.token_embd_bytes if header.tied_embeddings else 0)


def _output_bytes(header: GgufHeader) -> int:
    return header.token_embd_bytes if header.tied_embeddings else header.output_bytes


def _activation_bytes(header: GgufHeader, n_ctx: int, n_tokens: int) -> int:
    """Buffers of one micro-batch: three of the feed-forward width, four of the model's, the mask, one row of logits."""
    width = max(header.n_embd, header.n_head * header.head_dim_k)
    n_ff_active = header.n_ff * max(1, header.n_experts_used)
    rows = n_tokens * (3 * n_ff_active + 4 * width) * F32_BYTES
    quantised_input = n_tokens * max(n_ff_active, width) * 9 // 8
    mask = n_tokens * (-(-n_ctx // KV_CELL_PADDING) * KV_CELL_PADDING) * F32_BYTES
    return rows + quantised_input + mask + 2 * header.n_vocab * F32_BYTES


def _reserved_compute_bytes(header: GgufHeader, n_ctx: int, n_tokens: int) -> int:
    """llama.cpp reserves logits for every token of a micro-batch, though llama-bench asks for one row.

    The logits alone are its reported compute buffer, to 0.01 MiB for 17 of 18 runs and 3 % below for the other.
    """
    logits = n_tokens * (header.n_vocab + 2 * header.n_embd) * F32_BYTES
    return logits + _activation_bytes(header, n_ctx, n_tokens)
