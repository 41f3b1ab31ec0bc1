"""Starting a server run as a subflow, with two calls to Prefect's API where calling the flow takes seven.

The API bears some ten starts a second on one core, so they are what a large sweep waits for. Left out is what a new
subflow with a known name does not need: asking for the flow's id each time, looking for an earlier run of the same
call (the ledger and the lake know what is missing), naming it afterwards, proposing to run when it is made (it is made
running), reading what the API has just answered, and a client of its own for the task run that stands for it in its
parent.

`AsyncFlowRunEngine` is inside Prefect: read it again when Prefect is upgraded. tests/flows/test_subflow.py compares
what comes out with a subflow that was called.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from copy import copy
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from prefect import Flow, Task
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State
from prefect.context import FlowRunContext, TagsContext
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.states import Cancelled, Running, to_state_create

from flows.whole_requests import carry_to_their_end
from tasks.threads import to_its_end

TELL_S = 10.0
"""How long a run that is cancelled waits for Prefect's API to take note. Its client would go on for minutes, and what
cancels the run waits for it."""


class Subflows:
    """Runs of one flow in one parent. The flow's id is asked for once."""

    def __init__(self, flow: Flow[..., Any]) -> None:
        self._flow = flow
        self._flow_id: UUID | None = None

    async def run(self, name: str, **parameters: Any) -> Any:
        """What the flow returns; raises what it raises, and what Prefect's client does when the API fails."""
        engine = _Engine(flow=self._flow, parameters=parameters, subflows=self, name=name)
        async with engine.start():
            while engine.is_running():
                async with engine.run_context():
                    _ = await engine.call_flow_fn()
        return await engine.result()

    async def flow_id(self, client: PrefectClient) -> UUID:
        if self._flow_id is None:
            self._flow_id = await client.create_flow(self._flow)
        return self._flow_id


@dataclass
class _Engine(AsyncFlowRunEngine[..., Any]):
    subflows: Subflows | None = None
    name: str = ""

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        if state.is_running() and self.state.is_running():
            return self.state  # as it was made
        return await super().set_state(state, force)

    async def handle_crash(self, exc: BaseException) -> None:
        await self._tell_how_it_ended(super().handle_crash(exc))

    async def handle_cancellation(self, exc: BaseException) -> None:
        await self._tell_how_it_ended(super().handle_cancellation(exc))

    async def _tell_how_it_ended(self, telling: Coroutine[Any, Any, None]) -> None:
        """Prefect shields this from the cancellations of anyio alone. A sweep that is stopped cancels its server runs
        more than once, and each that cut this short would be shown as running for ever."""
        try:
            await to_its_end(asyncio.wait_for(telling, TELL_S))
        except TimeoutError:
            self.logger.warning("Prefect's API did not take note of its end within %.0f s", TELL_S)

    @asynccontextmanager
    async def setup_run_context(self, client: PrefectClient | None = None) -> AsyncIterator[None]:
        """Prefect would read the run again that it has just been given."""
        asked, run = client or self.client, self.flow_run

        async def read_flow_run(flow_run_id: UUID) -> FlowRun:
            return run or await asked.read_flow_run(flow_run_id)

        knowing = copy(asked)
        cast(Any, knowing).read_flow_run = read_flow_run
        async with super().setup_run_context(knowing):
            yield

    async def create_flow_run(self, client: PrefectClient) -> FlowRun:
        carry_to_their_end(client)
        parent = FlowRunContext.get()
        if parent is None or self.subflows is None:
            return await super().create_flow_run(client)
        stands_for_it = Task(name=self.flow.name, fn=self.flow.fn, version=self.flow.version)
        cast(Any, stands_for_it)._is_subflow_tracking_task = True
        task_run = await stands_for_it.create_run(client=client, flow_run_context=parent)
        wanted = FlowRunCreate(
            flow_id=await self.subflows.flow_id(client),
            flow_version=self.flow.version,
            name=self.name,
            parameters=self.flow.serialize_parameters(self.parameters or {}),
            tags=sorted(TagsContext.get().current_tags),
            parent_task_run_id=task_run.id,
            state=to_state_create(Running()),
            empirical_policy=FlowRunPolicy(retries=0, retry_delay=0),
            # Prefect's client sends again when no answer comes; a second run would be shown as running for ever.
            idempotency_key=str(task_run.id),
        )
        created = await _made(client, wanted)
        created.parameters = self.parameters or {}
        self._flow_run_name_set = True
        return created


async def _made(client: PrefectClient, wanted: FlowRunCreate) -> FlowRun:
    """The run that the API makes. Nobody else would end it when its starter is cancelled before the answer is there."""

    async def send() -> FlowRun:
        answer = await client.request("POST", "/flow_runs/", json=wanted.model_dump(mode="json", exclude_unset=True))
        return FlowRun.model_validate(answer.json())

    sending = asyncio.create_task(send())
    try:
        return await asyncio.shield(sending)
    except asyncio.CancelledError:
        with suppress(Exception):
            async with asyncio.timeout(TELL_S):
                made = await sending
                await client.set_flow_run_state(made.id, Cancelled(message="cancelled as it began"), force=True)
        raise
