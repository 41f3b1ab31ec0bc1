"""Our own benchmarks; see docs/measurements.md. Puts the agent's source tree on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "agent-image"))
