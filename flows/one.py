"""One server type, measured from a form of its own: a sweep of one, with all that a sweep promises."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows.request import SweepRequest
from flows.sweep import SweepResult, sweep


class OneServerRequest(SweepRequest):
    """The form of one server. It defaults to planning, which spends nothing."""

    server: str = Field(
        title="Server type",
        description="As its vendor names it; `tokensweep catalog` lists them.",
        min_length=1,
        json_schema_extra={"position": 3},
    )
    fan_out: Literal["inline"] = Field(
        default="inline",
        title="Where server runs are carried out",
        description="One server needs no other process.",
        json_schema_extra={"position": 6},
    )


@flow(
    name="server",
    flow_run_name="server/{request.server}-{request.mode}",
    description="Measure one server type with the models of a preset; see the parameters.",
)
async def one(request: OneServerRequest) -> SweepResult | State[Any]:
    """Plan it and, with mode=run, carry it out. Starting it again takes up where it stopped."""
    return await sweep.fn(request)
