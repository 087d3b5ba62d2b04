"""The one model class of every stage."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor

from codmoe.messages import suggest
from codmoe.models import build
from codmoe.models.combiners import Combiner
from codmoe.models.dispatch import (
    Passes,
    PyramidBank,
    Run,
    padded_to,
    routed_rows,
    run_as_it_is,
    run_everything,
    run_experts,
)
from codmoe.models.execution import ExpertTraining, backbone_pass
from codmoe.models.experts.base import Expert
from codmoe.models.frozen_cache import FrozenCache
from codmoe.models.hub import HubModel
from codmoe.models.losses.segmentation import iou_per_image
from codmoe.models.routers import ForcedRouter
from codmoe.models.routers.base import Router
from codmoe.registry import MODELS
from codmoe.structures import CODDataSample, ExpertOutput, RoutingDecision

Mixture = tuple[Tensor, RoutingDecision, dict[str, ExpertOutput]]
"""Logits (N, 1, H, W), the router's decision, and the outputs of the experts that ran."""


class Evaluator(Protocol):
    """Evaluates in place of a model, as :class:`CompiledMoE` does."""

    def mixture(self, images: Tensor, *, dense: bool = False) -> Mixture:
        """See :meth:`ModelLevelMoE.mixture`."""


@dataclass
class RunState:
    """Everything that others write into a model while they train or run it.

    Args:
        progress: Share of training done, in [0, 1]; anneals noise and ramps losses.
            :class:`TrainingProgressHook` keeps it.
        scale_loss: ``GradScaler.scale`` of the optimiser, which experts that run one after another
            need for their own backward passes. :class:`TrainingProgressHook` gives it.
        frozen_cache: Keeps the results of frozen parts. :class:`FrozenCacheHook` gives it.
        prepared: Evaluates in place of the model's own :meth:`ModelLevelMoE.mixture`.
            :meth:`CompiledMoE.attach` sets it.
    """

    progress: float = 1.0
    scale_loss: Callable[[Tensor], Tensor] | None = None
    frozen_cache: FrozenCache | None = None
    prepared: Evaluator | None = None


