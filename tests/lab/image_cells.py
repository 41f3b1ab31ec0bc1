"""python -m tests.lab.image_cells [--dist DIR] [--seconds N]: does a server measure the same through image and tarball?

The same plan, in turns, on one CPU: by the agent in the image that `make image` left, under podman, and by the agent
with the runtime's tarball, as it is unpacked on a server. Root on Linux.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

AGENT_IMAGE = Path(__file__).resolve().parents[2] / "agent-image"
sys.path.insert(0, str(AGENT_IMAGE))

from build_agent import build_agent  # noqa: E402
from image_check import image_plan, run_in_image, served_model  # noqa: E402
from image_store import private_store  # noqa: E402
from runtime_recipe import ARCH_NAMES  # noqa: E402

from tasks.domain.cells import PP, TG  # noqa: E402
from tasks.domain.run_plan import LadderStep, RunPlan  # noqa: E402
from tasks.domain.stats import median  # noqa: E402
from tasks.models.serve import ModelServer  # noqa: E402
from tests.benchmarks import this_machine  # noqa: E402
from tests.benchmarks.spread import speed_ratios, spread  # noqa: E402

MODEL = "smollm-135m"
STEPS = tuple(LadderStep(task, n, 0.001) for task, n in ((PP, 64), (PP, 128), (TG, 16), (TG, 32)))
N_REPEATS = 3
LEAST_ROUNDS = 4
TARGET = 0.02

Medians = dict[str, float]


def cells_of(events: Sequence[dict[str, object]]) -> Medians:
    """Median seconds of each cell."""
    rows = [event for event in events if event["kind"] == "BenchRow"]
    return {f"{r['cell']['task']}{r['cell']['n_tokens']}": median(r["samples_s"]) for r in rows}  # type: ignore[index,arg-type]


def run_unpacked(agent: Path, runtime: Path, plan: RunPlan, folder: Path, cpu: int) -> list[dict[str, object]]:
    """The event log of the agent on this machine, as on a server that got both over SSH."""
    folder.mkdir()
    (folder / "plan.json").write_text(plan.to_json())
    program = ["taskset", "-c", str(cpu), sys.executable, "-I", "-S", str(agent)]
    subprocess.run([*program, "run", "--dir", folder, "--runtime", runtime], check=True, capture_output=True)
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare the cells of image and tarball.")
    parser.add_argument("--dist", type=Path, default=AGENT_IMAGE.parent / "dist", help="what make image left")
    parser.add_argument("--seconds", type=float, default=300.0, help="about; at least four rounds are run")
    args = parser.parse_args(argv)
    arch = next(name for name, machine in ARCH_NAMES.items() if machine == platform.machine())
    model, models = served_model(MODEL)
    cpu = this_machine.cpus()[-1]
    through: dict[str, dict[str, list[float]]] = {"image": defaultdict(list), "tarball": defaultdict(list)}
    with (
        tempfile.TemporaryDirectory(prefix="tokensweep-cells-") as scratch_name,
        private_store(args.dist / "image" / "cells.log") as store,
        ModelServer(models) as files,
    ):
        scratch = Path(scratch_name)
        store.buildah("pull", "--quiet", f"oci-archive:{args.dist / 'image' / 'cpu.oci.tar'}")
        image = store.buildah("images", "--quiet").split()[0]
        runtime = scratch / "runtime"
        runtime.mkdir()
        tarball = args.dist / "runtime" / f"cpu-{arch}" / "runtime.tar.gz"
        subprocess.run(["tar", "-xzf", tarball, "-C", runtime], check=True)
        agent = build_agent(scratch / "agent.pyz")
        plan = replace(image_plan(replace(model, urls=(files.url(model.file),)), STEPS, N_REPEATS), n_threads=1)
        began, n_rounds = time.monotonic(), 0
        while n_rounds < LEAST_ROUNDS or (time.monotonic() - began) * (n_rounds + 1) / n_rounds < args.seconds:
            for name in ("image", "tarball") if n_rounds % 2 else ("tarball", "image"):
                if name == "image":
                    events = run_in_image(store, image, plan, options=("--cpuset-cpus", str(cpu)))
                else:
                    events = run_unpacked(agent, runtime, plan, scratch / f"run-{n_rounds}", cpu)
                for cell, seconds in cells_of(events).items():
                    through[name][cell].append(seconds)
            n_rounds += 1
    return report(through, n_rounds)


def report(through: dict[str, dict[str, list[float]]], n_rounds: int) -> int:
    """Print the ratios; 1 where the median of all is not within the target."""
    image, tarball = through["image"], through["tarball"]
    pairs, control = [], []
    for cell, seconds in tarball.items():
        ratios = speed_ratios(image[cell], seconds)
        pairs += ratios
        control += speed_ratios(seconds[1:], seconds[:-1])
        speed = int(cell.lstrip("ptg")) / median(seconds)
        print(f"{MODEL} {cell:6} tarball {speed:8.1f} tok/s, image to tarball {spread(ratios).ratio()}")
    whole = spread(pairs)
    print(f"image to tarball: {whole.ratio()} over {n_rounds} rounds; tarball to tarball {spread(control).ratio()}")
    return 0 if abs(whole.median - 1) <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
