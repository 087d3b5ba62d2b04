"""Hooks that watch what training makes of the router and of the experts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather, barrier, is_main_process
from mmengine.hooks import Hook

from codmoe.engine.checkpoints import load_parts
from codmoe.engine.ddp import averaged_models, bare_model
from codmoe.engine.handover import measure_experts
from codmoe.engine.hooks.progress import best_hook
from codmoe.evaluation.diversity import MEANING
from codmoe.files import save_json
from codmoe.models.routers import GrownRouter
from codmoe.registry import HOOKS


@dataclass(frozen=True)
class RoutingFigures:
    """The router in one validation, and the IoU of each expert, of the best expert of each image
    and of the mixture: of no expert, and NaN, where not all were run.
    """

    information: float
    first_share: float
    shares: dict[str, float]
    experts: dict[str, float]
    oracle: float
    mixture: float

    @classmethod
    def of(cls, metrics: Mapping[str, float], names: Sequence[str]) -> RoutingFigures | None:
        """From RoutingMetric's scalars; None if there are none."""
        if "mutual_information" not in metrics:
            return None
        oracle = float(metrics.get("IoU_oracle", math.nan))
        return cls(
            information=float(metrics["mutual_information"]),
            first_share=float(metrics["top1_max_share"]),
            shares={name: float(metrics[f"share_{name}"]) for name in names},
            experts={n: float(metrics[f"IoU_{n}"]) for n in names if "IoU_oracle" in metrics},
            oracle=oracle,
            mixture=oracle - float(metrics.get("regret", math.nan)),
        )

    @property
    def best_expert(self) -> str:
        """The expert with the largest mean IoU."""
        return max(self.experts, key=lambda name: self.experts[name])

    @property
    def gap(self) -> float:
        """IoU of the oracle above the best single expert."""
        return self.oracle - self.experts[self.best_expert]

    def gain(self) -> dict[str, float | str | None]:
        """For ``finished.json``: what there was to win, and what of it was won."""
        best = self.experts[self.best_expert]
        return dict(
            best_expert=self.best_expert,
            IoU_best_expert=best,
            IoU_mixture=self.mixture,
            IoU_oracle=self.oracle,
            regret=self.oracle - self.mixture,
            gap_closed=(self.mixture - best) / self.gap if self.gap > 0 else None,
            mutual_information=self.information,
        )


