"""mmengine's Runner for this package: its log, its memory format, its way to resume."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import platform
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import DataLoader

from codmoe import __version__
from codmoe.compiled.speed import (
    compile_options,
    compile_parts,
    set_fast_norm,
    set_memory_format,
)
from codmoe.datasets.streams import DrawSampler, drawn_from
from codmoe.engine.checkpoints import compare, state_of
from codmoe.engine.config import LOADER_KEYS, metrics_of, typed_in
from codmoe.engine.ddp import idle_parameters
from codmoe.engine.hooks.compiling import CompileHook
from codmoe.engine.hooks.resuming import EPOCH_STEPS, VALIDATED, ResumableHook
from codmoe.engine.optim import lay_out_state
from codmoe.engine.origins import dotted, leaves
from codmoe.engine.terminal import settle_terminal
from codmoe.interruption import holding_back, obey_parent_alone
from codmoe.machine import available_cores
from codmoe.messages import hushed, listed, short
from codmoe.registry import DATASETS, METRICS, accepted_arguments, building
from codmoe.trust import read_literals, read_pickle, require_weights

FORMS_A_RUN = ("model", "train_dataloader", "val_dataloader", "optim_wrapper", "randomness")
"""Sections of a config that a run that goes on is expected to share with its beginning."""
FASTER_ALONE = (
    *("num_workers", "persistent_workers", "pin_memory", "prefetch_factor", "cache"),
    *("expert_execution", "checkpoint_backbone"),
)
HELD = ("optim_wrapper.optimizer.", "optim_wrapper.paramwise_cfg.", "param_scheduler.")
"""Keys whose values lie in a training checkpoint, as those of the optimiser and the schedules."""


class CODRunner(Runner):
    """mmengine's Runner; the environment is logged in one line instead of a hundred.

    The whole config lies beside the log, where mmengine dumps it.

    Args:
        *args: mmengine's.
        every_expert_runs: Whether each training step runs every expert on every image, as
            :class:`LaunchPlan` says it.
        **kwargs: mmengine's.
    """

    param_schedulers: Any
    _experiment_name: str
    experts_before: dict[str, Any] | None = None
    """Figures of the experts before the first step, where :func:`check_assembly` took them."""

    def __init__(self, *args, every_expert_runs: bool = False, **kwargs):
        self.every_expert_runs = every_expert_runs
        self.began = time.time()
        """When its training began; of a run that goes on, as if it had never been cut off."""
        with building("the config"):
            super().__init__(*args, **kwargs)
        self.register_hook(ResumableHook())
        if compile_options(self.cfg.get("compile")):
            self.register_hook(CompileHook())

    @classmethod
    def from_cfg(cls, cfg: Config, *, every_expert_runs: bool = False) -> CODRunner:
        """mmengine's, for a Runner that takes more than a config."""
        cfg = copy.deepcopy(cfg)
        given = {key: cfg[key] for key in inspect.signature(Runner).parameters if key in cfg}
        return cls(**given, cfg=cfg, every_expert_runs=every_expert_runs)

    def setup_env(self, env_cfg: dict) -> None:
        """mmengine's, which warns in each process of the threads that it sets."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Setting (OMP|MKL)_NUM_THREADS", UserWarning)
            super().setup_env(env_cfg)

    def _log_env(self, env_cfg: dict) -> None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        self.logger.info(
            f"codmoe {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
            f"{self.world_size} × {device}, seed {self.seed}"
        )
        self.logger.info(f"log and whole config in {Path(self.log_dir)}")

    def build_logger(self, *args, **kwargs):
        """mmengine's, with a terminal for people; a file's name that is no UTF-8 does not end in a
        traceback of the log. The first thing that needs the run's name: two runs of one process
        that begin in one second would share it, and with it iterations and checkpoints to delete.
        """
        name, number = self._experiment_name, 1
        while MessageHub.check_instance_created(self._experiment_name):
            number += 1
            self._experiment_name = f"{name}_{number}"
        logger = super().build_logger(*args, **kwargs)
        settle_terminal(logger)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler) and handler.stream is not None:
                handler.stream.reconfigure(errors="backslashreplace")
        return logger

    def build_message_hub(self, message_hub=None):
        """A hub that fetches scalars from the device when they are read, not one by one."""
        install(str((message_hub or {}).get("name", self._experiment_name)))
        return super().build_message_hub(message_hub)

    def build_model(self, model):
        """mmengine's, once the data are there: weights may be fetched for minutes. timm's norms
        remember what ``fast_norm`` was when they were made.
        """
        training = self._train_dataloader is not None
        if training:
            check_test(self.cfg)
        loaders = ["train", "val"] if training else ["test"]
        for loader in (getattr(self, f"_{name}_dataloader") for name in loaders):
            if isinstance(loader, dict) and isinstance(loader.get("dataset"), dict):
                with drawn_from(0), building("the data loader"):
                    DATASETS.build(uncached(loader["dataset"]))
        set_fast_norm(self.cfg.get("fast_norm", False))
        try:
            return super().build_model(model)
        finally:
            set_fast_norm(False)

    @staticmethod
    def build_dataloader(dataloader, *args, **kwargs):
        """mmengine's; with no more workers than cores, asks of no worker nothing that only workers
        can do, pins no memory where no GPU reads it, and no worker ends before the process that is
        asked to.
        """
        if not isinstance(dataloader, dict):
            return dataloader
        workers = min(dataloader.get("num_workers") or 0, available_cores())
        dataloader = dict(dataloader, num_workers=workers)
        if not torch.accelerator.is_available():  # torch warns of it, once a loader
            dataloader.pop("pin_memory", None)
        if not workers:
            theirs = "persistent_workers prefetch_factor multiprocessing_context timeout".split()
            dataloader = {k: v for k, v in dataloader.items() if k not in theirs}
        loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        loader.worker_init_fn = functools.partial(_start_worker, loader.worker_init_fn)
        loader.__class__ = _Loader  # mmengine takes no class of ours
        return loader

    def wrap_model(self, model_wrapper_cfg, model):
        """mmengine's; ``memory_format`` and ``compile`` first, since DDP lays out its buffers by
        those of the parameters.
        """
        set_memory_format(model, self.cfg.get("memory_format"))
        self._settle_search(model_wrapper_cfg, model)
        compiled = compile_parts(model, self.cfg.get("compile"))
        if compiled:
            self.logger.info(f"compiled for training: {', '.join(compiled)}")
        return super().wrap_model(model_wrapper_cfg, model)

    def _settle_search(self, wrapper: dict | None, model) -> None:
        """Decide whether DDP has to look for parameters without gradient, where nobody did."""
        if not self.distributed or wrapper is None:
            return
        if wrapper.get("find_unused_parameters", True) is not None:
            return
        wrapper["find_unused_parameters"] = True
        if self.every_expert_runs:
            try:
                idle = idle_parameters(model)
            except Exception as error:  # a backbone of one image size, say: no reason to stop
                self.logger.info(
                    f"DDP searches for unused parameters: no step to learn from: {error}"
                )
                return
            wrapper["find_unused_parameters"] = bool(idle)
            if idle:
                self.logger.info(
                    f"DDP searches for unused parameters in each step: {len(idle)} have no "
                    f"gradient, the first is {idle[0]}"
                )

    def _maybe_compile(self, target: str) -> None:
        """Nothing: mmengine reads ``compile`` too, and would compile the whole training step."""

    def build_param_scheduler(self, scheduler):
        """mmengine's, without a warm-up of one step: it would leave the rate where it starts."""
        steps = len(self.train_dataloader)

        def lasts(one) -> bool:
            if not isinstance(one, dict) or not one.get("convert_to_iter_based"):
                return True
            length = one.get("end", float("inf")) - one.get("begin", 0)
            return one.get("type") != "LinearLR" or length * steps >= 2

        if isinstance(scheduler, (list, tuple)) and not all(map(lasts, scheduler)):
            self.logger.info("the warm-up is left out: it would be one step")
            scheduler = [one for one in scheduler if lasts(one)]
        return super().build_param_scheduler(scheduler)

    def build_optim_wrapper(self, optim_wrapper):
        """mmengine's, without its line of log for each of a thousand parameters; of the frozen ones
        it even warns.
        """
        with hushed(self.logger):
            return super().build_optim_wrapper(optim_wrapper)

    def load_checkpoint(
        self, filename: str, map_location="cpu", strict: bool = False, revise_keys=()
    ) -> dict:
        """mmengine's ``load_from`` and ``resume``, of local files that hold no code.

        Raises:
            FileNotFoundError: No such file (addresses are not fetched: download the file first).
            ValueError: The file holds more than weights and a training's history, no finite
                weights, or none that fit the model; or, of a run that is resumed, not all.
        """
        checkpoint = read_pickle(filename)
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            checkpoint = dict(state_dict=checkpoint)
        source = f"checkpoint {filename}"
        require_weights(checkpoint.get("ema_state_dict", {}), source)
        model = self.model.module if is_model_wrapper(self.model) else self.model

        def state() -> dict[str, Tensor]:
            found = state_of(checkpoint, filename)
            for pattern, name in list(revise_keys) or [(r"^module\.", "")]:
                found = {re.sub(pattern, name, key): value for key, value in found.items()}
            return found

        fit = compare(model.state_dict(), state(), source)
        whole = {name for name, _ in model.named_parameters()} <= set(fit.fitting)
        if not fit.fitting or (not whole and (strict or self._resume)):
            wrong = "does not fit this model" if fit.fitting else "has nothing of this model"
            raise ValueError(f"{source} {wrong}: {fit}")
        if self._resume:
            self._tell_changes((checkpoint.get("meta") or {}).get("cfg"))
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)  # EMAHook changes the state
        loaded = state()
        model.load_state_dict({key: loaded[key] for key in fit.fitting}, strict=False)
        self._has_loaded = True
        if fit.faults:
            self.logger.warning(f"loaded {filename} in part, the rest stays as it was: {fit}")
        else:
            self.logger.info(f"loaded {filename}")
        return checkpoint

    def resume(self, filename: str, *args, **kwargs) -> None:
        """mmengine's; and goes on from the same epoch if this run has other steps an epoch.

        On another number of processes, or with another batch size, the checkpoint's count of steps
        means another share of training: the schedules would end early or late.

        Raises:
            ValueError: The checkpoint has other parameter groups, also with the decays of earlier
                versions.
        """
        fresh = self._schedules()
        try:
            super().resume(filename, *args, **kwargs)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            self._decay_as_before()
            fresh = self._schedules()
            try:
                super().resume(filename, *args, **kwargs)
            except ValueError:
                raise ValueError(
                    f"{filename} was written with other parameter groups ({error}). If it is from "
                    "a run before groups were merged, resume it with --cfg-options "
                    "optim_wrapper.constructor=DefaultOptimWrapperConstructor"
                ) from error
            self.logger.warning(
                "norms and biases under optim_wrapper.paramwise_cfg.custom_keys decay until this "
                "run ends, as when it began; in new runs they do not"
            )
        lay_out_state(self.optim_wrapper.optimizer)
        self._go_on(fresh)
        self._tell_schedule(fresh)

    def _go_on(self, fresh: list[dict[str, Any]]) -> None:
        """Go on where the checkpoint stands; by this run's schedules, if it has other batches."""
        loop = self.train_loop
        sampler = loop.dataloader.sampler
        if isinstance(sampler, DrawSampler):
            sampler.reseed(self.seed)
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        steps = loop.epoch * len(loop.dataloader)
        if loop.iter == steps:
            self.logger.info(f"going on after epoch {loop.epoch}")
            return
        done, before = loop.iter - steps, self.message_hub.get_info(EPOCH_STEPS)
        as_before = before == len(loop.dataloader) >= done > 0
        if as_before and isinstance(sampler, DrawSampler):
            self.logger.info(f"going on in epoch {loop.epoch + 1} after {done} steps")
            sampler.start_at(done * loop.dataloader.batch_size)
            return
        within = bool(before) and loop.iter != loop.epoch * before
        anew = f"; epoch {loop.epoch + 1}, of which it had a part, begins anew" if within else ""
        self.logger.warning(
            f"the checkpoint has {loop.iter} steps in {loop.epoch} epoch(s), this run has {steps}: "
            f"going on from epoch {loop.epoch}, step {steps}; the learning rate is not scaled to "
            f"the other batch{anew}"
        )
        if within or self.message_hub.get_info(VALIDATED) == loop.iter:
            # That of the last whole epoch took place, and these weights may be later ones.
            self.message_hub.update_info(VALIDATED, steps)
        loop._iter = steps
        for scheduler, start in zip(self.param_schedulers, fresh, strict=True):
            # One that counts epochs or was given in steps is the same in both runs.
            if (scheduler.begin, scheduler.end) != (start["begin"], start["end"]):
                rates = scheduler._last_value
                scheduler.load_state_dict(start)
                scheduler._global_step = steps
                scheduler.last_step = max(min(steps, scheduler.end - 1) - scheduler.begin, -1)
                scheduler._last_value = rates

    def _tell_schedule(self, fresh: list[dict[str, Any]]) -> None:
        """Warn of a length of training that is not the one for which the schedules were made."""
        pairs = zip(self._schedules(), fresh, strict=False)
        ends = [(held["end"], new["end"]) for held, new in pairs if held["end"] != new["end"]]
        if ends:
            was, now = max(ends)
            self.logger.warning(
                f"the learning rate's schedule was made to end at step {was} and does, though this "
                f"config's would at {now}; for another length begin a new run from these weights, "
                "init_from=dict(_delete_=True, file=FILE)"
            )

    def _tell_changes(self, text: Any) -> None:
        """Warn of settings that are not those with which the checkpoint was trained. It holds its
        config as mmengine writes it; of a text of another kind nothing is told.
        """
        try:
            before = settings_of(read_literals(text, "the checkpoint"))
        except (TypeError, ValueError):
            return
        now = settings_of(self.cfg.to_dict())
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        held = [key for key in changed if key.startswith(HELD) and key != f"{HELD[0]}type"]

        def value(settings: dict[str, Any], key: str) -> str:
            return short(settings[key]) if key in settings else "absent"

        def told(keys: list[str]) -> str:
            lines = [f"{key}={value(now, key)}, was {value(before, key)}" for key in keys]
            return listed(lines, separator="; ")

        if held:
            self.logger.warning(
                f"no effect: {told(held)}. Optimiser and schedules go on as the checkpoint holds "
                "them; for others begin a new run from its weights, "
                "init_from=dict(_delete_=True, file=FILE)"
            )
        if others := [key for key in changed if key not in held]:
            self.logger.warning(
                f"from here on other than before: {told(others)}. Figures of before and after may "
                "not compare"
            )

    def _schedules(self) -> list[dict[str, Any]]:
        """States of the schedules as they stand."""
        schedulers = self.param_schedulers
        return [dict(s.state_dict()) for s in schedulers] if isinstance(schedulers, list) else []

    def _decay_as_before(self) -> None:
        """Build the optimiser anew, with the groups that runs had when whatever ``custom_keys``
        matched decayed.
        """
        wrapper = copy.deepcopy(self.cfg.optim_wrapper)
        for entry in ((wrapper.get("paramwise_cfg") or {}).get("custom_keys") or {}).values():
            entry.setdefault("decay_mult", 1.0)
        self.optim_wrapper = self.build_optim_wrapper(wrapper)
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.cfg.param_scheduler)

    def get_hooks_info(self) -> str:
        """Names of the hooks in the order of their priorities, on one line."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)


class DeferredMessageHub(MessageHub):
    """Keeps scalars that lie on the device there until somebody reads them.

    mmengine's hub fetches each scalar when it is told, thirty a step, and each time the host waits
    until the device has done all it was given. Here they are fetched when the log, a checkpoint or
    a hook asks for them, in one copy; what they then read is the same to the last bit.
    """

    limit = 8192
    """Scalars kept at most; then they are fetched unasked."""

    def __init__(self, name: str, **kwargs):
        super().__init__(name, **kwargs)
        self._deferred: list[tuple[str, Tensor, int]] = []
        self._deferred_keys: set[str] = set()

    def update_scalar(self, key: str, value, count: int = 1, resumed: bool = True) -> None:
        """See mmengine's; a tensor is kept as it is."""
        if not (isinstance(value, Tensor) and value.numel() == 1):
            if key in self._deferred_keys:
                self.fetch()  # in the order of the steps
            return super().update_scalar(key, value, count, resumed)
        self._set_resumed_keys(key, resumed)
        if key not in self._log_scalars:
            # Now, not when it is fetched: the log shows keys in this order.
            self._log_scalars[key] = HistoryBuffer()
        # Detached: a loss would keep the graph of its step.
        self._deferred.append((key, value.detach(), count))
        self._deferred_keys.add(key)
        if len(self._deferred) >= self.limit:
            self.fetch()
        return None

    def fetch(self) -> None:
        """Bring everything that was kept to the host: one copy for each device and type."""
        deferred, self._deferred = self._deferred, []
        self._deferred_keys = set()
        groups: dict[tuple, list[int]] = defaultdict(list)
        for i, (_, value, _) in enumerate(deferred):
            groups[value.device, value.dtype].append(i)
        fetched: dict[int, float] = {}
        for members in groups.values():
            values = torch.stack([deferred[i][1].reshape(()) for i in members]).tolist()
            fetched.update(zip(members, values, strict=True))
        for i, (key, _, count) in enumerate(deferred):
            self._log_scalars[key].update(fetched[i], count)

    @property
    def log_scalars(self):
        """See mmengine's."""
        self.fetch()
        return super().log_scalars

    def get_scalar(self, key: str) -> HistoryBuffer:
        """See mmengine's; of a key that was not kept back, nothing is fetched."""
        if key in self._log_scalars and key not in self._deferred_keys:
            return self._log_scalars[key]
        return super().get_scalar(key)

    def state_dict(self) -> dict:
        """See mmengine's."""
        self.fetch()
        return super().state_dict()

    def load_state_dict(self, state_dict) -> None:
        """See mmengine's."""
        self.fetch()
        super().load_state_dict(state_dict)


