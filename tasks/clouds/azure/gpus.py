"""Which GPU a size has: the API tells how many and not which.

From the size tables at https://learn.microsoft.com/azure/virtual-machines/sizes/overview#gpu-accelerated
(read 2026-11).
"""

from __future__ import annotations

import re

GIB = 2**30

_MODELS: tuple[tuple[str, str, int], ...] = (
    # pattern after "Standard_", model, GiB of one whole GPU; the first that fits counts
    (r"NC\d+as_T4_v3", "NVIDIA T4", 16),
    (r"NC\d+ads_A100_v4", "NVIDIA A100 80GB PCIe", 80),
    (r"NCC?\d+(ads|is|adis)_H100_v5", "NVIDIA H100 NVL", 94),
    (r"NC\d+.*_RTXPRO6000BSE_v6", "NVIDIA RTX PRO 6000 Blackwell Server", 96),
    (r"NC\d+r?s_v3", "NVIDIA V100", 16),
    (r"ND\d+asr_v4", "NVIDIA A100 40GB", 40),
    (r"ND\d+amsr_A100_v4", "NVIDIA A100 80GB", 80),
    (r"ND\d+isr(f)?_H100_v5", "NVIDIA H100", 80),
    (r"ND\d+isr(f)?_H200_v5", "NVIDIA H200", 141),
    (r"ND\d+isr_MI300X_v5", "AMD MI300X", 192),
    (r"ND\d+.*_GB200_v6", "NVIDIA GB200", 192),
    (r"ND\d+.*_GB300_v6", "NVIDIA GB300", 288),
    (r"ND\d+rs_v2", "NVIDIA V100 32GB", 32),
    (r"NV\d+ad(m)?s_A10_v5", "NVIDIA A10", 24),
    (r"NV\d+ads_V710_v5", "AMD V710", 28),
    (r"NV\d+s_v3", "NVIDIA M60", 8),
    (r"NV\d+as_v4", "AMD MI25", 16),
    (r"NG\d+adm?s_V620_v1", "AMD V620", 32),
)


def model_of(size_name: str) -> tuple[str, int]:
    """Model and bytes of one GPU, "" and 0 where the table has none."""
    bare = size_name.removeprefix("Standard_")
    for pattern, model, gib in _MODELS:
        if re.fullmatch(pattern, bare, re.IGNORECASE):
            return model, gib * GIB
    return "", 0
