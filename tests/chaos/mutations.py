"""The bugs of `mutations.toml`, planted into the product as it is imported."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import CodeType, ModuleType


class NotApplicableError(Exception):
    """The product's source has changed: the mutation must be written anew."""


@dataclass(frozen=True)
class Change:
    """One place in a module's source, which must occur exactly once."""

    module: str
    before: str
    after: str

    def applied(self, source: str) -> str:
        if source.count(self.before) != 1:
            raise NotApplicableError(f"{self.module} has {source.count(self.before)} places like {self.before!r}.")
        return source.replace(self.before, self.after)


@dataclass(frozen=True)
class Mutation:
    """first_test: a file of this folder and a test of it, which should notice."""

    name: str
    first_test: str
    changes: tuple[Change, ...]


def mutations() -> tuple[Mutation, ...]:
    with Path(__file__).with_suffix(".toml").open("rb") as file:
        listed = tomllib.load(file)["mutation"]
    return tuple(
        Mutation(one["name"], one["first_test"], tuple(Change(**change) for change in one["change"])) for one in listed
    )


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, changes: Sequence[Change]) -> None:
        super().__init__(name, path)
        self.changes = changes

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_source(fullname) or ""
        for change in self.changes:
            source = change.applied(source)
        return compile(source, self.path, "exec")


class _Finder(MetaPathFinder):
    def __init__(self, mutation: Mutation) -> None:
        self.mutation = mutation

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        changes = [change for change in self.mutation.changes if change.module == fullname]
        if not changes:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.origin is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=_Loader(fullname, spec.origin, changes)
        )


def plant(mutation: Mutation) -> None:
    """From here on this process imports the product with that bug. Before that it must not have imported it."""
    early = sorted({change.module for change in mutation.changes} & set(sys.modules))
    if early:
        raise RuntimeError(f"{', '.join(early)} have been imported already.")
    sys.meta_path.insert(0, _Finder(mutation))
