"""Records of server runs, made up: what the predecessor would have recorded on a machine of given speeds."""

from __future__ import annotations

from dataclasses import replace

from tasks.domain.cells import Cell
from tasks.domain.classic import CLASSIC_MIN_TOK_PER_S, process_limit_s
from tasks.lake.sparecores import MODELS
from tasks.replay.recorded import OK, TIMED_OUT, UNTRIED, RecordedCall, RecordedModel, RecordedRun

LOAD_S, EXIT_S, HEAD_S, TAIL_S = 1.0, 0.05, 60.0, 0.5
DOWNLOAD_S = 5.0


def call_of(bytes_: int, task: str, n_tokens: int, tok_per_s: float) -> RecordedCall:
    """What the predecessor would have recorded at this speed."""
    sample_s = n_tokens / tok_per_s
    warmup_s = sample_s if task == "pp" else sample_s / n_tokens
    wall_s = LOAD_S + warmup_s + 5 * sample_s + EXIT_S
    limit_s = process_limit_s(bytes_, n_tokens, CLASSIC_MIN_TOK_PER_S[task][n_tokens])
    if wall_s <= limit_s:
        return RecordedCall(OK, 0.0, wall_s, limit_s, (sample_s,) * 5)
    return RecordedCall(TIMED_OUT, 0.0, limit_s + 0.1, limit_s)


def record(speeds: dict[str, dict[str, float]], n_downloads: int = 2, **changes: object) -> RecordedRun:
    """The run of a server whose models have these speeds: downloads are quick, so the calls follow each other."""
    calls: dict[Cell, RecordedCall] = {}
    now_s = HEAD_S + DOWNLOAD_S
    ended = False
    models = [m for m in MODELS if m.name in speeds]
    for model in models:
        for task in ("pp", "tg"):
            stopped = ended
            for n in CLASSIC_MIN_TOK_PER_S[task]:
                call = call_of(model.bytes, task, n, speeds[model.name][task])
                if stopped:
                    call = RecordedCall(UNTRIED)
                else:
                    call = replace(call, started_s=now_s)
                    now_s += call.wall_s
                    slow = call.wall_s > call.timeout_s * _next_ratio(task, n) * 1.1
                    stopped = call.status == TIMED_OUT or (n >= 1024 and slow)
                    ended = ended or (call.status == TIMED_OUT and n == 16)
                calls[Cell(model.name, task, n)] = call
                stopped = stopped or ended
    run = RecordedRun(
        vendor="aws", server="m1", run=1, wall_s=now_s + TAIL_S, usd_per_hour=1.0, head_s=HEAD_S, tail_s=TAIL_S,
        end_reason="simplest_failed" if ended else "completed", n_cpus=8, n_threads=4, memory_bytes=64 * 2**30,
        vram_bytes=0, has_gpu=False, cpu_model="X", gpu_model="", gpu_count=0,
        models=tuple(RecordedModel(m.name, m.bytes, 0.0, DOWNLOAD_S, 0.0, 0.0) for m in models), calls=calls,
    )  # fmt: skip
    return replace(run, **changes)  # type: ignore[arg-type]


def _next_ratio(task: str, n: int) -> float:
    gates = CLASSIC_MIN_TOK_PER_S[task]
    longer = [m for m in gates if m > n]
    return gates[n] / gates[longer[0]] if longer else float("inf")


SLOW = {"smollm-135m": {"pp": 300.0, "tg": 60.0}, "qwen1.5-0.5b": {"pp": 100.0, "tg": 22.0}}
FAST = {"smollm-135m": {"pp": 30000.0, "tg": 900.0}, "qwen1.5-0.5b": {"pp": 9000.0, "tg": 500.0}}
