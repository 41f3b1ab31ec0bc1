"""For every test: Prefect keeps its files in a folder of its own, and says nothing home."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Before anything imports prefect, which reads them once.
os.environ.setdefault("PREFECT_HOME", str(Path(tempfile.gettempdir()) / f"tokensweep-tests-prefect-{os.getuid()}"))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
