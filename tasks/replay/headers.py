"""GGUF headers of the recorded models, from the catalogue: what the agent would have read before the download."""

from __future__ import annotations

from tasks.domain.gguf import GgufHeader
from tasks.models.catalogue import CatalogueModel, load_catalogue

Q4_K_M = 15
EMBEDDING_BYTES_PER_WEIGHT = {"": 210 / 256, "Q4_K": 144 / 256}
"""Q6_K, as llama-quantize has it for this file type, or what the catalogue says of the file."""


def headers_of(names: tuple[str, ...] = ()) -> dict[str, GgufHeader]:
    """Headers of the catalogue's real models, or of those named. KeyError for a model that it has not."""
    catalogue = load_catalogue()
    chosen = names or tuple(name for name, model in catalogue.items() if model.has_real_file)
    return {name: header_of(catalogue[name]) for name in chosen}


def header_of(model: CatalogueModel) -> GgufHeader:
    shape = model.shape
    embedding = int(shape.n_vocab * shape.n_embd * EMBEDDING_BYTES_PER_WEIGHT.get(shape.embedding_type, 210 / 256))
    n_bytes = model.tensor_bytes or model.approximate_bytes
    return GgufHeader(
        arch=shape.arch,
        name=model.title,
        n_layers=shape.n_layers,
        n_embd=shape.n_embd,
        n_ff=shape.n_ff,
        n_head=shape.n_head,
        n_head_kv=shape.n_head_kv,
        kv_heads_total=shape.n_layers * shape.n_head_kv,
        head_dim_k=shape.head_dim,
        head_dim_v=shape.head_dim,
        n_ctx_train=shape.n_ctx_train,
        n_vocab=shape.n_vocab,
        n_experts=0,
        n_experts_used=0,
        n_params=model.n_params,
        n_tensors=0,
        tensor_bytes=n_bytes,
        token_embd_bytes=embedding,
        output_bytes=0 if shape.tied_embeddings else embedding,
        expert_bytes=0,
        tied_embeddings=shape.tied_embeddings,
        file_type=Q4_K_M,
        quant="Q4_K_M",
        weights_random=False,
        data_offset=0,
        end_of_file_bytes=model.approximate_bytes,
    )
