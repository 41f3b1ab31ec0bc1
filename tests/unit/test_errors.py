"""Why something ended is a word that people read in tables, never the name of a Python class."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import re

import pytest

import flows
import tasks
from tasks.domain.errors import AuthError, CleanupError, ConfigError, TokensweepError
from tasks.domain.gguf_cursor import NotGguf
from tasks.domain.lifecycle import BudgetError, LedgerError


def every_error() -> list[type[TokensweepError]]:
    for package in (tasks, flows):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    found = [TokensweepError]
    for cls in found:
        found += cls.__subclasses__()
    return [cls for cls in found if cls.__module__.partition(".")[0] in ("tasks", "flows")]


def test_every_error_has_a_reason_in_words() -> None:
    errors = every_error()
    assert {ConfigError, CleanupError, BudgetError, NotGguf} <= set(errors) and len(errors) > 20
    for cls in errors:
        reason = cls("what happened").reason
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", reason), f"{cls.__name__}: {reason}"
    words = [cls.usual_reason for cls in errors if "usual_reason" in vars(cls)]
    assert len(words) == len(set(words)), "two kinds of error share a word"


@pytest.mark.parametrize(
    "cls, reason",
    [(ConfigError, "bad_config"), (AuthError, "credentials"), (LedgerError, "ledger_unusable")],
)
def test_a_reason_that_is_given_comes_before_the_usual_one(cls: type[TokensweepError], reason: str) -> None:
    assert cls("what happened").reason == reason
    given = cls("what happened", reason="no_reaper", next_step="Do this.")
    assert (given.reason, str(given)) == ("no_reaper", "what happened Do this.")
    again = pickle.loads(pickle.dumps(given))
    assert (type(again), again.reason, str(again)) == (cls, "no_reaper", str(given))
