"""The catalogue: pinned files, and shapes that reproduce them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tasks.domain.errors import ConfigError
from tasks.models.catalogue import DEFAULT_CATALOGUE, MIB, load_catalogue, select_models
from tasks.models.tensor_plan import plan_tensors

REAL = ["smollm-135m", "qwen1.5-0.5b", "gemma-2b", "llama-7b", "phi-4", "llama-3.3-70b"]
GOOD_ENTRY = """
[[model]]
name = "one"
title = "One"
[model.shape]
arch = "llama"
n_layers = 1
n_embd = 256
n_head = 4
n_head_kv = 4
head_dim = 64
n_ff = 512
n_vocab = 512
n_ctx_train = 512
tied_embeddings = true
rms_epsilon = 1e-5
rope_base = 10000.0
"""


def test_models_come_smallest_first() -> None:
    catalogue = load_catalogue()
    assert list(catalogue) == ["tiny-15m", *REAL]
    sizes = [catalogue[name].approximate_bytes for name in REAL]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_pinned(name: str) -> None:
    model = load_catalogue()[name]
    spec = model.real_spec()
    assert spec.urls == (f"https://huggingface.co/{model.repo}/resolve/{model.revision}/{model.file}",)
    assert len(model.revision) == 40 and spec.weights == "real" and spec.file.endswith(".gguf")
    assert abs(model.approximate_bytes - model.listed_mib * MIB) <= 0.0051 * MIB


@pytest.mark.parametrize("name", REAL)
def test_shapes_reproduce_the_real_files_to_the_byte(name: str) -> None:
    model = load_catalogue()[name]
    tensors = plan_tensors(model.shape)
    assert sum(t.n_elements for t in tensors) == model.n_params
    assert sum(t.n_bytes for t in tensors) == model.tensor_bytes


def test_smollm_gets_the_types_that_llama_quantize_gives_it() -> None:
    tensors = plan_tensors(load_catalogue()["smollm-135m"].shape)
    assert Counter(t.type_name for t in tensors) == {"Q5_0": 166, "Q4_K": 16, "Q8_0": 15, "Q6_K": 14, "F32": 61}


def test_a_model_without_a_real_file_cannot_be_downloaded() -> None:
    with pytest.raises(ConfigError, match=r"only with random weights\. .*weights: random"):
        load_catalogue()["tiny-15m"].real_spec()


def test_selection_keeps_the_order_of_size_and_drops_repeats() -> None:
    picked = select_models(load_catalogue(), ["phi-4", "tiny-15m", "gemma-2b", "phi-4"])
    assert [m.name for m in picked] == ["tiny-15m", "gemma-2b", "phi-4"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("llama7b", "llama-7b"), ("smolm-135m", "smollm-135m"), ("phi4", "phi-4"), ("zzz", "Known models: tiny-15m")],
)
def test_an_unknown_name_names_near_ones(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="There is no model") as caught:
        select_models(load_catalogue(), ["tiny-15m", name])
    assert hint in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[[model]]", "[[model"), "is not TOML"),
        (("n_layers = 1", ""), "model.0.shape.n_layers"),
        (("n_layers = 1", 'n_layers = "many"'), "model.0.shape.n_layers"),
        (("n_layers = 1", "n_layers = 1\nlayers = 2"), "model.0.shape.layers"),
        (("n_head_kv = 4", "n_head_kv = 3"), "does not divide"),
        (('name = "one"', 'name = "../one"'), "model.0.name"),
        (('title = "One"', 'title = "One"\nrepo = "a/b"'), "go together"),
        (('title = "One"', 'title = "One"\nsha256 = "abc"'), "model.0.sha256"),
        ((GOOD_ENTRY, GOOD_ENTRY * 2), "occur twice: one"),
        ((GOOD_ENTRY, ""), "model: Field required"),
    ],
)
def test_a_malformed_catalogue_names_entry_and_field(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(GOOD_ENTRY)
    assert list(load_catalogue(path)) == ["one"]
    path.write_text(GOOD_ENTRY.replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_catalogue(path)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_catalogue_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_catalogue(tmp_path / "none.toml")


def test_the_default_catalogue_is_beside_the_code() -> None:
    assert load_catalogue(DEFAULT_CATALOGUE) == load_catalogue()
