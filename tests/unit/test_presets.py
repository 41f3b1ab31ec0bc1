"""Presets: what they accept, what they refuse, and what makes two sweeps the same."""

from __future__ import annotations

import pytest

from tasks.domain.errors import ConfigError
from tasks.presets import load_preset, preset_names
from tasks.settings import CHECKOUT

GOOD = """
models: [tiny-15m]
pp: [16, 128]
tg: [16]
max_usd: 1
max_usd_per_server: 0.1
deadline_s: 600
"""


def write(folder, text, name="mine"):
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_the_name_is_the_files_and_gates_come_from_the_table(tmp_path):
    write(tmp_path, GOOD)
    preset = load_preset("mine", tmp_path)
    assert preset.name == "mine"
    assert [(s.task, s.n_tokens, s.min_tok_per_s) for s in preset.ladder()] == [
        ("pp", 16, 2.0),
        ("pp", 128, 10.0),
        ("tg", 16, 1.0),
    ]


def test_a_length_without_a_default_gate_needs_its_own(tmp_path):
    write(tmp_path, GOOD.replace("[16, 128]", "[16, 100]"))
    with pytest.raises(ConfigError, match="pp100 has no default gate"):
        load_preset("mine", tmp_path)
    write(tmp_path, GOOD.replace("[16, 128]", "[16, {n_tokens: 100, min_tok_per_s: 7}]"))
    assert load_preset("mine", tmp_path).ladder()[1].min_tok_per_s == 7


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("max_usd: 1", "max_usd: 0"), "max_usd"),
        (("deadline_s: 600", "deadline_s: soon"), "deadline_s"),
        (("tg: [16]", "tg: [16]\npolicy: fastest"), "policy 'fastest' is unknown"),
        (("tg: [16]", "tg: [16]\npolicy_options: {ci: 0.1}"), "no option ci"),
        (("tg: [16]", "tg: [16]\ncolour: red"), "colour"),
        (("models: [tiny-15m]", "models: []"), "models"),
        (("pp: [16, 128]\ntg: [16]", "policy: classic"), "at least one length"),
        (("models: [tiny-15m]", "models: [tiny-15m"), "not valid YAML"),
    ],
)
def test_a_wrong_preset_names_file_and_field(tmp_path, change, says):
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_preset("mine", tmp_path)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_a_preset_that_is_a_list_is_refused(tmp_path):
    write(tmp_path, "- models")
    with pytest.raises(ConfigError, match="mapping"):
        load_preset("mine", tmp_path)


def test_an_unknown_preset_names_the_nearest(tmp_path):
    write(tmp_path, GOOD, "nightly")
    with pytest.raises(ConfigError, match="Did you mean 'nightly'"):
        load_preset("nigthly", tmp_path)
    with pytest.raises(ConfigError, match="no preset"):
        load_preset(str(tmp_path / "other.yaml"), tmp_path)


def test_the_sweep_is_the_same_while_what_is_measured_is_the_same(tmp_path):
    write(tmp_path, GOOD)
    one = load_preset("mine", tmp_path)
    same = load_preset("mine", tmp_path, {"max_usd": 50, "description": "other words"})
    other = load_preset("mine", tmp_path, {"policy": "classic"})
    assert one.sweep_id("engine-1") == same.sweep_id("engine-1")
    assert len({one.sweep_id("engine-1"), one.sweep_id("engine-2"), one.sweep_id("engine-1", "again")}) == 3
    assert one.sweep_id("engine-1") != other.sweep_id("engine-1")


@pytest.mark.parametrize("name", preset_names(CHECKOUT / "deployments" / "presets"))
def test_every_bundled_preset_is_valid(name):
    preset = load_preset(name, CHECKOUT / "deployments" / "presets")
    assert preset.ladder() and preset.description


def test_a_preset_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00bin")
    with pytest.raises(ConfigError, match=r"x\.yaml cannot be read: it is no UTF-8 text"):
        load_preset("x", tmp_path)
