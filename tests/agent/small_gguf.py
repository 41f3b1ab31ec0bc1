"""A valid GGUF file of a few hundred kB, for runs whose engine is a stand-in."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def small_gguf(path: Path, n_embd: int = 64, n_layers: int = 2, seed: int = 1) -> bytes:
    """Write it, and return its bytes."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(n_layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(2 * n_embd)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_file_type(1)
    names = ["token_embd.weight", "output.weight", *(f"blk.{i}.attn_q.weight" for i in range(n_layers))]
    for name in names:
        writer.add_tensor(name, random.standard_normal((256, n_embd)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()