@HOOKS.register_module()
class RouterWatchHook(Hook):
    """Looks at the router after each validation.

    A router is *blind* if the mutual information of image and expert is under ``floor``, and
    *collapsed* if one expert has more than ``max_share`` of all weight or of the first choices.
    What lasts for ``patience`` validations is said once, with the config keys to change; or that
    there is nothing to route, where the oracle is no better than the best single expert. At the end
    the regret, and how much of the way from the best expert to the oracle was gone, of the weights
    that are kept.

    Args:
        floor: Least mutual information in nats; ln E is the most.
        patience: Validations in a row.
        max_share: Share from which an expert is the only one, in (0, 1].
        min_gap: Least IoU of the oracle above the best expert that is worth a router.
    """

    # After BestWeightsHook, which says whether the epoch is the best.
    priority = "NORMAL"

    def __init__(
        self,
        floor: float = 0.03,
        patience: int = 3,
        max_share: float = 0.9,
        min_gap: float = 0.005,
    ):
        if patience < 1 or not 0 < max_share <= 1:
            raise ValueError(
                f"default_hooks.router_watch: patience={patience} must be 1 or more and "
                f"max_share={max_share} lie in (0, 1]"
            )
        self.floor, self.patience = floor, patience
        self.max_share, self.min_gap = max_share, min_gap
        self._state, self._count = "", 0
        self._said: set[str] = set()

    def state_of(self, figures: RoutingFigures) -> str:
        """``"blind"``, ``"collapsed"``, ``"nothing to route"``, or "" for a router that routes."""
        blind = figures.information < self.floor
        # A blind router has the same first choice everywhere, whatever its weights are.
        share = max(figures.shares.values())
        share = share if blind else max(share, figures.first_share)
        if not blind and share <= self.max_share:
            return ""
        if figures.experts and figures.gap < self.min_gap:
            return "nothing to route"
        return "collapsed" if share > self.max_share else "blind"

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        model = bare_model(runner)
        if isinstance(runner._train_loop, dict) or not metrics or not _learns(model):
            return
        figures = RoutingFigures.of(metrics, model.expert_names)
        if figures is None:
            return
        hub = runner.message_hub
        if figures.experts and hub.get_info("codmoe_best_epoch") == runner.epoch:
            hub.update_info("codmoe_routing", dict(figures.gain(), epoch=runner.epoch))
        state = self.state_of(figures)
        self._count = self._count + 1 if state == self._state else 1
        self._state = state
        if not state and self._said:
            self._said.clear()
            runner.logger.info(
                f"router: routes again, mutual information {figures.information:.3f} nats"
            )
        elif state and state not in self._said and self._count >= self.patience:
            self._said.add(state)
            runner.logger.warning(self.message(state, figures, model))

    def after_train(self, runner) -> None:
        hub = runner.message_hub
        told = hub.get_info("codmoe_routing")
        # After an interruption the best may be of a validation that the checkpoint does not know.
        if told is None or told["epoch"] != hub.get_info("codmoe_best_epoch"):
            return
        hub.update_info("codmoe_routing_of_best", dict(told))
        share = told["gap_closed"]
        closed = "no gap to close" if share is None else f"{share:.0%} of the gap closed"
        runner.logger.info(
            f"router on validation (epoch {told['epoch']}): mixture IoU {told['IoU_mixture']:.4f}, "
            f"best expert {told['best_expert']} {told['IoU_best_expert']:.4f}, oracle "
            f"{told['IoU_oracle']:.4f}; {closed}, regret {told['regret']:.4f}, mutual information "
            f"{told['mutual_information']:.3f} nats"
        )

    def message(self, state: str, figures: RoutingFigures, model) -> str:
        """The warning: figures of the router, and the config keys to change."""
        most = math.log(len(figures.shares))
        seen = f"mutual information {figures.information:.3f} of at most {most:.3f} nats"
        favourite = max(figures.shares, key=lambda name: figures.shares[name])
        if state == "nothing to route":
            best = figures.best_expert
            return (
                f"router: nothing to route: the oracle's IoU on validation is "
                f"{figures.oracle:.4f}, the best expert's ({best}) {figures.experts[best]:.4f}. A "
                f"gap of {figures.gap:.4f} (router_watch.min_gap={self.min_gap:g}) is no fault of "
                f"the router ({seen}). Make experts that differ (stage 1 for longer, other "
                f"widths, seeds or input_scales), or use {best} alone"
            )
        if state == "collapsed":
            what = (
                f"{favourite} has {figures.shares[favourite]:.0%} of the weight, and "
                f"{figures.first_share:.0%} of the first choices are of one expert"
            )
            fixes = _against_collapse(model)
        else:
            what, fixes = "it says nearly the same of every image", _against_blindness(model)
        if figures.experts:
            seen += f"; the oracle's IoU is {figures.gap:.4f} above the best expert's"
        return (
            f"router: {state} for {self._count} validations: {what} ({seen}). "
            f"Try, one at a time: {'; '.join(fixes)}"
        )


def _learns(model) -> bool:
    router = getattr(model, "router", None)
    return router is not None and any(p.requires_grad for p in router.parameters())


def _loss(model, attribute: str) -> Iterator[tuple[str, float]]:
    for name, loss in model.routing_losses.items():
        value = getattr(loss, attribute, None)
        if value is not None:
            yield f"model.routing_losses.{name}.{attribute}", value


def _balance(model) -> Iterator[str]:
    for name, loss in model.routing_losses.items():
        if "Balance" in type(loss).__name__:
            yield f"model.routing_losses.{name}.weight={loss.weight:g}"


def _against_blindness(model) -> Iterator[str]:
    taught = [
        name
        for name, loss in model.routing_losses.items()
        if getattr(loss, "needs_all_experts", False)
    ]
    if not taught:
        yield "add model.routing_losses.distill=dict(type='ExpertIoUDistillation')"
    for key, value in _loss(model, "tau"):
        yield f"lower {key}={value:g} (a flat target teaches nothing)"
    for key in _balance(model):
        yield f"lower {key} (it pulls towards equal shares)"
    noise = getattr(model.router, "noise", 0)
    if noise:
        yield f"lower model.router.noise={noise:g}"
    branches = getattr(model.router, "branches", None)
    if branches is not None and len(branches) < 4:
        yield f"switch more of model.router.branches on (now {', '.join(branches)})"
    yield "give the router more held-out images (train_dataloader.dataset.split.fractions)"


def _against_collapse(model) -> Iterator[str]:
    balance = list(_balance(model))
    for key in balance:
        yield f"raise {key}"
    if not balance:
        yield "add model.routing_losses.balance=dict(type='LoadBalanceLoss', weight=0.01)"
    for key, value in _loss(model, "tau"):
        yield f"raise {key}={value:g}"
    yield f"raise model.router.noise={getattr(model.router, 'noise', 0):g}"
    yield "lower optim_wrapper.optimizer.lr"


