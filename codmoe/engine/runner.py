"""mmengine's Runner with an opening that fits on a screen."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

import torch
from mmengine.runner import EpochBasedTrainLoop, Runner

from codmoe.engine import message_hub as hubs
from codmoe.engine.ddp import every_expert_runs, idle_parameters
from codmoe.engine.optimizers import lay_out_state
from codmoe.engine.speed import compile_parts, set_fast_norm, set_memory_format
from codmoe.engine.train_graphs import graph_parts
from codmoe.version import __version__


class CODRunner(Runner):
    """mmengine's Runner; the environment is logged in one line instead of a hundred.

    The whole config lies beside the log, where mmengine dumps it.
    """

    def _log_env(self, env_cfg: dict) -> None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        self.logger.info(
            f"codmoe {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
            f"{self.world_size} × {device}, seed {self.seed}"
        )
        self.logger.info(f"log and whole config: {Path(self.log_dir)}")

    def build_message_hub(self, message_hub=None):
        """A hub that fetches scalars from the device when they are read, not one by one."""
        hubs.install((message_hub or {}).get("name", self._experiment_name))
        return super().build_message_hub(message_hub)

    def build_model(self, model):
        """mmengine's; timm's norms remember what ``fast_norm`` was when they were made."""
        set_fast_norm(self.cfg.get("fast_norm", False))
        try:
            return super().build_model(model)
        finally:
            set_fast_norm(False)

    def wrap_model(self, model_wrapper_cfg, model):
        """mmengine's; ``memory_format``, ``compile`` and ``train_graphs`` first, since DDP lays out
        its buffers by those of the parameters.
        """
        set_memory_format(model, self.cfg.get("memory_format"))
        self._settle_search(model_wrapper_cfg, model)
        compiled = compile_parts(model, self.cfg.get("compile"))
        if compiled:
            self.logger.info(f"compiled for training: {', '.join(compiled)}")
        graphed = graph_parts(model, self.cfg.get("train_graphs"))
        if graphed:
            self.logger.info(f"CUDA graphs for training: {', '.join(graphed)}")
        return super().wrap_model(model_wrapper_cfg, model)

    def _settle_search(self, wrapper: dict | None, model) -> None:
        """Decide whether DDP has to look for parameters without gradient, where nobody did."""
        if not self.distributed or (wrapper or {}).get("find_unused_parameters", True) is not None:
            return
        wrapper["find_unused_parameters"] = True
        if self.cfg.get("train_cfg") and every_expert_runs(self.cfg.model):
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

    def build_optim_wrapper(self, optim_wrapper):
        """mmengine's, without its line of log for each of a thousand parameters; of the frozen ones
        it even warns.
        """
        level = self.logger.level
        self.logger.setLevel(logging.ERROR)
        try:
            return super().build_optim_wrapper(optim_wrapper)
        finally:
            self.logger.setLevel(level)

    def resume(self, filename: str, *args, **kwargs) -> None:
        """mmengine's; and goes on from the same epoch if this run has other steps an epoch.

        On another number of processes, or with another batch size, the checkpoint's count of steps
        means another share of training: the schedules would end early or late.
        """
        schedulers = self.param_schedulers
        fresh = [dict(s.state_dict()) for s in schedulers] if isinstance(schedulers, list) else []
        try:
            super().resume(filename, *args, **kwargs)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise ValueError(
                f"{filename} was written with other parameter groups ({error}). If it is from a "
                "run before groups were merged, resume it with --cfg-options "
                "optim_wrapper.constructor=DefaultOptimWrapperConstructor"
            ) from error
        lay_out_state(self.optim_wrapper.optimizer)
        loop = self.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        steps = loop.epoch * len(loop.dataloader)
        if loop.iter == steps:
            return
        self.logger.warning(
            f"the checkpoint has {loop.iter} steps in {loop.epoch} epoch(s), this run has {steps}: "
            f"going on from epoch {loop.epoch}, step {steps}; the learning rate is not scaled to "
            "the other batch"
        )
        loop._iter = steps
        for scheduler, start in zip(self.param_schedulers, fresh, strict=True):
            # One that counts epochs or was given in steps is the same in both runs.
            if (scheduler.begin, scheduler.end) != (start["begin"], start["end"]):
                rates = scheduler._last_value
                scheduler.load_state_dict(start)
                scheduler._global_step = steps
                scheduler.last_step = max(min(steps, scheduler.end - 1) - scheduler.begin, -1)
                scheduler._last_value = rates

    def get_hooks_info(self) -> str:
        """Names of the hooks in the order of their priorities, on one line."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)
