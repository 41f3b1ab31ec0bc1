"""What can be asked of a sweep: the form in the Prefect UI, and the parameters of its shards."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.presets import preset_names
from tasks.settings import Settings

INLINE_SERVERS = 200
"""Server runs in one process, with Prefect on SQLite: measured without a single 5xx (docs/scale.md)."""


class SweepRequest(BaseModel):
    """The form of a sweep. It defaults to planning, which spends nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"mode": {"const": "run"}}, "required": ["mode"]},
            "then": {"required": ["max_usd"]},
        }
    )

    preset: str = Field(
        default="local",
        title="Preset",
        description="A file of deployments/presets, without .yaml.",
        json_schema_extra={"position": 0, "enum": list(preset_names(Settings().presets))},
    )
    mode: Literal["plan", "run"] = Field(
        default="plan",
        title="Mode",
        description="plan: show what would be done and what it may cost. run: do it.",
        json_schema_extra={"position": 1},
    )
    max_usd: float | None = Field(
        default=None,
        title="Money cap (USD)",
        description="The sweep never spends more. Needed to run.",
        gt=0,
        le=100_000,
        json_schema_extra={"position": 2},
    )
    server: str = Field(
        default="",
        title="Only this server type",
        description="Empty: all of the preset.",
        json_schema_extra={"position": 3},
    )
    label: str = Field(
        default="",
        title="Label",
        description="Measure again under a new label what the same preset has measured already.",
        max_length=40,
        json_schema_extra={"position": 4},
    )
    again: Literal["never", "weekly", "monthly", "quarterly"] = Field(
        default="never",
        title="Measure again",
        description="never: only what is missing. Otherwise what was measured before this week, month or quarter (UTC) "
        "is stale: all of the preset is measured once in each, under a money cap of its own.",
        json_schema_extra={"position": 5},
    )
    fan_out: Literal["auto", "inline", "workers"] = Field(
        default="auto",
        title="Where server runs are carried out",
        description="inline: in this process. workers: by shards on the work pool. auto: workers above "
        f"{INLINE_SERVERS} servers.",
        json_schema_extra={"position": 6},
    )

    @property
    def name(self) -> str:
        return Path(self.preset).stem

    def dated(self, today: date) -> SweepRequest:
        """The same for this week, month or quarter: `again` has become a part of the label, so that the sweep is one of
        its own, which takes up where it stopped until the next one begins."""
        year, week, _ = today.isocalendar()
        period = {
            "never": "",
            "weekly": f"{year}-W{week:02}",
            "monthly": f"{today:%Y-%m}",
            "quarterly": f"{today.year}-Q{(today.month + 2) // 3}",
        }[self.again]
        return self.model_copy(update={"label": f"{self.label} {period}".strip(), "again": "never"})


class ShardRequest(BaseModel):
    """A part of a sweep for one worker. servers: as vendor/server type; their plan is made again from the request,
    because parameters of a flow are limited to 512 KiB. started_by: the sweep's flow run."""

    sweep: SweepRequest
    sweep_id: str
    number: int
    servers: list[str]
    started_by: str = ""
