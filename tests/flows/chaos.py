"""One sweep on workers, and everything that carries it killed in its middle: PostgreSQL, the Prefect server, a worker
with its shards, the controller. Then what is dead is started again, and the sweep is run to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.ledger import Ledger, RunState
from tests.e2e.product import Done, Product
from tests.flows.installation import Installation, kill_tree

PATIENCE_S = 900.0
ASK_EVERY_S = 1.0
MOST_STARTS = 60
FINISHED = (0, 3, 4)
"""Exit codes of `run`: completed, nothing to do, some servers failed."""
REFUSED, LEFT = 2, 6


@dataclass
class Survived:
    """What the sweep went through. samples: measured cells of the lake when the controller was killed."""

    samples: dict[tuple[str, str, str, int], list[float]] = field(default_factory=dict)
    n_landed_before: int = 0
    n_refused: int = 0
    last: Done | None = None


def chaos(
    fleet: Installation, preset: str, n_servers: int, *, landed_first: int, paced: bool, limit: int = 1
) -> Survived:
    """Raises AssertionError when it does not come to its end. landed_first: server runs in the lake before the first
    blow. paced: between the blows something must land each time; otherwise they come at once. limit: of the worker
    that replaces the dead one."""
    product, ledger = fleet.product, Ledger(fleet.product.environment["TOKENSWEEP_LEDGER_URL"])

    def n_landed() -> int:
        return sum(run.state is RunState.LANDED for run in ledger.server_runs())

    def go_on(after: str) -> None:
        before = n_landed()
        if paced:
            _until(lambda: n_landed() > before, f"a server run landed after {after}")

    controller = product.start("run", "--yes", "--fan-out", "workers", preset)
    try:
        _until(
            lambda: n_landed() >= landed_first or controller.process.poll() is not None, "the first server runs landed"
        )
        assert controller.process.poll() is None, f"it ended before the first blow: {controller.end()}"
        kill_tree(fleet.workers[0])
        go_on("a worker and its shards had been killed")
        fleet.postgres.stop("immediate")
        fleet.postgres.start()
        go_on("PostgreSQL had crashed")
        fleet.kill_server()
        survived = Survived(product.samples(), n_landed())
        if not paced:
            controller.kill()
        fleet.start_server()
        go_on("the Prefect server had been killed")
    finally:
        controller.kill()
        controller.end()

    fleet.start_worker(limit)
    survived.last = _to_its_end(product, preset, n_servers, survived)
    return survived


def _to_its_end(product: Product, preset: str, n_servers: int, survived: Survived) -> Done:
    """Start the sweep again until every server has been run to an end. A shard that outlived the controller is still at
    work: until it has ended a second start is refused."""
    for _ in range(MOST_STARTS):
        product.run("reap")
        done = product.start("run", "--yes", "--fan-out", "workers", preset).end(PATIENCE_S)
        assert done.rc in (REFUSED, LEFT, *FINISHED), str(done)
        if done.rc in FINISHED and len(_run_to_an_end(product)) == n_servers:
            return done
        survived.n_refused += done.rc == REFUSED
        time.sleep(5.0)
    raise AssertionError(f"the sweep does not come to its end: {done}")


def _run_to_an_end(product: Product) -> set[str]:
    rows = product.query("SELECT DISTINCT server FROM server_runs WHERE outcome <> 'interrupted'")
    return {row["server"] for row in rows}


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(ASK_EVERY_S)
