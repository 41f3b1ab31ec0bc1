"""What follows is tried in a copy of this process, so that one life of a controller serves for every aftermath."""

from __future__ import annotations

import gc
import os
import select
import signal
import traceback
from collections.abc import Callable

PATIENCE_S = 300.0
_BYTES_AT_ONCE = 65536


def in_a_copy(act: Callable[[], object]) -> str:
    """What `act` raised in a forked copy, "" for nothing. The copy's world ends with it.

    For worlds that live in this process alone, with no other thread at work. A copy that says nothing for PATIENCE_S is
    killed, and that is told as its error.
    """
    ours, its = os.pipe()
    gc.freeze()  # else the copy's collector would touch, and so copy, every page
    child = os.fork()
    if child == 0:
        _tell(its, act)
    os.close(its)
    said, hung = b"", False
    while True:
        ready, _, _ = select.select([ours], [], [], PATIENCE_S)
        if not ready:
            hung = True
            os.kill(child, signal.SIGKILL)
            break
        more = os.read(ours, _BYTES_AT_ONCE)
        if not more:
            break
        said += more
    os.close(ours)
    _, status = os.waitpid(child, 0)
    gc.unfreeze()
    if hung:
        return f"it did not end within {PATIENCE_S:.0f} s"
    return said.decode() or (f"it ended with the status {status}" if status else "")


def _tell(its: int, act: Callable[[], object]) -> None:
    said = ""
    try:
        act()
    except AssertionError as exc:
        said = str(exc) or "an assertion failed"
    except BaseException:
        said = traceback.format_exc()
    with os.fdopen(its, "w") as pipe:
        pipe.write(said)
    os._exit(0)
