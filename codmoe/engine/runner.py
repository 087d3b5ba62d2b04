"""mmengine's Runner with an opening that fits on a screen."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

import torch
from mmengine.runner import Runner

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

    def build_optim_wrapper(self, optim_wrapper):
        """mmengine's, without its line of log for each of a thousand parameters."""
        level = self.logger.level
        self.logger.setLevel(logging.WARNING)
        try:
            return super().build_optim_wrapper(optim_wrapper)
        finally:
            self.logger.setLevel(level)

    def get_hooks_info(self) -> str:
        """Names of the hooks in the order of their priorities, on one line."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)
