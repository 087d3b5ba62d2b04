"""Starts a training: settles everything that must stand before the first step, checks it, runs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop

from codmoe.engine.auto_batch import settle_batch
from codmoe.engine.checkpoints import newest_checkpoint
from codmoe.engine.closing import closing_block
from codmoe.engine.config import require_sections
from codmoe.engine.ddp import bare_model, every_expert_runs, init_cpu_process_group
from codmoe.engine.handover import check_assembly
from codmoe.engine.hooks.frozen_features import settle_frozen_cache
from codmoe.engine.hooks.training import InterruptionHook
from codmoe.engine.optim import settle_amp, settle_fused
from codmoe.engine.runner import CODRunner
from codmoe.engine.sources import Sources, load_sources, read_sources, require_files
from codmoe.files import LOCK, explained, holding, save_json, sweep
from codmoe.interruption import going_on, interruption
from codmoe.models.build import skip_pretrained
from codmoe.registry import SCOPE
from codmoe.shipped import config_root

MMENGINE_HOOKS = (
    "runtime_info",
    "timer",
    "sampler_seed",
    "logger",
    "param_scheduler",
    "checkpoint",
)


@dataclass(frozen=True)
class LaunchPlan:
    """A training as it was settled; what runs it reads this and asks the config nothing again.

    Args:
        cfg: What the Runner is built from, with the wrappers of data sets and optimiser in place.
        sources: Files that the model starts from; None if it starts from nothing, or resumes.
        resume: The training checkpoint from which the run goes on, or None.
        every_expert_runs: Whether each training step runs every expert on every image.
        precision: The precision of training, for the log.
    """

    cfg: Config
    sources: Sources | None
    resume: Path | None
    every_expert_runs: bool
    precision: str


def prepare(cfg: Config, *, launcher: str = "none", work_dir: str | None = None) -> Config:
    """Fill in what any Runner needs, for training or test; the config was checked when loaded."""
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


def settle(cfg: Config) -> LaunchPlan:
    """Settle sources, dispatch, caches, wrappers and precision, and refuse what would fail later.

    Args:
        cfg: As :func:`prepare` returns it; it is filled in and becomes the plan's.

    Raises:
        ValueError: SyncBN together with sparsely run experts, DDP told that all parameters get a
            gradient where they do not, two keys that load weights, a precision that the machine
            has not, or a frozen cache of what learns.
        FileNotFoundError: ``cfg.init_from`` names a file that is not there, or there is no
            checkpoint to resume from.
    """
    require_sections(cfg, "model", "train_dataloader", "train_cfg", "optim_wrapper")
    all_run = every_expert_runs(cfg.model)
    _refuse(cfg, all_run)
    resume = _resumed(cfg)
    sources = read_sources(cfg)
    if sources is not None and not resume:
        require_files(sources)
        if cfg.get("load_from"):
            raise ValueError(
                f"load_from={cfg.load_from!r} would replace what init_from loads, after it was "
                "measured; leave one of the two out"
            )
    if sources is not None and sources.backbone_files():
        skip_pretrained(cfg.model)
    cached = bool((cfg.get("default_hooks") or {}).get("frozen_cache"))
    if cached:
        settle_frozen_cache(cfg)
    _wrap_training_set(cfg)
    if cached or not all_run:
        no_benchmark(cfg)
    precision = settle_amp(cfg)
    settle_fused(cfg)
    return LaunchPlan(cfg, None if resume else sources, resume, all_run, precision)


def _resumed(cfg: Config) -> Path | None:
    """The checkpoint from which a run goes on that is to resume; ``resume="auto"`` starts where
    there is none.

    mmengine would take the path that ``last_checkpoint`` holds, which is wrong in a copied folder,
    and where there is none begin at epoch 0 without the weights of the stage before.
    """
    if not cfg.get("resume"):
        return None
    if cfg.get("load_from"):
        return Path(cfg.load_from)
    work_dir = Path(cfg.work_dir)
    out = ((cfg.get("default_hooks") or {}).get("checkpoint") or {}).get("out_dir")
    auto, cfg.resume = cfg.resume == "auto", True
    try:
        return newest_checkpoint(work_dir, Path(out) / work_dir.name if out else None)
    except FileNotFoundError:
        if not auto:
            raise
    cfg.resume = False
    return None


def _refuse(cfg: Config, all_run: bool) -> None:
    """Refuse what would deadlock."""
    if cfg.get("sync_bn") and cfg.model.get("train_dispatch", "sparse") == "sparse":
        raise ValueError(
            f"sync_bn={cfg.sync_bn!r} with model.train_dispatch='sparse' deadlocks as soon as an "
            "expert runs on one rank and not on another; set sync_bn=None or train_dispatch='dense'"
        )
    if cfg.get("launcher", "none") == "none" or all_run:
        return
    wrapper = cfg.get("model_wrapper_cfg") or {}
    for key, wrong in (("find_unused_parameters", False), ("static_graph", True)):
        if wrapper.get(key) is wrong:
            raise ValueError(
                f"model_wrapper_cfg.{key}={wrong} with model.train_dispatch='sparse': an "
                "expert that no image of a rank was routed to gets no gradient; leave it out, "
                "or set train_dispatch='dense'"
            )


def _wrap_training_set(cfg: Config) -> None:
    """Let a share of the training files go bad while it runs, of no other data set; and let its
    order and draws follow from the seed and the place in training.
    """
    loader = cfg.train_dataloader
    sampler = loader.get("sampler")
    if isinstance(sampler, dict) and sampler.get("type") != "DrawSampler":
        loader.sampler = dict(type="DrawSampler", sampler=sampler)
    if loader.dataset.get("type") == "TolerantDataset":
        loader.dataset = loader.dataset["dataset"]  # the config that an earlier run left
    share = cfg.get("max_unreadable", 0.01)
    loader.dataset = dict(type="TolerantDataset", dataset=loader.dataset, max_share=share)
    hooks = [h for h in cfg.get("custom_hooks") or [] if h.get("type") != "UnreadableFilesHook"]
    cfg.custom_hooks = [*hooks, dict(type="UnreadableFilesHook")]


def no_benchmark(cfg: Config) -> None:
    """Group sizes that change from step to step would each be timed anew by cuDNN's benchmark."""
    cfg.setdefault("env_cfg", dict())["cudnn_benchmark"] = False


