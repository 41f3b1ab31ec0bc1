"""Files with random weights: the right sizes, types and numbers; whole or not there at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from tasks.domain.errors import ConfigError
from tasks.domain.gguf import parse_header
from tasks.models.catalogue import CatalogueModel, load_catalogue
from tasks.models.gguf_header import header_bytes
from tasks.models.random_blocks import rope_frequency_factors
from tasks.models.synthesize import default_directory, random_file_name, random_spec, synthesize
from tasks.models.tensor_plan import plan_tensors

CHECKOUT = Path(__file__).resolve().parents[2]
MAKE = (
    "import sys; from pathlib import Path\n"
    "from tasks.models.catalogue import load_catalogue\n"
    "from tasks.models.synthesize import synthesize\n"
    "made = synthesize(load_catalogue()[sys.argv[1]], Path(sys.argv[2])); print(made.sha256)\n"
)


def small(name: str, n_vocab: int = 1024, n_layers: int = 2, width: int = 512) -> CatalogueModel:
    """The architecture of a catalogue model, made small."""
    model = load_catalogue()[name]
    n_head = 4
    n_head_kv = max(1, n_head * model.shape.n_head_kv // model.shape.n_head)
    shape = replace(
        model.shape,
        n_layers=n_layers,
        n_embd=width,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=width // n_head,
        n_ff=2 * width,
        n_vocab=n_vocab,
    )
    return replace(model, name=f"small-{name}", random_bytes=0, shape=shape)


def maker(name: str, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKE, name, str(directory)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def smollm_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(load_catalogue()["smollm-135m"], tmp_path_factory.mktemp("smollm")).path


def test_smollm_is_the_file_that_llama_quantize_would_make(smollm_path: Path) -> None:
    assert smollm_path.stat().st_size == 104_797_120
    reader = gguf.GGUFReader(smollm_path)
    types = Counter(t.tensor_type.name for t in reader.tensors)
    assert types == {"Q5_0": 166, "Q4_K": 16, "Q8_0": 15, "Q6_K": 14, "F32": 61}


def test_the_header_says_what_the_file_is(smollm_path: Path) -> None:
    with smollm_path.open("rb") as file:
        header = parse_header(file.read(2 << 20), smollm_path.stat().st_size)
    assert (header.arch, header.quant, header.n_layers, header.n_head, header.n_head_kv) == (
        "llama",
        "Q4_K_M",
        30,
        9,
        3,
    )
    assert (header.n_vocab, header.n_ctx_train, header.head_dim_k) == (49152, 2048, 64)
    assert header.weights_random and header.tied_embeddings
    assert header.n_params == 134_515_008 and header.tensor_bytes == 103_668_480
    assert header.end_of_file_bytes == smollm_path.stat().st_size


@pytest.mark.parametrize("name", ["qwen1.5-0.5b", "gemma-2b", "llama-7b", "phi-4", "llama-3.3-70b"])
def test_files_are_as_large_as_the_real_ones(name: str, tmp_path: Path) -> None:
    model = load_catalogue()[name]
    header = parse_header(header_bytes(model, plan_tensors(model.shape), tmp_path / "header"))
    assert header.end_of_file_bytes == model.random_bytes
    assert abs(model.random_bytes - model.approximate_bytes) < 32, "the alignment of tensors"


@pytest.mark.parametrize("name", ["smollm-135m", "qwen1.5-0.5b", "gemma-2b", "phi-4", "llama-3.3-70b"])
def test_weights_are_finite_centred_and_of_the_right_size(name: str, tmp_path: Path) -> None:
    width = 576 if name == "smollm-135m" else 512  # 256 does not divide 576
    made = synthesize(small(name, width=width), tmp_path)
    seen = set()
    for tensor in gguf.GGUFReader(made.path).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(values).all(), tensor.name
        if tensor.name.endswith(".weight") and len(tensor.shape) == 2:
            std = 1 / np.sqrt(int(tensor.shape[0]))
            assert np.std(values) == pytest.approx(std, rel=0.05), tensor.name
            assert abs(np.mean(values)) < 0.1 * std, tensor.name
            seen.add(tensor.tensor_type.name)
    assert seen >= ({"Q5_0", "Q8_0"} if width == 576 else {"Q4_K", "Q6_K"})


def test_architectures_have_their_own_tensors(tmp_path: Path) -> None:
    def names(model: str) -> set[str]:
        reader = gguf.GGUFReader(synthesize(small(model), tmp_path).path)
        return {t.name.removeprefix("blk.0.") for t in reader.tensors}

    assert "output.weight" not in names("gemma-2b")
    assert {"output.weight", "attn_q.bias", "attn_k.bias", "attn_v.bias"} <= names("qwen1.5-0.5b")
    assert "attn_qkv.weight" in names("phi-4") and not {"attn_q.weight", "ffn_gate.weight"} & names("phi-4")
    assert "rope_freqs.weight" in names("llama-3.3-70b")


def test_rope_factors_keep_short_waves_and_stretch_long_ones() -> None:
    factors = rope_frequency_factors(64, base=500_000.0, scaling_factor=8.0, original_context=8192)
    assert factors[0] == 1.0 and factors[-1] == 8.0
    assert (np.diff(factors) >= 0).all() and 1.0 < factors[33] < 8.0


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = small("qwen1.5-0.5b")
    first, second = synthesize(model, tmp_path / "a"), synthesize(model, tmp_path / "b")
    assert first.sha256 == second.sha256 == file_sha256(first.path) == file_sha256(second.path)
    assert first.bytes == first.path.stat().st_size
    other = synthesize(small("qwen1.5-0.5b", n_layers=3), tmp_path / "c")
    assert other.sha256 != first.sha256


def test_a_second_call_returns_the_file_untouched(tmp_path: Path) -> None:
    model = small("tiny-15m")
    first = synthesize(model, tmp_path)
    before = first.path.stat()
    assert synthesize(model, tmp_path) == first
    after = first.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    model = small("tiny-15m")
    made = synthesize(model, tmp_path)
    made.path.write_bytes(b"GGUF, they said")
    assert synthesize(model, tmp_path) == made
    assert file_sha256(made.path) == made.sha256
    made.path.unlink()
    assert synthesize(model, tmp_path) == made and made.path.exists()


def test_a_lost_or_broken_note_is_no_reason_to_trust_the_file(tmp_path: Path) -> None:
    model = small("tiny-15m")
    made = synthesize(model, tmp_path)
    note = made.path.with_name(f"{made.path.name}.json")
    for content in ("", "[]", "{}", "null"):
        note.write_text(content)
        assert synthesize(model, tmp_path) == made


def test_a_killed_maker_leaves_nothing_that_looks_like_a_model(tmp_path: Path) -> None:
    name = "qwen1.5-0.5b"
    target = tmp_path / random_file_name(load_catalogue()[name])
    part = tmp_path / f".{target.name}.part"
    process = maker(name, tmp_path)
    while process.poll() is None and not (part.exists() and part.stat().st_size > 20_000_000):
        time.sleep(0.005)
    assert process.poll() is None, "it was to be killed in the middle"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    assert not target.exists()
    assert part.exists(), "what is left is taken over by the next maker"
    made = synthesize(replace(load_catalogue()[name], shape=small("tiny-15m").shape, random_bytes=0), tmp_path)
    assert made.path == target and not part.exists() and file_sha256(target) == made.sha256


def test_makers_at_the_same_time_make_one_file(tmp_path: Path) -> None:
    processes = [maker("tiny-15m", tmp_path) for _ in range(3)]
    inodes = set()
    while any(p.poll() is None for p in processes):
        for path in tmp_path.glob("*.gguf"):
            inodes.add(path.stat().st_ino)
        time.sleep(0.01)
    answers = {p.communicate()[0].strip() for p in processes}
    assert [p.returncode for p in processes] == [0] * 3
    (path,) = tmp_path.glob("*.gguf")
    assert answers == {file_sha256(path)}
    assert inodes <= {path.stat().st_ino}
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_small(tmp_path: Path) -> None:
    script = MAKE + "print(*[l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')])\n"
    out = subprocess.run(
        [sys.executable, "-c", script, "smollm-135m", str(tmp_path)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    peak_bytes = int(out.stdout.split()[1]) * 1024
    assert peak_bytes < 104_797_120, "less than the file itself, interpreter included"


def test_a_size_that_cannot_be_met_is_a_clear_error(tmp_path: Path) -> None:
    for wrong in (100_000, 2_000_001):
        model = replace(small("tiny-15m", n_layers=1, width=256), random_bytes=wrong)
        with pytest.raises(ConfigError, match=f"cannot be made in {wrong} bytes"):
            synthesize(model, tmp_path)
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*.part"))


def test_an_unknown_architecture_is_a_clear_error(tmp_path: Path) -> None:
    model = small("tiny-15m")
    with pytest.raises(ConfigError, match=r"'rwkv7' cannot be made.*gemma, llama, phi3, qwen2"):
        synthesize(replace(model, shape=replace(model.shape, arch="rwkv7")), tmp_path)


def test_a_disk_without_room_is_found_before_writing(tmp_path: Path) -> None:
    model = load_catalogue()["llama-3.3-70b"]
    layers = shutil.disk_usage(tmp_path).free // 500_000_000 + 1000
    huge = replace(model, random_bytes=0, shape=replace(model.shape, n_layers=layers))
    with pytest.raises(ConfigError, match="free"):
        synthesize(huge, tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ConfigError, match=r"could not be made.*TOKENSWEEP_CACHE"):
        synthesize(small("tiny-15m"), blocker / "models")


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOKENSWEEP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_directory() == Path.home() / ".cache/tokensweep/models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_directory() == tmp_path / "xdg/tokensweep/models"
    monkeypatch.setenv("TOKENSWEEP_CACHE", str(tmp_path / "own"))
    assert default_directory() == tmp_path / "own/models"
    assert synthesize(small("tiny-15m")).path.parent == tmp_path / "own/models"


def test_the_spec_says_random(tmp_path: Path) -> None:
    model = small("tiny-15m")
    made = synthesize(model, tmp_path)
    spec = random_spec(model, made, ("http://127.0.0.1/a", "http://127.0.0.1/b"))
    assert (spec.weights, spec.bytes, spec.sha256, spec.file) == ("random", made.bytes, made.sha256, made.path.name)
    assert spec.name == model.name and len(spec.urls) == 2


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        assert synthesize(small("tiny-15m"), tmp_path).path.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)
