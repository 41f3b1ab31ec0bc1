"""Builds and tests the agent's image and the runtime's tarballs with buildah and podman; leaves only what it made.

python agent-image/build_image.py [--arch amd64 --arch arm64] [--variant cpu|cuda] [--gpus GENERATION]
                                  [--runtime compiled|cache] [--base local|registry] [--out DIR]

dist/runtime/<variant>-<arch>/   runtime.tar.gz, manifest.json, SHA256SUMS
dist/image/<variant>.oci.tar     the image of all architectures, as an OCI archive

<variant> is cpu, cuda-<generation of GPUs>, or cuda-all, which is for images alone: a tarball of it is too large.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# The siblings are found from anywhere: as a program, and when the file is loaded by its path.
sys.path += [folder for folder in map(str, Path(__file__).resolve().parents[:2]) if folder not in sys.path]

from build_runtime import default_cache, ensure_runtime, export
from image_base import make_base
from image_check import check_image, check_tarball, measure_in_image
from image_store import Store, private_store
from runtime_recipe import ALL, ARCH_NAMES, CUDA

from tasks.domain.errors import ConfigError, TokensweepError

CHECKOUT = Path(__file__).resolve().parent.parent
DOCKERFILE = CHECKOUT / "agent-image" / "Dockerfile"
CUDA_ROOM_BYTES = 25_000_000_000
# What goes onto a server before its first bench; a limit, not a measurement.
MOST_BYTES = {"cpu": 15_000_000, CUDA: 600_000_000}


@dataclass(frozen=True)
class Order:
    """What to build. runtime: "compiled" by the Dockerfile, or "cache", the product's own from its cache."""

    archs: tuple[str, ...]
    variant: str = "cpu"
    gpus: str = ALL
    runtime: str = "compiled"
    base: str = "local"
    out: Path = CHECKOUT / "dist"

    @property
    def label(self) -> str:
        return f"{CUDA}-{self.gpus}" if self.variant == CUDA else self.variant

    @property
    def archive(self) -> Path:
        return self.out / "image" / f"{self.label}.oci.tar"

    @property
    def most_bytes(self) -> int | None:
        """Of the tarball; None where it goes into an image only."""
        return None if (self.variant, self.gpus) == (CUDA, ALL) else MOST_BYTES[self.variant]

    def runtime_folder(self, arch: str) -> Path:
        return self.out / "runtime" / f"{self.label}-{arch}"

    def stages(self, runtime: str, target: str, arch: str) -> tuple[str, ...]:
        """Arguments that choose the Dockerfile's stages. All are said: buildah 1.28 knows no defaults."""
        chosen = {"VARIANT": self.variant, "GPUS": self.gpus, "RUNTIME": runtime, "TARGETARCH": arch}
        return (
            *(word for name, value in chosen.items() for word in ("--build-arg", f"{name}={value}")),
            "--target",
            target,
        )


def say(line: str) -> None:
    print(f"image: {line}", file=sys.stderr, flush=True)


