"""Places that had none of a server type: known to every process and host that shares the ledger."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from tasks.domain.stockouts import Stockout
from tasks.ledger.schema import stockouts
from tasks.ledger.store import Store


class Stockouts(Store):
    """The last stockout of each place. On demand and spot are sold from different pools."""

    def out_of_stock(self, vendor: str, server_type: str, places: Iterable[str], *, spot: bool, code: str) -> None:
        """The vendor has said that these places have none now. A second call renews it."""
        values = {"vendor": vendor, "server_type": server_type, "spot": spot, "code": code, "unix_s": self.now()}
        renew = sa.text(
            "INSERT INTO stockouts (vendor, server_type, place, spot, code, unix_s) "
            "VALUES (:vendor, :server_type, :place, :spot, :code, :unix_s) "
            "ON CONFLICT (vendor, server_type, place, spot) "
            "DO UPDATE SET code = excluded.code, unix_s = excluded.unix_s"
        )
        with self._transaction() as conn:
            for place in places:
                conn.execute(renew, {**values, "place": place})

    def stockouts(self, vendor: str, server_type: str, *, spot: bool) -> tuple[Stockout, ...]:
        """The last one of each place that ever had one."""
        columns = stockouts.c
        query = sa.select(columns.place, columns.code, columns.unix_s).where(
            columns.vendor == vendor, columns.server_type == server_type, columns.spot == spot
        )
        with self._transaction(write=False) as conn:
            return tuple(Stockout(place, code, unix_s) for place, code, unix_s in conn.execute(query))
