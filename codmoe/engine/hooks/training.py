"""Hooks of every training: progress, statistics, the best weights, and what ends a run early."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmengine.dist import (
    all_reduce,
    all_reduce_params,
    barrier,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MessageHub
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn

from codmoe import __version__
from codmoe.datasets.cod import TolerantDataset
from codmoe.datasets.recognition import marks_of, read, written
from codmoe.datasets.streams import DrawSampler
from codmoe.engine.checkpoints import TRAINED_ON, read_meta, save_weights
from codmoe.engine.ddp import averaged_models, bare_model, wrap_again
from codmoe.engine.hooks.resuming import WAY_OUT, check_weights
from codmoe.engine.sources import read_sources
from codmoe.evaluation.cod_metric import CODMetric
from codmoe.files import save_text
from codmoe.interruption import going_on, interruption
from codmoe.messages import suggest
from codmoe.models.moe import ModelLevelMoE
from codmoe.registry import HOOKS


@HOOKS.register_module()
class TrainingProgressHook(Hook):
    """Keeps the share of training done in the model's ``run_state``: it anneals noise.

    Also what experts that run one after another need to know, the optimiser's loss scale.
    """

    def before_train(self, runner) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            runner.optim_wrapper.epoch_steps = len(runner.train_dataloader)
        scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
        bare_model(runner).run_state.scale_loss = scaler.scale if scaler is not None else None

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        bare_model(runner).run_state.progress = runner.iter / max(runner.max_iters, 1)

    def after_train(self, runner) -> None:
        state = bare_model(runner).run_state
        state.progress, state.scale_loss = 1.0, None


@HOOKS.register_module()
class AverageBuffersHook(Hook):
    """After each epoch gives all processes the same batch-norm statistics: their mean.

    Each process gathers its own in training; without this they would validate different models, and
    the weights that are kept would be none of those that were measured. The same holds for the
    averaged model of an EMAHook, whose buffers follow those of its own process. Buffers of frozen
    parts are left alone: a mean of equal numbers need not be equal to the last bit. In a loop by
    iterations, which has no epochs, before each validation.

    Not mmengine's SyncBuffersHook: it changes frozen parts, and knows neither averaged models nor
    loops by iterations.
    """

    def after_train_epoch(self, runner) -> None:
        self._average(runner)

    def before_val_epoch(self, runner) -> None:
        if isinstance(runner._train_loop, IterBasedTrainLoop):
            self._average(runner)

    def _average(self, runner) -> None:
        if get_world_size() == 1:
            return
        all_reduce_params(_statistics(runner), op="mean")


def _statistics(runner) -> list[torch.Tensor]:
    """Buffers that each process has its own of: of parts that train, and of averaged models."""
    model = bare_model(runner)
    frozen = tuple(f"{name}." for name in getattr(model, "frozen", ()))
    return [
        value
        for module in (model, *averaged_models(runner))
        for name, value in module.named_buffers()
        if value.is_floating_point() and not (frozen and name.startswith(frozen))
    ]


_LESSONS = (
    "images that the router learns from are among those that the experts were trained on, where "
    "they look better than they are"
)
_CHOICES = (
    "validation images are among those that this run, or the weights that it began with, were "
    "trained on: figures of validation look better than they are, and the best epoch is chosen by "
    "them"
)


def _router_alone_learns(model: Any) -> bool:
    """Whether experts are held while the router compares them on the images of this run."""
    if getattr(model, "router_truth", None) is not None:
        return False
    experts, router = (
        part is not None and any(weight.requires_grad for weight in part.parameters())
        for part in (getattr(model, name, None) for name in ("experts", "router"))
    )
    return router and not experts


def _tell_known(runner, images: Sequence[bytes], known: Set[bytes], what: str) -> None:
    if found := sum(mark in known for mark in images):
        runner.logger.warning(f"{found:,} of {len(images):,} {what}")


def _tell_other_images(runner, now: Set[bytes], before: Set[bytes], begun: Set[bytes]) -> None:
    """Warns of a resumed run whose images are no more those of its checkpoint."""
    new, gone = len(now - before), len(before - begun - now)
    if new or gone:
        runner.logger.warning(
            f"other training images than before: {new:,} of {len(now):,} are new, {gone:,} are "
            "gone. Where they are a split of a folder, its other parts changed as well; figures of "
            "before and after may not compare"
        )


@HOOKS.register_module()
class BestWeightsHook(Hook):
    """Leaves ``<directory>/<name>_best.pth`` after each validation that is better than all before.

    Weights only, readable with ``torch.load(..., weights_only=True)["state_dict"]``; with EMA the
    averaged ones, which are what validation measured. Without validation, the last of these.

    Not mmengine's ``CheckpointHook(save_best)``: its files hold objects besides weights, carry the
    epoch in their name, by which no later stage finds them, and replace those of another run.

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
        self.trained_on: set[bytes] = set()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        meta = checkpoint.get("meta")
        self.trained_on |= read((meta or {}).get(TRAINED_ON))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["meta"][TRAINED_ON] = written(self.trained_on)

    def before_train(self, runner) -> None:
        if is_main_process():
            # A test of these images, which may have moved since, says nothing.
            sources, before = read_sources(runner.cfg), self.trained_on
            begun: set[bytes] = set()
            for path in sources.paths if sources else ():
                begun |= read(read_meta(path).get(TRAINED_ON))
            images = [mark for _, mark in marks_of(runner.train_dataloader.dataset) if mark]
            self.trained_on = before | begun | set(images)
            if runner._resume and before:
                _tell_other_images(runner, set(images), before, begun)
            if _router_alone_learns(bare_model(runner)):
                _tell_known(runner, images, begun, _LESSONS)
            if runner._val_loop is not None:
                held = [mark for _, mark in marks_of(runner.val_dataloader.dataset) if mark]
                _tell_known(runner, held, self.trained_on, _CHOICES)
        # The message hub travels in training checkpoints, so a resumed run goes on with its best.
        hub = runner.message_hub
        if hub.get_info("codmoe_run_id") is None:
            hub.update_info("codmoe_run_id", uuid.uuid4().hex)
            return
        meta = read_meta(self.path) if self.path.is_file() else {}
        score, best = meta.get("score"), self.best(runner)
        own = meta.get("run_id") == hub.get_info("codmoe_run_id")
        if best is not None and not own:
            runner.logger.warning(
                f"{self.path} is not this run's any more: its best weights ({self.monitor} "
                f"{best:.4f}, epoch {hub.get_info('codmoe_best_epoch')}) are gone from there, and "
                "the best from now on is kept"
            )
            hub.update_info("codmoe_best", None)
            hub.update_info("codmoe_best_epoch", None)
        # The file may be of a later validation than the checkpoint.
        elif own and score is not None and (best is None or score > best):
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
        check_weights(runner, runner.iter)
        if not is_main_process():
            return
        model = bare_model(runner)
        if score is None:  # in a validation the averaged ones are the model's
            model = next(iter(averaged_models(runner)), model)
        metrics = [] if score is None else runner.val_evaluator.metrics
        meta = dict(
            stage=self.name,
            epoch=runner.epoch,
            monitor=self.monitor,
            score=score,
            threshold=next((m.threshold for m in metrics if isinstance(m, CODMetric)), None),
            expert_names=list(getattr(model, "expert_names", ())),
            config=runner.cfg.pretty_text,
            config_file=str(runner.cfg.get("config_file", "")),
            # Checkpoint and IoU of each expert before this run, where it was measured.
            started_from=runner.message_hub.get_info("codmoe_started_from") or {},
            codmoe=__version__,
            torch=str(torch.__version__),
            **{TRAINED_ON: written(self.trained_on)},
        )
        run_id = runner.message_hub.get_info("codmoe_run_id")
        kept = save_weights(self.path, model, meta, run_id)
        if kept:
            runner.logger.info(f"kept the earlier {self.path.name} as {kept.name}")
        shown = "" if score is None else f" ({self.monitor} {score:.4f}, epoch {runner.epoch})"
        # On the terminal the line of the validation says so.
        runner.logger.info(f"wrote {self.path}{shown}", extra=dict(terminal=score is None))


