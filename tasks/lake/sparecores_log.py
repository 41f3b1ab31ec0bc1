"""Their log of one run (`llm/stderr`): which llama-bench calls were made, and why others were not."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tasks.domain.cells import PP, TG, Cell, Reason
from tasks.lake.sparecores import MODEL_OF_FILE, PublishedDownload

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) - [A-Z]+ - (.*)")
_CALL = re.compile(r"Benchmarking (prompt processing|text generation) with (\d+) tokens")
_MODEL = re.compile(r"Benchmarking model (\S+) ")
_TIMED_OUT = re.compile(r"Error: Command .*llama-bench.* timed out after ([\d.]+) sec")
_FAILED = re.compile(r"Error: Command .*llama-bench.* (returned non-zero exit status .*|died with .*)")
_SKIPPED = re.compile(r"Skipping (prompt processing|text generation) benchmarks with (\d+)\+ tokens (.*)")
_DOWNLOADED = re.compile(r"Downloaded model (\S+) \(([\d.]+) MB\) in ([\d.]+) sec")
_NO_ROOM = re.compile(r"Not enough free disk space for model (\S+)")
_GAVE_UP = re.compile(r"Downloading (\S+) \(.*would take too long")
_NOT_IN_TIME = re.compile(r"(\S+) was not downloaded in time")
_NOT_DOWNLOADED = re.compile(r"Model (\S+) was not downloaded, skipping")
_TASK = {"prompt processing": PP, "text generation": TG}


@dataclass
class RunLogOfOthers:
    """calls: seconds since `origin` of each call. ended: cells that gave no row, with why. first: the first time seen.

    skipped: per model and task, from which length on nothing was tried and why. run_ended: why no further model was.
    """

    origin: datetime | None = None
    calls: dict[Cell, float] = field(default_factory=dict)
    ended: dict[Cell, tuple[Reason, str]] = field(default_factory=dict)
    skipped: dict[tuple[str, str], tuple[int, Reason, str]] = field(default_factory=dict)
    no_model: dict[str, tuple[Reason, str]] = field(default_factory=dict)
    run_ended: tuple[Reason, str] | None = None
    downloads: list[PublishedDownload] = field(default_factory=list)

    def why_not(self, cell: Cell) -> tuple[Reason, str]:
        """Why a cell without a row has none."""
        if cell in self.ended:
            return self.ended[cell]
        if cell in self.calls:
            return Reason.BENCH_FAILED, "the call gave no row"
        if cell.model in self.no_model:
            return self.no_model[cell.model]
        skipped = self.skipped.get((cell.model, cell.task))
        if skipped is not None and cell.n_tokens >= skipped[0]:
            return skipped[1:]
        return self.run_ended or (Reason.SERVER_LOST, "the log ends before it")


def read_log(text: str, origin: datetime | None, damage: Counter[str]) -> RunLogOfOthers:
    """Follow the log line by line; `origin` is the start of the run, the log's first line if it is not known.

    Lines of llama-bench itself bear no date and are passed over.
    """
    log = RunLogOfOthers(origin)
    model = ""
    call: Cell | None = None
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        said = match[3]
        if said.startswith("Benchmarking model "):
            model, call = _model_named(said, damage), None
        elif said.startswith("Benchmarking "):
            call = _call(log, said, model, _seconds(log, match, damage))
        elif said.startswith("Error: Command") and call is not None:
            _note_end(log, said, call)
        elif said.startswith("Skipping "):
            _note_skip(log, said, model)
        elif said.startswith("Downloaded model "):
            _note_download(log, said, _seconds(log, match, damage))
        else:
            _note_other(log, said)
    return log


def _seconds(log: RunLogOfOthers, match: re.Match[str], damage: Counter[str]) -> float | None:
    try:
        moment = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        damage["stderr: a line with an impossible date"] += 1
        return None
    if log.origin is None:
        log.origin = moment
    return (moment - log.origin).total_seconds() + int(match[2]) / 1000


def _model_named(said: str, damage: Counter[str]) -> str:
    match = _MODEL.match(said)
    known = MODEL_OF_FILE.get(match[1]) if match else None
    if known is None:
        damage["stderr: a model that is none of the six"] += 1
        return ""
    return known.name


def _call(log: RunLogOfOthers, said: str, model: str, at_s: float | None) -> Cell | None:
    match = _CALL.match(said)
    if match is None or not model:
        return None
    cell = Cell(model, _TASK[match[1]], int(match[2]))
    if at_s is not None:
        log.calls[cell] = at_s
    return cell


def _note_end(log: RunLogOfOthers, said: str, call: Cell) -> None:
    timed_out, failed = _TIMED_OUT.match(said), _FAILED.match(said)
    if timed_out:
        log.ended[call] = (Reason.CELL_TIMEOUT, f"killed after {timed_out[1]} s")
    elif failed:
        log.ended[call] = (Reason.BENCH_FAILED, f"llama-bench {failed[1]}"[:300])


def _note_skip(log: RunLogOfOthers, said: str, model: str) -> None:
    match = _SKIPPED.match(said)
    if match is None:
        return
    task, n_tokens = _TASK[match[1]], int(match[2])
    if "unlikely" in match[3]:  # the cell named has run, the longer ones have not
        log.skipped[model, task] = (n_tokens + 1, Reason.PREDICTED_TOO_SLOW, match[3][:200])
    else:
        log.skipped[model, task] = (n_tokens, Reason.SHORTER_CELL_TOO_SLOW, match[3][:200])


def _note_download(log: RunLogOfOthers, said: str, at_s: float | None) -> None:
    match = _DOWNLOADED.match(said)
    model = MODEL_OF_FILE.get(match[1]) if match else None
    if match and model:
        log.downloads.append(PublishedDownload(model.name, model.bytes, float(match[3]), at_s))


def _note_other(log: RunLogOfOthers, said: str) -> None:
    if said.startswith("Benchmarking failed with simplest task"):
        log.run_ended = (Reason.SMALLEST_FAILED, said[:200])
        return
    for pattern, reason, ends_run in (
        (_NO_ROOM, Reason.DISK, False),
        (_GAVE_UP, Reason.DOWNLOAD_TOO_SLOW, True),
        (_NOT_IN_TIME, Reason.DOWNLOAD_TOO_SLOW, True),
        (_NOT_DOWNLOADED, Reason.DOWNLOAD_FAILED, False),
    ):
        match = pattern.match(said)
        model = MODEL_OF_FILE.get(match[1]) if match else None
        if model is not None:
            log.no_model.setdefault(model.name, (reason, said[:200]))
            if ends_run:
                log.run_ended = (reason, said[:200])
            return
