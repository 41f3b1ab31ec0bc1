"""python -m tests.benchmarks.vendor_calls: how many API calls one server run takes, per vendor, at the emulators.

The second run in the same account counts, from before its create to its proven end: what an account needs once is there
by then. Boot times are the emulators'; each poll while a server boots is one call more.
"""

from __future__ import annotations

import sys
from collections import Counter

from tests.chaos.stage import Stage
from tests.chaos.trap import Trap
from tests.contract.worlds import open_world, spoken_to_over_http


def calls_of_a_run(vendor: str) -> tuple[Counter[str], float]:
    """Calls by operation of the second run, and the seconds that the vendor's clock went on meanwhile."""
    with open_world(vendor) as world:
        stage = Stage(world)
        stage.server_run("first", Trap())
        stage.reap(prove_s=600.0)
        before, began_unix_s = len(world.calls()), world.now()
        stage.server_run("second", Trap())
        return Counter(world.calls()[before:]), world.now() - began_unix_s


def main() -> int:
    for vendor in spoken_to_over_http():
        found, took_s = calls_of_a_run(vendor)
        operations = ", ".join(f"{n} {operation}" for operation, n in found.most_common())
        print(f"{vendor}: {sum(found.values())} calls in {took_s:.0f} s of its clock: {operations}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
