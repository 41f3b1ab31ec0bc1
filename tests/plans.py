"""Run plans and GGUF headers for tests."""

from __future__ import annotations

from tasks.domain.cells import Cell
from tasks.domain.classic import CLASSIC_MIN_TOK_PER_S
from tasks.domain.gguf import GgufHeader
from tasks.domain.run_plan import LadderStep, ModelSpec, RunPlan

GIB = 2**30
SIZES = {"small": 100 * 2**20, "middle": GIB, "large": 4 * GIB}
DEFAULT_LADDER = tuple(
    LadderStep(task, n, CLASSIC_MIN_TOK_PER_S[task][n]) for task in ("pp", "tg") for n in (16, 128, 512)
)


def header(tensor_bytes: int) -> GgufHeader:
    """A dense llama-like header of that many bytes of weights."""
    return GgufHeader(
        arch="llama", name="m", n_layers=24, n_embd=1024, n_ff=2816, n_head=16, n_head_kv=16, kv_heads_total=24 * 16,
        head_dim_k=64, head_dim_v=64, n_ctx_train=32768, n_vocab=32000, n_experts=0, n_experts_used=0,
        n_params=tensor_bytes * 8 // 5, n_tensors=291, tensor_bytes=tensor_bytes, token_embd_bytes=tensor_bytes // 20,
        output_bytes=tensor_bytes // 20, expert_bytes=0, tied_embeddings=False, file_type=15, quant="Q4_K_M",
        weights_random=False, data_offset=4096, end_of_file_bytes=4096 + tensor_bytes,
    )  # fmt: skip


def make_plan(
    *,
    models: tuple[str, ...] = ("small", "middle", "large"),
    ladder: tuple[LadderStep, ...] = DEFAULT_LADDER,
    policy: str = "dynamic",
    price: float = 1.0,
    max_usd: float = 100.0,
    deadline_s: float = 100_000.0,
    teardown_reserve_s: float = 30.0,
    guard: str = "off",
    builds: tuple[str, ...] = (),
    measured: tuple[tuple[Cell, tuple[float, ...]], ...] = (),
) -> RunPlan:
    specs = tuple(ModelSpec(n, f"{n}.gguf", (f"http://models/{n}.gguf",), SIZES[n]) for n in models)
    return RunPlan(
        sweep_id="test-sweep", server_run_id="run-1", server="server-1", models=specs, ladder=ladder, policy=policy,
        price_usd_per_hour=price, max_usd=max_usd, deadline_s=deadline_s, teardown_reserve_s=teardown_reserve_s,
        guard=guard, builds=builds, measured=measured,
    )  # fmt: skip


def models_of(plan: RunPlan) -> dict[str, GgufHeader]:
    return {m.name: header(m.bytes) for m in plan.models}
