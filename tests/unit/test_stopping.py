"""A signal stops a sweep also while its threads have much to say."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

STOPPED = """
import asyncio, os, signal
from flows.stopping import exit_code, stops_on_signals

async def main():
    with stops_on_signals():
        loop = asyncio.get_running_loop()
        for _ in range(5000):  # as many threads do: each wakes the loop by a byte in a socket that has little room
            loop.call_soon_threadsafe(int)
        os.kill(os.getpid(), signal.{name})
        await asyncio.sleep(5)
        print("nothing came")

try:
    asyncio.run(main())
except asyncio.CancelledError:
    print(exit_code())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_not_lost_among_what_threads_report(number: signal.Signals) -> None:
    script = STOPPED.format(name=number.name)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == str(128 + number), done.stdout + done.stderr
