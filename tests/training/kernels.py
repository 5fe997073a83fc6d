"""A stand-in for `torch.nn.attention.varlen.varlen_attn`, which runs on GPUs alone."""

from __future__ import annotations

from typing import Any

import torch


def stand_in(  # noqa: PLR0917 - as torch's kernel takes them
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Any:
    """What torch's kernel does on a GPU, as its documentation has it: causal from the bottom right, row by row."""
    outputs = []
    sizes = []
    for row in range(len(cu_seq_q) - 1):
        mine, theirs = slice(*cu_seq_q[row : row + 2].tolist()), slice(*cu_seq_k[row : row + 2].tolist())
        queries, keys, values = query[mine], key[theirs], value[theirs]
        if enable_gqa:
            keys, values = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (keys, values))
        behind = len(keys) - len(queries) + torch.arange(len(queries))[:, None] - torch.arange(len(keys))
        left, right = (float("inf") if side < 0 else side for side in window_size)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * (scale or query.shape[-1] ** -0.5)
        scores = scores.masked_fill(~((behind <= left) & (-behind <= right)), float("-inf"))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
        sizes.append((len(queries), len(keys)))
    assert (max_q, max_k) == tuple(max(size) for size in zip(*sizes, strict=True))
    return torch.cat(outputs)
