"""What Prefect does by itself: a crash starts the reaper; leaks, a spent budget and a silent reaper are told.

`tokensweep automations` puts them on the Prefect server that PREFECT_API_URL names. They are a layer on top: nothing
of the promise depends on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.client.orchestration import PrefectClient, get_client
from prefect.events.actions import DoNothing, RunDeployment, SendNotification
from prefect.events.schemas.automations import Automation
from prefect.exceptions import ObjectNotFound

from tasks.domain.errors import ConfigError
from tasks.occurrences import BUDGET, LEAK

REAPER = "reap/cron"
OURS = ("sweep", "shard", "server")
REAPER_SILENT_AFTER = timedelta(minutes=30)
"""Six missed passes of a reaper that runs every five minutes."""

REAP_ONCE_IN = timedelta(minutes=1)
"""With a worker all its server runs end: a pass for each of them would keep the workers from anything else."""

TELL_AGAIN_AFTER = timedelta(hours=1)
"""What is stuck is found at every pass of the reaper: twelve times an hour."""

BUDGET_ONCE_IN = timedelta(days=1)
"""Each shard of a sweep sees it for itself."""

Match = dict[str, str | list[str]]


@dataclass(frozen=True)
class Applied:
    """Names of the automations that were made, and of those that were there and have been replaced."""

    made: tuple[str, ...]
    replaced: tuple[str, ...]


async def apply(notify_block: str = "") -> Applied:
    """Make or replace our automations. A second call changes nothing but their ids.

    notify_block: name of a notification block as `type/name`, for example slack-webhook/ops; without one those that are
    replaced go on telling whom they told, and new ones only show in the UI. Raises ConfigError for a block or a
    deployment of the reaper that there is not.
    """
    async with get_client() as client:
        reaper_id = await _deployment_id(client, REAPER)
        there = [old for a in automations(reaper_id, None) for old in await client.read_automations_by_name(a.name)]
        block_id = await _block_id(client, notify_block) if notify_block else _told_until_now(there)
        wanted = automations(reaper_id, block_id)
        for automation in wanted:
            await client.create_automation(automation)
        for old in there:
            await client.delete_automation(old.id)
        replaced = [old.name for old in there]
    names = [automation.name for automation in wanted]
    return Applied(tuple(n for n in names if n not in replaced), tuple(dict.fromkeys(replaced)))


def _told_until_now(there: Sequence[Automation]) -> UUID | None:
    """The notification block of the automations that there are."""
    told = (action for old in there for action in old.actions if isinstance(action, SendNotification))
    return next((action.block_document_id for action in told), None)


def automations(reaper_id: UUID, notify_block_id: UUID | None) -> Sequence[AutomationCore]:
    """The four of them; see the module docstring."""
    return (
        AutomationCore(
            name="tokensweep: reap after a crash",
            description="A flow run that crashed or was cancelled may have left a server: look at once.",
            trigger=_when(
                {"prefect.flow-run.Crashed", "prefect.flow-run.Cancelled"},
                match={"prefect.resource.id": ["prefect.flow-run.*"]},
                related={"prefect.resource.role": "flow", "prefect.resource.name": list(OURS)},
                once_in=REAP_ONCE_IN,
            ),
            actions=[RunDeployment(source="selected", deployment_id=reaper_id, parameters={}, job_variables=None)],
        ),
        AutomationCore(
            name="tokensweep: something is left behind",
            description="The reaper or a sweep found servers that nobody may use and that may still bill.",
            trigger=_when({LEAK}, match={"prefect.resource.id": ["tokensweep.*"]}, once_in=TELL_AGAIN_AFTER),
            actions=[_tell(notify_block_id, "tokensweep: something is left behind", "{{ event.payload }}")],
        ),
        AutomationCore(
            name="tokensweep: four fifths of a budget are spent",
            description="A sweep has spent or reserved 80 % of its cap.",
            trigger=_when({BUDGET}, match={"prefect.resource.id": ["tokensweep.*"]}, once_in=BUDGET_ONCE_IN, each=True),
            actions=[_tell(notify_block_id, "tokensweep: budget", "{{ event.payload }}")],
        ),
        AutomationCore(
            name="tokensweep: the reaper is silent",
            description="No pass of the reaper has completed for half an hour: nothing is created any more, and "
            "nothing that is left would be found.",
            trigger=EventTrigger(
                posture=Posture.Proactive,
                expect={"prefect.flow-run.Completed"},
                match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
                match_related=ResourceSpecification(
                    {"prefect.resource.role": "flow", "prefect.resource.name": ["reap"]}
                ),
                threshold=1,
                within=REAPER_SILENT_AFTER,
            ),
            actions=[_tell(notify_block_id, "tokensweep: the reaper is silent", "No pass for half an hour.")],
        ),
    )


def _when(
    events: set[str], *, match: Match, related: Match | None = None, once_in: timedelta, each: bool = False
) -> EventTrigger:
    """once_in: of many such events the first one fires, and none of the others until so much time has passed; each: for
    each resource by itself."""
    return EventTrigger(
        posture=Posture.Reactive,
        expect=events,
        match=ResourceSpecification(match),
        match_related=ResourceSpecification(related or {}),
        for_each={"prefect.resource.id"} if each else set(),
        threshold=1,
        within=once_in,
    )


def _tell(block_id: UUID | None, subject: str, body: str) -> Any:
    if block_id is None:
        return DoNothing()
    return SendNotification(block_document_id=block_id, subject=subject, body=body)


async def _deployment_id(client: PrefectClient, name: str) -> UUID:
    try:
        return (await client.read_deployment_by_name(name)).id
    except ObjectNotFound as exc:
        raise ConfigError(
            f"Prefect has no deployment {name}.", next_step="prefect deploy --all, or tokensweep ui."
        ) from exc


async def _block_id(client: PrefectClient, name: str) -> UUID:
    kind, _, document = name.partition("/")
    try:
        return (await client.read_block_document_by_name(document, kind)).id
    except ObjectNotFound as exc:
        raise ConfigError(
            f"Prefect has no block {name}.", next_step="Make it in the UI, and name it as type/name."
        ) from exc
