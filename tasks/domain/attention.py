"""How much more attention weighs in one model than in another.

Reading a prompt costs each token two multiplications per weight, and in attention some more for every token before it.
Models differ in how much that is against their weights (SmolLM-135M nine times as much as Gemma 2B), so they slow down
differently as prompts grow. The GGUF header tells it.
"""

from __future__ import annotations

from typing import Optional

from tasks.domain.gguf import GgufHeader


def attention_share(header: GgufHeader) -> float:
    """Multiplications of attention for each token before the one at hand, per weight of the model."""
    return header.n_layers * header.n_head * header.head_dim_k / max(1, header.n_params)


def attention_term(header: Optional[GgufHeader], smaller: Optional[GgufHeader], n_tokens: int) -> Optional[float]:
    """By how much more of it a prompt of n_tokens has in one model than in the next smaller one; None without both
    headers."""
    if header is None or smaller is None:
        return None
    return (attention_share(header) - attention_share(smaller)) * n_tokens
