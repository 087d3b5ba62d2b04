"""Distributed data parallel on GPUs over NCCL and on CPUs over gloo, in one place."""

from __future__ import annotations

import copy
import gc
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from mmengine import registry as root
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from codmoe.machine import check_gpus
from codmoe.models.moe import ModelLevelMoE
from codmoe.registry import MODEL_WRAPPERS


# In mmengine's own registry too: the Runner looks there before it builds by the default scope.
@root.MODEL_WRAPPERS.register_module()
@MODEL_WRAPPERS.register_module()
class CODDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's DDP that also takes a model on the CPU.

    Every option is a key of ``model_wrapper_cfg``; ``benchmarks/scaling.py`` measures
    what each is worth on a machine.

    Args:
        module: The model.
        find_unused_parameters: Whether parameters may stay without gradient, as those of an expert
            that no image of this rank was routed to. None in ``model_wrapper_cfg``, the default,
            switches it off where every expert runs on every image and a step on two small ones
            (:func:`idle_parameters`) left none without: the search takes time.
        broadcast_buffers: Whether each forward first copies rank 0's batch-norm statistics to all.
            Off by default: AverageBuffersHook averages them once an epoch.
        gradient_as_bucket_view: Whether gradients live in the buffers that are sent, which saves
            their memory once and a copy of each: 9 points of efficiency beside CUDA graphs
            (docs/performance.md). On, unlike torch's.
        static_graph: Whether every step uses the same parameters in the same order; not with
            sparsely run experts.
        bucket_cap_mb: Gradients are sent in pieces of this many MiB; None is torch's 25.
        detect_anomalous_params: mmengine's search for parameters that the loss does not reach;
            slow.
        **kwargs: Further ones of torch's DistributedDataParallel. ``device_ids``, which the Runner
            always gives, is dropped on the CPU.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        find_unused_parameters: bool | None = True,
        broadcast_buffers: bool = False,
        gradient_as_bucket_view: bool = True,
        static_graph: bool = False,
        bucket_cap_mb: float | None = None,
        detect_anomalous_params: bool = False,
        **kwargs,
    ):
        if next(module.parameters()).device.type == "cpu":
            kwargs["device_ids"] = None
        with warnings.catch_warnings():
            # torch 2.13 would have another name, which earlier ones do not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            super().__init__(
                module,
                find_unused_parameters=find_unused_parameters is not False,
                broadcast_buffers=broadcast_buffers,
                gradient_as_bucket_view=gradient_as_bucket_view,
                static_graph=static_graph,
                bucket_cap_mb=bucket_cap_mb,
                detect_anomalous_params=detect_anomalous_params,
                **kwargs,
            )


def bare_model(runner):
    """The model of a Runner without its DDP wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def averaged_models(runner) -> list[ModelLevelMoE]:
    """Those of a Runner's EMAHook; in a validation they hold the weights that train."""
    return [hook.ema_model.module for hook in runner.hooks if hasattr(hook, "ema_model")]


def every_expert_runs(model: Mapping[str, Any]) -> bool:
    """Whether training runs every expert on every image: told to, or because all are chosen."""
    experts = [e for e in (model.get("experts") or {}).values() if e is not None]
    router = (model.get("router") or {}).get("type")
    return (
        model.get("train_dispatch", "sparse") == "dense"
        or router == "UniformRouter"
        or len(experts) == 1
        or (len(experts) > 1 and model.get("top_k") == len(experts))
    )


def idle_parameters(model: ModelLevelMoE) -> list[str]:
    """Names of the trained parameters that get no gradient in a training step of a copy of the
    model, such as those of a pyramid level that no expert reads. Every expert of the model is to
    run on every image.
    """
    probe = copy.deepcopy(model).train()
    device = next(model.parameters()).device
    side = 4 * model.backbone.size_divisor
    side *= -(-64 // side)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        images = torch.randn(2, 3, side, side, device=device)
        targets = (torch.rand(2, 1, side, side, device=device) > 0.5).float()
        probe.parse_losses(probe(images, targets=targets, mode="loss"))[0].backward()
    return [n for n, p in probe.named_parameters() if p.requires_grad and p.grad is None]


def wrap_again(runner: Runner) -> None:
    """Let DDP forget which parameters learn: it asks once, when it wraps a model.

    Does nothing without DDP.
    """
    if not is_model_wrapper(runner.model):
        return
    model = runner.model.module
    runner.model = model
    gc.collect()  # the old one's hooks on the parameters go with it
    runner.model = Runner.wrap_model(runner, runner.cfg.get("model_wrapper_cfg"), model)


def leave_cpu_process_group() -> None:
    """End a process of a gloo group whose work is done, without Python's own tear-down.

    A gloo thread that drops its last tensor while the interpreter finalises aborts the process with
    "terminate called without an active exception", now and then, after everything was written. And
    a ``DistributedDataParallel`` that goes after its group was destroyed waits for ever, one time
    in ten.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def init_cpu_process_group(launcher: str) -> None:
    """Join the gloo group that torchrun described, on a machine without GPU; with GPUs look whether
    there is one for each process.

    mmengine's own start calls ``torch.cuda.set_device`` whatever the backend; it leaves a group
    alone that exists already.

    Raises:
        ValueError: The launcher is not torchrun's, or there are too few GPUs.
    """
    if launcher == "none" or dist.is_initialized():
        return
    if torch.cuda.is_available():
        check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", 0)), "--gpus")
        return
    if launcher != "pytorch":
        raise ValueError(
            f"launcher={launcher!r} needs GPUs; without any use --gpus, which takes CPUs, too"
        )
    if "RANK" not in os.environ:
        raise ValueError(
            "launcher='pytorch' outside torchrun: start it by codmoe train CONFIG --gpus N"
        )
    dist.init_process_group("gloo")
