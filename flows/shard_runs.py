"""The flow runs of a sweep's shards at Prefect: started once each, waited for, cancelled, although its API goes away.

Each has an idempotency key. So a create whose answer was lost is sent again without making a second shard, and what
may have been created is found without its id: a shard that nobody knows of would go on creating servers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import get_client, get_run_logger
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as this_flow_run
from prefect.states import Cancelling, Crashed
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from flows.request import ShardRequest
from flows.work_pool import why_nothing_begins
from tasks.domain.errors import ConfigError
from tasks.progress import say
from tasks.threads import in_thread

T = TypeVar("T")

DEPLOYMENT = "shard/worker"
POLL_S, CANCEL_POLL_S = 3.0, 1.0
API_PATIENCE_S = 3600.0
"""The shards go on without Prefect's API, so their sweep waits for it: an upgrade, a restart of the database."""
CANCEL_PATIENCE_S = 60.0
LATE_CREATE_S = 5.0
"""How long a create that was cut short may take to show at the server."""
LOOK_FOR_DEAD_EVERY_S = 30.0
TELL_WAITING_S, TELL_WAITING_AGAIN_S = 30.0, 600.0
"""From when no shard has been at work until why is said."""
ASK_S = 15.0
PAGE = 200


def is_away(exc: BaseException) -> bool:
    """Whether Prefect's API did not answer, or answered that it cannot just now."""
    if isinstance(exc, httpx.HTTPStatusError):
        return exc.response.status_code >= 500 or exc.response.status_code in (408, 429)
    return isinstance(exc, (httpx.TransportError, TimeoutError))


class ShardRuns:
    """The shards of one attempt of a sweep's flow run; a retry of that makes its own."""

    def __init__(self) -> None:
        self._prefix = f"{this_flow_run.id}-{this_flow_run.run_count}"
        self._keys: dict[int, str] = {}
        self._cut_short = False

    async def start(self, order: ShardRequest) -> None:
        """Raises ConfigError when there is nothing that could run it."""
        key = self._keys[order.number] = f"{self._prefix}-{order.number}"

        async def create() -> FlowRun:
            run: FlowRun = await arun_deployment(
                DEPLOYMENT,
                parameters={"request": order.model_dump(mode="json")},
                timeout=0,
                as_subflow=True,
                idempotency_key=key,
                tags=[f"sweep:{order.sweep_id}"],
            )
            return run

        try:
            await _patiently(create)
        except ObjectNotFound as exc:
            raise ConfigError(
                f"There is no deployment {DEPLOYMENT} for a sweep of this size.",
                next_step="Name a Prefect server that has it (PREFECT_API_URL, docs/scale.md), or carry it out here: "
                "fan_out inline.",
            ) from exc
        except BaseException:
            self._cut_short = True
            raise

    async def until_final(
        self,
        dead: Callable[[Mapping[int, FlowRun]], Collection[int]] | None = None,
        show: Callable[[], Awaitable[None]] | None = None,
    ) -> dict[int, StateType]:
        """Until every shard that was started has ended; returns how, by number. dead: which of these are known to run
        nowhere any more; Prefect itself does not notice that, and would show them as running for ever. show: called at
        each look."""
        looked_s = moved_s = time.monotonic()
        told_s = float("-inf")
        while open_runs := await self._open():
            begun = {n: run for n, run in open_runs.items() if run.state and run.state.type is not StateType.SCHEDULED}
            now_s = time.monotonic()
            if begun:
                moved_s = now_s
            elif now_s - moved_s > TELL_WAITING_S and now_s - told_s > TELL_WAITING_AGAIN_S:
                told_s = now_s
                await _tell_why_nothing_begins(len(open_runs))
            if dead is not None and now_s - looked_s > LOOK_FOR_DEAD_EVERY_S:
                looked_s = now_s
                for number in await in_thread(dead, begun):
                    get_run_logger().error("%s has died", open_runs[number].name)
                    gone: State[Any] = Crashed(message="its process is gone; the sweep that started it has looked")
                    await self._set_state(open_runs[number].id, gone, force=True)
            if show is not None:
                await show()
            await asyncio.sleep(POLL_S)
        return {number: run.state.type for number, run in (await self._all()).items() if run.state}

    async def cancel(self) -> None:
        """Cancel every shard that was started or may have been, and wait for their ends, for a while."""
        late_s = time.monotonic() + (LATE_CREATE_S if self._cut_short else 0.0)
        try:
            async with asyncio.timeout(CANCEL_PATIENCE_S):
                while (open_runs := await self._open()) or time.monotonic() < late_s:
                    for run in open_runs.values():
                        if run.state is None or run.state.type is not StateType.CANCELLING:
                            # The server makes that Cancelled at once where nothing runs yet.
                            await self._set_state(run.id, Cancelling(), force=False)
                    await asyncio.sleep(CANCEL_POLL_S)
        except TimeoutError:
            get_run_logger().warning(
                "shards did not end within %.0f s; the reaper ends what they hold", CANCEL_PATIENCE_S
            )

    async def _open(self) -> dict[int, FlowRun]:
        """Those that have not ended, by number."""
        runs = await self._all()
        return {number: run for number, run in runs.items() if run.state is None or not run.state.is_final()}

    async def _all(self) -> dict[int, FlowRun]:
        numbers = {key: number for number, key in self._keys.items()}
        found: list[FlowRun] = []
        for page in batched(numbers, PAGE):
            found += await _patiently(partial(_read, page))
        return {numbers[str(run.idempotency_key)]: run for run in found}

    @staticmethod
    async def _set_state(flow_run_id: UUID, state: State[Any], *, force: bool) -> None:
        async def send() -> None:
            async with get_client() as client:
                await client.set_flow_run_state(flow_run_id, state, force=force)

        await _patiently(send)


async def _tell_why_nothing_begins(n_waiting: int) -> None:
    text = f"{n_waiting} shards wait, and none is at work: {await why_nothing_begins(DEPLOYMENT)}"
    get_run_logger().warning("%s", text)
    say("", text)


async def _read(keys: Sequence[str]) -> list[FlowRun]:
    async with get_client() as client:
        wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=list(keys)))
        return await client.read_flow_runs(flow_run_filter=wanted, limit=PAGE)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while page := list(islice(rest, size)):
        yield page


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again while Prefect's API is away; raises what else goes wrong."""
    log = get_run_logger()

    def tell(state: RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome is not None else None
        log.warning("Prefect's API is away, the shards go on: %s: %s", type(failure).__name__, failure)

    retrying = AsyncRetrying(
        retry=retry_if_exception(is_away),
        wait=wait_random_exponential(multiplier=1.0, max=15.0),
        stop=stop_after_delay(API_PATIENCE_S),
        before_sleep=tell,
        reraise=True,
    )
    return await retrying(ask)


async def has_ended(flow_run_id: str) -> bool:
    """Asked by a shard that begins: whether the sweep that started it is over or being cancelled. False where nobody
    knows: a sweep that is killed leaves its shards at work."""
    try:
        async with asyncio.timeout(ASK_S), get_client() as client:
            state = (await client.read_flow_run(UUID(flow_run_id))).state
    except Exception:
        return False
    return state is not None and (state.is_final() or state.type is StateType.CANCELLING)
