"""Asking nvidia-smi: in fields that its driver knows, and without waiting for one that hangs."""

from __future__ import annotations

import re
import subprocess
from typing import Sequence

from agent.child import start_program

# Of drivers that do not know a field any more, what it is called there.
RENAMED_FIELDS = {"clocks_throttle_reasons.active": "clocks_event_reasons.active"}
RC_INFOROM = 14
"""nvidia-smi(1): the infoROM of a GPU is corrupted. The answer is there all the same."""
ANSWER_LIMIT_S = 60.0
"""Without a persistence daemon the first answer waits for the driver, 1 to 3 s for each of up to 16 GPUs:
https://docs.nvidia.com/deploy/driver-persistence/overview.html"""

_UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field')


def ask(arguments: Sequence[str], limit_s: float = ANSWER_LIMIT_S) -> tuple[int, str]:
    """Exit status and output of one nvidia-smi. Raises OSError, and subprocess.TimeoutExpired after limit_s.

    One that hangs in the driver cannot even be killed, so nobody waits for its end.
    """
    process = start_program(["nvidia-smi", *arguments], stderr=subprocess.STDOUT)
    try:
        stdout, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, stdout.decode(errors="replace")


def query(fields: Sequence[str]) -> tuple[int, str, tuple[str, ...]]:
    """Exit status and lines of `--query-gpu`, and the fields that they have: one that is not known fails the whole.

    A field that this driver calls by another name is asked for by that one, and one that it does not have left out
    (drivers before 495 have no compute_cap).
    """
    asked = {field: field for field in fields}
    while True:
        rc, text = ask(query_arguments(tuple(asked.values())))
        unknown = [field for field, name in asked.items() if name in _UNKNOWN_FIELD.findall(text)] if rc else []
        if not unknown:
            return rc, text, tuple(asked.values())
        for field in unknown:
            if asked[field] == field and field in RENAMED_FIELDS:
                asked[field] = RENAMED_FIELDS[field]
            else:
                del asked[field]


def query_arguments(fields: Sequence[str]) -> list[str]:
    return [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


def values_of(line: str, fields: Sequence[str]) -> dict[str, str] | None:
    """A line's values by the names of LIST_FIELDS and USE_FIELDS; None for a line that is none."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(fields) or not values[0].isdigit():
        return None
    first_names = {new: old for old, new in RENAMED_FIELDS.items()}
    return {first_names.get(field, field): value for field, value in zip(fields, values)}
