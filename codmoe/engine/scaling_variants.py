"""What the scaling benchmark can change in a config, by name."""

from __future__ import annotations

from typing import Any

from codmoe.registry import suggest

_DDP = "model_wrapper_cfg"
VARIANTS: dict[str, dict[str, Any]] = {
    "as_configured": {},
    "find_unused": {f"{_DDP}.find_unused_parameters": True},
    "no_find_unused": {f"{_DDP}.find_unused_parameters": False},
    "static_graph": {f"{_DDP}.static_graph": True, f"{_DDP}.find_unused_parameters": False},
    "no_bucket_view": {f"{_DDP}.gradient_as_bucket_view": False},
    "buckets_10mb": {f"{_DDP}.bucket_cap_mb": 10},
    "buckets_100mb": {f"{_DDP}.bucket_cap_mb": 100},
    "broadcast_buffers": {f"{_DDP}.broadcast_buffers": True},
    "sparse": {"model.train_dispatch": "sparse", "model.train_top_k": None},
    "dense": {"model.train_dispatch": "dense"},
    "merged_groups": {"optim_wrapper.constructor": "MergedGroupsConstructor"},
    "plain_groups": {"optim_wrapper.constructor": "DefaultOptimWrapperConstructor"},
    "fused_adamw": {"optim_wrapper.optimizer.fused": True},
    "no_fused_adamw": {"optim_wrapper.optimizer.fused": False},
    "fast_norm": {"fast_norm": True},
    "contiguous": {"memory_format": "contiguous"},
    "compile_all": {"compile": dict(backbone=True, experts=True)},
    "train_graphs": {"train_graphs": dict(backbone=True, experts=True)},
    "no_cudnn_benchmark": {"env_cfg.cudnn_benchmark": False},
    "compile": {},
}
"""Overrides of each variant; ``a+b`` joins two. ``compile`` compiles the backbone in place."""

DEFAULT_VARIANTS = (
    "as_configured",
    "no_find_unused",
    "no_find_unused+no_bucket_view",
    "no_find_unused+buckets_100mb",
    "static_graph",
    "broadcast_buffers",
    "sparse",
)


def overrides(variant: str) -> tuple[dict[str, Any], bool]:
    """Config overrides of a variant such as ``"no_find_unused+no_bucket_view"``, and whether it
    compiles the backbone.

    Raises:
        ValueError: A part of the name is unknown.
    """
    options: dict[str, Any] = {}
    parts = variant.split("+")
    for part in parts:
        if part not in VARIANTS:
            raise ValueError(f"variant {part!r} is unknown; {suggest(part, VARIANTS)}")
        options |= VARIANTS[part]
    return options, "compile" in parts


def reference_of(variant: str) -> str:
    """The variant without what concerns DDP alone: one process has none of it."""
    kept = [
        part
        for part in variant.split("+")
        if part == "compile" or any(not key.startswith(_DDP) for key in VARIANTS[part])
    ]
    return "+".join(kept) or "as_configured"