def install(name: str) -> None:
    """Make the hub of this name, which mmengine's parts find by it, a deferred one."""
    # mmengine has no way to choose the class; the dictionary is what its own lookups read.
    if not MessageHub.check_instance_created(name):
        MessageHub._instance_dict[name] = DeferredMessageHub(name)


def settings_of(cfg: dict[str, Any]) -> dict[str, Any]:
    """What forms a run, by dotted keys: not what makes it faster alone."""
    every = leaves({key: cfg[key] for key in (*FORMS_A_RUN, "param_scheduler") if cfg.get(key)})
    return {
        dotted(path): list(value) if isinstance(value, tuple) else value
        for path, value in every
        if not set(path) & set(FASTER_ALONE)
    }


class _Loader(DataLoader):
    """A loader whose workers miss no moment in which a signal is to leave them alone."""

    def __iter__(self):
        with holding_back():
            return super().__iter__()


def _start_worker(start: Callable[[int], None] | None, number: int) -> None:
    obey_parent_alone()
    if start is not None:
        start(number)


def check_test(cfg: Mapping[str, Any]) -> None:
    """Builds what a config says of its test, as far as that needs no images, which may lie on
    another machine: a training should not end in a misspelt measure.

    Raises:
        ValueError: As the part says, with its key.
    """
    loader = cfg.get("test_dataloader") or {}
    plain = {k: v for k, v in loader.items() if not isinstance(v, dict) and k in LOADER_KEYS}
    sampler = dict(type="DefaultSampler", shuffle=False)
    with telling("test_dataloader"):
        if loader:
            CODRunner.build_dataloader(dict(plain, dataset=[None], sampler=sampler))
    data = uncached(loader.get("dataset"))
    for key, node, kinds in typed_in("test_dataloader.dataset", data, DATASETS):
        if kinds is DATASETS and "lazy_init" in (accepted_arguments(kinds.get(node["type"])) or ()):
            with telling(key), suppress(FileNotFoundError):
                DATASETS.build(dict(node, lazy_init=True))
    for number, metric in enumerate(metrics_of(cfg, "test")):
        with telling(f"test_evaluator.{number}"):
            METRICS.build(metric)


