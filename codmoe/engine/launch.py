"""Starts a Runner: everything that has to be settled before the first step, settled and checked."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner.utils import set_random_seed

from codmoe.engine.checkpoints import load_parts
from codmoe.engine.config import config_root
from codmoe.engine.ddp import bare_model, every_expert_runs, init_cpu_process_group
from codmoe.engine.handover import (
    check_assembly,
    load_sources,
    read_sources,
    require_files,
    skip_pretrained,
)
from codmoe.engine.hooks.frozen_features import settle_frozen_cache
from codmoe.engine.hooks.mixture import routing_of_best
from codmoe.engine.optim import settle_amp, settle_fused
from codmoe.engine.runner import CODRunner
from codmoe.files import save_json
from codmoe.registry import SCOPE

MMENGINE_HOOKS = (
    "runtime_info",
    "timer",
    "sampler_seed",
    "logger",
    "param_scheduler",
    "checkpoint",
)
# Hooks of training runs alone.
MEASURING = ("frozen_cache", "router_watch", "experts_after")


def check_launch(cfg: Config) -> None:
    """Refuse what would fail or hang later.

    Raises:
        ValueError: SyncBN together with sparsely run experts, DDP told that all parameters get a
            gradient where they do not, or two keys that load weights.
        FileNotFoundError: ``cfg.init_from`` names a file that is not there, or there is no
            checkpoint to resume from.
    """
    if cfg.get("sync_bn") and cfg.model.get("train_dispatch", "sparse") == "sparse":
        raise ValueError(
            f"sync_bn={cfg.sync_bn!r} with model.train_dispatch='sparse' deadlocks as soon as an "
            "expert runs on one rank and not on another; set sync_bn=None or train_dispatch='dense'"
        )
    wrapper = cfg.get("model_wrapper_cfg") or {}
    if cfg.get("launcher", "none") != "none" and not every_expert_runs(cfg.model):
        for key, wrong in (("find_unused_parameters", False), ("static_graph", True)):
            if wrapper.get(key) is wrong:
                raise ValueError(
                    f"model_wrapper_cfg.{key}={wrong} with model.train_dispatch='sparse': an "
                    "expert that no image of a rank was routed to gets no gradient; leave it out, "
                    "or set train_dispatch='dense'"
                )
    if cfg.get("resume"):
        # mmengine would begin at epoch 0, and without the weights of the stage before.
        last = Path(cfg.work_dir) / "last_checkpoint"
        if not last.is_file() and not cfg.get("load_from"):
            raise FileNotFoundError(
                f"{last} does not exist, so there is nothing to resume; leave --resume out to "
                "start, or give the --work-dir of the run that was interrupted"
            )
        return
    sources = read_sources(cfg)
    if sources is not None:
        require_files(sources)
        if cfg.get("load_from"):
            raise ValueError(
                f"load_from={cfg.load_from!r} would replace what init_from loads, after it was "
                "measured; leave one of the two out"
            )


def set_data_root(cfg: Config, root: str) -> None:
    """Point every data set of the config at ``root`` (``--data-root``).

    Raises:
        ValueError: None has a ``data_root``.
    """

    def visit(node) -> int:
        if not isinstance(node, dict):
            return 0
        found = sum(visit(value) for value in node.values())
        if "data_root" in node:
            node["data_root"] = root
            found += 1
        return found

    parts = ("train", "val", "test")
    if not sum(visit((cfg.get(f"{p}_dataloader") or {}).get("dataset")) for p in parts):
        raise ValueError(
            "--data-root has no effect: no data set of this config has a data_root (composites "
            "have a photo_dir: --cfg-options train_dataloader.dataset.photo_dir=DIR)"
        )


def prepare(cfg: Config, *, launcher: str = "none", work_dir: str | None = None) -> Config:
    """Fill in what a Runner needs; the config was checked when it was loaded."""
    cfg.launcher = launcher
    cfg.setdefault("default_scope", SCOPE)
    cfg.work_dir = work_dir or cfg.get("work_dir") or f"work_dirs/{_run_name(cfg)}"
    hooks = cfg.get("default_hooks") or {}
    for name in [n for n, hook in hooks.items() if hook is None and n not in MMENGINE_HOOKS]:
        hooks.pop(name)  # mmengine lets None switch its own hooks off, and asserts on others
    best = hooks.get("best")
    if best:
        best.setdefault("directory", cfg.get("checkpoint_dir", "checkpoints_moe"))
    init_cpu_process_group(launcher)
    return cfg


def _run_name(cfg: Config) -> str:
    """``ensemble/stage3`` for a shipped config, so that ``quickstart/stage3`` is another folder."""
    path = Path(cfg.get("config_file", "run.py")).resolve().with_suffix("")
    root = config_root().resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def build_runner(cfg: Config) -> tuple[CODRunner, str]:
    """A Runner that is ready to train, and its precision; ``cfg`` as :func:`prepare` returns it.

    Raises:
        FileNotFoundError, ValueError: Something is missing or does not fit.
    """
    check_launch(cfg)
    precision = settle_amp(cfg)
    settle_fused(cfg)
    if not every_expert_runs(cfg.model):
        _no_benchmark(cfg)
    sources = read_sources(cfg)
    if sources is not None and sources.backbone_files():
        skip_pretrained(cfg)
    runner = CODRunner.from_cfg(cfg)
    if runner.world_size > 1:
        # The weights are the same by now. The router's noise is not to be: with one seed for all
        # processes it would choose the same experts in each.
        set_random_seed(runner.seed, diff_rank_seed=True)
    if sources is not None and not cfg.get("resume"):
        for line in load_sources(bare_model(runner), sources):
            runner.logger.info(line)
    return runner, precision


def train(cfg: Config) -> CODRunner:
    """Run one stage.

    Args:
        cfg: As :func:`prepare` returns it; ``cfg.resume`` goes on from ``cfg.work_dir``.

    Raises:
        FileNotFoundError, ValueError: Something is missing or does not fit, or an expert is worse
            than on its own checkpoint; nothing was trained.
    """
    if settle_frozen_cache(cfg):
        _no_benchmark(cfg)  # the frozen parts run on what is not kept yet: on any number of images
    _tolerate_unreadable(cfg)
    runner, precision = build_runner(cfg)
    runner.logger.info(f"precision: {precision}")
    if len(runner.train_loop.dataloader) == 0:
        raise ValueError(
            f"the training set holds {len(runner.train_loop.dataloader.dataset)} images, less than "
            f"one batch of {cfg.train_dataloader.batch_size} on each of {runner.world_size} "
            "process(es); lower train_dataloader.batch_size, or give the part more in split"
        )
    check_assembly(runner, cfg)
    # Not before the Runner stands: only then is it known which process is the main one.
    if is_main_process() and not cfg.get("resume"):
        set_aside(Path(cfg.work_dir))
    started = time.time()
    try:
        runner.train()
    finally:
        stop_workers(runner)
    if is_main_process():
        save_json(
            Path(cfg.work_dir) / "finished.json",
            dict(
                config=str(cfg.get("config_file")),
                images=len(runner.train_loop.dataloader.dataset),
                epochs=runner.epoch,
                iterations=runner.iter,
                best=runner.message_hub.get_info("codmoe_best"),
                best_epoch=runner.message_hub.get_info("codmoe_best_epoch"),
                seconds=round(time.time() - started, 1),
                precision=precision,
                routing=routing_of_best(runner),
            ),
        )
    return runner


def stop_workers(runner: CODRunner) -> None:
    """End persistent loader workers now.

    With pinned memory and a dozen workers, processes on a GPU were seen not to end a minute after
    their last epoch. That the workers were the cause is a guess.
    """
    for loop in (runner._train_loop, runner._val_loop):
        iterator = getattr(getattr(loop, "dataloader", None), "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
            loop.dataloader._iterator = None


def _tolerate_unreadable(cfg: Config) -> None:
    """Let a share of the training files go bad while it runs; of no other data set."""
    loader = cfg.train_dataloader
    if loader.dataset.get("type") == "TolerantDataset":
        loader.dataset = loader.dataset["dataset"]  # the config that an earlier run left
    share = cfg.get("max_unreadable", 0.01)
    loader.dataset = dict(type="TolerantDataset", dataset=loader.dataset, max_share=share)
    hooks = [h for h in cfg.get("custom_hooks") or [] if h.get("type") != "UnreadableFilesHook"]
    cfg.custom_hooks = [*hooks, dict(type="UnreadableFilesHook")]


def _no_benchmark(cfg: Config) -> None:
    """Sparse routing changes group sizes from step to step; a benchmark would time each anew."""
    cfg.setdefault("env_cfg", dict())["cudnn_benchmark"] = False


def set_aside(work_dir: Path) -> None:
    """Keep the training checkpoints of an earlier run, whose names this run will use."""
    names = ("last_checkpoint", "finished.json")
    earlier = [*work_dir.glob("*.pth"), *(work_dir / n for n in names if (work_dir / n).exists())]
    if not earlier:
        return
    folder = work_dir / f"earlier-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir()
    for path in earlier:
        path.rename(folder / path.name)
    print_log(f"kept the checkpoints of an earlier run in {folder} (--resume would have gone on)")


def test_runner(cfg: Config, checkpoint: str) -> CODRunner:
    """A Runner with the weights of ``checkpoint`` in its model, ready to ``test()``.

    Raises:
        FileNotFoundError, ValueError: The checkpoint is missing or does not fit.
    """
    for key in (
        "train_dataloader train_cfg optim_wrapper param_scheduler val_dataloader val_cfg "
        "val_evaluator init_from compile train_graphs"
    ).split():
        cfg.pop(key, None)
    hooks = cfg.get("default_hooks") or {}
    # The weights come from the checkpoint: nothing to download, nothing to write.
    for name in ("best", "progress", "ema", "average_buffers", "warmup", *MEASURING):
        hooks.pop(name, None)
    logger = dict(type="TestProgressHook", interval=5)
    cfg.default_hooks = dict(hooks, checkpoint=None, param_scheduler=None, logger=logger)
    skip_pretrained(cfg)
    _no_benchmark(cfg)
    cfg.setdefault("test_cfg", dict())
    runner = CODRunner.from_cfg(cfg)
    load_parts(bare_model(runner), checkpoint)
    return runner