def _context(store: Store) -> Path:
    """A copy of what the Dockerfile takes from the checkout, which nobody changes while it is built."""
    context = store.folder / "context"
    for part in ("agent-image", "tasks/domain"):
        shutil.copytree(CHECKOUT / part, context / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(CHECKOUT / "tasks" / "__init__.py", context / "tasks" / "__init__.py")
    return context


def build_runtime(store: Store, order: Order, arch: str, context: Path, builder: tuple[str, ...]) -> None:
    """Put the tarball where it belongs, and where the Dockerfile's stages `given-...` look for it."""
    folder = order.runtime_folder(arch)
    shutil.rmtree(folder, ignore_errors=True)
    if order.runtime == "cache":
        export(ensure_runtime(default_cache(), arch=ARCH_NAMES[arch]), folder)
    else:
        say(f"compile the {order.label} runtime for {arch}")
        stages = order.stages("compiled", "tarball", arch)
        store.build(context, *builder, *stages, "--output", f"type=local,dest={folder}")
    shutil.copytree(folder, context / "dist" / "runtime" / f"{order.variant}-{arch}")


def build_image(store: Store, order: Order, arch: str, context: Path, builder: tuple[str, ...]) -> str:
    """The image of one architecture, from the tarball that is there; returns its name in the store.

    buildah before 1.29 takes no stage of another platform than the image's, so the architecture is said twice: to the
    stages as an argument, and to the image afterwards.
    """
    say(f"build the {order.label} image for {arch}")
    name = f"localhost/tokensweep-agent:{order.label}-{arch}"
    stages = order.stages("given", "image", arch)
    revision, created = _sources()
    labels = ("--build-arg", f"REVISION={revision}", "--build-arg", f"CREATED={created}")
    store.build(context, *builder, *stages, *labels, "--tag", name)
    if ARCH_NAMES[arch] != platform.machine():
        container = store.buildah("from", "--pull-never", name).strip()
        store.buildah("config", "--arch", arch, container)
        store.buildah("commit", "--quiet", "--rm", container, name)
    return name


def _sources() -> tuple[str, str]:
    """The commit that is built, with "-changed" if the checkout is not it, and when it was made."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    seconds = int(git("log", "-1", "--format=%ct") or 0)
    created = datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    changed = "-changed" if git("status", "--porcelain", "agent-image", "tasks/domain") else ""
    return (git("rev-parse", "HEAD") or "unknown") + changed, created


def _builder(store: Store, order: Order) -> tuple[str, ...]:
    """Arguments that say what the Dockerfile's first stage starts from."""
    if order.base == "registry":
        store.buildah("pull", "--quiet", _default_base())
        return ("--file", str(DOCKERFILE))
    say("make the builder's base")
    return ("--file", str(DOCKERFILE), "--build-arg", f"BUILDER={make_base(store, 'localhost/builder')}")


def _default_base() -> str:
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith("ARG BUILDER="))


def carry_out(order: Order) -> list[str]:
    """Build and test all of it; returns lines for a person. Raises TokensweepError with what failed."""
    began = time.monotonic()
    (order.out / "image").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    room = {"room_bytes": CUDA_ROOM_BYTES} if order.variant == CUDA else {}
    with private_store(order.out / "image" / "build.log", **room) as store:
        builder = _builder(store, order)
        context = _context(store)
        order.archive.unlink(missing_ok=True)
        store.buildah("manifest", "create", "localhost/tokensweep-agent")
        for arch in order.archs:
            build_runtime(store, order, arch, context, builder)
            tarball = check_tarball(order.runtime_folder(arch), order.most_bytes)
            name = build_image(store, order, arch, context, builder)
            image = check_image(store, name, arch, order.runtime_folder(arch))
            lines += [f"{order.label} {arch}: runtime {tarball}", f"{order.label} {arch}: image {image}"]
            if ARCH_NAMES[arch] == platform.machine() and order.variant != CUDA:
                lines.append(f"{order.label} {arch}: {measure_in_image(store, name)}")
            store.buildah("manifest", "add", "localhost/tokensweep-agent", name)
        store.buildah("manifest", "push", "--all", "localhost/tokensweep-agent", f"oci-archive:{order.archive}")
    lines.append(f"{order.archive}: {order.archive.stat().st_size / 1e6:.1f} MB for {', '.join(order.archs)}")
    lines.append(f"{time.monotonic() - began:.0f} s")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build and test the agent's image and the runtime's tarballs.")
    parser.add_argument("--arch", action="append", choices=sorted(ARCH_NAMES), help="default: all of the variant's")
    parser.add_argument("--variant", choices=("cpu", CUDA), default="cpu")
    parser.add_argument("--gpus", default=ALL, metavar="GENERATION", help="for --variant cuda (default: all)")
    parser.add_argument("--runtime", choices=("compiled", "cache"), default="compiled", help="where it comes from")
    parser.add_argument("--base", choices=("local", "registry"), default="local", help="what the builder starts from")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "dist", metavar="DIR")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the store, as Ctrl-C does
    archs = tuple(args.arch or (["amd64"] if args.variant == CUDA else sorted(ARCH_NAMES)))
    try:
        if args.variant == CUDA and args.runtime == "cache":
            raise ConfigError("The cache has no CUDA runtime.", next_step="Leave out --runtime cache.")
        lines = carry_out(Order(archs, args.variant, args.gpus, args.runtime, args.base, args.out.resolve()))
    except TokensweepError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
