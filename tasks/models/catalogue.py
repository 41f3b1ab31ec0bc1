"""The catalogue of models: which GGUF files exist, where they lie, and which architecture they have."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.domain.errors import ConfigError
from tasks.domain.run_plan import ModelSpec

DEFAULT_CATALOGUE = Path(__file__).with_name("models.toml")
MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An architecture in llama.cpp's terms.

    rope_scaling_factor: 1 means that positions are not rescaled.
    embedding_type: tensor type of the token embedding where the real file departs from the rule, else "".
    """

    arch: str
    n_layers: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    tied_embeddings: bool
    rms_epsilon: float
    rope_base: float
    rope_scaling_factor: float
    rope_original_context: int
    embedding_type: str


@dataclass(frozen=True, kw_only=True)
class CatalogueModel:
    """One model. A field that is not known is 0 or "".

    bytes: exact size of the real file; listed_mib: the same rounded to 0.01 MiB, where that is all that is known.
    tensor_bytes, n_params: what llama-bench reports of the real file.
    random_bytes: size that a file made with random weights gets; 0 lets it be as small as it comes out.
    """

    name: str
    title: str
    repo: str
    revision: str
    file: str
    bytes: int
    listed_mib: float
    sha256: str
    tensor_bytes: int
    n_params: int
    random_bytes: int
    shape: Shape

    @property
    def has_real_file(self) -> bool:
        return bool(self.repo)

    @property
    def url(self) -> str:
        """Where the pinned file is, or "" for a model that exists only with random weights."""
        if not self.has_real_file:
            return ""
        return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/{self.file}"

    @property
    def approximate_bytes(self) -> int:
        """Size of the real file, exact where it is known, else within 0.005 MiB; 0 without a real file."""
        return self.bytes or round(self.listed_mib * MIB)

    def real_spec(self) -> ModelSpec:
        """What a server run is told to download. `bytes` is 0 where the exact size is not known.

        Raises ConfigError for a model that exists only with random weights.
        """
        if not self.has_real_file:
            raise ConfigError(
                f"The model {self.name!r} exists only with random weights.",
                next_step="Use it in a preset with `weights: random`.",
            )
        return ModelSpec(
            name=self.name,
            file=self.file,
            urls=(self.url,),
            bytes=self.bytes,
            listed_bytes=self.approximate_bytes,
            sha256=self.sha256,
            weights="real",
            revision=self.revision,
        )

    def simulated_spec(self) -> ModelSpec:
        """For servers that only simulate: the size counts, and nothing is downloaded."""
        n_bytes = self.bytes or self.random_bytes or self.approximate_bytes or self.tensor_bytes or MIB * 24
        return ModelSpec(
            name=self.name,
            file=self.file or f"{self.name}.gguf",
            urls=(f"https://models.invalid/{self.name}.gguf",),
            bytes=n_bytes,
            weights="simulated",
        )


_Count = Annotated[int, Field(gt=0, le=1 << 40)]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]


class _ShapeEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: str
    n_layers: Annotated[int, Field(gt=0, le=4096)]
    n_embd: _Count
    n_head: _Count
    n_head_kv: _Count
    head_dim: _Count
    n_ff: _Count
    n_vocab: Annotated[int, Field(ge=512, le=1 << 24)]
    n_ctx_train: _Count
    tied_embeddings: bool
    rms_epsilon: Annotated[float, Field(gt=0)]
    rope_base: Annotated[float, Field(gt=0)]
    rope_scaling_factor: Annotated[float, Field(ge=1)] = 1.0
    rope_original_context: Annotated[int, Field(ge=0)] = 0
    embedding_type: Literal["", "Q4_K", "Q6_K"] = ""

    @model_validator(mode="after")
    def _heads_divide(self) -> _ShapeEntry:
        if self.n_head % self.n_head_kv:
            raise ValueError(f"n_head_kv {self.n_head_kv} does not divide n_head {self.n_head}")
        return self


class _ModelEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Name
    title: str
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    file: Annotated[str, Field(pattern=r"^[\w.-]+\.gguf$")] | None = None
    bytes: _Count | None = None
    listed_mib: Annotated[float, Field(gt=0)] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    tensor_bytes: _Count | None = None
    n_params: _Count | None = None
    random_bytes: _Count | None = None
    shape: _ShapeEntry

    @model_validator(mode="after")
    def _real_file_is_pinned(self) -> _ModelEntry:
        pinned = (self.repo, self.revision, self.file)
        if any(pinned) and not all(pinned):
            raise ValueError("repo, revision and file go together")
        if self.repo and not (self.bytes or self.listed_mib):
            raise ValueError("a real file needs bytes or listed_mib")
        return self

    def to_model(self) -> CatalogueModel:
        return CatalogueModel(
            name=self.name,
            title=self.title,
            repo=self.repo or "",
            revision=self.revision or "",
            file=self.file or "",
            bytes=self.bytes or 0,
            listed_mib=self.listed_mib or 0.0,
            sha256=self.sha256 or "",
            tensor_bytes=self.tensor_bytes or 0,
            n_params=self.n_params or 0,
            random_bytes=self.random_bytes or 0,
            shape=Shape(**self.shape.model_dump()),
        )


class _CatalogueFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[tuple[_ModelEntry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> _CatalogueFile:
        names = [m.name for m in self.model]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"these names occur twice: {', '.join(twice)}")
        return self


def load_catalogue(path: Path | None = None) -> dict[str, CatalogueModel]:
    """Every model by name, in the order of the file (smallest first).

    Raises ConfigError, naming the entry and the field, when the file cannot be read or is malformed.
    """
    source = path or DEFAULT_CATALOGUE
    try:
        parsed = _CatalogueFile.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except OSError as exc:
        raise ConfigError(f"The model catalogue {source} cannot be read: {exc.strerror or exc}.") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"The model catalogue {source} is not TOML: {exc}.") from exc
    except ValidationError as exc:
        raise ConfigError(
            f"The model catalogue {source} is malformed: {_first_problems(exc)}.",
            next_step=f"{DEFAULT_CATALOGUE.name} shows every field.",
        ) from exc
    return {entry.name: entry.to_model() for entry in parsed.model}


def select_models(catalogue: Mapping[str, CatalogueModel], names: Iterable[str]) -> list[CatalogueModel]:
    """The named models in the catalogue's order, each once. Raises ConfigError for a name that is not there."""
    wanted = set(names)
    for name in sorted(wanted - set(catalogue)):
        near = difflib.get_close_matches(name, catalogue, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known models: {', '.join(catalogue)}."
        raise ConfigError(f"There is no model {name!r} in the catalogue.", reason="unknown_model", next_step=hint)
    return [model for name, model in catalogue.items() if name in wanted]


def _first_problems(exc: ValidationError, limit: int = 3) -> str:
    problems = [f"{'.'.join(str(p) for p in e['loc']) or 'file'}: {e['msg']}" for e in exc.errors()]
    more = f" (and {len(problems) - limit} more)" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + more
