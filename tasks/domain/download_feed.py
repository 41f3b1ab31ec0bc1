"""Which model comes next: headers, downloads, their pauses and their end.

One download at a time, in order of size. It runs beside the benchmark of the model before.
"""

from __future__ import annotations

from tasks.domain import actions as act
from tasks.domain.memory import disk_needed_bytes
from tasks.domain.model_state import ModelState, Stage
from tasks.domain.run_state import RunState, detail_of


def judge_downloads(run: RunState, out: list[act.Action], *, guarded: bool, idle_since_s: float | None) -> None:
    """Pause, resume or abort what is coming. `guarded`: timed repeats must not be disturbed now."""
    for model in run.models:
        if model.stage is not Stage.DOWNLOADING or model.download is None:
            continue
        name = model.spec.name
        if not run.has_pending(name):
            run.decide(run.view.now_s, "abort_download", name, "no_cell_left", {})
            out.append(act.AbortDownload(name))
            model.stage = Stage.CLOSED
            continue
        if guarded != model.pause_asked:
            model.pause_asked = guarded
            out.append(act.PauseDownload(name) if guarded else act.ResumeDownload(name))
        verdict = run.policy.judge_download(run.view, model.download, waiting_s(run, model, idle_since_s))
        if not verdict.go:
            run.decide(run.view.now_s, "abort_download", name, verdict.reason.value, verdict.evidence)
            out.append(act.AbortDownload(name))
            run.close(run.view.now_s, model, verdict.reason, detail_of(verdict))


def waiting_s(run: RunState, model: ModelState, idle_since_s: float | None) -> float:
    """How long llama-bench has stood idle for want of this download."""
    if idle_since_s is None or model.download is None:
        return 0.0
    return run.view.now_s - max(idle_since_s, model.download.started_s)


def feed_downloads(run: RunState, out: list[act.Action], *, guarded: bool) -> None:
    """Keep one download going, in size order, if what it brings is worth having and has room."""
    stages = [m.stage for m in run.models]
    if Stage.HEADER in stages:
        return
    if Stage.DOWNLOADING in stages:
        if not guarded:
            _read_next_header(run, out)
        return
    waiting = [m for m in run.models if m.stage is Stage.READY]
    for model in run.models:
        name = model.spec.name
        if model.stage is Stage.NEW and run.policy.reads_headers and run.has_pending(name):
            _read_next_header(run, out)
            return
        if model.stage not in (Stage.NEW, Stage.QUEUED):
            continue
        if not run.has_pending(name):
            model.stage = Stage.CLOSED
            continue
        if waiting and disk_needed_bytes(model.spec.planned_bytes) > run.view.disk_free_bytes:
            return  # room may come when a waiting model is done
        verdict = run.policy.judge_model(run.view, model.spec)
        waiting_bytes = sum(m.spec.planned_bytes for m in waiting)
        if verdict.go and not run.policy.may_run_ahead(run.view, waiting_bytes, model.spec.planned_bytes):
            return  # asked again when a waiting model is done
        action = "download" if verdict.go else "skip_model"
        run.decide(run.view.now_s, action, name, verdict.reason.value, verdict.evidence)
        if not verdict.go:
            run.close_judged(model, verdict)
            continue
        model.begin_download(run.view.now_s)
        out.append(act.StartDownload(name))
        return


def _read_next_header(run: RunState, out: list[act.Action]) -> None:
    """At most one header ahead: it is read beside the download before, so that nothing waits for it."""
    if not run.policy.reads_headers or any(m.stage is Stage.QUEUED for m in run.models):
        return
    for model in run.models:
        if model.stage is Stage.NEW and run.has_pending(model.spec.name):
            model.stage = Stage.HEADER
            out.append(act.ReadHeader(model.spec.name))
            return
