"""A model server in a process of its own, whose processor time can be told from everybody else's.

    python -m tests.benchmarks.sender FOLDER [LINK=BYTES_PER_S ...]

Prints its port, and ends when its stdin does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from tasks.models.serve import ModelServer
from tests.benchmarks.downloads import cpu_s


class Sender:
    """In a session of its own, so that the scheduler treats it as it would somebody else's program."""

    def __init__(self, folder: Path, links: dict[str, float], cpus: list[int]) -> None:
        command = [sys.executable, "-m", __name__, str(folder), *(f"{name}={rate}" for name, rate in links.items())]
        self._process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cpus)), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._root = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def url(self, file: str, link: str) -> str:
        """Over a link, or at full speed with ""."""
        return f"{self._root}/link/{quote(link)}/{quote(file)}" if link else f"{self._root}/{quote(file)}"

    def cpu_s(self) -> float:
        return cpu_s(self._process.pid)

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    folder, *links = sys.argv[1:]
    pairs = (link.split("=") for link in links)
    with ModelServer(Path(folder), links={name: float(rate) for name, rate in pairs}) as files:
        sys.stdout.write(f"{files.port}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
