"""What an image and a tarball must be, checked on what was built; and one run of the agent inside the image."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from image_store import Store

from tasks.domain.errors import TokensweepError
from tasks.domain.run_plan import LadderStep, ModelSpec, RunPlan
from tasks.models.catalogue import load_catalogue, select_models
from tasks.models.serve import ModelServer
from tasks.models.synthesize import default_directory, random_spec, synthesize

USER_ID = 10001
RUNTIME = "/opt/tokensweep/runtime"
BILL = "opt/tokensweep/sbom.spdx.json"
RUN_TIMEOUT_S = 600.0
MODEL = "tiny-15m"
LADDER = (LadderStep("pp", 64, 0.001), LadderStep("tg", 16, 0.001))
ELF_MACHINES = {"amd64": 62, "arm64": 183}  # e_machine


class BadImageError(TokensweepError):
    """What was built is not what it has to be."""


def check_tarball(folder: Path, most_bytes: int | None) -> str:
    """One line about runtime.tar.gz. Raises BadImageError when its checksums or its size are wrong."""
    for line in (folder / "SHA256SUMS").read_text(encoding="ascii").splitlines():
        sha256, _, name = line.partition("  ")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
            raise BadImageError(f"{folder / name} is not what its SHA256SUMS says.", next_step="Build it again.")
    tarball = folder / "runtime.tar.gz"
    size = tarball.stat().st_size
    if most_bytes is not None and size > most_bytes:
        raise BadImageError(
            f"{tarball} has {size / 1e6:.1f} MB, which every server waits for; {most_bytes / 1e6:.0f} MB is the most.",
            next_step="See what grew in its manifest.json.",
        )
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    unpacked = sum(file["bytes"] for file in manifest["files"])
    builds = ", ".join(build["name"] for build in manifest["builds"])
    return f"{size / 1e6:.1f} MB, unpacked {unpacked / 1e6:.1f} MB, builds {builds}"


def check_image(store: Store, name: str, arch: str, runtime: Path) -> str:
    """One line about an image. Raises BadImageError on what it must not be: root's, of another runtime, unlisted."""
    said = json.loads(store.buildah("inspect", "--type", "image", name))["OCIv1"]
    config, wrong = said["config"], []
    if said["architecture"] != arch:
        wrong.append(f"it is for {said['architecture']}")
    if config.get("User") != f"{USER_ID}:{USER_ID}":
        wrong.append(f"it runs as {config.get('User') or 'root'}")
    if not config["Labels"].get("org.opencontainers.image.revision"):
        wrong.append("it does not say what it was built from")
    container, root = store.mounted(name)
    try:
        wrong += _wrong_files(root, arch, runtime)
        files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
        unpacked = sum(path.stat().st_size for path in files)
        n_packages = len(json.loads((root / BILL).read_text(encoding="utf-8"))["packages"])
    finally:
        store.buildah("rm", container)
    if wrong:
        raise BadImageError(f"The image {name} is not right: {'; '.join(wrong)}.", reason="bad_image")
    return f"{unpacked / 1e6:.1f} MB unpacked, {len(files)} files, {n_packages} packages in its bill of materials"


def _wrong_files(root: Path, arch: str, runtime: Path) -> list[str]:
    wrong = []
    manifest = root / RUNTIME.lstrip("/") / "manifest.json"
    if manifest.read_bytes() != (runtime / "manifest.json").read_bytes():
        wrong.append("its runtime is not the tarball's")
    with (root / "usr/bin/python3.11").open("rb") as python:
        if int.from_bytes(python.read(20)[18:20], "little") != ELF_MACHINES[arch]:
            wrong.append(f"its Python is not for {arch}")
    for folder, _, names in os.walk(root):
        for path in (Path(folder) / name for name in names):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                wrong.append(f"/{path.relative_to(root)} runs as somebody else")
    return wrong


def image_plan(model: ModelSpec, steps: Sequence[LadderStep] = LADDER, n_repeats: int = 2) -> RunPlan:
    """A plan in which nothing is skipped, stopped or repeated less often."""
    return RunPlan(
        sweep_id="image",
        server_run_id="image",
        server="this-machine",
        models=(model,),
        ladder=tuple(steps),
        policy="dynamic",
        policy_options={"n_repeats": n_repeats, "min_repeats": n_repeats},
        price_usd_per_hour=0.01,
        max_usd=10.0,
        deadline_s=3600.0,
        guard="off",
    )


def served_model(name: str) -> tuple[ModelSpec, Path]:
    """A model of the catalogue with random weights, and the folder that its file is in; it is made if missing."""
    (entry,) = select_models(load_catalogue(), [name])
    folder = default_directory()
    return random_spec(entry, synthesize(entry, folder), ()), folder


def run_in_image(store: Store, name: str, plan: RunPlan, options: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The event log of one run by the image's agent. options: more of `podman run`.

    Raises BadImageError when the run does not finish with every cell measured.
    """
    folder = store.folder / "agent-run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "plan.json").write_text(plan.to_json())
    for path in (folder, folder / "plan.json"):
        os.chown(path, USER_ID, USER_ID)
    container = ("run", "--rm", "--network", "host", "--read-only", "--volume", f"{folder}:/run/tokensweep")
    command = store.podman(*container, *options, name, "run", "--dir", "/run/tokensweep", "--runtime", RUNTIME)
    done = subprocess.run(command, capture_output=True, text=True, env=store.environment, timeout=RUN_TIMEOUT_S)
    log = folder / "events.jsonl"
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    results = events[-1].get("results", []) if events else []
    if done.returncode != 0 or not results or any(result["outcome"] != "measured" for result in results):
        raise BadImageError(
            f"The agent in {name} ended with {done.returncode}: {done.stderr.strip()[-500:]} {results[:2]}",
            reason="image_does_not_measure",
            next_step="Its event log says more: run it with `podman run` and a run directory of your own.",
        )
    return events


def measure_in_image(store: Store, name: str) -> str:
    """One line about a run of the agent in the image, with a model of random weights that is served here."""
    model, folder = served_model(MODEL)
    with ModelServer(folder) as files:
        events = run_in_image(store, name, image_plan(replace(model, urls=(files.url(model.file),))))
    rows = [event for event in events if event["kind"] == "BenchRow"]
    began = next(event["unix_s"] for event in events if event["kind"] == "AgentStarted")
    first = next(event["unix_s"] for event in events if event["kind"] == "BenchStarted")
    return f"measured {len(rows)} cells of {MODEL} under podman, the first bench {first - began:.1f} s after the agent"
