"""Every column of the lake, once: type, unit and meaning.

The writer, the typed empty tables of an empty lake, the column comments in DuckDB and docs/lake.md all come
from here. How the schema may change: a column is added, and older files read as null there; a column never
changes its meaning or its unit, it gets a new name instead. So one query answers over all years.
"""

from __future__ import annotations

from tasks.domain.cells import TASKS, Outcome, Reason
from tasks.lake.columns import BOOL, F64, I32, I64, TEXT, TIME, USD, Column, Table

RUN_OUTCOMES = ("completed", "interrupted", "failed", "cancelled", "gated")
DOWNLOAD_OUTCOMES = ("finished", "failed", "cancelled", "interrupted")


_c = Column
_MODEL = _c("model", TEXT, "", "Name of the model in the catalogue.", required=True)
_TASK = _c("task", TEXT, "", "pp: prompt processing, tg: text generation.", required=True, values=TASKS)
_N_TOKENS = _c("n_tokens", I32, "tokens", "Length of the prompt (pp) or of the generated text (tg).", required=True)
_WEIGHTS = "real; random for files made without a download; simulated where nothing was measured at all."
_REASONS = tuple(r.value for r in Reason)

SERVER_RUNS = Table(
    "server_runs",
    "One row per server run. Its file is the commit marker: rows of a run without one are not shown.",
    ("server_run_id",),
    (
        _c("started_at", TIME, "", "When the run began, before the create.", required=True),
        _c("ended_at", TIME, "", "When the run ended, after the deletion was asked for."),
        _c("place", TEXT, "", "Zone or region."),
        _c("region", TEXT, "", "Region, where the vendor tells it from the zone."),
        _c("isolation", TEXT, "", "What separates the server from others: vm, microvm, loopback, ..."),
        _c("cloud_id", TEXT, "", "The vendor's immutable id of the server."),
        _c("attempt", I32, "", "1 for the first run of this server in the sweep."),
        _c("spot", BOOL, "", "Bought as spot or preemptible capacity."),
        _c("outcome", TEXT, "", "How the run ended as a whole.", required=True, values=RUN_OUTCOMES),
        _c("reason", TEXT, "", "Why it ended so: a reason of a cell, or the name of an error.", required=True),
        _c("detail", TEXT, "", "The same for people."),
        _c("price_usd_per_hour", USD, "USD/h", "Price of the server, converted once."),
        _c("list_price_per_hour", USD, "currency/h", "Price as the vendor lists it."),
        _c("currency", TEXT, "", "Currency of the list price, ISO 4217."),
        _c("usd_per_currency", USD, "USD", "Exchange rate used; 1 for USD."),
        _c("price_source", TEXT, "", "Where the price was read."),
        _c("price_read_at", TIME, "", "When the price was read."),
        _c("billed_s", F64, "s", "Seconds that the vendor bills, minimum and increment included."),
        _c("cost_usd", USD, "USD", "Cost of the run: price times billed seconds."),
        _c("max_usd", USD, "USD", "Money cap of the run."),
        _c("policy", TEXT, "", "Policy that decided."),
        _c("policy_sha256", TEXT, "", "Of the policy's name, its options and the ladder."),
        _c("plan_sha256", TEXT, "", "Of the whole run plan."),
        _c("guard", TEXT, "", "How downloads made way for timed repeats: off, pause or auto."),
        _c("engine", TEXT, "", "Inference engine."),
        _c("engine_commit", TEXT, "", "Commit of the engine that measured."),
        _c("engine_build", TEXT, "", "Runtime build used for most measured cells."),
        _c("agent_version", TEXT, "", "Version of the agent that the controller sent."),
        _c(
            "agent_sha256", TEXT, "", "Of the agent's archive on the server; `source` when it ran from the source tree."
        ),
        _c("code_commit", TEXT, "", "Version or commit of tokensweep in the controller."),
        _c("methodology_version", I32, "", "Numbers of different versions are not comparable.", required=True),
        _c("bytes_sent_before_bench", I64, "B", "Bytes the controller sent to the server before the first bench."),
        _c("ssh_ready_to_first_bench_s", F64, "s", "From the first answer over SSH to the first llama-bench start."),
        _c("ssh_ready_to_first_bench_net_s", F64, "s", "The same without the time in which a model was downloading."),
        _c("bytes_downloaded", I64, "B", "Model bytes that came over the network."),
        _c("n_cells", I32, "", "Cells of the plan.", required=True),
        _c("n_resumed", I32, "", "Measured cells taken over from an interrupted run.", required=True),
        *(_c(f"n_{o.value}", I32, "", f"Cells that ended as {o.value}.", required=True) for o in Outcome),
        _c("n_events", I64, "", "Lines of the agent's event log that arrived."),
        _c("n_events_missing", I64, "", "Numbers that the event log skips: lines that were lost."),
        _c("n_events_unreadable", I64, "", "Lines that are no event; they were left out."),
        _c("landed_rows", TEXT, "JSON", "Rows landed per table, written with the commit."),
    ),
)

