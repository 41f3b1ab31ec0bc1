#!/usr/bin/env python3
"""Stands in for llama-bench where a test needs it to fail: same arguments, same output, and faults on order.

FAKE_BENCH is a JSON list of one object for each process, used in turn (the last one for ever):
{"load_s", "repeat_s", "garbage": bool, "samples_s": {"pp16": [...]},
"models": {file stem: such an object}, "fault": {"cell": index, "repeat": k, "do": "exit"|"signal"|"say"|"hang", ...}}.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path


def script():
    runs = json.loads(os.environ.get("FAKE_BENCH", "[{}]"))
    counter = Path(os.environ["FAKE_BENCH_COUNTER"])
    n = int(counter.read_text() or "0") if counter.exists() else 0
    counter.write_text(str(n + 1))
    return runs[min(n, len(runs) - 1)]


def say(text):
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def do_fault(fault):
    if fault.get("text"):
        say(fault["text"])
    if fault["do"] == "exit":
        os._exit(fault["rc"])
    if fault["do"] == "signal":
        os.kill(os.getpid(), getattr(signal, fault["signal"]))
        time.sleep(5)
    if fault["do"] == "hang":
        time.sleep(3600)


def probe(order):
    """The run over the agent's own tiny model, which no other order is about. FAKE_PROBE: {"build": fault}."""
    build = Path(os.environ["LD_LIBRARY_PATH"].split(os.pathsep)[0]).name
    if build in order:
        do_fault(order[build])
    for n_prompt, n_gen in ((32, 0), (0, 4)):
        sys.stdout.write(json.dumps({"n_prompt": n_prompt, "n_gen": n_gen, "samples_ns": [1000]}) + "\n")
    return 0


def main():
    parser = argparse.ArgumentParser(prefix_chars="-", allow_abbrev=False)
    for name in ("-m", "-p", "-n", "-t", "-b", "-ub", "-fa", "-lm", "-o", "-ngl"):
        parser.add_argument(name)
    parser.add_argument("-r", type=int)
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("-v", action="store_true")
    args = parser.parse_args()
    if Path(args.m).name == "probe.gguf":
        return probe(json.loads(os.environ.get("FAKE_PROBE", "{}")))
    run = script()
    run = run.get("models", {}).get(Path(args.m).stem, run)
    tests = [(int(p), 0) for p in args.p.split(",") if p != "0"] + [(0, int(n)) for n in args.n.split(",") if n != "0"]
    fault = run.get("fault", {})
    if not Path(args.m).read_bytes().startswith(b"GGUF"):
        say(f"main: error: failed to load model '{args.m}'")
        return 1
    for i, (n_prompt, n_gen) in enumerate(tests):
        mark = f"llama-bench: benchmark {i + 1}/{len(tests)}:"
        say(f"{mark} starting")
        if i == 0:
            if fault.get("cell") == -1:
                do_fault(fault)
            time.sleep(run.get("load_s", 0.01))
        say(f"{mark} warmup {'prompt' if n_prompt else 'generation'} run")
        played = run.get("samples_s", {}).get(f"pp{n_prompt}" if n_prompt else f"tg{n_gen}")
        if played:
            time.sleep(played[0] if n_prompt else played[0] / n_gen)
        samples = []
        for k in range(args.r):
            say(f"{mark} {'prompt' if n_prompt else 'generation'} run {k + 1}/{args.r}")
            if fault.get("cell") == i and fault.get("repeat", 1) == k + 1:
                do_fault(fault)
            repeat_s = played[k % len(played)] if played else run.get("repeat_s", 0.01)
            time.sleep(repeat_s)
            samples.append(int(repeat_s * 1e9) + k)
        if run.get("garbage"):
            sys.stdout.write("~~ not a row ~~\n")
            sys.stdout.write(f'{{"n_prompt": {n_prompt}, "n_gen": {n_gen}, "samples_ns": []}}\n')
        row = {"build_commit": "fake", "n_prompt": n_prompt, "n_gen": n_gen, "n_depth": 0,
               "n_threads": int(args.t), "samples_ns": samples, "avg_ts": 1.0, "stddev_ns": 2**63}  # fmt: skip
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
    return 0


sys.exit(main())
