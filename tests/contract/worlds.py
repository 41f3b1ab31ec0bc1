"""Every vendor that the conformance suite and the crash enumeration run on, found by its module.

`tests/emulators/NAME_world.py` with `open_world(**options) -> ContextManager[VendorWorld]` makes NAME one of them.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from tests.contract.world import VendorWorld

_EMULATORS = Path(__file__).resolve().parents[1] / "emulators"
_SUFFIX = "_world"


def names() -> list[str]:
    """The cloud in memory first, then whatever vendors there are."""
    return ["memory", *sorted(path.stem.removesuffix(_SUFFIX) for path in _EMULATORS.glob(f"*{_SUFFIX}.py"))]


def open_world(name: str, **options: Any) -> AbstractContextManager[VendorWorld]:
    """A fresh account of that vendor. Raises ValueError for a name that there is not."""
    if name not in names():
        raise ValueError(f"There is no world {name!r}; there are {', '.join(names())}.")
    package = "tests.contract" if name == "memory" else "tests.emulators"
    module = importlib.import_module(f"{package}.{name}{_SUFFIX}")
    return cast("AbstractContextManager[VendorWorld]", module.open_world(**options))


def spoken_to_over_http() -> list[str]:
    """Those with an emulator of their API, which a network and a gateway lie before."""
    return [name for name in names() if name not in ("memory", "sim")]