@HOOKS.register_module()
class FamiliarityHook(Hook):
    """Has a router with a ``fallback`` know the images of each validation, before its weights are
    kept; see :class:`Familiarity`.

    Of a mixture that grew it does nothing: what its router knows is held.
    """

    # Before BestWeightsHook.
    priority = "HIGH"
    held = False

    def before_train(self, runner) -> None:
        self.held = isinstance(bare_model(runner).router, GrownRouter)
        if not self.held and getattr(bare_model(runner).router, "familiarity", None) is None:
            raise ValueError(
                "default_hooks.familiarity needs a router that can fall back; set "
                "model.router.fallback, e.g. 4.0, or default_hooks.familiarity=None"
            )

    def before_val_epoch(self, runner) -> None:
        if not self.held:
            bare_model(runner).router.familiarity.kept = []

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if self.held:
            return
        model = bare_model(runner)
        kept, model.router.familiarity.kept = torch.cat(model.router.familiarity.kept), None
        known = torch.cat(all_gather(kept))
        # Of an EMAHook both: else the average would draw what was learnt back to nothing.
        for each in (model, *averaged_models(runner)):
            each.router.familiarity.learn(known)


BEFORE, AFTER = "experts_before.json", "experts_after.json"


@HOOKS.register_module()
class ExpertsAfterHook(Hook):
    """Measures the experts on the validation images before the first step and, with the weights
    that are kept, after the last.

    Leaves ``<work_dir>/experts_before.json``, which a resumed run goes on from, and
    ``experts_after.json`` with both and their difference: IoU of each expert and of the mixture
    (per image, at 0.5, original resolution), and how unlike the experts err
    (:mod:`codmoe.evaluation.diversity`). Experts that grow alike leave a router nothing to choose
    from.

    Args:
        max_drop: Loss of IoU of an expert from which the log warns.
    """

    # After the best weights are written, before caches are cleared.
    priority = "LOW"

    def __init__(self, max_drop: float = 0.01):
        self.max_drop = max_drop
        self._before: dict[str, Any] | None = None

    def before_train(self, runner) -> None:
        if getattr(runner, "_val_loop", None) is None:
            return
        path = Path(runner.work_dir) / BEFORE
        if runner.iter > 0:
            self._before = json.loads(path.read_text()) if path.is_file() else None
            if self._before is None:
                runner.logger.warning(
                    f"{path} does not exist: what the experts were before training is not known"
                )
            return
        # A stage that starts from other runs' experts has measured them when it loaded them.
        measured = getattr(runner, "experts_before", None)
        self._before = measured or measure_experts(runner, bare_model(runner))
        if is_main_process():
            save_json(path, self._before)

    def after_train(self, runner) -> None:
        if getattr(runner, "_val_loop", None) is None or len(bare_model(runner).experts) < 2:
            return
        model = bare_model(runner)
        best = best_hook(runner)
        earlier = None
        if best is not None:
            barrier()  # it is the main process that wrote it
            earlier = {k: v.detach().clone() for k, v in model.state_dict().items()}
            load_parts(model, best.path)
        try:
            after = measure_experts(runner, model)
        finally:
            if earlier is not None:
                model.load_state_dict(earlier)
        if not is_main_process():
            return
        payload: dict[str, Any] = dict(before=self._before, after=after)
        change: dict[str, dict[str, float]] = {}
        if self._before is not None:
            change = payload["change"] = {
                key: {name: after[key][name] - value for name, value in self._before[key].items()}
                for key in ("IoU", "diversity")
            }
        save_json(Path(runner.work_dir) / AFTER, payload)
        runner.logger.info("\n".join(table(self._before, after)))
        for name, gained in change.get("IoU", {}).items():
            if gained < -self.max_drop:
                dense = model.train_dispatch == "dense"
                runner.logger.warning(
                    f"{name} lost {-gained:.4f} IoU in this stage: raise model.expert_loss_weight, "
                    "lower optim_wrapper.optimizer.lr"
                    + ("" if dense else ", or train with model.train_dispatch='dense'")
                )


def table(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[str]:
    """Lines for the log: each figure before the stage, after it, and the change."""
    lines = [f"experts on {after['images']:,} validation images, with the weights that are kept:"]
    lines.append(f"  {'':23}  before   after   change")
    shown = [(f"IoU {name}", "IoU", name) for name in after["IoU"]]
    shown += [(name.replace("_", " "), "diversity", name) for name in after["diversity"]]
    for title, group, name in shown:
        value = after[group][name]
        earlier = None if before is None else before[group].get(name)
        rest = "" if earlier is None else f"  {value - earlier:+.4f}"
        first = "     -" if earlier is None else f"{earlier:.4f}"
        lines.append(f"  {title:23}  {first}  {value:.4f}{rest}")
    return [*lines, f"  {MEANING}"] if after["diversity"] else lines