CELLS = Table(
    "cells",
    "One row per server run and cell of its plan: each cell ends with one outcome and one reason.",
    ("server_run_id", "model", "task", "n_tokens"),
    (
        _MODEL,
        _c("model_file", TEXT, "", "File name of the GGUF."),
        _c("model_revision", TEXT, "", "Pinned revision of the model's repository."),
        _c("model_sha256", TEXT, "", "Of the file that was measured, else of the file that was planned."),
        _c("model_bytes", I64, "B", "Size of the file."),
        _c("weights", TEXT, "", _WEIGHTS, values=("real", "random", "simulated")),
        _c("arch", TEXT, "", "Architecture named in the GGUF header."),
        _c("n_params", I64, "", "Parameters."),
        _c("quant", TEXT, "", "Quantisation, e.g. Q4_K_M."),
        _c("licence", TEXT, "", "Licence of the model."),
        _TASK,
        _N_TOKENS,
        _c("n_depth", I32, "tokens", "Tokens in the KV cache before the timed part."),
        _c("outcome", TEXT, "", "How the cell ended.", required=True, values=tuple(o.value for o in Outcome)),
        _c("reason", TEXT, "", "Why it ended so.", required=True, values=_REASONS),
        _c("detail", TEXT, "", "The same for people."),
        _c("source", TEXT, "", "Who measured: tokensweep, or the origin of imported rows.", required=True),
        _c("resumed", BOOL, "", "Measured by an earlier run of this sweep and only carried over.", required=True),
        _c("started_at", TIME, "", "When its warm-up began."),
        _c("observed_at", TIME, "", "When it ended; null for a resumed cell."),
        _c("n_samples", I32, "", "Finished repeats, also of cells that were stopped.", required=True),
        _c("n_repeats_planned", I32, "", "Repeats asked of llama-bench."),
        _c("tok_per_s_median", F64, "tok/s", "Median of the repeats. The figure to quote."),
        _c("tok_per_s_mean", F64, "tok/s", "Mean of the per-repeat speeds, as llama-bench's avg_ts."),
        _c("tok_per_s_sd", F64, "tok/s", "Sample standard deviation (n - 1); null for one sample."),
        _c("tok_per_s_cv", F64, "", "Standard deviation as a share of the mean."),
        _c("tok_per_s_ci95_low", F64, "tok/s", "Lower end of the 95 % interval of the mean (Student's t)."),
        _c("tok_per_s_ci95_high", F64, "tok/s", "Upper end of it."),
        _c("tok_per_s_min", F64, "tok/s", "Slowest repeat."),
        _c("tok_per_s_max", F64, "tok/s", "Fastest repeat."),
        _c("first_repeat_ratio", F64, "", "Seconds of repeat 1 over the median of the others; null below 3 samples."),
        _c("min_tok_per_s", F64, "tok/s", "The ladder's gate: the least speed worth measuring."),
        _c("predicted_low_tok_per_s", F64, "tok/s", "Last prediction before the cell ran, pessimistic."),
        _c("predicted_high_tok_per_s", F64, "tok/s", "The same, optimistic."),
        _c("n_threads", I32, "", "Threads."),
        _c("build", TEXT, "", "Runtime build that ran it."),
        _c("backend", TEXT, "", "Backends as llama-bench reports them."),
        _c("ngl", I32, "", "Layers asked to be offloaded to the GPU."),
        _c("engine_commit", TEXT, "", "Commit of the engine."),
        _c("engine_build_number", I32, "", "Build number of the engine."),
        _c("n_batch", I32, "tokens", "Logical batch."),
        _c("n_ubatch", I32, "tokens", "Physical batch."),
        _c("cache_type_k", TEXT, "", "Type of the K cache."),
        _c("cache_type_v", TEXT, "", "Type of the V cache."),
        _c("flash_attn", I32, "", "Flash attention: -1 auto, 0 off, 1 on."),
        _c("load_mode", TEXT, "", "How the model was loaded: none, mmap, ..."),
        _c("download_active", BOOL, "", "A download moved bytes during any of the repeats."),
        _c("steal_share", F64, "", "CPU time stolen by the hypervisor during the repeats, 0 to 1."),
        _c("bench_row_json", TEXT, "JSON", "llama-bench's own row, unknown keys kept."),
    ),
)