# Kept by the optimiser's wrapper where it clips.
_NORM = "train/grad_norm"
# A loss scaler that begins at 65,536 has found its scale long before.
_UPDATES = 30
_WAY_OUT = f"nothing is learnt any more; {WAY_OUT}"


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops when the loss is NaN or infinite each time it is looked at, or the norm of the gradient
    in each of the last 30 updates.

    A loss scaler, which mixed precision has in bf16, too, passes over such an update. So a forward
    pass that overflows every time, or a backward pass that does, would train nothing for hours, of
    which only ``loss: nan`` or ``grad_norm: nan`` in the log tells.

    Args:
        interval: Steps between two looks; each waits for the device once.
        patience: Looks in a row that may find a loss that is no number.
    """

    priority = "LOW"

    def __init__(self, interval: int = 50, patience: int = 3):
        self.interval = interval
        self.patience = patience
        self.found = 0

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: dict[str, Any] | None = None
    ) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        self._look_at_gradient(runner.message_hub)
        loss = (outputs or {}).get("loss")
        if loss is None or bool(torch.isfinite(loss).all()):
            self.found = 0
            return
        check_weights(runner, runner.iter + 1)
        self.found += 1
        runner.logger.warning(f"the loss is {float(loss)} at step {runner.iter + 1}")
        if self.found >= self.patience:
            times = f"the last {self.found} times it was looked at, every {self.interval} steps"
            raise ValueError(f"the loss was no number {times}: {_WAY_OUT}")

    def _look_at_gradient(self, hub: MessageHub) -> None:
        if _NORM not in hub.log_scalars:  # nothing is clipped
            return
        norms = hub.get_scalar(_NORM).data[0][-_UPDATES:]
        if len(norms) == _UPDATES and not np.isfinite(norms).any():
            raise ValueError(
                f"the gradient was no number in each of the last {_UPDATES} updates: {_WAY_OUT}"
            )


@HOOKS.register_module()
class UnreadableFilesHook(Hook):
    """Reports what :class:`TolerantDataset` replaced; stops at too much.

    Args:
        interval: Steps after which several processes tell each other what they found; one process
            alone looks after every step.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._told: set[int] = set()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if get_world_size() == 1 or self.every_n_train_iters(runner, self.interval):
            self._look(runner)

    def after_train_epoch(self, runner) -> None:
        self._look(runner)

    def _look(self, runner) -> None:
        dataset = runner.train_dataloader.dataset
        if not isinstance(dataset, TolerantDataset):
            return
        if get_world_size() > 1:
            # On the device that the backend speaks to; all processes then hold the union, report
            # the same and stop at the same step.
            device = next(runner.model.parameters()).device
            flags = dataset.flags.to(device, copy=True)
            all_reduce(flags, op="max")
            # Only ever set: a worker may set another one meanwhile.
            dataset.flags[flags.cpu().bool()] = 1
        new = [index for index in dataset.unreadable() if index not in self._told]
        self._told.update(new)
        for index in new:
            runner.logger.warning(f"replaced by another sample: {dataset.reason(index)}")
        complaint = dataset.complaint() if new else None
        if complaint:
            raise ValueError(complaint)


