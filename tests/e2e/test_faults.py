"""What can go wrong with models, disks and the engine on a real server: each ends in its own outcome, and the same
sweep, started again when the cause is gone, measures what is missing."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tasks.clouds.local import microvm, processes
from tasks.clouds.local.state import StateDir
from tests.e2e.product import SERVER, TINY_MODEL, Product, Running

CELLS = {(SERVER, "tiny-15m", "pp", 16), (SERVER, "tiny-15m", "tg", 16)}


@pytest.fixture
def model(product: Product) -> Path:
    """The model's file in a cache of the product's own, to be spoilt."""
    own = product.home.parent / "cache"
    shutil.copytree(product.cache / "runtime", own / "runtime", copy_function=os.link, symlinks=True)
    (own / "models").mkdir()
    for name in (TINY_MODEL, f"{TINY_MODEL}.json"):
        shutil.copy2(product.cache / "models" / name, own / "models" / name)
    product.cache = own
    return own / "models" / TINY_MODEL


def overwrite(path: Path, offset: int, data: bytes) -> bytes:
    """Change bytes, and leave size and time as they were, as a disk that forgets does; returns what was there."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(len(data))
        file.seek(offset)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return old


@pytest.mark.parametrize(("offset", "reason"), [(0, "not_gguf"), (14_000_000, "checksum")])
def test_a_spoilt_model_is_not_measured(product: Product, model: Path, offset: int, reason: str) -> None:
    preset = product.preset()
    old = overwrite(model, offset, b"<html>")
    done = product.run("run", "--yes", preset)
    assert done.rc == 4 and reason in done.out, str(done)
    assert product.cells() == dict.fromkeys(CELLS, ("failed", reason))
    product.assert_nothing_is_left()

    overwrite(model, offset, old)
    done = product.run("run", "--yes", preset)
    assert done.rc == 0, str(done)
    assert product.cells() == dict.fromkeys(CELLS, ("measured", "ok"))


@pytest.mark.parametrize("fault", ["truncated", "absent"])
def test_a_model_that_is_cut_short_or_gone_during_the_sweep_is_made_again(
    product: Product, model: Path, fault: str
) -> None:
    preset = product.preset()
    running = product.start("run", "--yes", preset)
    running.wait_for(": create")
    if fault == "truncated":
        os.truncate(model, 5_000_000)
    else:
        model.unlink()
    done = running.end()
    assert done.rc == 4 and "download_failed" in done.out, str(done)
    assert product.cells() == dict.fromkeys(CELLS, ("failed", "download_failed"))
    assert product.run("run", "--yes", preset).rc == 0
    assert product.cells() == dict.fromkeys(CELLS, ("measured", "ok"))
    product.assert_nothing_is_left()


@pytest.mark.lab
def test_a_disk_that_is_too_small_and_one_that_fills_up(product: Product) -> None:
    if why_not := microvm.why_not():
        pytest.skip(f"a disk of its own takes a micro-VM: {why_not}")
    too_small, slow = "cpu1-mem512m-1000mbit-disk32m", "cpu1-mem512m-40mbit-disk100m"
    running = product.start("run", "--yes", product.preset(servers=[too_small, slow]))
    running.wait_for(f"{slow}: download")
    fill_disk(product)
    done = running.end()
    assert done.rc == 4, str(done)
    cells = product.cells()
    assert {key[0]: ending for key, ending in cells.items()} == {
        too_small: ("infeasible", "disk"),
        slow: ("failed", "disk_full"),
    }
    assert len(cells) == 4
    product.assert_nothing_is_left()


def fill_disk(product: Product) -> None:
    """Write to the disk of the one server that there is, as another of its programs might, until it is full."""
    state = StateDir(product.home / "local")
    (name,) = product.servers()
    record = state.read(name)
    assert record is not None
    with open(f"/proc/{record.init_pid}/root/srv/filler", "wb") as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(bytes(1 << 20))
            filler.flush()


def is_engine(pid: int) -> bool:
    """Whether it is llama-bench, itself or in a dynamic loader's hands, on the ladder: neither probe nor anchor."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    program = Path(os.fsdecode(arguments[0])).name
    names = {Path(os.fsdecode(argument)).name for argument in arguments}
    on_ladder = b"1024" in b",".join(arguments).split(b",")
    return on_ladder and not program.startswith(("python", "sh")) and bool(names & {"llama-bench", "llama-bench.elf"})


def kill_engine(product: Product, running: Running, times: int) -> None:
    """Kill llama-bench from outside, as the kernel or a person would, each time that it starts."""
    killed: set[int] = set()
    while len(killed) < times:
        for process in processes.find(product.tag):
            if is_engine(process.pid) and process.pid not in killed:
                os.kill(process.pid, signal.SIGKILL)
                killed.add(process.pid)
        assert running.process.poll() is None, running.err
        time.sleep(0.01)


@pytest.mark.parametrize(("times", "ending"), [(1, ("measured", "ok")), (2, ("failed", "bench_killed"))])
def test_an_engine_that_is_killed_is_tried_once_more(product: Product, times: int, ending: tuple[str, str]) -> None:
    running = product.start("run", "--yes", product.preset(pp=[1024], tg=[128]))
    kill_engine(product, running, times)
    done = running.end()
    assert done.rc == (0 if times == 1 else 4), str(done)
    cells = product.cells()
    assert cells[SERVER, "tiny-15m", "pp", 1024] == ending and len(cells) == 2
    retried = product.query("SELECT reason FROM decisions WHERE action = 'retry_bench'")
    assert retried == [{"reason": "bench_killed"}]
    product.assert_nothing_is_left()
