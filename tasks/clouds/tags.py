"""What our tags say: written on every resource at its creation, read back from every listing.

With them the reaper works although the ledger is lost: whose it is, which intent, until when, and which process on
which host may still use it.
"""

from __future__ import annotations

from dataclasses import replace

from tasks.clouds.base import DEADLINE_TAG, INTENT_TAG, OWNER, OWNER_TAG, SWEEP_TAG, CreateSpec, Resource
from tasks.domain.reaping import DEFAULT_RULES, Rules, Seen, deadline_text, parse_deadline

LEDGER_TAG = "tokensweep-ledger"
CONTROLLER_TAG = "tokensweep-controller"


def with_tags(spec: CreateSpec, *, ledger_id: str, controller: str) -> CreateSpec:
    """The spec with every tag of ours in `tags`, beside those that it has. All fit 63 characters of [a-z0-9-]."""
    ours = {
        OWNER_TAG: OWNER,
        INTENT_TAG: spec.intent_id,
        DEADLINE_TAG: deadline_text(spec.deadline_unix_s),
        SWEEP_TAG: spec.sweep_id,
        LEDGER_TAG: ledger_id,
        CONTROLLER_TAG: controller,
    }
    return replace(spec, tags=spec.tags | ours)


def seen(resource: Resource, now_unix_s: float, rules: Rules = DEFAULT_RULES) -> Seen:
    """The resource as the reaper's decisions take it."""
    tags = resource.tags
    return Seen(
        vendor=resource.vendor,
        place=resource.place,
        name=resource.name,
        cloud_id=resource.cloud_id,
        kind=resource.kind,
        state=resource.state,
        ours=tags.get(OWNER_TAG) == OWNER,
        intent_id=tags.get(INTENT_TAG, ""),
        sweep_id=tags.get(SWEEP_TAG, ""),
        ledger_id=tags.get(LEDGER_TAG, ""),
        controller=tags.get(CONTROLLER_TAG, ""),
        deadline_unix_s=parse_deadline(tags.get(DEADLINE_TAG, ""), now_unix_s, rules),
        created_unix_s=resource.created_unix_s,
    )