SAMPLES = Table(
    "samples",
    "One row per finished repeat of a cell, whatever the outcome of the cell.",
    ("server_run_id", "model", "task", "n_tokens", "k"),
    (
        _MODEL,
        _TASK,
        _N_TOKENS,
        _c("k", I32, "", "Number of the repeat, from 1.", required=True),
        _c("duration_s", F64, "s", "Seconds of the repeat.", required=True),
        _c("tok_per_s", F64, "tok/s", "n_tokens over duration_s.", required=True),
        _c(
            "source",
            TEXT,
            "",
            "row: llama-bench's raw sample; mark: between two of its progress marks; resumed: from an earlier run.",
            required=True,
            values=("row", "mark", "resumed"),
        ),
        _c("started_at", TIME, "", "When the repeat began; null where no mark was seen."),
        _c("download_active", BOOL, "", "A download moved bytes during the repeat."),
        _c("steal_share", F64, "", "CPU time stolen by the hypervisor during the repeat, 0 to 1."),
    ),
)

DOWNLOADS = Table(
    "downloads",
    "One row per attempt to download a model.",
    ("server_run_id", "model", "attempt"),
    (
        _MODEL,
        _c("attempt", I32, "", "1 for the first of this model in this run.", required=True),
        _c("url_host", TEXT, "", "Host of the mirror, without path, query or credentials."),
        _c("bytes_total", I64, "B", "Size of the file.", required=True),
        _c(
            "bytes",
            I64,
            "B",
            "Bytes of the file there at the end; all of them where its checksum was wrong.",
            required=True,
        ),
        _c("bytes_resumed", I64, "B", "Bytes that were there at the beginning.", required=True),
        _c("started_at", TIME, "", "When it began.", required=True),
        _c("ended_at", TIME, "", "When it ended; null when the log ends first."),
        _c("seconds", F64, "s", "From beginning to end, pauses included.", required=True),
        _c("paused_s", F64, "s", "Thereof paused to leave a measurement undisturbed.", required=True),
        _c("bytes_per_s", F64, "B/s", "Mean over the unpaused time."),
        _c("n_retries", I32, "", "Requests repeated."),
        _c("n_connections", I32, "", "Most connections seen open at once; null for a download too short to count."),
        _c("sha256", TEXT, "", "Of the finished file."),
        _c("outcome", TEXT, "", "How it ended.", required=True, values=DOWNLOAD_OUTCOMES),
        _c("reason", TEXT, "", "Why it ended so.", values=_REASONS),
        _c("detail", TEXT, "", "The same for people."),
    ),
)

DECISIONS = Table(
    "decisions",
    "One row per decision, `go on` included.",
    ("server_run_id", "made_by", "k"),
    (
        _c("k", I32, "", "Number of the decision, from 1, per maker.", required=True),
        _c("made_by", TEXT, "", "Where it was made.", required=True, values=("conductor", "controller")),
        _c("t_s", F64, "s", "Since the agent (conductor) or the run (controller) began.", required=True),
        _c("decided_at", TIME, "", "When it was made."),
        _c("action", TEXT, "", "What was decided.", required=True),
        _c("subject", TEXT, "", "About what: a cell, a model, the run.", required=True),
        _c("reason", TEXT, "", "Why.", required=True),
        _c("evidence", TEXT, "JSON", "Numbers it rests on, each with its unit in its key.", required=True),
    ),
)