@MODELS.register_module()
class ModelLevelMoE(BaseModel, HubModel):
    """A shared backbone, complete experts by name, a router that picks ``top_k`` of them for each
    image, and a combiner that weighs their masks.

    The stages differ in configuration only: a lone expert is a mixture of one, joint expert
    training a mixture whose router is uniform. Parts are given as config dicts with a ``type``.

    Args:
        backbone: timm model name, or config of a :class:`Backbone`.
        experts: ``{name: config}``; entries that are None are dropped, so that a config can inherit
            four and switch one off. Every expert axis is in alphabetical order: the order of a
            dict is lost when a config is dumped, and weights would go to the wrong experts.
            Default: the first ``num_experts`` of sinet, pranet, zoomnet, ujsc.
        num_experts: Number of experts, where ``experts`` is not given (default 4); otherwise it
            must agree.
        top_k: Experts per image. Default: 2, or all for a router that takes all (with ``newcomers``
            as many as it took before these came).
        train_top_k: Experts that the mixture is made of in training: a number, ``"all"``, or None
            for ``top_k``; a frozen router does not read it. Where all experts run anyway
            (``train_dispatch="dense"``), a mixture of all costs nothing more and teaches the router
            about those that it would not choose.
        shared_experts: Names of experts that every image gets, as the shared experts of DeepSeekMoE
            (Dai et al., ACL 2024); the router chooses the rest of the ``top_k`` and weighs all.
        router: Config of a :class:`Router`. Default: the evidence router; uniform for one expert.
        newcomers: Experts that joined a trained mixture, in the order in which they came.
            ``router`` is that of the mixture before, and held with all that it has; of the routing,
            the last newcomer's chance against the others is learnt alone: :class:`GrownRouter`.
        combiner: Config of a :class:`Combiner`. Default: weighted sum of probabilities.
        mixture_loss: Config of a loss on the combined map, ``loss(logits, targets)``; None for
            none.
        expert_loss_weight: Factor on every expert's own loss; 0 leaves them out.
        expert_loss_normalization: None; ``"maps"`` divides an expert's own loss by the number of
            maps it supervises.
        expert_execution: ``"together"``; ``"sequential"`` finishes an expert's backward pass before
            the next one begins: the same gradients with the activations of one expert at a time,
            only without ``mixture_loss``; ``"checkpoint"`` computes each expert's activations again
            in the backward pass, at the cost of a second forward pass.
        checkpoint_backbone: Backbone passes whose activations are computed again: None, those at
            further image scales (``"extra"``), ``"all"``.
        routing_losses: ``{name: config}`` of losses on the decision; entries that are None are
            dropped.
        router_truth: Arguments of :class:`RouterTruth`, ``dict(files=(...))``: result files that
            tell the routing losses how good each expert is on each training image, in place of the
            IoU of this model's own experts, which have seen these images. Default: none.
        train_dispatch: ``"sparse"`` runs only the chosen experts in training too, ``"dense"`` all
            of them (needed where a loss compares all experts).
        frozen: Parts that are not trained, e.g. ``("backbone", "experts")``; their parameters get
            no gradient and their batch-norm statistics stay as they are.
        evaluate_all_experts: Whether ``predict`` runs every expert on every image and reports each
            one's map, for comparison; the mixture is the same either way.
        data_preprocessor: Config of the preprocessor.

    Raises:
        ValueError: A part is unknown, ``top_k`` exceeds the experts, or ``frozen`` names no part.
    """

    def __init__(
        self,
        backbone: str | dict = "pvt_v2_b2",
        *,
        experts: Mapping[str, dict | None] | None = None,
        num_experts: int | None = None,
        top_k: int | None = None,
        train_top_k: int | str | None = None,
        shared_experts: Sequence[str] = (),
        router: dict | None = None,
        newcomers: Sequence[str] = (),
        combiner: dict | None = None,
        mixture_loss: dict | None = None,
        expert_loss_weight: float = 0.0,
        expert_loss_normalization: str | None = None,
        expert_execution: str = "together",
        checkpoint_backbone: str | None = None,
        routing_losses: Mapping[str, dict | None] | None = None,
        router_truth: Mapping | None = None,
        train_dispatch: str = "sparse",
        frozen: Sequence[str] = (),
        evaluate_all_experts: bool = False,
        data_preprocessor: dict | None = None,
    ):
        super().__init__(MODELS.build(data_preprocessor or dict(type="CODDataPreprocessor")))
        build.check_choice("train_dispatch", train_dispatch, ("sparse", "dense"))
        build.check_choice("checkpoint_backbone", checkpoint_backbone, (None, "extra", "all"))
        if expert_execution == "sequential" and mixture_loss:
            raise ValueError(
                "expert_execution='sequential' with a mixture_loss: the mixture needs all experts "
                "at once; use 'checkpoint', or mixture_loss=None"
            )
        self.backbone = build.build_backbone(backbone)
        self.own_blocks = build.own_blocks_of(experts)
        self.experts = build.build_experts(experts, num_experts, self.backbone)
        names = tuple(self.experts)
        self.router: Router = build.build_router(
            router, names, top_k, self.backbone.channels, newcomers
        )
        self.router.train_top_k = build.check_train_top_k(train_top_k, self.router, train_dispatch)
        self.router.shared = build.check_shared(shared_experts, self.router)
        self.combiner: Combiner = build.build_combiner(combiner, names)
        self.mixture_loss = MODELS.build(mixture_loss) if mixture_loss else None
        self.router_truth = build.build_router_truth(router_truth, names)
        self.routing_losses = build.build_routing_losses(routing_losses, train_dispatch)
        self.expert_training = ExpertTraining(
            execution=expert_execution,
            normalization=expert_loss_normalization,
            weight=expert_loss_weight,
        )
        self.checkpoint_backbone = checkpoint_backbone
        self.train_dispatch = train_dispatch
        self.evaluate_all_experts = evaluate_all_experts
        self.frozen = (*frozen, *(["router.old"] if newcomers else []))
        self.run_state = RunState()
        build.freeze(self, self.frozen)
        # Built to be used; whoever trains it calls train(), as mmengine's Runner does.
        self.eval()

    @property
    def progress(self) -> float:
        """Share of training done, in [0, 1]; own training loops set it, the engine's hook does."""
        return self.run_state.progress

    @progress.setter
    def progress(self, share: float) -> None:
        self.run_state.progress = share

    @property
    def expert_names(self) -> tuple[str, ...]:
        """Names of the experts, in the (alphabetical) order of every expert axis."""
        return tuple(self.experts)

    @property
    def expert_parts(self) -> Mapping[str, Expert]:
        """``experts``, typed."""
        return cast(Mapping[str, Expert], self.experts)

    def on_route(self, names: Sequence[str], *, run_router: bool = False) -> ModelLevelMoE:
        """The same model, all parts shared, with every image sent to the same experts.

        Args:
            names: Experts, which get equal weights.
            run_router: Whether the router runs all the same, and its choice is waited for.

        Raises:
            ValueError: There is no such expert.
        """
        for name in names:
            if name not in self.experts:
                raise ValueError(f"names: no expert {name!r}; {suggest(name, self.experts)}")
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.router = ForcedRouter(self.router, names, run=run_router)
        other.router.training = self.router.training  # alone: held parts of the other stay held
        parts = [name for name in self.frozen if run_router or not name.startswith("router.")]
        other.frozen = tuple(re.sub(r"^router\.", "router.router.", name) for name in parts)
        other.run_state = RunState()
        return other

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[CODDataSample] | None = None,
        targets: Tensor | None = None,
        mode: str = "tensor",
        return_routing_info: bool = False,
    ):
        """mmengine's three modes.

        Args:
            inputs: Images, RGB, normalised with ImageNet's mean and standard deviation,
                (N, 3, H, W). Sides that the backbone cannot divide are padded, and the result is
                cropped.
            data_samples: Annotations, for ``"predict"``; any ``cache_key`` is for the frozen cache.
            targets: Ground truth in {0, 1}, (N, 1, H, W), for ``"loss"``.
            mode: ``"tensor"`` returns logits; ``"predict"`` data samples with probabilities at the
                original resolution; ``"loss"`` named scalars, of which those with "loss" in their
                name are summed and minimised.
            return_routing_info: In mode ``"tensor"``, also return a dict with ``expert_names``,
                ``top_k_indices`` (N, k), ``top_k_weights`` (N, k), ``probabilities`` (N, E) and
                ``logits`` (N, E).

        Returns:
            For ``"tensor"``: logits (N, 1, H, W), or (logits, routing info).
        """
        if inputs.ndim != 4 or inputs.shape[1] != 3:
            raise ValueError(f"inputs of shape {tuple(inputs.shape)} are not images (N, 3, H, W)")
        if mode == "loss":
            if targets is None:
                raise ValueError("mode='loss' needs targets (N, 1, H, W): the ground truth")
            return self.loss(inputs, targets, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        if mode != "tensor":
            raise ValueError(f"mode={mode!r} is unknown; use 'tensor', 'predict' or 'loss'")
        logits, decision, _ = self.mixture(inputs, dense=self._dense_now())
        return (logits, decision.as_info()) if return_routing_info else logits

    def mixture(
        self,
        images: Tensor,
        *,
        dense: bool = False,
        data_samples: list[CODDataSample] | None = None,
    ) -> Mixture:
        """Images (N, 3, H, W) → mixture logits (N, 1, H, W), decision, outputs of the experts run.

        Args:
            images: Normalised images.
            dense: Run every expert on every image; the mixture does not change.
            data_samples: Annotations with the ``cache_key`` of each image, where there are any.
        """
        prepared = self.run_state.prepared
        if prepared is not None and not self.training and not torch.is_grad_enabled():
            return prepared.mixture(images, dense=dense)
        size = tuple(images.shape[-2:])
        padded = padded_to(images, self.backbone.size_divisor)
        decision, outputs, _ = self._run(padded, dense, None, data_samples)
        logits = self.combiner(outputs, decision, tuple(padded.shape[-2:]))
        return logits[..., : size[0], : size[1]], decision, outputs

    def loss(
        self, images: Tensor, targets: Tensor, data_samples: list[CODDataSample] | None = None
    ) -> dict[str, Tensor]:
        """Losses and monitors of one batch; see :meth:`forward`."""
        divisor = self.backbone.size_divisor
        if any(side % divisor for side in images.shape[-2:]):
            size = " × ".join(str(max(round(s / divisor), 1) * divisor) for s in images.shape[-2:])
            raise ValueError(
                f"training images of {images.shape[-2]} × {images.shape[-1]} pixels: the backbone "
                f"needs multiples of {divisor}; set the train pipeline's size to {size}"
            )
        decision, outputs, losses = self._run(images, self._dense_now(), targets, data_samples)
        if self.mixture_loss is not None:
            logits = self.combiner(outputs, decision, tuple(images.shape[-2:]))
            losses["mixture.loss"] = self.mixture_loss(logits, targets)
            losses["IoU_mixture"] = iou_per_image(logits, targets).mean()
        expert_iou = None
        if len(outputs) == len(self.experts) and all(o.rows is None for o in outputs.values()):
            ious = [iou_per_image(outputs[name].logits, targets) for name in self.experts]
            expert_iou = torch.stack(ious, dim=1)
        truth = expert_iou
        if self.router_truth is not None and self.routing_losses:
            truth = self.router_truth.of(data_samples, images.device)
        for name, routing_loss in self.routing_losses.items():
            losses[f"router.loss_{name}"] = routing_loss(decision, truth)
        losses.update(routing_monitors(decision, expert_iou))
        return losses

    def predict(
        self, images: Tensor, data_samples: list[CODDataSample] | None = None
    ) -> list[CODDataSample]:
        """Fills ``pred_prob``, ``routing`` and, with ``evaluate_all_experts``, ``expert_probs``.

        Logits are resized bilinearly to each sample's ``ori_shape`` and only then turned into
        probabilities, without any normalisation. Maps stay on the model's device, where metrics
        read them; ``routing`` is on the CPU.
        """
        samples = data_samples or [CODDataSample() for _ in images]
        height, width = images.shape[-2:]
        logits, decision, outputs = self.mixture(
            images, dense=self.evaluate_all_experts, data_samples=data_samples
        )
        maps = [logits]
        if self.evaluate_all_experts:
            padded = padded_to(images, self.backbone.size_divisor).shape[-2:]
            for name in self.experts:
                full = F.interpolate(outputs[name].logits.float(), padded, mode="bilinear")
                maps.append(full[..., :height, :width])
        return fill_samples(samples, torch.cat(maps, dim=1), decision, self.expert_names)

    def train(self, mode: bool = True) -> ModelLevelMoE:
        """Sets training mode; frozen parts stay in evaluation mode, batch norm included."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def init_weights(self) -> None:
        """Nothing: every part has its weights from its constructor or from a checkpoint."""

    def passes(self, run: Run = run_as_it_is) -> Passes:
        """The passes of the backbone that experts read, each made by ``run``."""
        return Passes.of(self.backbone, self.own_blocks, run)

    def _dense_now(self) -> bool:
        return self.training and self.train_dispatch == "dense"

    def _run(
        self, images: Tensor, dense: bool, targets: Tensor | None, data_samples: list | None
    ) -> tuple[RoutingDecision, dict[str, ExpertOutput], dict[str, Tensor]]:
        """Decision, outputs and, with ``targets``, the experts' own losses."""
        keys = [sample.get("cache_key") for sample in data_samples or ()]
        state = self.run_state
        if state.frozen_cache is not None and dense and keys and None not in keys:
            compute = partial(run_everything, self.passes(), self.expert_parts)
            pyramid, outputs = state.frozen_cache.through(keys, images, compute)
            return self.router(images, pyramid, state.progress), outputs, {}
        no_backbone_grad = "backbone" in self.frozen
        no_expert_grad = no_backbone_grad and "experts" in self.frozen
        kept, again = self.passes(), self.passes(backbone_pass)
        first = again if self.checkpoint_backbone == "all" else kept
        further = kept if self.checkpoint_backbone is None else again
        bank = PyramidBank(images, first, further=further)
        with torch.no_grad() if no_backbone_grad else nullcontext():
            pyramid = bank.get(1.0, None) if self.router.reads_pyramid else []
        decision = self.router(images, pyramid, state.progress)
        if dense or decision.indices.shape[1] == len(self.experts):
            rows = dict.fromkeys(self.experts)
        elif decision.everywhere is not None:
            rows = dict.fromkeys(decision.everywhere)
        else:
            rows = routed_rows(decision, self.expert_names)
        bank.share({name: e.input_scales for name, e in self.expert_parts.items()}, rows)
        with torch.no_grad() if no_expert_grad else nullcontext():
            if targets is None or not self.expert_training.weight > 0:
                return decision, run_experts(self.expert_parts, bank, rows), {}
            datasets = [sample.get("dataset") for sample in data_samples or ()]
            outputs, losses = self.expert_training(
                self.expert_parts, bank, rows, targets, state.progress, state.scale_loss, datasets
            )
            return decision, outputs, losses


def fill_samples(
    samples: list[CODDataSample], logits: Tensor, decision: RoutingDecision, names: Sequence[str]
) -> list[CODDataSample]:
    """Fills ``pred_prob``, ``routing`` and, where ``logits`` hold them, ``expert_probs``.

    Args:
        samples: One an image; ``ori_shape`` is the size to resize to, the logits' own if absent.
        logits: The mixture's and, after it, every expert's, (N, 1, H, W) or (N, 1 + E, H, W).
        decision: The router's, on these images.
        names: Experts.

    Returns:
        ``samples``.
    """
    # One copy to the host, and one wait, for all three.
    packed = torch.cat([decision.probabilities, decision.weights, decision.indices], dim=1)
    k = decision.indices.shape[1]
    probabilities, weights, indices = packed.float().cpu().split([len(names), k, k], dim=1)
    for i, sample in enumerate(samples):
        shape = tuple(sample.get("ori_shape", logits.shape[-2:]))
        resized = F.interpolate(logits[i : i + 1], shape, mode="bilinear", align_corners=False)
        sample.pred_prob, *others = resized[0].sigmoid()
        if others:
            sample.expert_probs = dict(zip(names, others, strict=True))
        sample.routing = dict(
            probabilities=probabilities[i],
            indices=indices[i].long(),
            weights=weights[i],
            expert_names=list(names),
        )
    return samples


@torch.no_grad()
def routing_monitors(
    decision: RoutingDecision, expert_iou: Tensor | None = None
) -> dict[str, Tensor]:
    """Scalars about one batch, left on the device.

    Args:
        decision: The router's decision on N images.
        expert_iou: IoU of every expert on every image, (N, E), where all were run.

    Returns:
        ``share_<name>``, the mean weight of each expert; ``mutual_information`` H(mean p) −
        mean H(p) in nats, 0 for a router that ignores the image; with ``expert_iou`` also
        ``IoU_<name>``, ``IoU_oracle`` and ``IoU_first_choice``. Empty for a lone expert.
    """
    names = decision.expert_names
    monitors = {}
    if expert_iou is not None:
        monitors.update(
            {f"IoU_{name}": v for name, v in zip(names, expert_iou.mean(0), strict=True)}
        )
    if len(names) == 1:
        return monitors
    if expert_iou is not None:
        first = decision.indices[:, :1]
        monitors["IoU_oracle"] = expert_iou.amax(1).mean()
        monitors["IoU_first_choice"] = expert_iou.gather(1, first).mean()
    p = decision.probabilities.float()
    weights = torch.zeros_like(p).scatter(1, decision.indices, decision.weights.float())
    monitors.update({f"share_{name}": v for name, v in zip(names, weights.mean(0), strict=True)})
    entropy = torch.special.entr
    monitors["mutual_information"] = entropy(p.mean(0)).sum() - entropy(p).sum(1).mean()
    return monitors
