"""Names of local server types, and what is for sale on machines of all sizes."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.clouds.local.server_types import (
    GIB,
    MIB,
    Machine,
    catalog_names,
    check_fits,
    default_names,
    parse,
    server_type,
)
from tasks.domain.errors import ConfigError, UnsupportedError


def machine(n_cpus: int, memory_bytes: int = 64 * GIB) -> Machine:
    return Machine(cpus=tuple(range(n_cpus)), memory_bytes=memory_bytes, arch="x86_64")


def test_a_name_says_cpus_memory_link_and_disk() -> None:
    shape = parse("cpu2-mem4g-80mbit")
    assert (shape.n_cpus, shape.memory_bytes, shape.link_bytes_per_s, shape.disk_bytes) == (2, 4 * GIB, 1e7, 0)
    small = parse("cpu1-mem512m-8mbit-disk64m")
    assert (small.memory_bytes, small.link_bytes_per_s, small.disk_bytes) == (512 * MIB, 1e6, 64 * MIB)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "cpu1",
        "cpu0-mem1g-80mbit",
        "cpu1-mem1-80mbit",
        "cpu1-mem1g-80",
        "cpu1-mem1g-0mbit",
        "cpu01-mem1g-80mbit",
        "cpu1-mem1g-80mbit-disk1g",
        "CPU1-mem1g-80mbit",
        " cpu1-mem1g-80mbit",
        "cpu1-mem1g-80mbit\n",
        "cpu1-mem32m-80mbit",
        "../etc/passwd",
        "m5.large",
    ],
)
def test_a_malformed_name_is_refused_with_an_example(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(name)
    assert repr(name) in str(caught.value) and "mem" in caught.value.next_step


@pytest.mark.parametrize("name", ["cpu3-mem1g-80mbit", "cpu1-mem9g-80mbit"])
def test_what_the_machine_can_never_lend_is_refused_with_the_largest_that_fits(name: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        check_fits(parse(name), machine(2, 8 * GIB))
    fits = caught.value.next_step.split()[-1].rstrip(".").replace("<R>", "80")
    check_fits(parse(fits), machine(2, 8 * GIB))


def test_defaults_on_two_cpus() -> None:
    assert default_names(machine(2)) == ("cpu1-mem2g-400mbit", "cpu1-mem1g-100mbit", "cpu2-mem4g-800mbit")


@given(n_cpus=st.integers(1, 256), memory_mib=st.integers(1024, 4 * 1024 * 1024))
def test_every_machine_is_offered_what_fits_and_three_defaults_that_differ(n_cpus: int, memory_mib: int) -> None:
    this = machine(n_cpus, memory_mib * MIB)
    names = catalog_names(this)
    assert len(set(names)) == len(names) and len(set(default_names(this))) == 3
    assert set(default_names(this)) <= set(names)
    for name in names:
        check_fits(parse(name), this)
    defaults = [parse(name) for name in default_names(this)]
    assert len({shape.link_bytes_per_s for shape in defaults}) == len({s.memory_bytes for s in defaults}) == 3
    if n_cpus > 1:
        assert len({shape.n_cpus for shape in defaults}) >= 2


def test_a_row_of_the_catalog_has_price_link_and_scarce_cpus(tmp_path: Path) -> None:
    row = server_type(parse("cpu2-mem4g-800mbit"), machine(2), tmp_path / "not" / "there", 12.0)
    assert row.price_per_hour == Decimal("0.10") and row.price_source == "nominal" and row.currency == "USD"
    assert row.exclusive == ("cpu", "cpu") and row.link_bytes_per_s == 1e8
    assert row.disk_bytes > 0 and row.price_read_unix_s == 12.0
    small = server_type(parse("cpu1-mem1g-80mbit-disk64m"), machine(2), tmp_path, 0.0)
    assert small.disk_bytes == 64 * MIB
