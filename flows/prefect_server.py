"""python -m flows.prefect_server server start …: Prefect's own command, with SQLite transactions that wait their turn.

Prefect begins them deferred. One that has read, and would write when another has committed meanwhile, is refused by
SQLite at once, whatever the timeout (SQLITE_BUSY_SNAPSHOT), and the server answers 503: so it did 72 times in 913 calls
of a sweep of 100 servers. Those that take the lock when they begin, as Prefect's do where it locks rows, wait instead.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any


def main() -> None:
    from prefect.cli import app
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction

    def begin_immediate(
        self: AioSqliteConfiguration, session: Any, with_for_update: bool = False
    ) -> AbstractAsyncContextManager[Any]:
        return begin(self, session, with_for_update=True)

    AioSqliteConfiguration.begin_transaction = begin_immediate  # type: ignore[method-assign, assignment]
    app()


if __name__ == "__main__":
    main()