PHASES = Table(
    "phases",
    "Where the time went. Phases overlap (downloads run beside benches), so their sum is more than the run.",
    ("server_run_id", "k"),
    (
        _c("k", I32, "", "Number of the phase by its beginning, from 1.", required=True),
        _c(
            "name",
            TEXT,
            "",
            "create, boot, connect, upload, probe, header, download, load, warmup, repeats, bench, ...",
            required=True,
        ),
        _c("model", TEXT, "", "Model, for phases that belong to one."),
        _c("task", TEXT, "", "Task, for phases of one cell.", values=TASKS),
        _c("n_tokens", I32, "tokens", "Length, for phases of one cell."),
        _c("started_at", TIME, "", "When it began.", required=True),
        _c("seconds", F64, "s", "How long it took.", required=True),
        _c("usd", USD, "USD", "Price of the server times these seconds."),
    ),
)

HARDWARE = Table(
    "hardware",
    "What the server is, as the agent found it. Null is `not visible here`, never a guess.",
    ("server_run_id",),
    (
        _c("fingerprint_sha256", TEXT, "", "Of the steady columns here: equal means the same visible hardware."),
        _c("arch", TEXT, "", "x86_64, aarch64, ..."),
        _c("cpu_model", TEXT, "", "CPU model name."),
        _c("cpu_vendor", TEXT, "", "CPU vendor."),
        _c("cpu_flags", TEXT, "", "Instruction set extensions, space separated."),
        _c("microcode", TEXT, "", "Microcode revision."),
        _c("n_cpus", I32, "", "CPUs that a process may use, limits included."),
        _c("n_hardware_threads", I32, "", "Hardware threads of the machine as visible."),
        _c("n_cores", I32, "", "Physical cores as visible; virtual machines often hide SMT."),
        _c("n_sockets", I32, "", "Sockets."),
        _c("n_numa_nodes", I32, "", "NUMA nodes."),
        _c("l3_bytes", I64, "B", "All third-level caches together."),
        _c("cpu_max_mhz", F64, "MHz", "Highest frequency that the kernel tells."),
        _c("governor", TEXT, "", "CPU frequency governor."),
        _c("memory_total_bytes", I64, "B", "Memory that a process may use, limits included."),
        _c("memory_available_bytes", I64, "B", "Thereof free at the start."),
        _c("memory_read_bytes_per_s", F64, "B/s", "Measured read bandwidth of the memory by all CPUs."),
        _c("memory_limited_by", TEXT, "", "What sets that limit: machine, cgroup, rlimit or limits_file."),
        _c("machine_memory_bytes", I64, "B", "Memory of the machine."),
        _c("swap_total_bytes", I64, "B", "Swap."),
        _c("transparent_hugepages", TEXT, "", "The kernel's setting, the chosen one in brackets."),
        _c("disk_total_bytes", I64, "B", "Size of the file system where the models go."),
        _c("disk_free_bytes", I64, "B", "Free space there at the start."),
        _c("n_gpus", I32, "", "GPUs."),
        _c("gpu_model", TEXT, "", "Model of the first GPU."),
        _c("gpu_driver", TEXT, "", "Version of the GPU's driver."),
        _c("gpu_power_limit_w", F64, "W", "Power limit of the first GPU."),
        _c("vram_total_bytes", I64, "B", "Memory of all GPUs."),
        _c("vram_free_bytes", I64, "B", "Thereof free at the start."),
        _c("is_virtual", BOOL, "", "A hypervisor shows."),
        _c("machine_vendor", TEXT, "", "Who made the machine, or the hypervisor that plays it."),
        _c("machine_product", TEXT, "", "Its product name."),
        _c("kernel", TEXT, "", "Kernel release."),
        _c("os", TEXT, "", "Operating system."),
        _c("libc", TEXT, "", "C library and its version."),
        _c("hardware_json", TEXT, "JSON", "The full record.", required=True),
    ),
)