@contextmanager
def telling(key: str) -> Iterator[None]:
    """Puts a key before what a ValueError says."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def uncached(node: Any) -> Any:
    """A copy of a data set's config that decodes nothing ahead."""
    if isinstance(node, dict):
        return {key: uncached(value) for key, value in node.items() if key != "cache"}
    return [uncached(value) for value in node] if isinstance(node, (list, tuple)) else node


def _naming(method: Callable[..., Any], key: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def named(*args, **kwargs):
        with building(key):
            return method(*args, **kwargs)

    return named


_BUILDS = dict(
    setup_env="env_cfg",
    set_randomness="randomness",
    build_logger="log_level",
    build_visualizer="visualizer",
    build_log_processor="log_processor",
    build_optim_wrapper="optim_wrapper",
    build_param_scheduler="param_scheduler",
    build_dataloader="the data loader",
    build_evaluator="the evaluator",
    build_train_loop="train_cfg",
    build_val_loop="val_cfg",
    build_test_loop="test_cfg",
    register_hooks="default_hooks and custom_hooks",
    wrap_model="model_wrapper_cfg",
)
for _name, _key in _BUILDS.items():
    _named = _naming(getattr(CODRunner, _name), _key)
    _static = isinstance(inspect.getattr_static(CODRunner, _name), staticmethod)
    setattr(CODRunner, _name, staticmethod(_named) if _static else _named)
