"""Wrong input: exit code 2, one line that names the thing and the next step, and nothing is created."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.product import Done, Product

WRONG_PRESETS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "an unknown model": ({"models": ["smollm-153m"]}, ("smollm-153m", "smollm-135m")),
    "an unknown server type": ({"servers": ["m5.large"]}, ("m5.large", "cpu1-mem1g-80mbit")),
    "a server larger than the machine": ({"servers": ["cpu4000-mem1g-80mbit"]}, ("cpu4000", "larger")),
    "a server without memory": ({"servers": ["cpu1-mem1m-80mbit"]}, ("mem1m", "1m", "mem64m")),
    "an unknown vendor": ({"vendor": "nowhere"}, ("vendor", "local")),
    "an unknown field": ({"modles": ["tiny-15m"]}, ("modles",)),
    "an unknown policy": ({"policy": "clasic"}, ("clasic", "classic", "dynamic")),
    "an unknown option of the policy": ({"policy_options": {"max_repeat": 3}}, ("max_repeat",)),
    "no length": ({"pp": [], "tg": []}, ("at least one length",)),
    "a length without a gate": ({"pp": [17]}, ("pp17", "min_tok_per_s")),
    "no money": ({"max_usd": 0}, ("max_usd",)),
    "a number that is none": ({"deadline_s": "soon"}, ("deadline_s",)),
}
WRONG_FILES = {
    "not YAML": ("models: [tiny-15m\npp: 16\n", ("not valid YAML",)),
    "a list": ("- tiny-15m\n", ("must be a mapping",)),
    "empty": ("", ("must be a mapping",)),
    "bytes": ("\x00\x01", ("not valid YAML",)),
}


def assert_refused(done: Done, *names: str) -> None:
    """One message, no traceback, nothing of Prefect's."""
    assert done.rc == 2, str(done)
    message = "".join(
        f"{line}\n" for line in done.err.splitlines() if not line.endswith((" runtime", " reap", " plan"))
    )
    assert message.startswith("tokensweep: ") and message.count("tokensweep: ") == 1, message
    assert "Traceback" not in message and "ERROR" not in message, message
    assert [name for name in names if name not in message] == [], message


def assert_nothing_was_created(product: Product) -> None:
    assert product.servers() == [] and product.remains() == []
    assert not (product.home / "lake").exists()
    assert not list((product.home / "spool").glob("*"))


def test_wrong_presets_are_refused_and_say_what_is_wrong(product: Product) -> None:
    calls: dict[str, tuple[list[str], tuple[str, ...]]] = {}
    for i, (changes, names) in enumerate(WRONG_PRESETS.values()):
        path = product.preset(f"wrong-{i}", **changes)
        calls[path] = (["run", "--yes", path], names)
    for name, (text, names) in WRONG_FILES.items():
        file = product.home.parent / f"{name.replace(' ', '-')}.yaml"
        file.write_text(text)
        calls[str(file)] = (["run", "--yes", str(file)], (*names, str(file)))
    calls["near"] = (["plan", "locall"], ("locall", "'local'"))
    calls["far"] = (["run", "--yes", "/no/such/folder/x.yaml"], ("/no/such/folder/x.yaml",))
    calls["option"] = (["run", "--yes", product.preset(), "--server", "cpu-mem1g"], ("cpu-mem1g", "cpu1-mem1g-80mbit"))
    with ThreadPoolExecutor(2) as pool:
        ended = dict(zip(calls, pool.map(lambda call: product.run(*call[0]), calls.values()), strict=True))
    for key, done in ended.items():
        assert_refused(done, *calls[key][1])
    assert_nothing_was_created(product)


def test_a_money_cap_that_is_too_small_runs_nothing(product: Product) -> None:
    """The worst case of a server must fit under the cap before anything is created."""
    done = product.run("run", "--yes", product.preset(), "--max-usd", "0.000001", "--json")
    assert done.rc == 5, str(done)
    assert_nothing_was_created(product)


def test_a_ledger_that_is_none_is_named_and_left_alone(product: Product) -> None:
    product.home.mkdir()
    ledger = product.home / "ledger.sqlite"
    ledger.write_bytes(b"not a database, and longer than its header of one hundred bytes" * 4)
    before = ledger.read_bytes()
    for arguments in (["run", "--yes", product.preset()], ["status"]):
        assert_refused(product.run(*arguments), str(ledger))
    for command in ("reap", "leaks"):  # the cloud is the truth: they go on by tags, and say so
        done = product.run(command)
        assert done.rc == 0 and str(ledger) in done.err and "Traceback" not in done.err, str(done)
    assert ledger.read_bytes() == before
    assert_nothing_was_created(product)


def test_a_home_that_cannot_be_made_is_named(bare: Product, tmp_path: Path) -> None:
    preset, home = bare.preset(), bare.home
    home.write_text("in the way")
    bare.home = home / "below"
    try:
        for arguments in (["run", "--yes", preset], ["reap"], ["leaks"], ["status"]):
            assert_refused(bare.run(*arguments), str(bare.home), "TOKENSWEEP_HOME")
    finally:
        bare.home = home.with_name("other")
    assert home.read_text() == "in the way"


def test_a_sweep_that_is_running_is_not_started_a_second_time(product: Product) -> None:
    preset = product.preset(pp=[16, 512, 1024], tg=[16, 512])
    first = product.start("run", "--yes", preset)
    first.wait_for(": create")
    assert_refused(product.run("run", "--yes", preset), "running already", f"pid {first.process.pid}", "--label")
    done = first.end()
    assert done.rc == 0, str(done)
    assert len(product.query("SELECT server_run_id FROM server_runs")) == 1
    product.assert_nothing_is_left()


def test_questions_that_have_no_answer_say_so(product: Product) -> None:
    assert_refused(product.run("query", "SELECT * FROM v_cels"), "v_cels", "v_cells")
    assert_refused(product.run("explain", "cpu9"), "cpu9")
    refused = product.run("query", "DROP VIEW v_cells")
    assert refused.rc == 2 and "Traceback" not in refused.err, str(refused)
    assert product.run("status").rc == 0 and product.run("leaks").rc == 0


@pytest.mark.parametrize("arguments", [["fly"], ["plan", "--colour"]])
def test_wrong_arguments_are_refused_before_anything_is_loaded(bare: Product, arguments: list[str]) -> None:
    done = bare.run(*arguments)
    assert done.rc == 2 and arguments[-1] in done.err and "Traceback" not in done.err, str(done)
    assert not bare.home.exists()