@HOOKS.register_module()
class BackboneWarmupHook(Hook):
    """For the first epochs ``backbone.body`` gets no gradient and stays in evaluation mode.

    Random heads send it large gradients that mean nothing. What is new in a backbone, as the
    pyramid of a plain ViT, learns from the start. The state follows from the epoch alone, so that a
    run resumes in the middle of it.

    DDP wraps the model anew when the body is held and when it is released: it would wait for the
    body's gradients for ever, or search the graph for what has none in every step to come.

    Args:
        epochs: Epochs without it; 0 for none.
        ramp: Epochs after these in which its learning rate rises linearly to what the schedule
            says: while it was held, the schedule's own warm-up went by.
    """

    def __init__(self, epochs: int = 1, ramp: int = 0):
        for key, value in dict(epochs=epochs, ramp=ramp).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(
                    f"default_hooks.warmup.{key}={value!r} must be a whole number, 0 or more"
                )
        self.epochs = epochs
        self.ramp = ramp
        self._held: list[nn.Parameter] = []
        self._scheduled: list[tuple[dict[str, Any], float]] = []

    def before_train(self, runner) -> None:
        if self.epochs and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            # mmengine's loop by iterations is one epoch without end: it would be held for ever.
            raise ValueError(
                f"default_hooks.warmup.epochs={self.epochs} counts epochs, and "
                f"{type(runner.train_loop).__name__} has none; set "
                "train_cfg.type='EpochBasedTrainLoop' or default_hooks.warmup=None"
            )

    def before_train_epoch(self, runner) -> None:
        body = _body(bare_model(runner))
        if runner.epoch >= self.epochs:
            if self._held:
                self._release()
                wrap_again(runner)
                runner.logger.info("warm-up is over: the backbone learns, too")
            return
        if body is None:
            raise ValueError(
                f"default_hooks.warmup: {type(bare_model(runner).backbone).__name__} has no 'body' "
                "for its pretrained part; set default_hooks.warmup=None"
            )
        held = [p for p in body.parameters() if p.requires_grad]
        for parameter in held:
            parameter.requires_grad_(False)
        self._held += held
        if held:
            wrap_again(runner)
            runner.logger.info(f"warm-up: backbone.body is held until epoch {self.epochs} is over")

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        # The training loop sets the whole model to training after before_train_epoch.
        if self._held:
            body = _body(bare_model(runner))
            if body is not None and any(part.training for part in body):
                body.eval()
        elif self.epochs and self.epochs <= runner.epoch < self.epochs + self.ramp:
            steps = self.ramp * len(runner.train_dataloader)
            share = (runner.iter - self.epochs * len(runner.train_dataloader) + 1) / (steps + 1)
            for group in self._groups(runner):
                self._scheduled.append((group, group["lr"]))
                group["lr"] *= share

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        # Before the schedule makes its step, which goes on from the rate that it finds.
        for group, rate in self._scheduled:
            group["lr"] = rate
        self._scheduled = []

    def after_train(self, runner) -> None:
        self._release()

    def _groups(self, runner) -> list[dict[str, Any]]:
        """Parameter groups of the body."""
        body = _body(bare_model(runner))
        own = {id(p) for p in body.parameters()} if body is not None else set()
        found = []
        for group in runner.optim_wrapper.param_groups:
            inside = [id(p) in own for p in group["params"]]
            if any(inside) and not all(inside):
                raise ValueError(
                    "default_hooks.warmup.ramp: backbone.body shares its rate with other parts; "
                    "give it one of its own (optim_wrapper.paramwise_cfg.custom_keys, "
                    "'backbone.body'), or set ramp=0"
                )
            found += [group] if any(inside) else []
        return found

    def _release(self) -> None:
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._held = []