def build_runner(plan: LaunchPlan) -> CODRunner:
    """A Runner that is ready to train but for weights of other runs.

    Raises:
        FileNotFoundError, ValueError: Something is missing or does not fit.
    """
    return CODRunner.from_cfg(plan.cfg, every_expert_runs=plan.every_expert_runs)


def train(cfg: Config, *, auto_batch: bool = False) -> CODRunner:
    """Run one stage.

    Args:
        cfg: As :func:`prepare` returns it; ``cfg.resume`` goes on from ``cfg.work_dir``.
        auto_batch: Take as large a batch as the GPU does; see :func:`settle_batch`.

    Raises:
        FileNotFoundError, ValueError: Something is missing or does not fit, or an expert is worse
            than on its own checkpoint; nothing was trained.
    """
    plan = settle(cfg)
    with run_alone(cfg):
        try:
            if auto_batch:
                settle_batch(plan.cfg, resume=plan.resume is not None)
            return _run(plan)
        except OSError as error:
            work_dir = Path(cfg.work_dir)
            if isinstance(error, FileNotFoundError) and not work_dir.exists():
                reason = "was deleted while its training ran, with all its checkpoints; start again"
                raise FileNotFoundError(error.errno, reason, cfg.work_dir) from error
            if error.filename is None:
                raise explained(error, work_dir) from error
            raise


@contextmanager
def run_alone(cfg: Config) -> Iterator[None]:
    """Holds the work dir and the name of the best weights, and clears away what runs that were
    killed left there.

    Another stage may write its weights beside them meanwhile, and a test may read them.

    Raises:
        ValueError: Another run holds one of the two.
        OSError: The folders cannot be written.
    """
    # Of the environment: the process group may not stand yet.
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
    if cfg.get("launcher", "none") != "none" and rank not in (None, "0"):
        yield
        return
    work_dir, best = Path(cfg.work_dir), (cfg.get("default_hooks") or {}).get("best")
    with ExitStack() as held:
        held.enter_context(holding(work_dir / LOCK, str(work_dir), "give another --work-dir"))
        sweep(work_dir)
        if best:
            path = Path(best.directory) / f"{best.name}_best.pth"
            lock = path.with_name(f".{path.stem}.lock")
            held.enter_context(holding(lock, str(path), "give another checkpoint_dir"))
            sweep(best.directory)
        yield


def _run(plan: LaunchPlan) -> CODRunner:
    interruption.farewell = lambda: f" before the first step{going_on(bool(plan.resume) or None)}"
    logging.raiseExceptions = False  # on a full disk each line of log would print a traceback
    runner = build_runner(plan)
    runner.register_hook(InterruptionHook())
    if plan.resume:
        runner._load_from = str(plan.resume)
    loader = runner.train_loop.dataloader
    if len(loader) == 0:
        raise ValueError(
            f"the training set holds {len(loader.dataset)} images, less than one batch of "
            f"{plan.cfg.train_dataloader.batch_size} on each of {runner.world_size} process(es); "
            "lower train_dataloader.batch_size, or give the part more in split"
        )
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    most = f"{runner.max_epochs} epoch(s) of {len(loader):,}" if by_epoch else runner.max_iters
    runner.logger.info(
        f"{len(loader.dataset):,} images, {most} steps, {loader.batch_size} images each on "
        f"{runner.world_size} process(es); precision: {plan.precision}"
    )
    if plan.sources is not None:
        for line in load_sources(bare_model(runner), plan.sources):
            runner.logger.info(line)
        runner.experts_before = check_assembly(runner, plan.sources)
    work_dir = Path(plan.cfg.work_dir)
    # Not before the Runner stands: only then is it known which process is the main one.
    if is_main_process() and not plan.resume:
        set_aside(work_dir)
    runner.began = time.time()
    try:
        runner.train()
    finally:
        stop_workers(runner)
    seconds = time.time() - runner.began
    if is_main_process():
        told = runner.message_hub.get_info
        save_json(
            work_dir / "finished.json",
            dict(
                config=str(runner.cfg.get("config_file")),
                run_id=told("codmoe_run_id"),
                images=len(loader.dataset),
                epochs=runner.epoch,
                iterations=runner.iter,
                best=told("codmoe_best"),
                best_epoch=told("codmoe_best_epoch"),
                seconds=round(seconds, 1),
                precision=plan.precision,
                routing=told("codmoe_routing_of_best"),
            ),
        )
        runner.logger.info(closing_block(runner, seconds), extra=dict(emphasis=True))
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
