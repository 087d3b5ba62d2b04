"""What mmengine's hooks do not do: tell the model its progress and keep the best weights."""

from __future__ import annotations

import math
import uuid
from pathlib import Path

import torch
from mmengine.dist import all_reduce_params, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop

from codmoe import __version__
from codmoe.engine.checkpoints import read_meta, save_weights
from codmoe.messages import suggest
from codmoe.registry import HOOKS


def bare_model(runner):
    """The model of a Runner without its DDP wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


@HOOKS.register_module()
class TrainingProgressHook(Hook):
    """Keeps ``model.progress``, the share of training done: it anneals noise, ramps losses.

    Also what experts that run one after another need to know, the optimiser's loss scale; and keeps
    the running norms of :class:`GradientBalance` in training checkpoints.
    """

    def before_train(self, runner) -> None:
        scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
        training = getattr(bare_model(runner), "expert_training", None)
        if training is not None:
            training.scale_loss = scaler.scale if scaler is not None else None

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        bare_model(runner).progress = runner.iter / max(runner.max_iters, 1)

    def after_train_epoch(self, runner) -> None:
        # The norms of the last step, too, before the checkpoint: a resumed run has no others.
        balance = _balance(runner)
        if balance is not None:
            balance.update()

    def after_train(self, runner) -> None:
        bare_model(runner).progress = 1.0
        training = getattr(bare_model(runner), "expert_training", None)
        if training is not None:
            training.scale_loss = None

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        balance = _balance(runner)
        if balance is not None:
            checkpoint["gradient_balance"] = balance.ratio.cpu()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        balance, ratio = _balance(runner), checkpoint.get("gradient_balance")
        if balance is not None and ratio is not None and ratio.shape == balance.ratio.shape:
            balance.ratio.copy_(ratio)


def _balance(runner):
    return getattr(getattr(bare_model(runner), "expert_training", None), "balance", None)


@HOOKS.register_module()
class AverageBuffersHook(Hook):
    """After each epoch gives all processes the same batch-norm statistics: their mean.

    Each process gathers its own in training; without this they would validate different models, and
    the weights that are kept would be none of those that were measured. The same holds for the
    averaged model of an EMAHook, whose buffers follow those of its own process. Buffers of frozen
    parts are left alone: a mean of equal numbers need not be equal to the last bit. In a loop by
    iterations, which has no epochs, before each validation.
    """

    def after_train_epoch(self, runner) -> None:
        self._average(runner)

    def before_val_epoch(self, runner) -> None:
        if isinstance(runner._train_loop, IterBasedTrainLoop):
            self._average(runner)

    def _average(self, runner) -> None:
        if get_world_size() == 1:
            return
        model = bare_model(runner)
        averaged = [h.ema_model.module for h in runner.hooks if hasattr(h, "ema_model")]
        frozen = tuple(f"{name}." for name in getattr(model, "frozen", ()))
        buffers = [
            value
            for module in (model, *averaged)
            for name, value in module.named_buffers()
            if value.is_floating_point() and not (frozen and name.startswith(frozen))
        ]
        all_reduce_params(buffers, op="mean")


@HOOKS.register_module()
class BestWeightsHook(Hook):
    """Leaves ``<directory>/<name>_best.pth`` after each validation that is better than all before.

    Weights only, readable with ``torch.load(..., weights_only=True)["state_dict"]``; with EMA the
    averaged ones, which are what validation measured. Without validation, the last weights.

    Args:
        name: Stage, e.g. ``"expert_sinet"``, ``"experts_joint"``, ``"router"``, ``"ensemble"``.
        directory: Folder of the weights of all stages; config key ``checkpoint_dir``.
        monitor: Validation metric to maximise.
    """

    # Before EMAHook (NORMAL) swaps the averaged weights out again.
    priority = "ABOVE_NORMAL"

    def __init__(self, name: str, directory: str = "checkpoints_moe", monitor: str = "IoU"):
        self.path = Path(directory) / f"{name}_best.pth"
        self.name = name
        self.monitor = monitor

    def before_train(self, runner) -> None:
        # The message hub travels in training checkpoints, so a resumed run goes on with its best.
        hub = runner.message_hub
        if hub.get_info("codmoe_run_id") is None:
            hub.update_info("codmoe_run_id", uuid.uuid4().hex)
            return
        # An epoch's checkpoint is written before its validation: the file may know of a later best.
        meta = read_meta(self.path) if self.path.is_file() else {}
        score, best = meta.get("score"), self.best(runner)
        if meta.get("run_id") != hub.get_info("codmoe_run_id") or score is None:
            return
        if best is None or score > best:
            hub.update_info("codmoe_best", score)
            hub.update_info("codmoe_best_epoch", meta["epoch"])

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if isinstance(runner._train_loop, dict) or metrics is None:
            return  # a validation outside training
        if self.monitor not in metrics:
            raise ValueError(
                f"default_hooks.best.monitor={self.monitor!r} is not a validation metric; "
                + suggest(self.monitor, metrics)
            )
        score, best = float(metrics[self.monitor]), self.best(runner)
        if math.isnan(score):
            runner.logger.warning(f"{self.monitor} is NaN after epoch {runner.epoch}; not kept")
        elif best is None or score > best:
            runner.message_hub.update_info("codmoe_best", score)
            runner.message_hub.update_info("codmoe_best_epoch", runner.epoch)
            self._save(runner, score)

    def after_train(self, runner) -> None:
        if self.best(runner) is None:
            self._save(runner, None)

    def best(self, runner) -> float | None:
        """Best score so far, or None."""
        return runner.message_hub.get_info("codmoe_best")

    def _save(self, runner, score: float | None) -> None:
        if not is_main_process():
            return
        model = bare_model(runner)
        meta = dict(
            stage=self.name,
            epoch=runner.epoch,
            monitor=self.monitor,
            score=score,
            expert_names=list(getattr(model, "expert_names", ())),
            config=runner.cfg.pretty_text,
            config_file=str(runner.cfg.get("config_file", "")),
            # Checkpoint and IoU of each expert before this run, where it was measured.
            started_from=runner.message_hub.get_info("codmoe_started_from") or {},
            codmoe=__version__,
            torch=str(torch.__version__),
        )
        run_id = runner.message_hub.get_info("codmoe_run_id")
        kept = save_weights(self.path, model, meta, run_id)
        if kept:
            runner.logger.info(f"kept the earlier {self.path.name} as {kept.name}")
        shown = "" if score is None else f" ({self.monitor} {score:.4f}, epoch {runner.epoch})"
        runner.logger.info(f"wrote {self.path}{shown}")
