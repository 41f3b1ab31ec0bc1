"""Server types that are fast only for a while: which they are, and what the vendor promises for the long run.

A short benchmark on such a server measures its burst. Types are told by their names, as the vendors document them
(read 2026-11-21):
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/burstable-credits-baseline-concepts.html
https://learn.microsoft.com/azure/virtual-machines/sizes/general-purpose/bv1-series
https://docs.cloud.google.com/compute/docs/general-purpose-machines#sharedcore
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

from tasks.domain.stats import median

CREDITS = "credits"
SHARED = "shared"

# AWS, by size, as a share of each vCPU; T3, T3a and T4g have the same.
_T3 = {"nano": 0.05, "micro": 0.10, "small": 0.20, "medium": 0.20, "large": 0.30, "xlarge": 0.40, "2xlarge": 0.40}
_T2 = {"nano": 0.05, "micro": 0.10, "small": 0.20, "medium": 0.20, "large": 0.30, "xlarge": 0.225, "2xlarge": 0.17}
# Azure, first B series.
_AZURE_B = {"B1ls": 0.05, "B1s": 0.10, "B1ms": 0.20, "B2s": 0.20, "B2ms": 0.30, "B4ms": 0.225, "B8ms": 0.17,
            "B12ms": 0.17, "B16ms": 0.17, "B20ms": 0.17}  # fmt: skip
# Google Cloud's shared-core machines: the fraction of their vCPUs that they may use for long.
_GCP = {"e2-micro": 0.125, "e2-small": 0.25, "e2-medium": 0.50, "f1-micro": 0.20, "g1-small": 0.50}

BASELINE_RATIO = 0.9
"""A sustained speed below this share of the first minute's is a baseline below the burst."""


@dataclass(frozen=True)
class Burst:
    """kind: CREDITS or SHARED. baseline_share: of its CPUs for the long run; None where the vendor promises none."""

    kind: str
    baseline_share: Optional[float] = None


def burst_of(vendor: str, server: str) -> Optional[Burst]:
    """What is declared of a server type; None for one whose CPUs are its own for good."""
    if vendor == "aws":
        found = re.match(r"(t2|t3a?|t4g)\.(\w+)$", server)
        return Burst(CREDITS, (_T2 if found[1] == "t2" else _T3).get(found[2])) if found else None
    if vendor == "azure":
        size = server.replace("Standard_", "", 1)
        is_b = re.match(r"B\d+\w*(?:_v2)?$", size)
        return Burst(CREDITS, _AZURE_B.get(size)) if is_b else None
    if vendor == "gcp":
        return Burst(CREDITS, _GCP[server]) if server in _GCP else None
    if vendor == "hetzner":
        return Burst(SHARED) if re.match(r"(?:cx|cpx|cax)\d", server) else None
    if vendor == "upcloud":
        return Burst(SHARED) if server.upper().startswith("DEV-") else None
    return None


@dataclass(frozen=True)
class Sustained:
    """Tokens/s of the first minute and of the last fifth of a long run; `fell`: the second is a lower plateau."""

    burst_tok_per_s: float
    baseline_tok_per_s: float
    fell: bool


def sustained(points: Sequence[Tuple[float, float]], first_s: float = 60.0) -> Optional[Sustained]:
    """From (seconds since the beginning, tokens/s); None for fewer than four points."""
    if len(points) < 4:
        return None
    ordered = sorted(points)
    early = [speed for t_s, speed in ordered if t_s <= ordered[0][0] + first_s]
    late = [speed for _, speed in ordered[-max(1, len(ordered) // 5) :]]
    burst, baseline = median(early), median(late)
    return Sustained(burst, baseline, baseline < burst * BASELINE_RATIO)