def _body(model: ModelLevelMoE) -> nn.ModuleList | None:
    """The pretrained part, with the last blocks that experts have of their own."""
    parts = [model.backbone, *(expert.backbone for expert in model.expert_parts.values())]
    bodies = [body for part in parts if (body := getattr(part, "body", None)) is not None]
    return nn.ModuleList(bodies) if bodies else None


class InterruptionHook(Hook):
    """Ends a training that was asked to end: between two steps, all processes after the same one.

    In the midst of an epoch a checkpoint of its own is written, from which the run goes on to the
    same result; where there can be none, the last epoch's stands, and it is said what is lost. It
    is not configured: ``engine.launch`` gives it to every training.
    """

    # After the checkpoint of an epoch, and what else is to be done in it.
    priority = "LOWEST"

    def __init__(self) -> None:
        self.done = 0
        self._statistics: list[list[torch.Tensor]] = []

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            self._statistics = checkpoint.get("rank_statistics", [])

    def before_train(self, runner) -> None:
        self.done = runner.iter
        interruption.farewell = partial(self._farewell, runner)
        interruption.waits = True

    def before_train_epoch(self, runner) -> None:
        # Not earlier: when DDP wraps a model, all processes get those of the first.
        if len(self._statistics) == get_world_size():
            for own, value in zip(_statistics(runner), self._statistics[get_rank()], strict=True):
                own.copy_(value)
        self._statistics = []
        self._look(runner)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.done = runner.iter + 1
        # After the last step of an epoch first its checkpoint is written.
        if _is_between(runner, self.done):
            self._look(runner)

    def after_train_epoch(self, runner) -> None:
        if is_main_process():
            last = _last_checkpoint(runner)
            for path in last.parent.glob("interrupted_*.pth"):
                if path != last:
                    path.unlink()
        self._look(runner)

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if interruption.signum:
            interruption.leave()

    def _look(self, runner) -> None:
        # Gradients that wait for further batches are in no checkpoint; those are few.
        if self._asked() and not runner.optim_wrapper.is_waiting():
            if _is_between(runner, self.done):
                self._save(runner)
            interruption.leave()

    def _asked(self) -> bool:
        """Whether to end here: now, or of several processes after the step that the first to be
        asked has named, which none can have left behind, for each needs the others' gradients.
        """
        if get_world_size() == 1:
            return bool(interruption.signum)
        store = dist.distributed_c10d._get_default_store()
        try:
            if interruption.signum:
                store.compare_set(_STOP, "", f"{interruption.signum} {self.done + 1}")
            if not store.check([_STOP]):
                return False
            signum, step = map(int, store.get(_STOP).split())
        except RuntimeError:  # the process that keeps it has gone
            if interruption.signum:
                return True
            raise
        interruption.signum = interruption.signum or signum
        return self.done >= step

    def _save(self, runner) -> None:
        """Writes a checkpoint of this step, if a run can go on from it to the same result."""
        hook = next((h for h in runner.hooks if isinstance(h, CheckpointHook)), None)
        placed = isinstance(runner.train_dataloader.sampler, DrawSampler)
        loops = (EpochBasedTrainLoop, IterBasedTrainLoop)
        if hook is None or not placed or not isinstance(runner.train_loop, loops):
            return
        if get_world_size() > 1:
            self._statistics = [[] for _ in range(get_world_size())]
            dist.all_gather_object(self._statistics, [v.cpu() for v in _statistics(runner)])
        name = f"interrupted_{self.done}.pth"
        try:
            check_weights(runner, self.done)
            meta = dict(epoch=runner.epoch, iter=self.done)
            atomic = dict(backend="atomic")
            runner.save_checkpoint(hook.out_dir, name, meta=meta, backend_args=atomic)
            if is_main_process():
                path = str(Path(hook.out_dir) / name)
                save_text(Path(runner.work_dir) / "last_checkpoint", path, keep=False)
        except (OSError, ValueError) as error:
            runner.logger.warning(f"no checkpoint of this step: {error}")
        barrier()  # else the launcher might end the one that writes, as others have left

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._statistics:
            checkpoint["rank_statistics"] = self._statistics

    def _farewell(self, runner) -> str:
        saved, path = 0, _last_checkpoint(runner)
        unit, _, number = path.stem.rpartition("_")
        if number.isdecimal():
            saved = int(number) * (len(runner.train_dataloader) if unit == "epoch" else 1)
        if not saved:
            return f" before the first checkpoint: {self.done} steps are lost{going_on(False)}"
        lost = self.done - saved
        but = f" but the last {lost} steps, which are lost" if lost > 0 else ""
        return f": {path} holds everything{but}{going_on(True)}"


_STOP = "codmoe_stop"


def _is_between(runner, step: int) -> bool:
    """Whether no checkpoint of an epoch stands at this step, nor the start."""
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        return 0 < step < runner.max_iters
    return bool(step % len(runner.train_dataloader))


def _last_checkpoint(runner) -> Path:
    try:
        return Path((Path(runner.work_dir) / "last_checkpoint").read_text())
    except (OSError, ValueError):
        return Path(runner.work_dir)