RESOURCES = Table(
    "resources",
    "Copy of the ledger's rows of this run at the time of landing. The ledger itself decides.",
    ("server_run_id", "intent_id", "kind"),
    (
        _c("intent_id", TEXT, "", "Intent that was committed before the create.", required=True),
        _c("kind", TEXT, "", "server, disk, ip, key, ...", required=True),
        _c("cloud_id", TEXT, "", "The vendor's id."),
        _c("name", TEXT, "", "Name at the vendor.", required=True),
        _c("place", TEXT, "", "Zone or region."),
        _c("state", TEXT, "", "State in the ledger.", required=True),
        _c("created_at", TIME, "", "When the intent was committed."),
        _c("live_at", TIME, "", "When its id was known."),
        _c("deleted_at", TIME, "", "When deletion was asked for."),
        _c("gone_at", TIME, "", "When it was proven gone; null while that is open."),
        _c("proof", TEXT, "", "What proves it."),
        _c("usd", USD, "USD", "What it cost."),
    ),
)

TELEMETRY = Table(
    "telemetry",
    "The server about once a second. GPU columns are null where there is none.",
    ("server_run_id", "k"),
    (
        _c("k", I32, "", "Number of the reading, from 1.", required=True),
        _c("t_s", F64, "s", "Since the agent began.", required=True),
        _c("observed_at", TIME, "", "When it was read.", required=True),
        _c("cpu_busy_share", F64, "", "Busy time of the CPUs that the server may use, 0 to 1."),
        _c("steal_share", F64, "", "Time of these CPUs stolen by the hypervisor, 0 to 1."),
        _c("iowait_share", F64, "", "Time in which these CPUs waited for disks, 0 to 1."),
        _c("machine_busy_share", F64, "", "Busy time of all CPUs of the machine, 0 to 1."),
        _c("cpu_pressure_share", F64, "", "Time in which some task waited for a CPU (PSI), 0 to 1."),
        _c("memory_pressure_share", F64, "", "Time in which some task waited for memory (PSI), 0 to 1."),
        _c("io_pressure_share", F64, "", "Time in which some task waited for disks (PSI), 0 to 1."),
        _c("load_1m", F64, "", "Load average over one minute."),
        _c("context_switches_per_s", F64, "1/s", "Context switches of the machine."),
        _c("memory_used_bytes", I64, "B", "Memory of the machine in use."),
        _c("memory_available_bytes", I64, "B", "Memory of the machine still available."),
        _c("cgroup_memory_used_bytes", I64, "B", "Memory in use under the server's own limit."),
        _c("net_rx_bytes_per_s", F64, "B/s", "Received, loopback left out."),
        _c("net_tx_bytes_per_s", F64, "B/s", "Sent, loopback left out."),
        _c("loopback_bytes_per_s", F64, "B/s", "Over loopback, where downloads of loopback servers come from."),
        _c("bench_cpus", F64, "", "CPUs' worth of time that llama-bench used."),
        _c("bench_rss_bytes", I64, "B", "Resident memory of llama-bench."),
        _c("bench_preemptions_per_s", F64, "1/s", "How often llama-bench was put off a CPU."),
        _c("gpu_busy_share", F64, "", "Mean over the GPUs, 0 to 1."),
        _c("gpu_memory_used_bytes", I64, "B", "All GPUs."),
        _c("gpu_power_w", F64, "W", "All GPUs."),
        _c("gpu_temperature_c", F64, "degC", "The hottest GPU."),
        _c("gpu_clock_mhz", F64, "MHz", "Mean over the GPUs."),
        _c("gpu_throttle_reasons", I64, "", "Bits of NVML's clock throttle reasons, of all GPUs together."),
        _c("other", TEXT, "JSON", "Readings that have no column."),
    ),
)

TABLES = (SERVER_RUNS, CELLS, SAMPLES, DOWNLOADS, DECISIONS, PHASES, HARDWARE, RESOURCES, TELEMETRY)
TABLE: dict[str, Table] = {t.name: t for t in TABLES}
